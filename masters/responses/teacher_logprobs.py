"""What a model would have said at every token of cached responses: its log-probabilities, kept on disk.

Responses do not change during training, and neither does a teacher at a given mask ratio. So its whole
next-token distribution at every response token (the P_T of Eq. 4 and 5) is computed once for all runs
that share it, and so is the reference model's. Kept as float16, whose error in a log-probability is at most
0.004 down to minus 16. A whole distribution takes two bytes an entry of the vocabulary; for a large one
only the k largest are kept, with the mass of the rest, see :mod:`masters.objective.topk`.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from masters.data.questions import Questions, Ragged
from masters.models.compatibility import reads_packed
from masters.models.loading import load
from masters.models.packing import pack, response_projection
from masters.objective.logits import chunks, dense, select
from masters.objective.topk import Packed, bytes_per_token, encode
from masters.responses.source import Source
from masters.runtime.files import cache_dir, hash_of
from masters.runtime.progress import report

VERSION = 2
BATCH = 16
SECONDS = "seconds.txt"


class TopK:
    """Packed distributions of responses in a file, mapped into memory.

    Args:
        folder: where the packed rows, ``topk.npy`` and ``topk.offsets.npy``, and ``topk.shape.npy`` are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, Ragged(folder, "topk")
        self.vocabulary, self.k = np.load(folder / "topk.shape.npy").tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Packed:
        return Packed(torch.from_numpy(np.array(self.rows[index])), self.vocabulary, self.k)


def distributions(
    scorer: Source,
    questions: Questions,
    wanted: Sequence[int],
    groups: Sequence[Sequence[np.ndarray]],
    top_k: int | None = None,
    vocabulary: int | None = None,
    root: Path | None = None,
) -> Ragged | TopK:
    """Log-probabilities of a model over its vocabulary at each token of some responses.

    Args:
        scorer: the model with its mask.
        questions: what the responses answer.
        wanted: indices of the questions.
        groups: for each of them, the token ids of its responses; the same number for all.
        top_k: how many entries of each distribution to keep; None keeps it whole.
        vocabulary: tokens that the tokenizer has; rows of the output head beyond them take no part. None
            keeps them.
        root: where they are kept; in the cache when None.

    Returns:
        An array ``(tokens, vocabulary)`` for each response, in order, mapped from disk.
    """
    text = np.concatenate([tokens for group in groups for tokens in group]).astype(np.int32)
    lengths = np.array([len(tokens) for group in groups for tokens in group], dtype=np.int32)
    contents = list(questions.table["content"].iloc[list(wanted)])
    bytes_hash = hash_of([text.tobytes().hex(), lengths.tobytes().hex(), contents])
    what = [VERSION, scorer.weights(), scorer.ratio, bytes_hash, top_k, vocabulary]
    if choice := scorer.choice.key():
        what.append(choice)
    folder = (root or cache_dir() / "distributions") / hash_of(what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            temporary = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                start = time.perf_counter()
                _score(scorer, questions, wanted, groups, lengths, top_k, vocabulary, temporary)
                (temporary / SECONDS).write_text(str(time.perf_counter() - start))
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return Ragged(folder, "logprobs") if top_k is None else TopK(folder)


def seconds(scored: Ragged | TopK) -> float:
    """How long the scoring took that made these distributions, loading the model included."""
    return float((scored.folder / SECONDS).read_text())


@torch.inference_mode()
def _score(
    scorer: Source,
    questions: Questions,
    wanted: Sequence[int],
    groups: Sequence[Sequence[np.ndarray]],
    lengths: np.ndarray,
    top_k: int | None,
    vocabulary: int | None,
    folder: Path,
) -> None:
    model, _ = load(scorer.folder)
    if scorer.ratio:
        scorer.choice.mask(model).apply(scorer.ratio)
    together = reads_packed(model, questions)
    vocabulary = vocabulary or model.get_output_embeddings().weight.shape[0]
    name = "logprobs" if top_k is None else "topk"
    np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *lengths]))
    width, kind = (
        (vocabulary, np.float16) if top_k is None else (bytes_per_token(vocabulary, top_k), np.uint8)
    )
    if top_k is not None:
        np.save(folder / "topk.shape.npy", [vocabulary, top_k])
    shape = (int(lengths.sum()), width)
    kept = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
    what = f"scoring responses with {scorer.title}"
    end = 0
    for start in range(0, len(wanted), BATCH):
        indices = wanted[start : start + BATCH]
        chosen = groups[start : start + BATCH]
        batch = pack(
            [questions.prompt(index) for index in indices],
            chosen,
            [questions.image_features([index]) for index in indices],
            together=together,
        ).to(model.device)
        logits = select(response_projection(model, batch, vocabulary), batch.mask)
        for rows in chunks(logits.shape[0], vocabulary):
            scores = dense(select(logits, rows)).float().log_softmax(-1)
            made = scores.half().cpu().numpy() if top_k is None else encode(scores, top_k)
            kept[end : end + len(made)] = made
            end += len(made)
        report(what, start + len(indices), len(wanted))
    kept.flush()
