"""Families that the shared prompt does not fit generate by their own ``generate``, or say why they cannot."""

import warnings
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers

from masters.data.questions import Questions
from masters.responses.engines import Response
from masters.responses.engines.local import generate
from masters.settings import Sampling

torch.set_num_threads(1)
N, LIMIT, GRID = 3, 6, 4
CLIP = {**families.CLIP, "image_size": 32, "patch_size": 8}
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PATCHES = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
ROPE = {
    "rope_type": "default",
    "mrope_section": [2, 1, 1],
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
}


def patches() -> dict[str, Any]:
    return {"pixel_values": torch.randn(16, 3 * 2 * 8 * 8), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def gemma3() -> tuple[Any, dict[str, Any]]:
    config, _ = families.configuration("gemma3")
    return config, {"pixel_values": torch.randn(1, 3, 32, 32)}


def mistral3() -> tuple[Any, dict[str, Any]]:
    config = transformers.Mistral3Config(
        vision_config=PIXTRAL,
        text_config=families.text(model_type="mistral"),
        image_token_index=families.IMAGE,
        spatial_merge_size=2,
    )
    return config, {"pixel_values": torch.randn(1, 3, 32, 32), "image_sizes": torch.tensor([[32, 32]])}


def llama4() -> tuple[Any, dict[str, Any]]:
    text = families.text(
        model_type="llama4_text",
        intermediate_size_mlp=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=16,
        use_qk_norm=False,
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "pixel_shuffle_ratio": 0.5,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    config = transformers.Llama4Config(
        vision_config=vision, text_config=text, image_token_index=families.IMAGE
    )
    return config, {"pixel_values": torch.randn(1, 3, 32, 32)}


def glm4v() -> tuple[Any, dict[str, Any]]:
    config = transformers.Glm4vConfig(
        vision_config=PATCHES | {"image_size": 32},
        text_config=families.text(model_type="glm4v_text", rope_parameters=ROPE),
        image_token_id=families.IMAGE,
        video_token_id=families.VIDEO,
        image_start_token_id=families.START,
        image_end_token_id=families.START,
        video_start_token_id=families.START,
        video_end_token_id=families.START,
    )
    return config, patches()


def qwen3_5() -> tuple[Any, dict[str, Any]]:
    text = families.text(
        model_type="qwen3_5_text",
        rope_parameters=ROPE,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
    )
    config = transformers.Qwen3_5Config(
        vision_config=PATCHES | {"num_position_embeddings": 64},
        text_config=text,
        image_token_id=families.IMAGE,
        video_token_id=families.VIDEO,
        vision_start_token_id=families.START,
        vision_end_token_id=families.START,
    )
    return config, patches()


def lfm2_vl() -> tuple[Any, dict[str, Any]]:
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
        "num_patches": 16,
    }
    text = families.text(
        model_type="lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, block_multiple_of=8
    )
    config = transformers.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=families.IMAGE, downsample_factor=2
    )
    features = {
        "pixel_values": torch.randn(1, 16, 3 * 8 * 8),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }
    return config, features


MADE = {f.__name__: f for f in (gemma3, mistral3, llama4, glm4v, qwen3_5, lfm2_vl)}
OWN = {"llama4", "qwen3_5", "lfm2_vl"}  # not by the shared prompt


class Tokenizer:
    eos_token_id, image_token_id = families.STOP, families.IMAGE
    video_token_ids, added_tokens_encoder = (families.VIDEO, families.START), MappingProxyType({})

    def __len__(self) -> int:
        return families.VOCABULARY

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def asked(family: str, folder: Path) -> tuple[Any, Any, Questions]:
    torch.manual_seed(0)
    config, _ = MADE[family]()
    model = families.build(config)
    rng = np.random.default_rng(0)
    features = [MADE[family]()[1] for _ in range(3)]
    prompts = []
    for number in range(3):
        image = [families.START] if family in ("glm4v", "qwen3_5") else []
        before, after = rng.integers(1, 60, 2 + 3 * number), rng.integers(1, 60, 3)
        prompts.append(np.array([*before, *image, *[families.IMAGE] * GRID, *after]))
    setting = families.Setting(model, prompts, features, [])
    processor = SimpleNamespace(tokenizer=Tokenizer(), return_mm_token_type_ids=family == "gemma3")
    return model, processor, setting.questions(folder)


def write(
    model: Any, processor: Any, questions: Questions, seed: int | None, batch: int | None = None
) -> list[Response]:
    sampling = Sampling(max_new_tokens=LIMIT)
    n = range(N) if seed is not None else range(1)
    batches = generate(model, processor, questions, range(3), n, sampling, seed, batch)
    return sorted((r for batch in batches for r in batch), key=lambda r: (r.question, r.index))


@pytest.mark.parametrize("family", MADE)
def test_greedy_responses_are_those_of_the_models_own_generate(family: str, tmp_path: Path) -> None:
    model, processor, questions = asked(family, tmp_path / "questions")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        greedy = write(model, processor, questions, None)
    for index, response in enumerate(greedy):
        prompt = torch.from_numpy(questions.prompt(index).astype(np.int64))[None]
        kinds = (prompt == families.IMAGE).long()
        types = {"token_type_ids": kinds} if family == "gemma3" else {}
        if family in ("glm4v", "qwen3_5"):
            types = {"mm_token_type_ids": kinds}
        out = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            **questions.image_features([index]),
            **types,
            do_sample=False,
            suppress_tokens=[families.IMAGE, families.VIDEO, families.START],
            eos_token_id=families.STOP,
            pad_token_id=families.STOP,
            max_new_tokens=LIMIT,
        )
        assert out[0, prompt.shape[1] :].tolist() == response.tokens
    own = any("generates by its own way" in str(w.message) for w in caught)
    assert own == (family in OWN)


@pytest.mark.parametrize("family", MADE)
def test_responses_do_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    model, processor, questions = asked(family, tmp_path / "questions")
    whole = write(model, processor, questions, 0)
    assert len({tuple(r.tokens) for r in whole}) > 3
    for rows in (1, 2):
        for a, b in zip(write(model, processor, questions, 0, batch=rows), whole, strict=True):
            assert (a.question, a.index, a.tokens, a.finish) == (b.question, b.index, b.tokens, b.finish)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
