"""The assets of a profile: its questions, models, responses and log-probabilities.

Each is computed on first use and stored under a key of all that determines it, so notebooks and runs share
it (:mod:`masters.runtime.keys`).

Choices where the paper is silent: the student's responses are generated once, by the base student; the
reference of the KL is the base student, for a second teacher too; several teachers get equal shares of the
steps.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from masters.data.labels import REGISTERS
from masters.data.questions import Questions, Ragged
from masters.experiments.arms import LABELS
from masters.experiments.curriculum import WantedLogprobs, WantedResponses
from masters.judges import Judge, corpus
from masters.judges.embedding import EmbeddingJudge
from masters.judges.llm import LLMJudge
from masters.judges.rule import RuleJudge
from masters.judges.scorers import scorer_of
from masters.masking.choice import PAPERS, MaskChoice
from masters.models.calibration import calibrated
from masters.models.loading import load_processor, local_folder, skeleton
from masters.models.same_inputs import check_same_inputs
from masters.models.small import build_processor
from masters.models.source import Source
from masters.own_data.tasks import labels_of, questions_of, words_of
from masters.responses.arrays import ResponseArrays, response_arrays
from masters.responses.cached import engine_of, generate, judged, open_store
from masters.responses.store import ResponseStore
from masters.responses.teacher_logprobs import TopK, distributions
from masters.runtime import distributed, workers
from masters.runtime.checksums import is_whole
from masters.runtime.files import cache_dir
from masters.runtime.keys import key_of
from masters.runtime.progress import report
from masters.settings import Profile, load_profile
from masters.training.ladder import end_tokens, train_rung


class Lab:
    """The assets of a profile, computed on first use and stored."""

    def __init__(self, profile: str | Profile) -> None:
        self.profile = load_profile(profile) if isinstance(profile, str) else profile
        self.engine = engine_of(self.profile.generation)
        self._questions: dict[str, Questions] = {}
        self._trained: set[str] = set()
        self._labels: dict[tuple[float, tuple[str, ...]], tuple[pd.DataFrame, list[np.ndarray]]] = {}

    @cached_property
    def judge(self) -> Judge:
        """The judge of the rewards and of every evaluation, unless an arm has another."""
        if self.profile.reward == "rule":
            return RuleJudge()
        return scorer_of(self.profile.reward, self.profile.folder)

    # --- questions and models -------------------------------------------------------------------------------

    @cached_property
    def processor(self) -> Any:
        """The processor shared by student and teachers."""
        paths = {name: spec.path for name, spec in self.profile.ladder.items() if spec.path}
        if not paths:
            return build_processor(words_of(self.profile.tasks, self.profile.folder))
        found = {name: load_processor(path) for name, path in paths.items()}
        student = found.get("student", next(iter(found.values())))
        for processor in found.values():
            if processor is not student:
                check_same_inputs(student, processor)
        return student

    def questions(self, split: str) -> Questions:
        """Return the encoded questions of a split, of all tasks of the profile."""
        if split not in self._questions:
            limit = getattr(self.profile, f"{split}_questions")
            tasks, folder = self.profile.tasks, self.profile.folder
            self._questions[split] = questions_of(tasks, split, limit, self.processor, folder)
        return self._questions[split]

    @cached_property
    def pool(self) -> list[int]:
        """Indices of the training questions that the models answer before distillation."""
        each = max(1, self.profile.distillation.questions // len(self.profile.tasks))
        table = self.questions("train").table
        return [int(index) for index in table.groupby("task", sort=False).head(each).index]

    def labels_with(
        self, wrong_share: float, registers: tuple[str, ...] | None = None
    ) -> tuple[pd.DataFrame, list[np.ndarray]]:
        """Return the labels with a share of wrong ones. Nested: labels wrong at 20 % stay wrong at 40 %.

        Args:
            registers: None: those of the profile.
        """
        registers = registers or self.profile.registers or REGISTERS
        key = wrong_share, registers
        if key not in self._labels:
            tasks, limit = self.profile.tasks, self.profile.train_questions
            frame = labels_of(self.questions("train"), tasks, limit, wrong_share, 0, registers)
            self._labels[key] = frame, end_tokens(self.processor, list(frame["label"]))
        return self._labels[key]

    def tokens_of_labels(
        self, noise: float, kind: str = "labels", questions: Sequence[int] | None = None
    ) -> list[list[np.ndarray]]:
        """Return the token ids of labels, as groups of one response.

        Args:
            noise: share of wrong labels; the profile's ``wrong_labels`` if that is larger.
            kind: ``labels`` in the profile's registers, or ``rationales`` that end in the answer.
            questions: indices of the training questions; None: the pool.
        """
        registers = None if kind == "labels" else ("rationale",)
        _, tokens = self.labels_with(max(noise, self.profile.wrong_labels), registers)
        return [[tokens[index]] for index in (self.pool if questions is None else questions)]

    def folder(self, model: str) -> Path:
        """Return where a rung is saved, training the ladder first if it is missing."""
        spec = self.profile.ladder[model]
        if spec.path:
            return local_folder(spec.path)
        if not self.is_trained(model):
            self._train_ladder()
        return self._ladder_folder(model)

    def skeleton(self, model: str) -> Any:
        """Return a rung without its weights; of a hub model only the configuration is downloaded."""
        return skeleton(self.profile.ladder[model].path or self.folder(model))

    def is_trained(self, model: str) -> bool:
        """Return whether a rung is ready to use without training."""
        if model not in self._trained and not self.profile.ladder[model].path:
            if not is_whole(self._ladder_folder(model), "config.json"):
                return False
            self._trained.add(model)  # files are read once
        return True

    def source(self, model: str, ratio: float = 0.0, choice: MaskChoice = PAPERS) -> Source:
        """Return a rung, masked at a ratio, as a source of responses or log-probabilities."""
        spec = self.profile.ladder[model]
        chosen = self.choice(model, choice.at(ratio))
        return Source(model, self.folder(model), ratio, chosen, spec.dtype, spec.device_map)

    def choice(self, model: str, choice: MaskChoice) -> MaskChoice:
        """Return a mask choice with the activation norms it needs, measured on first use."""
        if choice.criterion != "activation":
            return choice
        weights, train = self.source(model).weights(), self.questions("train")
        return replace(choice, norms=calibrated(self.folder(model), weights, train, self.pool))

    def _ladder_folder(self, model: str) -> Path:
        spec = self.profile.ladder[model]
        key = key_of(
            "rung",
            spec=spec.determining(),
            questions=self.questions("train").hash,
            wrong_labels=self.profile.wrong_labels,
            registers=self.profile.registers,
            replicate=self.profile.replicate or None,
        )
        return cache_dir() / "models" / f"{model}-{key}"

    def _train_ladder(self) -> None:
        missing = {name: spec for name, spec in self.profile.ladder.items() if not self.is_trained(name)}
        # Longest first, so that the others run beside it.
        names = sorted(missing, key=lambda name: -missing[name].steps * missing[name].width)
        self.parallel([(Lab.train_rung, (name,)) for name in names], "models")

    def train_rung(self, name: str) -> None:
        """Train one rung, unless it is there."""
        spec = self.profile.ladder[name]
        wrong = self.profile.wrong_labels if spec.wrong_labels is None else spec.wrong_labels
        train_rung(
            name,
            spec,
            self.processor,
            self.questions("train"),
            self.labels_with(wrong)[1],
            self._ladder_folder(name),
            self.profile.replicate,
        )

    # --- responses ------------------------------------------------------------------------------

    def judged(
        self, wanted: WantedResponses, questions: Sequence[int] | None = None
    ) -> Iterator[pd.DataFrame]:
        """Generate and judge the responses that are missing; yield all, some questions at a time.

        Args:
            wanted: whose, and how many; not the labels.
            questions: indices of the training questions; None: the pool.
        """
        asked = self.pool if questions is None else questions
        store = self._generate(wanted, asked)
        yield from judged(store, self.questions("train"), asked, wanted.n, self.judge_of(wanted.judge))

    def _generate(self, wanted: WantedResponses, questions: Sequence[int]) -> ResponseStore:
        return generate(
            self.source(wanted.model, wanted.ratio, wanted.choice),
            self.processor,
            self.questions("train"),
            questions,
            wanted.n,
            self.profile.sampling,
            self.profile.replicate,
            engine=self.engine,
        )

    def make_responses(self, wanted: WantedResponses, questions: Sequence[int] | None = None) -> None:
        """Generate and judge the responses that are missing, as in :meth:`judged`."""
        for _ in self.judged(wanted, questions):
            pass

    def responses(self, wanted: WantedResponses) -> pd.DataFrame:
        """Return the pool's responses, generated and judged where they are missing."""
        return pd.concat(self.judged(wanted), ignore_index=True)

    def response_arrays(
        self, wanted: WantedResponses, noise: float = 0.0, questions: Sequence[int] | None = None
    ) -> ResponseArrays:
        """Return responses as training reads them, generated and judged where they are missing.

        Args:
            wanted: whose, and how many; not the labels.
            noise: share of questions whose responses are judged by a wrong label, see :meth:`labels_with`.
            questions: indices of the training questions; None: the pool.
        """
        asked = self.pool if questions is None else questions
        labels = list(self.labels_with(noise)[0]["core"].iloc[list(asked)]) if noise else None
        store, judge = self._generate(wanted, asked), self.judge_of(wanted.judge)
        return response_arrays(store, self.questions("train"), asked, wanted.n, judge, labels)

    def judge_of(self, name: str) -> Judge:
        """Return a judge by name: ``rule`` (the profile's reward), ``embedding`` or ``llm`` (its model).

        Raises:
            ValueError: the profile names no language model, or its address is not valid.
        """
        if name == "llm":
            return self._language_judge
        return self.judge if name == "rule" else self._embedding_judge

    @cached_property
    def _embedding_judge(self) -> EmbeddingJudge:
        return EmbeddingJudge.calibrated(corpus.cases()[0])

    @cached_property
    def _language_judge(self) -> LLMJudge:
        asked = self.profile.judge
        if asked is None:
            raise ValueError(f"profile {self.profile.name} names no language model: judge: {{server, model}}")
        key = os.environ.get("OPENAI_API_KEY")
        return LLMJudge(
            asked.server,
            asked.model,
            key,
            asked.timeout,
            workers=asked.concurrency,
            memory=cache_dir() / "verdicts",
            max_tokens=asked.max_tokens,
        )

    def store(self, model: str, ratio: float, choice: MaskChoice = PAPERS) -> ResponseStore:
        """Return the store of a model's responses at a mask ratio."""
        source = self.source(model, ratio, choice)
        return open_store(source, self.processor, self.profile.sampling, self.profile.replicate, self.engine)

    def logprobs(self, wanted: WantedLogprobs, questions: Sequence[int] | None = None) -> Ragged | TopK:
        """Return a model's log-probabilities at each token of some responses or labels.

        Args:
            questions: indices of the training questions; None: the pool.
        """
        read = wanted.responses
        texts: Sequence[Sequence[np.ndarray]]
        if read.model in LABELS:
            texts = self.tokens_of_labels(read.ratio, read.model, questions)
        else:
            texts = self.response_arrays(read, questions=questions).tokens
        return self.logprobs_of(self.source(wanted.model, wanted.ratio, wanted.choice), texts, questions)

    def logprobs_of(
        self,
        reader: Source,
        texts: Sequence[Sequence[np.ndarray]],
        questions: Sequence[int] | None = None,
    ) -> Ragged | TopK:
        """Return a model's log-probabilities at each token of some texts, one group per question.

        Args:
            questions: indices of the training questions; None: the pool.
        """
        asked = self.pool if questions is None else questions
        top_k, size = self.profile.distillation.top_k_logprobs, len(self.processor.tokenizer)
        return distributions(reader, self.questions("train"), asked, texts, top_k, size)

    @property
    def writers(self) -> int:
        """Number of generating processes: one for vLLM or a server, which batch by themselves."""
        return self.profile.processes if self.profile.generation.engine == "transformers" else 1

    def parallel(self, jobs: Sequence[workers.Job], what: str, processes: int | None = None) -> None:
        """Run independent jobs in the profile's number of processes, or another; one process is this one."""
        processes = processes or self.profile.processes
        own_engine = self.profile.generation.engine == "transformers"
        # A launched rank, or one that vLLM has used, is no place for the next model.
        if processes > 1 or not own_engine or distributed.world_size() > 1:
            in_lab = [(_in_lab, (self.profile, job, arguments)) for job, arguments in jobs]
            workers.run(in_lab, processes, what)
            return
        for number, (job, arguments) in enumerate(jobs, start=1):
            job(self, *arguments)
            report(what, number, len(jobs))


_labs: dict[str, Lab] = {}  # one per profile and process


def _in_lab(profile: Profile, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    key = profile.model_dump_json()
    if key not in _labs:
        _labs[key] = Lab(profile)
    job(_labs[key], *arguments)
