"""Tiny untrained models of other families than the ladder's, and the image processors of ``transformers``.

Their own processors want a video processor, which wants torchvision. Nothing here shows a video, so
:class:`QwenOfImages` and :class:`InternOfImages` are those processors without it.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    Gemma3Config,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    InternVLConfig,
    InternVLProcessor,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    PaliGemmaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from masters.data.questions import Questions, Ragged
from masters.models.packing import PackedBatch, pack, response_logits
from masters.objective.loss import cross_entropy

QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
INTERN_SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
SMOL_SPECIAL = [
    "<pad>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
]
SMOL_SPECIAL += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PICTURE {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)
EXTRA_ROWS = 6  # of the output head, which no token has
VOCABULARY = 64  # of the models without words
IMAGE, VIDEO, START, STOP = 60, 61, 62, 63  # their special tokens
FAMILIES = ("llava", "llava_onevision", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl", "internvl")
SIZES = [[(40, 40)], [(40, 90)], [(64, 30), (50, 80)]]  # of the pictures of three questions
LENGTHS = [[3, 1, 4], [2, 4, 1], [16, 12, 14]]  # of their responses
NORMALISED = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def text(**changed: Any) -> dict[str, Any]:
    """A text model of two layers with grouped heads."""
    return {
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": STOP,
        **changed,
    }


def configuration(family: str) -> tuple[Any, Any]:
    """The configuration of a tiny model and an image processor that fits it."""
    if family == "llava":
        config: Any = LlavaConfig(
            vision_config=CLIP,
            text_config=text(),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
        )
        size = {"height": 32, "width": 32}
        return config, CLIPImageProcessorPil(size=size, do_center_crop=False)
    if family == "llava_onevision":
        grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
        siglip = {**CLIP, "model_type": "siglip_vision_model"}
        config = LlavaOnevisionConfig(
            vision_config=siglip,
            text_config=text(),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=grid,
        )
        size = {"height": 32, "width": 32}
        return config, LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grid)
    if family in ("idefics3", "smolvlm"):
        vision = {**CLIP, "model_type": f"{family}_vision", "patch_size": 8}
        kind, processor = {
            "idefics3": (Idefics3Config, Idefics3ImageProcessorPil),
            "smolvlm": (SmolVLMConfig, SmolVLMImageProcessorPil),
        }[family]
        config = kind(vision_config=vision, text_config=text(model_type="llama"), image_token_id=IMAGE)
        return config, processor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    if family == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        }
        config = Qwen2_5_VLConfig(
            text_config=text(model_type="qwen2_5_vl_text", rope_parameters=rope),
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=STOP,
        )
        return config, qwen_images(8, 16 * 16)
    if family == "qwen3_vl":
        return qwen3_vl_config(VOCABULARY, IMAGE, VIDEO, START, STOP), qwen_images(16, 32 * 32)
    if family == "internvl":
        return internvl_config(VOCABULARY, IMAGE, STOP), internvl_images()
    if family == "gemma3":  # looks at a picture in both directions, and back over a window
        config = Gemma3Config(
            text_config=text(
                model_type="gemma3_text",
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            ),
            vision_config={**CLIP, "model_type": "siglip_vision_model"},
            image_token_index=IMAGE,
            mm_tokens_per_image=4,
        )
        return config, CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    if family == "paligemma":  # looks at the whole prompt in both directions
        config = PaliGemmaConfig(
            text_config=text(model_type="gemma"),
            vision_config={**CLIP, "model_type": "siglip_vision_model", "projection_dim": 32},
            image_token_index=IMAGE,
            projection_dim=32,
            hidden_size=32,
        )
        return config, CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    raise ValueError(f"no tiny model of {family}")


def qwen_images(patch: int, least: int) -> Any:
    size = {"shortest_edge": least, "longest_edge": 256 * 256}
    return Qwen2VLImageProcessorPil(size=size, patch_size=patch, merge_size=2, temporal_patch_size=2)


def qwen3_vl_config(rows: int, image: int, video: int, start: int, stop: int) -> Qwen3VLConfig:
    """Two layers and heads of 32, the least that vLLM takes."""
    rope = {
        "rope_type": "default",
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
        "rope_theta": 10000.0,
    }
    return Qwen3VLConfig(
        text_config=text(
            model_type="qwen3_vl_text",
            vocab_size=rows,
            hidden_size=64,
            intermediate_size=128,
            head_dim=32,
            rope_parameters=rope,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            eos_token_id=stop,
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=stop,
        tie_word_embeddings=True,
    )


def internvl_config(rows: int, image: int, stop: int) -> InternVLConfig:
    """Tiles of 32 x 32 pixels in 4 x 4 patches, which become 4 tokens."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [32, 32],
        "patch_size": [8, 8],
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=text(vocab_size=rows, eos_token_id=stop, tie_word_embeddings=True),
        image_token_id=image,
        image_seq_length=4,
    )


def internvl_images() -> Any:
    size = {"height": 32, "width": 32}
    return GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=4, **NORMALISED)


def build(config: Any, seed: int = 0) -> PreTrainedModel:
    """A model in evaluation mode that says different things about different pictures."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(std=0.2)
        model.get_input_embeddings().weight.normal_(std=0.3)
    return model.eval()


@dataclass
class Setting:
    model: PreTrainedModel
    prompts: list[np.ndarray]
    images: list[dict[str, Tensor]]
    responses: list[list[np.ndarray]]

    def pack(self, which: list[int], **layout: bool) -> PackedBatch:
        chosen = [[values[i] for i in which] for values in (self.prompts, self.responses, self.images)]
        return pack(*chosen, **layout)  # type: ignore[arg-type]

    def loss(self, which: list[int], **layout: bool) -> Tensor:
        batch = self.pack(which, **layout)
        return cross_entropy(response_logits(self.model, batch), batch.tokens, batch.mask)

    def questions(self, folder: Path) -> Questions:
        """The same questions as the package keeps them."""
        folder.mkdir(parents=True)
        Ragged.write(folder, "prompts", [prompt.astype(np.int32) for prompt in self.prompts])
        Ragged.write(folder, "images", [np.zeros(1, dtype=np.uint8) for _ in self.prompts])
        for name in self.images[0]:
            Ragged.write(folder, f"image.{name}", [images[name].numpy() for images in self.images])
        count = len(self.prompts)
        table = pd.DataFrame({"id": [f"q{i}" for i in range(count)], "picture": range(count)})
        table.to_parquet(folder / "table.parquet")
        return Questions(folder)

    def alone(self, question: int, response: int) -> Tensor:
        """Logits of one response from the model's own forward pass: one row, no mask, no padding."""
        prompt, tokens = self.prompts[question], self.responses[question][response]
        ids = torch.from_numpy(np.concatenate([prompt, tokens]))[None]
        taken = inspect.signature(self.model.model.forward).parameters
        kinds = (ids == IMAGE).int()
        extra = {name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in taken}
        if self.model.config.model_type == "paligemma":
            extra = {"token_type_ids": (torch.arange(len(ids[0])) >= len(prompt))[None].int()}
        logits: Tensor = self.model(input_ids=ids, **extra, **self.images[question]).logits[0]
        return logits[len(prompt) - 1 : -1]


def processed(processor: Any, sizes: list[tuple[int, int]], rng: np.random.Generator) -> dict[str, Tensor]:
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    made = processor([pictures], return_tensors="pt")
    return {name: tensor for name, tensor in made.items() if name != "num_patches"}


@cache
def setting(family: str) -> Setting:
    """A model with prompts such as ``text, picture, text, picture, text``, of several lengths."""
    rng = np.random.default_rng(0)
    config, processor = configuration(family)
    model = build(config)

    def words(count: int) -> np.ndarray:
        return rng.integers(1, IMAGE, count)

    images, prompts = [], []
    for number, sizes in enumerate(SIZES):
        images.append(processed(processor, sizes, rng))
        with torch.no_grad():
            features = model.model.get_image_features(**images[-1]).pooler_output
        counts = [part.numel() // part.shape[-1] for part in features]
        if len(counts) != len(sizes):  # parts are tiles, or the question
            share = sum(counts) // len(sizes)
            counts = [share] * (len(sizes) - 1) + [sum(counts) - share * (len(sizes) - 1)]
        parts = [words(2 + number)]
        for count in counts:
            parts += [np.full(count, IMAGE), words(3)]
        prompts.append(np.concatenate(parts))
    responses = [[np.append(words(length - 1), STOP) for length in group] for group in LENGTHS]
    return Setting(model, prompts, images, responses)


class QwenOfImages(Qwen3VLProcessor):
    """The processor of Qwen3-VL without videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class InternOfImages(InternVLProcessor):
    """The processor of InternVL without videos."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 4,
        chat_template: Any = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template=chat_template)


class SmolOfImages(SmolVLMProcessor):
    """The processor of SmolVLM without videos, whose numbers its chat template still reads."""

    video_processor = SimpleNamespace(num_frames=1, fps=1)

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_len: int = 4,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_len, chat_template=chat_template)


AutoProcessor.register(SmolVLMConfig, SmolOfImages, exist_ok=True)
AutoProcessor.register(Qwen3VLConfig, QwenOfImages, exist_ok=True)
AutoProcessor.register(InternVLConfig, InternOfImages, exist_ok=True)


def tokenizer(special: list[str], words: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A token a word; the first special token pads, the third ends a response."""
    known = dict.fromkeys([*special, "<unk>", *words, "user", "assistant"])
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[0],
        eos_token=special[2],
        unk_token="<unk>",
        additional_special_tokens=special[1:],
        **named,
    )


def qwen3_vl(folder: Path, words: list[str], videos: bool = False) -> tuple[PreTrainedModel, Any]:
    """A Qwen3-VL and its processor, saved as hub models are; with videos it needs torchvision."""
    ours = tokenizer(QWEN_SPECIAL, words)
    template = TEMPLATE.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor: Any = QwenOfImages(qwen_images(16, 64 * 64), ours, template)
    if videos:
        from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor

        patches = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
        processor = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=processor.image_processor.size, **patches),
            tokenizer=ours,
            video_processor=Qwen3VLVideoProcessor(**patches),
            chat_template=template,
        )
    image, video, start, stop = ours.convert_tokens_to_ids(
        ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_end|>"]
    )
    return _saved(folder, qwen3_vl_config(len(ours) + EXTRA_ROWS, image, video, start, stop), processor)


def internvl(folder: Path, words: list[str]) -> tuple[PreTrainedModel, Any]:
    """An InternVL and its processor, saved as hub models are."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    ours = tokenizer(INTERN_SPECIAL, words, **named)
    template = TEMPLATE.replace("PICTURE", "<IMG_CONTEXT>")
    image, stop = ours.convert_tokens_to_ids(["<IMG_CONTEXT>", "<|im_end|>"])
    config = internvl_config(len(ours) + EXTRA_ROWS, image, stop)
    return _saved(folder, config, InternOfImages(internvl_images(), ours, chat_template=template))


def smolvlm(folder: Path, words: list[str]) -> tuple[PreTrainedModel, Any]:
    """A SmolVLM and its processor, saved as hub models are; the processor needs num2words."""
    ours = tokenizer(SMOL_SPECIAL, words)
    image, stop = ours.convert_tokens_to_ids(["<image>", "<end_of_utterance>"])
    config, images = configuration("smolvlm")
    config.image_token_id, config.text_config.eos_token_id = image, stop
    config.text_config.vocab_size = len(ours) + EXTRA_ROWS
    tokens = (32 // 8 // config.scale_factor) ** 2  # of a tile
    template = TEMPLATE.replace("PICTURE", "<image>").replace("<|im_end|>", "<end_of_utterance>")
    return _saved(folder, config, SmolOfImages(images, ours, tokens, template))


def _saved(folder: Path, config: Any, processor: Any) -> tuple[PreTrainedModel, Any]:
    model = build(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor
