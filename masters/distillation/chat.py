"""One answer of a model to a question about pictures, greedy, by the model's own ``generate``."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from masters.data.questions import text_options


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    processor: Any,
    question: str,
    pictures: Sequence[Image.Image],
    max_new_tokens: int,
) -> str:
    """Return the answer to a question about some pictures, or none."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [list(pictures)] if pictures else None
    writer: Any = model
    options = text_options(processor, text)
    inputs = processor(text=[text], images=images, return_tensors="pt", **options).to(model.device)
    made = writer.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    tokens = made[0, inputs["input_ids"].shape[1] :]
    found: str = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    return found.strip()
