"""The responses to many questions as arrays mapped from disk, so that training needs no memory per question.

The store (:mod:`masters.responses.store`) keeps responses as they arrive. :func:`response_arrays` writes
what training reads of them, in the order of the questions, into a folder named by a hash of all that
determines it.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from masters.data.questions import Questions, Ragged
from masters.judges import Judge, accuracies
from masters.responses.cached import judged
from masters.responses.store import ResponseStore
from masters.runtime.files import cache_dir, write_folder_once
from masters.runtime.keys import hash_of, key_of


class Groups(Sequence[list[np.ndarray]]):
    """The arrays of each question, ``n`` per question."""

    def __init__(self, arrays: Ragged, n: int) -> None:
        self.arrays, self.n = arrays, n

    def __len__(self) -> int:
        return len(self.arrays) // self.n

    @overload
    def __getitem__(self, place: int) -> list[np.ndarray]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[np.ndarray]]: ...
    def __getitem__(self, place: int | slice) -> list[np.ndarray] | list[list[np.ndarray]]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return [self.arrays[place * self.n + each] for each in range(self.n)]


class ResponseArrays(NamedTuple):
    """Responses in the order of the questions.

    Attributes:
        tokens: token ids of each response.
        behavior: log-probabilities of the tokens under the model that wrote them; None if any has none.
        accuracy: ``(questions, n)`` float32, Eq. 6: the verdict, 0 without a verdict.
    """

    tokens: Groups
    behavior: Groups | None
    accuracy: np.ndarray


def response_arrays(
    store: ResponseStore,
    questions: Questions,
    wanted: Sequence[int],
    n: int,
    judge: Judge,
    labels: Sequence[str] | None = None,
) -> ResponseArrays:
    """Return stored responses, judged, as arrays; see :func:`masters.responses.cached.judged`.

    Raises:
        ValueError: a shard, or a file written here, is damaged; the message says what to do.
    """
    asked = questions.table.iloc[list(wanted)]
    key = key_of(
        "responses",
        store=store.key,
        shards=sorted(line.sha256 for line in store.held().lines),
        questions=hash_of(asked["content"].tolist()),
        labels=hash_of(asked["answer"].tolist() if labels is None else list(labels)),
        n=n,
        judge=judge.name,
    )
    folder = cache_dir() / "response_arrays" / key

    def save(target: Path) -> None:
        complete, accuracy = True, []
        with ExitStack() as files:
            add_tokens = files.enter_context(Ragged.writing(target, "tokens", np.dtype(np.int32)))
            add_behavior = files.enter_context(Ragged.writing(target, "behavior", np.dtype(np.float32)))
            for frame in judged(store, questions, wanted, n, judge, labels):
                complete &= not frame["logprobs"].isna().any()
                accuracy.append(accuracies(frame["correct"]).astype(np.float32))
                for tokens in frame["tokens"]:
                    add_tokens(tokens)
                for logprobs in frame["logprobs"] if complete else ():
                    add_behavior(logprobs)
        if not complete:
            for file in target.glob("behavior.*"):
                file.unlink()
        np.save(target / "accuracy.npy", np.concatenate(accuracy).reshape(-1, n))

    write_folder_once(folder, save)
    there = (folder / "behavior.npy").is_file()
    return ResponseArrays(
        Groups(Ragged(folder, "tokens"), n),
        Groups(Ragged(folder, "behavior"), n) if there else None,
        np.load(folder / "accuracy.npy"),
    )
