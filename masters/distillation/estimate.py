"""What a run needs, found out in seconds without loading weights: tokens, memory, disk, hours.

Operations are counted as in :mod:`masters_book.analysis.costs`: 2 per weight and token that a model reads or
generates, 6 per weight and token that it learns from. Their hours follow from the matrix products that this
device does per second, times the share that such work usually reaches. Two costs do not depend on the number
of weights and are measured, too: processing a question's pictures, which every phase does again, and calling
the modules of a model. How long responses get is unknown, so hours have a range: from responses of a quarter
of ``max_new_tokens`` to all of it. The shares were set with
the models of ``examples/trial.py`` on one core, and not checked on a GPU.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masters.data.questions import Questions
from masters.experiments.arms import RunSpec
from masters.experiments.curriculum import all_stages, wanted_responses
from masters.experiments.lab import Lab
from masters.experiments.memory import memory
from masters.experiments.response_plan import ResponsePlan
from masters.objective.topk import storage_bytes
from masters.responses.engines.local import ROWS, row_bytes
from masters.responses.teacher_logprobs import BATCH
from masters.runtime import distributed
from masters.training.memory import adapter_weights, device_memory, size_in_words

# Share of the measured matrix products per second: reading or learning, and generating token by token.
READING, GENERATING = 0.3, 0.05
LENGTHS = (0.25, 1.0)  # of max_new_tokens: responses at the lower and the upper end of the hours
CALLS = 4  # time of a module of a model beside its products, in calls of a linear layer of 8 weights per side
RESPONSE_BYTES = 24  # of a stored token: its id, two log-probabilities and its text
SAMPLE = 64  # questions encoded for the estimate
FEW = 8  # of them whose pictures are timed


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        questions: training questions.
        prompt: longest prompt of the sampled questions, tokens.
        responses: responses to generate.
        memory: bytes per device, by phase; None where this family has no estimate.
        available: bytes of memory of a device.
        disk: bytes on disk, by kind.
        free: bytes free on the disk of ``output_dir``.
        hours: hours by phase: with short and with the longest responses.
    """

    questions: int
    prompt: int
    responses: int
    memory: dict[str, int | None]
    available: int
    disk: dict[str, int]
    free: int
    hours: dict[str, tuple[float, float]]

    def lines(self) -> list[str]:
        """Return the estimate for the terminal."""
        disk = sum(self.disk.values())
        found = [
            f"{self.questions:,} training questions, prompts up to {self.prompt:,} tokens, "
            f"{self.responses:,} responses to generate"
        ]
        for phase, size in self.memory.items():
            need = "no estimate for this family" if size is None else f"about {size_in_words(size)}"
            short = size is not None and size > self.available
            warning = f", more than the {size_in_words(self.available)} of this device" if short else ""
            found.append(f"memory, {phase}: {need}{warning}")
        kinds = ", ".join(f"{kind} {size_in_words(size)}" for kind, size in self.disk.items())
        warning = f", more than the {size_in_words(self.free)} free" if disk > self.free else ""
        found.append(f"disk: up to {size_in_words(disk)} ({kinds}){warning}")
        low, high = (sum(ends) for ends in zip(*self.hours.values(), strict=True))
        unit, per_hour = ("hours", 1) if high >= 1 else ("minutes", 60)
        each = ", ".join(
            f"{phase} {_range(a * per_hour, b * per_hour)}" for phase, (a, b) in self.hours.items()
        )
        total, shares = _range(low * per_hour, high * per_hour), " to ".join(f"{100 * x:g}" for x in LENGTHS)
        found.append(f"{unit}, rough: {total} ({each}), for responses of {shares} % of max_new_tokens")
        return found


def estimate_run(
    lab: Lab, spec: RunSpec, seed: int, sample: Questions, evaluated: int, watched: int, output: Path
) -> Estimate:
    """Estimate a run.

    Args:
        sample: some of the training questions, encoded.
        evaluated: questions that student and teachers answer for the evaluation.
        watched: questions that the student answers during the training, each as often as it is asked.
        output: the output folder, for the free space of its disk.
    """
    settings, vocabulary = lab.profile.distillation, len(lab.processor.tokenizer)
    models = {name: lab.skeleton(name) for name in dict.fromkeys(spec.models)}
    stages, longest = all_stages(spec), lab.profile.sampling.max_new_tokens
    n = max((sum(w.n for w in wanted_responses(spec, stage)) for stage in stages), default=1)
    prompts = [len(sample.prompt(index)) for index in range(len(sample))]
    questions, mean = settings.questions, float(np.mean(prompts))
    plan = ResponsePlan.alone(spec, seed, range(questions), settings.cache_teacher)
    try:
        step: int | None = memory(lab, spec, sample, range(len(sample))).total
    except (AttributeError, KeyError, TypeError, ValueError):  # a config that names its sizes otherwise
        step = None
    alone = [
        _alone(models[name], spec.r_max if name in spec.teachers else 0, max(prompts), longest, n)
        for name in models
    ]

    responses = sum(wanted.n * len(asked) for wanted, asked in plan.responses.items())
    scored = sum(wanted.responses.n * len(asked) for wanted, asked in plan.logprobs) * longest
    student = models[spec.student]
    stored = sum(weight.numel() * weight.element_size() for weight in student.parameters())
    lora = settings.memory_savings.lora
    trained = 4 * (student.num_parameters() if lora is None else adapter_weights(student, lora.rank))
    disk = {
        "responses": responses * longest * RESPONSE_BYTES,
        "teacher log-probabilities": storage_bytes(scored, vocabulary, settings.top_k_logprobs),
        "checkpoints": 3 * 3 * trained,  # two, and the next while it is written
        "model": stored,
    }

    low_precision = settings.memory_savings.bf16 or (lora is not None and student.dtype is torch.bfloat16)
    speed = Speed.measured(sample, torch.bfloat16 if low_precision else torch.float32)
    low, high = (
        _hours(lab, spec, plan, models, speed, mean, (evaluated, watched), share) for share in LENGTHS
    )
    return Estimate(
        questions=questions,
        prompt=max(prompts),
        responses=responses,
        memory={
            "generating one response": max((one for one, _ in alone if one), default=None),
            "scoring one question": max((one for _, one in alone if one), default=None),
            "training": step,
        },
        available=device_memory(),
        disk=disk,
        free=shutil.disk_usage(next(path for path in (output, *output.parents) if path.is_dir())).free,
        hours={phase: (low[phase], high[phase]) for phase in low},
    )


@dataclass(frozen=True)
class Speed:
    """What this device does per second.

    Attributes:
        rate: operations per second of a matrix product, in the type that is best for this device.
        learning: the same in the type of the training.
        call: seconds per call of a small linear layer.
        picture: seconds to open and process the pictures of a question.
    """

    rate: float
    learning: float
    call: float
    picture: float

    @classmethod
    def measured(cls, sample: Questions, dtype: torch.dtype) -> "Speed":
        """Measure this device, with the pictures of some questions.

        Args:
            dtype: type in which the training computes.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer, row = torch.nn.Linear(8, 8, device=device), torch.ones(1, 8, device=device)
        with torch.inference_mode():
            call = _seconds(lambda: layer(row), 500)
        few = range(min(FEW, len(sample)))
        picture = _seconds(lambda: [sample.image_features([index]) for index in few], 1) / len(few)
        best = torch.bfloat16 if device == "cuda" else torch.float32
        rates = {one: _products_per_second(device, one) for one in {best, dtype}}
        return cls(rates[best], rates[dtype], call, picture)

    def arithmetic(self, model: Any, tokens: float, share: float = READING) -> float:
        """Return the seconds of the matrix products to read or generate some tokens."""
        return 2 * model.num_parameters() * tokens / (share * self.rate)

    def calls(self, model: Any) -> float:
        """Return the seconds of a forward pass beside its matrix products."""
        return CALLS * self.call * sum(not list(module.children()) for module in model.modules())

    def read(self, model: Any, questions: int, tokens: float, passes: float) -> float:
        """Return the seconds to read questions with some tokens each, in a number of forward passes."""
        return (
            self.arithmetic(model, questions * tokens) + passes * self.calls(model) + questions * self.picture
        )

    def generate(self, model: Any, n: int, questions: int, prompt: float, length: float) -> float:
        """Return the seconds to generate n responses to each question, as many at once as there may be."""
        batches = -(-n * questions // ROWS)
        prompts = self.read(model, questions, prompt, batches)
        writing = self.arithmetic(model, n * questions * length, GENERATING)
        return prompts + writing + batches * length * self.calls(model)


def _hours(
    lab: Lab,
    spec: RunSpec,
    plan: ResponsePlan,
    models: dict[str, Any],
    speed: Speed,
    prompt: float,
    answered: tuple[int, int],
    share: float,
) -> dict[str, float]:
    """Return the hours by phase, for responses of a ``share`` of ``max_new_tokens`` and a mean ``prompt``."""
    settings, length = lab.profile.distillation, share * lab.profile.sampling.max_new_tokens
    student = models[spec.student]
    generating = sum(
        speed.generate(models[wanted.model], wanted.n, len(asked), prompt, length)
        for wanted, asked in plan.responses.items()
    )
    reading = sum(
        speed.read(models[wanted.model], len(asked), prompt + wanted.responses.n * length, len(asked) / BATCH)
        for wanted, asked in plan.logprobs
    )
    learned = spec.steps * spec.batch  # questions
    n = max((sum(w.n for w in wanted_responses(spec, stage)) for stage in all_stages(spec)), default=1)
    passes = 4 if settings.memory_savings.gradient_checkpointing else 3  # a backward pass takes two
    calls = spec.steps * settings.memory_savings.accumulate
    products = speed.arithmetic(student, learned * (prompt + n * length)) * speed.rate / speed.learning
    training = passes * (products + calls * speed.calls(student)) + learned * speed.picture
    if spec.teachers and not settings.cache_teacher:  # one teacher and the reference read along
        largest = max((models[name] for name in spec.teachers), key=lambda model: model.num_parameters())
        for model in (student, largest):
            training += speed.arithmetic(model, learned * (prompt + n * length))
    evaluated, watched = answered
    asked = [student, *models.values()]  # the student answers before and after
    evaluating = sum(speed.generate(model, 1, evaluated, prompt, length) for model in asked)
    evaluating += speed.generate(student, 1, watched, prompt, length)
    seconds = {
        "encoding": (settings.questions + evaluated) * speed.picture,
        "generating": generating / lab.writers,
        "reading": reading / lab.profile.processes,
        "training": training / distributed.world_size(),
        "evaluating": evaluating,
    }
    return {phase: spent / 3600 for phase, spent in seconds.items()}


def _seconds(work: Callable[[], Any], times: int) -> float:
    """Return the seconds per call of some work, without the first call."""
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def _alone(model: Any, ratio: float, prompt: int, limit: int, n: int) -> tuple[int | None, int | None]:
    """Return the bytes to generate one response and to score the responses to one question.

    A mask holds the removed values and a bit per weight. More is done at once where memory is free.
    """
    kept = sum(p.numel() * p.element_size() for p in model.parameters()) * (1 + ratio)
    kept += model.num_parameters() / 8 if ratio else 0
    try:
        return int(kept + row_bytes(model, prompt, limit)), int(
            kept + row_bytes(model, prompt + n * limit, 0)
        )
    except AttributeError:
        return None, None


def _range(low: float, high: float) -> str:
    if high < 0.1:
        return "under 0.1"
    return " to ".join(f"{end:,.0f}" if end >= 10 else f"{end:.2g}" for end in (low, high))


def _products_per_second(device: str, dtype: torch.dtype) -> float:
    """Measure the operations per second of a matrix product."""
    size = 8192 if device == "cuda" else 1024  # a small one leaves a GPU idle
    a = torch.ones(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _seconds(lambda: float((a @ a)[0, 0]), 8)  # a number waits for the device
