"""A run as data: a spec goes in, a result row comes out, and both stay on disk under a key made of all that
determines them. Notebooks ask a :class:`Lab` for results; what is there is read, what is missing is made.

A run that was killed goes on from its checkpoint; two notebooks that need the same run share it. ``VERSION``
stands for the meaning of every stage: it changes whenever a number could.

Choices where the paper is silent: the responses come once from the base student, unless they are refreshed
(:mod:`masters.experiments.refreshing`); the reference of the KL is the base student, for a second teacher
too; several teachers share the steps equally.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import snapshot_download

from masters.data.labels import REGISTERS
from masters.data.questions import Questions, Ragged, load_questions, training_labels
from masters.data.tasks import vocabulary
from masters.experiments.arms import LABELS
from masters.experiments.curriculum import grouped
from masters.experiments.ladder import about_rung, end_tokens, train_rung
from masters.judges import Judge, corpus
from masters.judges.embedding import EmbeddingJudge
from masters.judges.llm import LLMJudge
from masters.judges.rule import RuleJudge
from masters.masking.choice import PAPERS, MaskChoice
from masters.models.calibration import calibrated
from masters.models.loading import build_processor, check_same_tokens, load
from masters.responses.cached import engine_of, open_store, responses
from masters.responses.source import Source
from masters.responses.store import ResponseStore
from masters.responses.teacher_logprobs import TopK, distributions
from masters.runtime import workers
from masters.runtime.files import cache_dir, hash_of
from masters.settings import Profile, load_profile

VERSION = 2


class Lab:
    """All that a profile's notebooks work with, made on first use and kept on disk.

    Args:
        profile: its name, or the profile itself.
    """

    def __init__(self, profile: str | Profile) -> None:
        self.profile = load_profile(profile) if isinstance(profile, str) else profile
        self.judge = RuleJudge()
        self.engine = engine_of(self.profile.generation)
        self._questions: dict[str, Questions] = {}
        self._labels: dict[tuple[float, tuple[str, ...]], tuple[pd.DataFrame, list[np.ndarray]]] = {}
        self._counts: dict[tuple[str, float, MaskChoice], dict[str, float]] = {}

    # --- questions and models -------------------------------------------------------------------------------

    @cached_property
    def processor(self) -> Any:
        """The processor that student and teachers share."""
        paths = {name: spec.path for name, spec in self.profile.ladder.items() if spec.path}
        if not paths:
            return build_processor(vocabulary(self.profile.tasks))
        found = {name: load(path)[1] for name, path in paths.items()}
        for processor in found.values():
            check_same_tokens(found.get("student", processor), processor)
        return found.get("student", next(iter(found.values())))

    def questions(self, split: str) -> Questions:
        """The encoded questions of a split, of all tasks of the profile."""
        if split not in self._questions:
            limit = {
                "train": self.profile.train_questions,
                "validation": self.profile.validation_questions,
                "test": self.profile.test_questions,
            }[split]
            self._questions[split] = load_questions(self.profile.tasks, split, limit, self.processor)
        return self._questions[split]

    @cached_property
    def pool(self) -> list[int]:
        """Indices of the training questions that are answered by the models before distillation."""
        each = max(1, self.profile.distillation.questions // len(self.profile.tasks))
        table = self.questions("train").table
        return [int(index) for index in table.groupby("task", sort=False).head(each).index]

    @property
    def labels(self) -> tuple[pd.DataFrame, list[np.ndarray]]:
        """Training labels in several registers, as text and as token ids with their end token."""
        return self.labels_with(self.profile.wrong_labels)

    def labels_with(
        self, wrong_share: float, registers: tuple[str, ...] = REGISTERS
    ) -> tuple[pd.DataFrame, list[np.ndarray]]:
        """The same with that share of wrong ones; those that are wrong at a share are so at a larger one."""
        key = wrong_share, registers
        if key not in self._labels:
            tasks, limit = self.profile.tasks, self.profile.train_questions
            frame = training_labels(self.questions("train"), tasks, limit, wrong_share, 0, registers)
            self._labels[key] = frame, end_tokens(self.processor, list(frame["label"]))
        return self._labels[key]

    def labels_of_pool(self, noise: float, kind: str = "labels") -> list[list[np.ndarray]]:
        """Token ids of the pool's labels, of which at least a share ``noise`` is wrong, as groups of one.

        Args:
            noise: that share.
            kind: ``labels`` in all registers, or ``rationales`` that end in the answer.
        """
        registers = REGISTERS if kind == "labels" else ("rationale",)
        _, tokens = self.labels_with(max(noise, self.profile.wrong_labels), registers)
        return [[tokens[index]] for index in self.pool]

    def folder(self, model: str) -> Path:
        """Where a model of the ladder is saved; it is trained first if it is not there."""
        spec = self.profile.ladder[model]  # type: ignore[index]
        if spec.path:
            return Path(spec.path) if Path(spec.path).is_dir() else Path(snapshot_download(spec.path))
        if not self.is_trained(model):
            self._train_ladder()
        return self._ladder_folder(model)

    def is_trained(self, model: str) -> bool:
        """Whether a model needs no training before it is used."""
        spec = self.profile.ladder[model]  # type: ignore[index]
        return bool(spec.path) or (self._ladder_folder(model) / "config.json").is_file()

    def source(self, model: str, ratio: float = 0.0, choice: MaskChoice = PAPERS) -> Source:
        """A model of the ladder as a writer of responses, masked at a ratio."""
        return Source(model, self.folder(model), ratio, self.choice(model, choice.at(ratio)))

    def choice(self, model: str, choice: MaskChoice) -> MaskChoice:
        """A choice of what is masked with all that it needs of a model, which is calibrated on first use."""
        if choice.criterion != "activation":
            return choice
        weights, train = self.source(model).weights(), self.questions("train")
        return replace(choice, norms=calibrated(self.folder(model), weights, train, self.pool))

    def ladder(self) -> pd.DataFrame:
        """The models: parameters, training steps, seconds of training, hash of the weights."""
        ladder = self.profile.ladder.items()
        return pd.DataFrame([about_rung(name, spec, self.folder(name)) for name, spec in ladder])

    def ladder_log(self) -> pd.DataFrame:
        """The training curves of the ladder: model, step, loss."""
        frames = []
        for name, spec in self.profile.ladder.items():
            if not spec.path:
                log = pd.read_parquet(self.folder(name) / "log.parquet")
                frames.append(log.assign(model=name)[["model", "step", "loss"]])
        return pd.concat(frames, ignore_index=True)

    def _ladder_folder(self, model: str) -> Path:
        spec = self.profile.ladder[model]  # type: ignore[index]
        data = self.questions("train").hash
        what: list[Any] = [VERSION, spec.model_dump(), data, self.profile.wrong_labels]
        if self.profile.replicate:
            what.append(self.profile.replicate)
        return cache_dir() / "models" / f"{model}-{hash_of(what)}"

    def _train_ladder(self) -> None:
        missing = [name for name in self.profile.ladder if not self.is_trained(name)]
        # The longest first, so that the others fill the second process meanwhile.
        sizes = {name: self.profile.ladder[name].steps * self.profile.ladder[name].width for name in missing}
        self.parallel(
            [(Lab.train_rung, (name,)) for name in sorted(missing, key=lambda name: -sizes[name])], "models"
        )

    def train_rung(self, name: str) -> None:
        """Train one model of the ladder, unless it is there."""
        spec = self.profile.ladder[name]  # type: ignore[index]
        train_rung(
            name,
            spec,
            self.processor,
            self.questions("train"),
            self.labels[1],
            self._ladder_folder(name),
            self.profile.replicate,
        )

    # --- responses ------------------------------------------------------------------------------

    def groups(
        self, model: str, ratio: float, n: int, judge: str = "rule", choice: MaskChoice = PAPERS
    ) -> pd.DataFrame:
        """The first ``n`` responses of a model to every question of the pool, judged."""
        zero = {"generated": 0, "reused": 0, "responses": 0, "seconds": 0.0}
        counts = self._counts.setdefault((model, ratio, choice.at(ratio)), zero)
        start = time.perf_counter()
        frame = responses(
            self.source(model, ratio, choice),
            self.processor,
            self.questions("train"),
            self.pool,
            n,
            self.profile.sampling,
            self.profile.replicate,
            self.judge_of(judge),
            counts,  # type: ignore[arg-type]
            engine=self.engine,
        )
        counts["seconds"] += time.perf_counter() - start
        counts["responses"] = max(counts["responses"], len(frame))
        return frame

    def judge_of(self, name: str) -> Judge:
        """The judge of a run: ``rule``, ``embedding`` or ``llm``, which the profile names.

        Raises:
            ValueError: the profile names no language model, or its address is none.
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
        return LLMJudge(asked.server, asked.model, key, memory=cache_dir() / "verdicts")

    def store(self, model: str, ratio: float, choice: MaskChoice = PAPERS) -> ResponseStore:
        """Where the responses of a model at a mask ratio are kept."""
        source = self.source(model, ratio, choice)
        return open_store(source, self.processor, self.profile.sampling, self.profile.replicate, self.engine)

    def distributions(
        self, scorer: Source, author: str, ratio: float, n: int, choice: MaskChoice = PAPERS
    ) -> Ragged | TopK:
        """What a model would have said at each token of the pool's responses, or of its labels."""
        if author in LABELS:
            return self.scores(scorer, self.labels_of_pool(ratio, author))
        return self.scores(scorer, grouped(self.groups(author, ratio, n, choice=choice)["tokens"], n))

    def scores(self, scorer: Source, texts: Sequence[Sequence[np.ndarray]]) -> Ragged | TopK:
        """What a model would have said at each token of some texts of the pool, made once."""
        top_k = self.profile.distillation.top_k_logprobs
        size = len(self.processor.tokenizer)
        return distributions(scorer, self.questions("train"), self.pool, texts, top_k, size)

    def cache_figures(self) -> pd.DataFrame:
        """Return what this lab asked of the cache, one row per source and mask ratio.

        Returns:
            source, ratio, ``responses`` (asked for at least once), ``generated`` (of these, by this lab; the
            others were there), ``seconds``, ``per_second`` (of those generated; NaN without any) and ``mib``
            (size on disk of all responses of the source).
        """
        rows = []
        for (model, ratio, choice), counts in sorted(self._counts.items(), key=lambda item: str(item[0])):
            size = sum(path.stat().st_size for path in self.store(model, ratio, choice).shards())
            generated, seconds = counts["generated"], counts["seconds"]
            rows.append(
                {
                    "source": choice.title(model),
                    "ratio": ratio,
                    "responses": counts["responses"],
                    "generated": generated,
                    "seconds": seconds,
                    "per_second": generated / seconds if generated else float("nan"),
                    "mib": size / 2**20,
                }
            )
        return pd.DataFrame(rows)

    @property
    def writers(self) -> int:
        """Processes that generate side by side; vLLM and a server are busy enough with one."""
        return self.profile.processes if self.profile.generation.engine == "transformers" else 1

    def parallel(self, jobs: Sequence[workers.Job], what: str, processes: int | None = None) -> None:
        """Do independent jobs in some processes, those of the profile when None, one thread each."""
        workers.run(Lab, self.profile, jobs, processes or self.profile.processes, what)
