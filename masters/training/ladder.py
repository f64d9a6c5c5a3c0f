"""The ladder: small models trained from scratch, first to describe pictures, then to answer questions.

Without the captioning warm-up, models this small learn how answers are worded and ignore the image. A share
of captions can be mixed with the questions after it. A rung with a small share of the labels has described
all pictures, but answered few questions: such a student looks, and has much to learn from a teacher.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from masters.data.labels import CAPTION_PROMPT
from masters.data.questions import Questions, prompt_text
from masters.models.loading import device
from masters.models.small import build
from masters.runtime.checksums import is_whole, write_list
from masters.runtime.files import write_folder
from masters.runtime.keys import hash_of
from masters.settings import ModelSpec
from masters.training.examples import Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import Objective


def train_rung(
    name: str,
    spec: ModelSpec,
    processor: Any,
    questions: Questions,
    labels: Sequence[np.ndarray],
    folder: Path,
    replicate: int = 0,
) -> None:
    """Train one rung and save it, unless its folder is whole; a killed training resumes.

    Args:
        name: the rung; its seed is a hash of the name plus ``replicate``.
        labels: token ids of the label of each question.
        replicate: replicates differ in the initial weights and in the order of the data.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_whole(folder, "config.json"):
            return
        seed = (int(hash_of(name), 16) + replicate) % 2**31
        model: Any = build(spec, _words(processor), seed)[0]
        model.to(device())
        examples = _examples(spec, processor, questions, labels, seed)
        budget = Budget(
            spec.steps,
            spec.batch,
            spec.learning_rate,
            seed=seed,
            log_every=min(20, spec.steps),
            weight_decay=spec.weight_decay,
        )
        start = time.perf_counter()
        work = Path(f"{folder}.run")
        log = train(model, questions, examples, Objective(label_averaging=spec.averaging), budget, work, name)
        # A resumed training's log has the seconds before the stop too.
        seconds = max(time.perf_counter() - start, float(log["seconds"].sum()))

        def save(target: Path) -> None:
            model.save_pretrained(target)
            processor.save_pretrained(target)
            log.to_parquet(target / "log.parquet")
            (target / "training.json").write_text(json.dumps({"steps": spec.steps, "seconds": seconds}))
            write_list(target)

        write_folder(folder, save)
        shutil.rmtree(work, ignore_errors=True)


def end_tokens(processor: Any, texts: list[str]) -> list[np.ndarray]:
    """Return the token ids of some responses, each with an end token."""
    tokenizer = processor.tokenizer
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [np.array([*row, tokenizer.eos_token_id], dtype=np.int64) for row in ids]


def epochs(rng: np.random.Generator, size: int, length: int) -> np.ndarray:
    """Return ``length`` indices below ``size``: one shuffled epoch after another."""
    return np.concatenate([rng.permutation(size) for _ in range(-(-length // size))] or [np.zeros(0, int)])[
        :length
    ]


def _words(processor: Any) -> list[str]:
    """Return the vocabulary without special tokens, in the order of the ids."""
    special = set(processor.tokenizer.all_special_tokens)
    ids = processor.tokenizer.get_vocab()
    return [word for word in sorted(ids, key=lambda word: ids[word]) if word not in special]


def _examples(
    spec: ModelSpec, processor: Any, questions: Questions, labels: Sequence[np.ndarray], seed: int
) -> Examples:
    captioned = questions.table["caption"] != ""  # data of one's own has no captions
    pictures = questions.table[captioned].drop_duplicates("picture")
    where = pictures.index.to_numpy()
    captions = end_tokens(processor, list(pictures["caption"]))
    described = np.arange(spec.steps * spec.batch) < spec.caption_steps * spec.batch
    rng = np.random.default_rng(seed)
    described |= rng.random(len(described)) < spec.caption_share
    described &= len(pictures) > 0
    order = np.empty(len(described), dtype=np.int64)
    order[described] = epochs(rng, len(pictures), int(described.sum()))
    asked = labeled(questions, spec.label_share)
    order[~described] = asked[epochs(rng, len(asked), int((~described).sum()))]
    prompt = _caption_prompt(processor, questions.prompt(int(where[0]))) if len(where) else None

    def make(position: int) -> Example:
        chosen = int(order[position])
        if described[position]:
            return Example(int(where[chosen]), [captions[chosen]], prompt=prompt)
        return Example(chosen, [labels[chosen]])

    return Examples(len(order), make)


def labeled(questions: Questions, share: float) -> np.ndarray:
    """Return the indices of the questions about the last ``share`` of the pictures of each task.

    At least one picture per task is among them. The last, because distillation takes its pool from the first.
    """
    order = questions.table.groupby("task", sort=False)["picture"].transform(lambda p: pd.factorize(p)[0])
    pictures = order.groupby(questions.table["task"], sort=False).transform("max") + 1
    return np.flatnonzero(order >= pictures - np.maximum(1, (share * pictures).round()))


def _caption_prompt(processor: Any, example: np.ndarray) -> np.ndarray:
    """Return the caption prompt with as many image tokens as a question's prompt has."""
    image = processor.image_token_id
    count = int((example == image).sum())
    ids = processor.tokenizer(prompt_text(processor, CAPTION_PROMPT), add_special_tokens=False)["input_ids"]
    return np.array(
        [t for token in ids for t in ([token] * count if token == image else [token])], dtype=np.int32
    )
