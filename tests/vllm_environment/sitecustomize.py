"""torchvision from PyPI beside torch for CPU: its compiled operators do not load, and importing it fails
unless somebody has said what two of them look like. Nobody calls them; vLLM needs its Python code alone."""

import torch

for name in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
