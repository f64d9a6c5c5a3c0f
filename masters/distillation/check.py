"""What a run needs, found out in seconds without loading weights: tokens, memory, disk, hours.

Operations are counted as in :mod:`masters.analysis.costs`: 2 per weight and token that a model reads or
generates, 6 per weight and token that it learns from. Hours divide them by the matrix products that this
device does per second, times the share that such work usually reaches. They are rough: expect a factor of
three.
"""

import shutil
import time
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
from masters.models.loading import parameter_count
from masters.objective.topk import bytes_per_token
from masters.responses.engines.local import row_bytes
from masters.runtime import distributed
from masters.training.memory import device_memory

GIB = 2**30
# Share of the measured matrix products per second: reading or learning, and generating token by token.
READING, GENERATING = 0.3, 0.03
RESPONSE_BYTES = 24  # of a stored token: its id, two log-probabilities and its text
SAMPLE = 64  # questions encoded for the estimate


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
        hours: hours by phase, rough.
    """

    questions: int
    prompt: int
    responses: int
    memory: dict[str, int | None]
    available: int
    disk: dict[str, int]
    free: int
    hours: dict[str, float]

    def lines(self) -> list[str]:
        """Return the estimate for the terminal."""
        disk = sum(self.disk.values())
        found = [
            f"{self.questions:,} training questions, prompts up to {self.prompt:,} tokens, "
            f"{self.responses:,} responses to generate"
        ]
        for phase, size in self.memory.items():
            need = "no estimate for this family" if size is None else f"about {_size(size)}"
            short = size is not None and size > self.available
            warning = f", more than the {_size(self.available)} of this device" if short else ""
            found.append(f"memory, {phase}: {need}{warning}")
        kinds = ", ".join(f"{kind} {_size(size)}" for kind, size in self.disk.items())
        warning = f", more than the {_size(self.free)} free" if disk > self.free else ""
        found.append(f"disk: up to {_size(disk)} ({kinds}){warning}")
        each = ", ".join(f"{phase} {hours:.2g}" for phase, hours in self.hours.items())
        found.append(f"hours, rough: {sum(self.hours.values()):.2g} ({each})")
        return found


def estimate_run(lab: Lab, spec: RunSpec, sample: Questions, evaluated: int, output: Path) -> Estimate:
    """Estimate a run.

    Args:
        lab: the profile's assets; no weights are loaded.
        spec: the run.
        sample: some of the training questions, encoded.
        evaluated: questions that student and teachers answer for the evaluation.
        output: the output folder, for the free space of its disk.
    """
    settings, vocabulary = lab.profile.distillation, len(lab.processor.tokenizer)
    models = {name: lab.skeleton(name) for name in dict.fromkeys(spec.models)}
    weights = {name: parameter_count(model) for name, model in models.items()}
    stages, longest = all_stages(spec), lab.profile.sampling.max_new_tokens
    plan = ResponsePlan.of([spec], settings.cache_teacher)
    n = max((sum(w.n for w in wanted_responses(spec, stage)) for stage in stages), default=1)
    prompts = [len(sample.prompt(index)) for index in range(len(sample))]
    questions, mean = settings.questions, float(np.mean(prompts))

    world = distributed.world_size()
    try:
        step: int | None = memory(lab, spec, sample, range(len(sample))).total
    except (AttributeError, KeyError, TypeError, ValueError):  # a config that names its sizes otherwise
        step = None
    alone = [
        _alone(models[name], spec.r_max if name in spec.teachers else 0, max(prompts), longest, n)
        for name in models
    ]

    generated = {w.model: 0 for w in plan.responses}
    for wanted in plan.responses:
        generated[wanted.model] += wanted.n * questions
    responses = sum(generated.values())
    top_k = settings.top_k_logprobs
    per_token = 2 * vocabulary if top_k is None else bytes_per_token(vocabulary, top_k)
    scored = sum(w.responses.n for w in plan.scores) * questions * longest
    trained = 4 * weights[spec.student]
    disk = {
        "responses": responses * longest * RESPONSE_BYTES,
        "teacher log-probabilities": scored * per_token,
        "checkpoints": 2 * 3 * trained,
        "model": trained,
    }

    rate = _products_per_second()
    generation = sum(2 * weights[name] * count * longest for name, count in generated.items())
    generation += sum(2 * count * evaluated * longest for count in [weights[spec.student], *weights.values()])
    reading = sum(2 * weights[w.scorer] * questions * (mean + w.responses.n * longest) for w in plan.scores)
    reading += sum(2 * weights[name] * questions * mean * len(stages) for name in generated)
    learning = 6 * weights[spec.student] * spec.steps * spec.batch * (mean + n * longest)
    hours = {
        "generating and evaluating": generation / (GENERATING * rate * lab.writers) / 3600,
        "reading": reading / (READING * rate * lab.profile.processes) / 3600,
        "training": learning / (READING * rate * world) / 3600,
    }
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
        free=shutil.disk_usage(_existing(output)).free,
        hours=hours,
    )


def _alone(model: Any, ratio: float, prompt: int, limit: int, n: int) -> tuple[int | None, int | None]:
    """Return the bytes to generate one response and to score the responses to one question.

    A mask holds the removed values and a bit per weight. More is done at once where memory is free.
    """
    kept = sum(p.numel() * p.element_size() for p in model.parameters()) * (1 + ratio)
    kept += parameter_count(model) / 8 if ratio else 0
    try:
        return int(kept + row_bytes(model, prompt, limit)), int(
            kept + row_bytes(model, prompt + n * limit, 0)
        )
    except AttributeError:
        return None, None


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def _products_per_second(size: int = 1024) -> float:
    """Measure the operations per second of a matrix product on this device, in the type it trains with."""
    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu else torch.float32
    a = torch.ones(size, size, device="cuda" if gpu else "cpu", dtype=dtype)
    float((a @ a)[0, 0])  # warm up
    start, count = time.perf_counter(), 8
    for _ in range(count):
        product = a @ a
    float(product[0, 0])  # waits for the device
    return 2 * size**3 * count / (time.perf_counter() - start)


def _existing(path: Path) -> Path:
    """Return the nearest folder that exists."""
    return path if path.is_dir() else _existing(path.parent)
