"""Teacher and reference log-probabilities on stored responses, computed once and kept on disk.

Neither the responses nor a teacher at a given mask ratio change during training. So the teacher's next-token
distribution at every response token (P_T of Eq. 4 and 5), and the reference model's, is computed once for all
runs that share it. It is stored as float16: the error of a log-probability is at most 0.004 nats down to
-16 nats, and a distribution takes two bytes per vocabulary entry. For a large vocabulary only the k largest
entries and the mass of the rest are stored, see :mod:`masters.objective.topk`.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from masters.data.questions import Questions, Ragged
from masters.models.compatibility import reads_packed
from masters.models.packing import pack, response_projection
from masters.models.source import Source
from masters.objective.logits import chunks, dense, select
from masters.objective.topk import Packed, bytes_per_token, encode, storage_bytes
from masters.runtime.files import cache_dir, write_folder_once
from masters.runtime.keys import key_of
from masters.runtime.memory import is_full, release
from masters.runtime.progress import report

BATCH = 16  # questions per forward pass
SECONDS = "seconds.txt"


class TopK:
    """Top-k distributions of responses, mapped from disk.

    Args:
        folder: holds the packed rows, ``topk.npy`` and ``topk.offsets.npy``, and ``topk.shape.npy``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, Ragged(folder, "topk")
        self.vocabulary, self.k = np.load(folder / "topk.shape.npy").tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Packed:
        return Packed(torch.from_numpy(np.array(self.rows[index])), self.vocabulary, self.k)


def distributions(
    reader: Source,
    questions: Questions,
    wanted: Sequence[int],
    groups: Sequence[Sequence[np.ndarray]],
    top_k: int | None = None,
    vocabulary: int | None = None,
) -> Ragged | TopK:
    """Return a model's log-probabilities over its vocabulary at each token of the responses, in nats.

    Args:
        wanted: indices of the questions.
        groups: token ids of each question's responses; the same number for all questions.
        top_k: entries to keep per distribution; None keeps all.
        vocabulary: tokens in the tokenizer; rows of the output head beyond them are dropped. None keeps them.

    Returns:
        One array ``(tokens, vocabulary)`` per response, in order, mapped from disk.
    """
    lengths = np.array([len(tokens) for group in groups for tokens in group], dtype=np.int32)
    contents = list(questions.table["content"].iloc[list(wanted)])
    key = key_of(
        "logprobs",
        weights=reader.weights(),
        ratio=reader.ratio,
        choice=reader.choice.key() or None,
        texts=_hash_of_texts(groups, lengths, contents),
        top_k=top_k,
        vocabulary=vocabulary,
    )
    folder = cache_dir() / "distributions" / key

    def save(target: Path) -> None:
        start = time.perf_counter()
        _score(reader, questions, wanted, groups, lengths, top_k, vocabulary, target)
        (target / SECONDS).write_text(str(time.perf_counter() - start))

    write_folder_once(folder, save)
    return Ragged(folder, "logprobs") if top_k is None else TopK(folder)


def _hash_of_texts(groups: Sequence[Sequence[np.ndarray]], lengths: np.ndarray, contents: list[str]) -> str:
    """Return ``hash_of([all tokens, lengths, contents])``, without all tokens in one text."""
    digest = hashlib.sha256(b'["')
    for group in groups:
        for tokens in group:
            digest.update(np.asarray(tokens, dtype=np.int32).tobytes().hex().encode())
    rest = json.dumps([lengths.tobytes().hex(), contents], separators=(",", ":"))
    digest.update(b'",' + rest.removeprefix("[").encode())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _score(
    reader: Source,
    questions: Questions,
    wanted: Sequence[int],
    groups: Sequence[Sequence[np.ndarray]],
    lengths: np.ndarray,
    top_k: int | None,
    vocabulary: int | None,
    folder: Path,
) -> None:
    if vocabulary:
        _check_disk(reader, int(lengths.sum()), vocabulary, top_k, folder)
    model = reader.load()
    together = reads_packed(model, questions)
    vocabulary = vocabulary or model.get_output_embeddings().weight.shape[0]
    name, width, kind = "logprobs", vocabulary, "float16"
    if top_k is not None:
        name, width, kind = "topk", bytes_per_token(vocabulary, top_k), "uint8"
        np.save(folder / "topk.shape.npy", [vocabulary, top_k])
    offsets = np.cumsum([0, *lengths])
    np.save(folder / f"{name}.offsets.npy", offsets)
    shape = (int(lengths.sum()), width)
    kept = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS; writing to a map on a full disk kills the process
        with open(folder / f"{name}.npy", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    what = f"scoring responses with {reader.title}"
    start, size, each = 0, BATCH, len(groups[0]) if groups else 0
    while start < len(wanted):
        indices, chosen = wanted[start : start + size], groups[start : start + size]
        end = int(offsets[each * start])
        try:
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
        except (RuntimeError, MemoryError) as error:
            if not is_full(error) or size == 1:
                raise
            size = min(size, len(indices)) // 2 or 1
        else:
            start += len(indices)
            report(what, start, len(wanted))
            continue
        release()
    kept.flush()


def _check_disk(reader: Source, tokens: int, vocabulary: int, top_k: int | None, folder: Path) -> None:
    needed, free = storage_bytes(tokens, vocabulary, top_k), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the log-probabilities of {reader.title} at {tokens:,} tokens need {needed / 2**30:,.1f} GiB "
            f"and {folder.parent} has {free / 2**30:,.1f} GiB left; keep fewer entries per token (top_k "
            "64), or set MASTERS_CACHE to a larger disk"
        )
