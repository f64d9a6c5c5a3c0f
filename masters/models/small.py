"""Small LLaVA-class models (CLIP vision tower, Qwen2 text model) that two CPU cores can train.

They are saved and loaded as all other vision-language models; no other module knows whether a model is small.
"""

import math
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from masters.settings import ModelSpec

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


def build(spec: ModelSpec, words: list[str], seed: int) -> tuple[PreTrainedModel, Any]:
    """Return a small untrained model and its processor.

    Linear layers and the patch embedding are initialized with standard deviation 1 / sqrt(fan-in), token
    embeddings with 1 / sqrt(width): with the usual 0.02, models this small ignore the image.

    Args:
        spec: sizes; ``width`` must be a multiple of 8. An attention head has 16 entries if that divides the
            width, otherwise 8.
        words: the vocabulary.
        seed: seed of the initial weights.

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
    """Return the processor of the small models: a token per word, images of 64 x 64 pixels in 16 patches."""
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
