"""The online baseline: the student generates new responses at every step, with TRL's GRPO (section 5).

The current student generates a group of responses to each question of the batch, a judge rewards them
(Eq. 6), and one step minimizes ``-mean_j mean_t (rho_jt * A_j - beta * KL(pi_theta || pi_ref))`` (Eq. 9,
arXiv 2402.03300). Its responses cannot be generated before training or shared by runs: that is the cost which
the offline form saves, and which :mod:`masters_book.analysis.costs` compares.

The same as offline: student, questions and their order, prompt tokens, number of responses, sampling, judge,
beta, batch, learning rate, optimizer and averaging.

Departures from the paper's method:
    * Only the accuracy reward, and no divergence: both others need a teacher that reads every new response.
      ``own_accuracy`` is the offline arm with the same reward and the student's responses.
    * TRL estimates the KL on the sampled tokens; offline it is exact over the vocabulary.
    * TRL divides advantages by the deviation of a sample (over n - 1, plus 1e-4), not of the whole group.
    * Each response has a row with its own copy of the prompt; offline a group is packed into one row.
    * A stopped run starts again: there are no checkpoints.
"""

import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from masters.data.questions import Questions
from masters.judges import Judge, score_labeled
from masters.models.loading import banned_tokens
from masters.runtime import distributed
from masters.runtime.progress import report
from masters.settings import Sampling
from masters.training import adapters
from masters.training.train import Budget, quiet
from masters.training.trainer import one_device

TIMED = ("generation_seconds", "judging_seconds", "picture_seconds")
MEASURED = ("seconds", *TIMED, "responses", "response_tokens")
# TRL's names for columns of the offline log.
NAMES = {
    "reward": "reward_accuracy",
    "frac_reward_zero_std": "flat_groups",
    "completions/mean_length": "tokens",
}
LOGGED = ("step", "loss", "learning_rate", "grad_norm", "kl", "entropy", *NAMES.values(), *MEASURED)


def train_online(
    model: PreTrainedModel,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    judge: Judge,
    sampling: Sampling,
    budget: Budget,
    responses: int,
    beta: float,
    folder: Path,
) -> pd.DataFrame:
    """Train a student in place on responses that it generates during training.

    Args:
        model: the student as loaded from its folder, from which TRL reads the reference of the KL; its
            weights become float32.
        wanted: indices of the questions in order, ``steps * batch`` of them.
        judge: gives the reward, 1 for a right response and 0 otherwise.
        sampling: special and image tokens are never sampled.
        folder: for files of TRL; removed when training ends.

    Returns:
        One row per logged step: step, loss, learning_rate, grad_norm, kl and entropy (nats per token),
        reward_accuracy, flat_groups, tokens (mean length), and since the last row: seconds,
        generation_seconds, judging_seconds, picture_seconds, responses, response_tokens. The rest of the
        seconds went into prompts, the reference and the update.

    Raises:
        ValueError: the number of questions is not steps times batch, several processes train, or TRL is not
            installed.
    """
    if len(wanted) != budget.steps * budget.batch:
        raise ValueError(f"online: {len(wanted)} questions for {budget.steps} steps of {budget.batch}")
    if distributed.world_size() > 1:
        raise ValueError("the online baseline trains in one process: start it without torchrun")
    try:
        from trl import GRPOConfig, GRPOTrainer  # slow to import, needed here only
    except ImportError:
        raise ValueError("the online arm needs the trl package: pip install 'masters[online]'") from None

    adapters.in_float32(model, "online")
    n, meter = responses, _Meter()

    def reward(
        completions: list[Any], completion_ids: list[Any], question: list[int], **_: Any
    ) -> list[float | None]:
        meter.add("responses", len(completion_ids))
        meter.add("response_tokens", sum(map(len, completion_ids)))
        about = questions.table.iloc[question]
        texts = [message[0]["content"].strip() for message in completions]
        with meter.timed("judging_seconds"):
            verdicts = score_labeled(judge, about["question"], about["answer"], texts)
        return [float(verdict or 0) for verdict in verdicts]

    settings = budget.arguments(
        folder,
        per_device_train_batch_size=budget.batch * n,
        num_generations=n,
        shuffle_dataset=False,
        max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        generation_kwargs={
            "suppress_tokens": banned_tokens(processor, model.get_output_embeddings().weight.shape[0])
        },
        beta=beta,
        loss_type="grpo",
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        use_cpu=model.device.type == "cpu",
    )
    pictures = processor.image_processor
    with (
        quiet("transformers.trainer", "trl"),
        warnings.catch_warnings(),
        meter.watching(model, "generate", "generation_seconds"),
        meter.watching(pictures, "preprocess", "picture_seconds"),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # TRL uses old names of transformers
        arguments = GRPOConfig(**settings)
        one_device(arguments)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=rows(questions, wanted),
            processing_class=processor,
            callbacks=[meter],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    vars(model).pop("forward", None)  # TRL replaced it
    model.eval()
    shutil.rmtree(folder, ignore_errors=True)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    frame = pd.DataFrame(logged).rename(columns=NAMES)
    return frame[[name for name in LOGGED if name in frame]]


def rows(questions: Questions, wanted: Sequence[int]) -> datasets.Dataset:
    """Return questions for GRPOTrainer: a conversation ``prompt``, ``images``, the index ``question``.

    Images are opened when a row is read, so only those of a batch are in memory.
    """

    def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        indices = batch["question"]
        asked = [questions.conversation(index) for index in indices]
        return {"prompt": asked, "images": list(map(questions.pictures, indices)), "question": indices}

    return datasets.Dataset.from_dict({"question": list(map(int, wanted))}).with_transform(read)


class _Meter(TrainerCallback):
    """Counts responses and seconds, and adds them to each row of the log."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(MEASURED, 0.0)
        self._since = 0.0

    def add(self, name: str, amount: float) -> None:
        self._sums[name] += amount

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    @contextmanager
    def watching(self, thing: Any, method: str, name: str) -> Iterator[None]:
        """Time every call of a method of one object while the context lasts."""
        called = getattr(thing, method)

        def timed(*args: Any, **options: Any) -> Any:
            with self.timed(name):
                return called(*args, **options)

        vars(thing)[method] = timed
        try:
            yield
        finally:
            del vars(thing)[method]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report("training online", state.global_step, state.max_steps)
        control.should_log |= state.global_step == state.max_steps  # the last row has everything

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        state.log_history[-1] |= self._sums | {"seconds": now - self._since}
        self._sums, self._since = dict.fromkeys(MEASURED, 0.0), now
