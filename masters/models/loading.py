"""Models: loading by name or folder, and the small ladder that two CPU cores can train.

The small models are ordinary LLaVA-class models (CLIP vision tower, Qwen2 text model) with small
configurations, saved and loaded as every other vision-language model is. Nothing outside this module
knows whether a model is small.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.utils import logging as transformers_logging

from masters.settings import ModelSpec

# Models here load in milliseconds; a progress bar for each would flood a notebook.
transformers_logging.disable_progress_bar()

IMAGE_SIZE = 64
PATCH_SIZE = 16
HEAD_SIZES = (16, 8)
SPECIAL = {
    "pad": "<pad>",
    "unk": "<unk>",
    "image": "<image>",
    "user": "<user>",
    "assistant": "<assistant>",
    "eos": "<end>",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% if message['role'] == 'assistant' %}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def load(name_or_folder: str | Path) -> tuple[PreTrainedModel, Any]:
    """A vision-language model and its processor, from a hub name or a folder, safetensors only.

    Returns:
        The model in evaluation mode, on the GPU where there is one, and its processor.

    Raises:
        ValueError: there is no such model, or it holds no safetensors weights, or damaged ones.
    """
    try:
        processor = AutoProcessor.from_pretrained(name_or_folder, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            name_or_folder, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot load a vision-language model from {str(name_or_folder)!r}: {reason}; "
            "give a hub name or a folder with config.json and *.safetensors"
        ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), processor  # type: ignore[arg-type]  # a decorator hides the parameter's type


def build(spec: ModelSpec, words: list[str], seed: int) -> tuple[PreTrainedModel, Any]:
    """A small untrained model and its processor.

    Every linear layer and the patch embedding start from a normal distribution of standard deviation
    1 / sqrt(fan-in), token embeddings from 1 / sqrt(width): with the usual 0.02, models of this size do
    not learn to look at the image.

    Args:
        spec: sizes; ``width`` must be a multiple of 8. An attention head has 16 entries where that divides
            the width, otherwise 8.
        words: the vocabulary.
        seed: of the initial weights.

    Raises:
        ValueError: no head size divides the width.
    """
    fitting = [size for size in HEAD_SIZES if spec.width % size == 0]
    if not fitting:
        raise ValueError(f"width {spec.width} of a small model must be a multiple of {min(HEAD_SIZES)}")
    processor = build_processor(words)
    heads = spec.width // fitting[0]
    vision = CLIPVisionConfig(
        hidden_size=spec.width,
        intermediate_size=3 * spec.width,
        num_hidden_layers=spec.vision_layers,
        num_attention_heads=heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    tokenizer = processor.tokenizer
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.width,
        intermediate_size=3 * spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.normal_(std=1 / math.sqrt(module.weight[0].numel()))
        for module in model.modules():  # last, because the output head shares this weight
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_(std=1 / math.sqrt(module.embedding_dim))
    return model, processor


def build_processor(words: list[str]) -> Any:
    """The processor of the small models: one token a word, images of 64 x 64 pixels in 16 patches."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk"]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL["pad"],
        unk_token=SPECIAL["unk"],
        eos_token=SPECIAL["eos"],
        additional_special_tokens=[SPECIAL["image"], SPECIAL["user"], SPECIAL["assistant"]],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=SPECIAL["image"],
    )


def parameter_count(model: PreTrainedModel) -> int:
    """Weights of a model, a shared weight counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_hash(model: PreTrainedModel) -> str:
    """16 hexadecimal digits of the SHA-256 over the names, shapes, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def banned_tokens(processor: Any, rows: int) -> list[int]:
    """Return the token ids that must never be sampled: placeholders of images and the like, and empty rows.

    A sampled placeholder would break the next forward pass. The padding, the unknown word and the two roles
    of the small models are banned, too.

    Args:
        rows: of the output head; those beyond the tokenizer have no token.
    """
    tokenizer = processor.tokenizer
    found: set[int] = set()
    tokens: list[Any] = [SPECIAL[name] for name in ("pad", "unk", "user", "assistant")]
    for kind in ("image", "video", "audio"):
        for holder in (processor, tokenizer):
            tokens.append(getattr(holder, f"{kind}_token", None))
            for name in (f"{kind}_token_id", f"{kind}_token_ids"):  # some families have a number in either
                ids = getattr(holder, name, None)
                found |= set(ids if isinstance(ids, list | tuple) else [ids]) - {None}
    known = tokenizer.added_tokens_encoder
    found |= {known[token] for token in tokens if isinstance(token, str) and token in known}
    return sorted((found | set(range(len(tokenizer), rows))) - {tokenizer.eos_token_id})


def end_tokens(processor: Any, config: GenerationConfig | None) -> list[int]:
    """Return all token ids that end a response: the tokenizer's, then those of the generation config."""
    ends = getattr(config, "eos_token_id", None)
    more = ends if isinstance(ends, list) else [ends]
    known = [processor.tokenizer.eos_token_id, *more]
    return list(dict.fromkeys(end for end in known if end is not None))


def prompt_positions(
    model: PreTrainedModel, input_ids: torch.Tensor, attention: torch.Tensor, images: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the tokens of left-padded prompts stand, and where a response to each begins.

    Args:
        model: that reads the prompts.
        input_ids: ``(rows, tokens)``.
        attention: ``(rows, tokens)``, 0 where there is padding.
        images: what the processor made of the pictures.

    Returns:
        ``(rows, tokens)``, or ``(3, rows, tokens)`` for models whose images have three coordinates (Qwen-VL),
        and ``(rows,)``.
    """
    positions = image_positions(model, input_ids, attention, images)
    if positions is None:
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        return positions, positions[:, -1] + 1
    return positions, positions.amax((0, 2)) + 1


def image_positions(
    model: PreTrainedModel, input_ids: torch.Tensor, attention: torch.Tensor, images: dict[str, torch.Tensor]
) -> torch.Tensor | None:
    """Where tokens stand in models whose images have three coordinates (Qwen-VL); None for all others.

    Args:
        model: that reads the prompts.
        input_ids: ``(rows, tokens)``.
        attention: ``(rows, tokens)``, 0 where a token takes no part; its position is 0.
        images: what the processor made of the pictures, in the order of the rows.

    Returns:
        ``(3, rows, tokens)``: time, height and width.
    """
    inner: Any = model.model
    if not hasattr(inner, "get_rope_index"):
        return None
    positions, _ = inner.get_rope_index(
        input_ids,
        mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
        image_grid_thw=images.get("image_grid_thw"),
        attention_mask=attention,
    )
    return positions


def check_same_tokens(student: Any, teacher: Any) -> None:
    """Refuse a teacher that reads other tokens than the student, in vocabulary, tokenizer or chat template.

    Both read the same prompt, which the student's chat template makes, so a teacher with another template
    reads one that it was not trained on.

    Raises:
        ValueError: they differ; the message says in what.
    """
    check_same_vocabulary(student, teacher)
    words = "The 2 quick foxes' colour: dark-blue?\n"
    ours, theirs = (p.tokenizer(words, add_special_tokens=False)["input_ids"] for p in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"student and teacher have one vocabulary and cut text differently ({len(ours)} and "
            f"{len(theirs)} tokens for {words.strip()!r}); choose a teacher of the student's family"
        )
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
    shown = [p.apply_chat_template(asked, add_generation_prompt=True) for p in (student, teacher)]
    if shown[0] != shown[1]:
        raise ValueError(
            f"student and teacher have different chat templates: a question is {shown[0]!r} and "
            f"{shown[1]!r}; choose a teacher of the student's family, or save it with the student's template"
        )


def check_same_vocabulary(student: Any, teacher: Any) -> None:
    """Distillation compares distributions token by token, so both processors must agree on the tokens.

    Raises:
        ValueError: the vocabularies differ; the message says how.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        different = {token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)}
        raise ValueError(
            f"student and teacher differ in {len(different)} tokens "
            f"(student {len(ours)}, teacher {len(theirs)}, e.g. {sorted(different)[0]!r}); "
            "choose a teacher of the student's family"
        )
