"""Online GRPO: the prompts are those of the offline runs, and TRL optimises what its module says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import small
import torch
from torch import Tensor

from masters.data.questions import Questions
from masters.judges.rule import RuleJudge
from masters.models.loading import banned_tokens, load
from masters.settings import Sampling
from masters.training.online import TIMED, rows, train_online
from masters.training.train import Budget

N = 4
WANTED = [2, 0, 3, 1, 1, 2]
PLAIN = Sampling(temperature=1, top_p=1, top_k=0, repetition_penalty=1, max_new_tokens=6)
BUDGET = Budget(steps=3, batch=2, learning_rate=1e-3, schedule="constant", log_every=1)


class Says:
    """Rewards a response that holds a word."""

    name = "says"

    def __init__(self, word: str) -> None:
        self.word = word

    def score_many(
        self, questions: Sequence[str], labels: Sequence[str], responses: Sequence[str]
    ) -> list[Any]:
        assert len(questions) == len(labels) == len(responses)
        return [int(self.word in response.split()) for response in responses]


class Call(NamedTuple):
    inputs: dict[str, Tensor]
    output: Tensor


class Run(NamedTuple):
    log: pd.DataFrame
    model: Any
    calls: list[Call]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("online")
    model, processor = small.build()
    model.save_pretrained(made / "student")
    processor.save_pretrained(made / "student")
    yield made
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def squares(folder: Path) -> Questions:
    return small.questions(folder / "questions")


Train = Callable[..., Run]


@pytest.fixture(scope="module")
def online(folder: Path, squares: Questions) -> Train:
    """Trains a fresh student and remembers each call of its ``generate``."""

    def train(
        budget: Budget = BUDGET,
        judge: Any = None,
        seed: int = 0,
        sampling: Sampling = PLAIN,
        wanted: Sequence[int] = WANTED,
        beta: float = 0.1,
    ) -> Run:
        model, processor = load(folder / "student")
        calls: list[Call] = []
        generate: Any = type(model).generate

        def recording(self: Any, **inputs: Any) -> Tensor:
            output = generate(self, **inputs)
            calls.append(Call({k: v for k, v in inputs.items() if isinstance(v, Tensor)}, output))
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "generate", recording)
            judged, run = judge or RuleJudge(), folder / "run"
            log = train_online(
                model, processor, squares, wanted, judged, sampling, replace(budget, seed=seed), N, beta, run
            )
        return Run(log, model, calls)

    return train


@pytest.fixture(scope="module")
def run(online: Train) -> Run:
    return online(judge=Says("red"))


def sampled(call: Call, end: int) -> list[list[int]]:
    """What was sampled, up to the end of each response."""
    texts = call.output[:, call.inputs["input_ids"].shape[1] :].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in texts]


def test_prompts_and_pictures_are_those_of_the_offline_runs(run: Run, squares: Questions) -> None:
    assert len(run.calls) == BUDGET.steps
    asked = iter(np.repeat(WANTED, N).tolist())
    for call in run.calls:
        pictures = call.inputs["pixel_values"]
        assert len(pictures) == len(call.inputs["input_ids"]) == BUDGET.batch * N
        for ids, mask, picture in zip(
            call.inputs["input_ids"], call.inputs["attention_mask"], pictures, strict=True
        ):
            index = next(asked)
            assert ids[mask.bool()].tolist() == squares.prompt(index).tolist()
            assert torch.equal(picture, squares.image_features([index])["pixel_values"][0])
    assert next(asked, None) is None


def test_a_question_without_an_answer_is_not_judged(
    online: Train, squares: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(squares.table, "answer", squares.table["answer"].where(squares.table.index != 0, ""))
    log = online().log  # the rule refuses an empty label
    assert len(log) == BUDGET.steps and log["reward_accuracy"].between(0, 1).all()


def test_rows_are_read_when_they_are_needed(squares: Questions) -> None:
    made = rows(squares, np.array(WANTED))
    assert made[1]["question"] == WANTED[1] and len(made) == len(WANTED)
    assert made[1]["images"][0].getpixel((5, 5)) == small.COLOURS["red"]
    assert made[1]["prompt"][0]["content"][1] == {"type": "image"}


def test_special_tokens_are_never_sampled_and_the_end_is(run: Run) -> None:
    _, processor = small.build()
    banned = set(banned_tokens(processor, run.model.get_output_embeddings().weight.shape[0]))
    end = processor.tokenizer.eos_token_id
    ids = {token for call in run.calls for text in sampled(call, end) for token in text}
    assert len(ids) > len(small.WORDS) // 2 and not ids & banned
    assert end in ids


def test_sampling_settings_reach_the_model(online: Train) -> None:
    greedy = online(sampling=PLAIN.model_copy(update={"top_k": 1, "max_new_tokens": 3}))
    for call in greedy.calls:
        texts = call.output[:, call.inputs["input_ids"].shape[1] :]
        assert texts.shape[1] <= 3
        groups = texts.reshape(BUDGET.batch, N, -1)
        assert (groups == groups[:, :1]).all()  # one choice leaves nothing to chance
    assert (greedy.log["flat_groups"] == 1).all()


def test_what_is_counted_is_what_was_sampled(run: Run) -> None:
    _, processor = small.build()
    end = processor.tokenizer.eos_token_id
    texts = [text for call in run.calls for text in sampled(call, end)]
    assert run.log["responses"].sum() == len(texts) == BUDGET.steps * BUDGET.batch * N
    assert run.log["response_tokens"].sum() == sum(map(len, texts))
    assert list(run.log["step"]) == [1, 2, 3]
    spent = run.log[["seconds", *TIMED]]
    assert (spent > 0).all(axis=None)
    assert (spent[list(TIMED)].sum(axis=1) < spent["seconds"]).all()
    red = [processor.decode(text, skip_special_tokens=True).split().count("red") > 0 for text in texts]
    assert run.log["reward_accuracy"].mean() == pytest.approx(np.mean(red))


def test_the_last_row_of_the_log_misses_no_step(online: Train) -> None:
    budget = replace(BUDGET, steps=5, batch=1, log_every=2)
    short = PLAIN.model_copy(update={"max_new_tokens": 1})
    log = online(budget, wanted=WANTED[:5], sampling=short).log
    assert list(log["step"]) == [2, 4, 5] and list(log["responses"]) == [2 * N, 2 * N, N]
    assert log["response_tokens"].sum() == 5 * N


def test_a_seed_determines_the_run(online: Train, run: Run) -> None:
    again, other = online(judge=Says("red")), online(judge=Says("red"), seed=1)
    assert small.weights_hash(again.model) == small.weights_hash(run.model) != small.weights_hash(other.model)
    assert list(again.log["response_tokens"]) == list(run.log["response_tokens"])


def test_the_first_gradient_is_that_of_the_module(online: Train, folder: Path) -> None:
    """The norm that TRL logs against Eq. 9 written out, response by response (the KL is flat there)."""
    budget = replace(BUDGET, steps=1)
    run = online(budget, judge=Says("red"), seed=3, wanted=WANTED[:2])
    model, processor = load(folder / "student")
    (call,) = run.calls
    texts = sampled(call, processor.tokenizer.eos_token_id)
    red = int(processor.tokenizer.convert_tokens_to_ids("red"))
    rewards = torch.tensor([float(red in text) for text in texts]).view(-1, N)
    assert rewards.std(1).max() > 0, "without spread there is no gradient; take another seed"
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    loss = torch.zeros(())
    for row, (text, advantage) in enumerate(zip(texts, advantages, strict=True)):
        prompt = call.inputs["input_ids"][row][call.inputs["attention_mask"][row].bool()]
        ids = torch.cat([prompt, torch.tensor(text)])[None]
        logits = model(input_ids=ids, pixel_values=call.inputs["pixel_values"][row : row + 1]).logits[0]
        of_text = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(text)[:, None])
        loss = loss - advantage * of_text.mean() / len(texts)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert run.log["grad_norm"].iloc[0] == pytest.approx(float(norm), rel=1e-3)
    assert run.log["kl"].iloc[0] == pytest.approx(0, abs=1e-5)


def test_a_rewarded_token_becomes_more_probable(
    online: Train, folder: Path, squares: Questions, run: Run
) -> None:
    assert run.log["kl"].iloc[-1] > run.log["kl"].iloc[0]

    @torch.no_grad()
    def probability(model: Any) -> float:
        ids = torch.from_numpy(squares.prompt(0).astype(np.int64))[None]
        logits = model(input_ids=ids, **squares.image_features([0])).logits[0, -1]
        return float(logits.softmax(-1)[int(small.tokens("red")[0])])

    budget = replace(BUDGET, steps=30, learning_rate=1e-2)
    trained = online(budget, judge=Says("red"), wanted=[0, 0] * 30, beta=0.0)
    assert probability(trained.model) > 3 * probability(load(folder / "student")[0])
    rewards = trained.log["reward_accuracy"]
    assert rewards.tail(5).mean() > rewards.head(5).mean() + 0.2


def test_the_model_comes_back_as_an_ordinary_one(run: Run, folder: Path) -> None:
    assert not {"forward", "generate"} & set(vars(run.model)) and not run.model.training
    assert not (folder / "run").exists()


def test_what_the_baseline_has_not_is_refused(online: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="5 questions for 3 steps of 2"):
        online(wanted=WANTED[:5])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun"):
        online()
