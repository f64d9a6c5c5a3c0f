"""The estimate of a step's memory against what torch really allocates in one."""

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import small
import torch
import transformers
from labs import profile
from torch import Tensor
from transformers import AutoModelForImageTextToText, TrainingArguments

from benchmarks.peak import Peak
from masters.data.questions import Questions
from masters.experiments.arms import arm
from masters.experiments.lab import Lab
from masters.experiments.memory import memory_line
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import skeleton
from masters.models.packing import pack, response_projection
from masters.models.small import build
from masters.objective import logits as logits_module
from masters.objective.loss import masters_loss
from masters.objective.options import LossOptions
from masters.settings import Lora, MemorySavings, ModelSpec
from masters.training import adapters, memory, trainer
from masters.training.examples import Collator, Example, Examples
from masters.training.memory import Shape, advice, device_memory, estimate, patches
from masters.training.train import train
from masters.training.trainer import MastersTrainer, Objective

MANY_WORDS = sorted({*small.WORDS, *(f"word{i}" for i in range(6000))})
TEXTS = ["the answer is {} . ", "{} . ", "it is a {} square . ", "no , it is {} "]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    return small.questions(tmp_path_factory.mktemp("memory") / "questions", 16)


def test_the_count_of_allocations_counts() -> None:
    with Peak() as counted:
        first = torch.ones(1000)
        second = first + 1  # 8000 bytes are alive
        del first
        third = second[:10]  # a view costs nothing
        assert counted.now == 4000 and counted.peak == 8000
        del second, third
    assert counted.now == 0


@pytest.mark.parametrize("chunk", [logits_module.CHUNK, 1 << 16])
@pytest.mark.parametrize(
    ("spec", "questions", "savings", "words"),
    [
        (ModelSpec(width=128, layers=2), 4, MemorySavings(), small.WORDS),
        (ModelSpec(width=64, layers=4), 16, MemorySavings(), small.WORDS),
        (ModelSpec(width=192, layers=2, vision_layers=2), 2, MemorySavings(), small.WORDS),
        (ModelSpec(width=128, layers=4), 8, MemorySavings(gradient_checkpointing=True), small.WORDS),
        (ModelSpec(width=192, layers=2), 4, MemorySavings(lora=Lora(rank=8)), small.WORDS),
        (ModelSpec(width=192, layers=2), 4, MemorySavings(bf16=True), small.WORDS),
        (ModelSpec(width=64, layers=2), 4, MemorySavings(), MANY_WORDS),
    ],
)
def test_the_estimate_is_within_a_quarter_of_what_a_step_allocates(
    asked: Questions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: ModelSpec,
    questions: int,
    savings: MemorySavings,
    words: list[str],
    chunk: int,
) -> None:
    monkeypatch.setattr(logits_module, "CHUNK", chunk)
    student, teacher, reference = (build(spec, words, seed)[0].train() for seed in (0, 1, 0))
    trained = adapters.prepare(student, savings, 0)
    options = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **adapters.arguments(savings))
    trainer = MastersTrainer(
        model=trained,
        args=options,
        data_collator=Collator(asked),
        objective=Objective(LossOptions(), [teacher], reference),
    )
    if savings.gradient_checkpointing:
        student.activation_checkpointing_enable({"use_reentrant": False})
    answers = asked.table["answer"]
    inputs = Collator(asked)(
        [
            Example(
                i,
                [small.tokens(3 * text.format(answers[i])) for text in TEXTS],
                accuracy=np.array([1, 0, 1, 0]),
            )
            for i in range(questions)
        ]
    )
    batch = inputs.packed
    weights = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    with Peak() as counted:
        for model in (trained, teacher, reference):
            for parameter in model.parameters():
                counted.see(parameter)
        for _ in range(2):
            trainer.compute_loss(trained, inputs).backward()
            optimizer.step()
            optimizer.zero_grad()
    shape = Shape(
        questions=questions,
        length=batch.input_ids.shape[1],
        tokens=batch.tokens.numel(),
        patches=memory.patches(student.config, batch.images["pixel_values"]),
        vocabulary=student.get_output_embeddings().weight.shape[0],
    )
    plain = build(spec, words, 0)[0]
    guess = estimate(plain, shape, savings, (teacher, reference))
    assert guess.total == pytest.approx(counted.peak, rel=0.25)
    assert 0.5 * counted.peak > max(guess.weights, guess.teachers), "activations are guessed"


def test_what_a_mask_holds_is_within_its_estimate() -> None:
    teacher = small.build(width=64)[0]
    guess = estimate(teacher, Shape(1, 1, 1, 1, 1), MemorySavings(), (teacher,), mask_ratio=0.4)
    with Peak() as counted:
        for parameter in teacher.parameters():
            counted.see(parameter)
        before, mask = counted.now, TeacherMask(teacher).apply(0.4)
        assert 0.95 * guess.mask < counted.now - before <= guess.mask
        mask.restore()
        assert counted.now == before


def test_shards_and_parts() -> None:
    student, shape = small.build(width=64)[0], Shape(8, 100, 400, 136, 30)
    whole = estimate(student, shape, MemorySavings(accumulate=2))
    shared = estimate(student, shape, MemorySavings(accumulate=2), shards=2)
    count = sum(p.numel() for p in student.parameters())
    assert whole.weights == whole.gradients == whole.optimizer // 2 == 4 * count
    assert shared.weights == shared.gradients == 2 * count and shared.activations == whole.activations
    assert estimate(student, shape, MemorySavings()).gradients == 0, "they come as activations go"
    along = estimate(student, shape, MemorySavings(), (student,), 0.5)
    spread = estimate(student, shape, MemorySavings(), (student,), 0.5, teacher_shards=2)
    assert spread.teachers == along.teachers // 2 == 2 * count and spread.mask == along.mask // 2 > 0
    assert spread.weights == along.weights
    copied = estimate(student, shape, MemorySavings(), replicas=8)
    assert copied.buckets == 4 * count, "DDP keeps the gradients a second time"
    assert copied.total == estimate(student, shape, MemorySavings()).total + copied.buckets


def test_a_model_on_disk_is_estimated_without_reading_it(tmp_path: Path) -> None:
    student = small.build(width=64)[0]
    student.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    shape = Shape(8, 100, 400, 136, 30)
    assert estimate(skeleton(str(tmp_path)), shape, MemorySavings()) == estimate(
        student, shape, MemorySavings()
    )


def test_the_line_compares_with_the_memory_of_the_device() -> None:
    student = small.build(width=64)[0]
    line = estimate(student, Shape(8, 100, 400, 136, 30), MemorySavings()).line()
    assert line.startswith("memory per device: about ") and "activations" in line and "\n" not in line
    assert line.endswith(f", of {device_memory() / 2**30:.1f} GiB") and "teachers" not in line
    much = estimate(student, Shape(1 << 20, 1 << 10, 400, 136, 30), MemorySavings()).line()
    assert f", more than the {device_memory() / 2**30:.1f} GiB" in much


def wide(family: str) -> tuple[Any, Any]:
    """A configuration whose heads together are wider than the model, where the family allows it."""
    config, images = families.configuration(family)
    text = config.get_text_config()
    for name, value in {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16 if family == "qwen2_5_vl" else 32,
        "num_hidden_layers": 4,
    }.items():
        setattr(text, name, value)
    if getattr(text, "layer_types", None):
        first = "sliding_attention" if family == "gemma3" else "full_attention"
        text.layer_types = 2 * [first, "full_attention"]
    if hasattr(config.vision_config, "out_hidden_size"):
        config.vision_config.out_hidden_size = 64
    return config, images


@pytest.mark.parametrize(
    ("family", "savings"),
    [
        *((family, MemorySavings()) for family in (*families.FAMILIES, "gemma3")),
        ("qwen3_vl", MemorySavings(bf16=True)),
        ("smolvlm", MemorySavings(gradient_checkpointing=True)),
    ],
)
def test_the_estimate_is_within_a_quarter_for_every_family(family: str, savings: MemorySavings) -> None:
    config, processor = wide(family)
    model = families.build(config).train()
    if savings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rng, prompts, pictures = np.random.default_rng(0), [], []
    for _ in range(4):
        pictures.append(families.processed(processor, [(256, 256)], rng))
        with torch.no_grad():
            found = model.model.get_image_features(**pictures[-1]).pooler_output
        count = sum(part.numel() // part.shape[-1] for part in found)
        words = rng.integers(1, families.IMAGE, 80)
        prompts.append(np.concatenate([words[:60], np.full(count, families.IMAGE), words[60:]]))
    groups = [list(rng.integers(1, families.IMAGE, (4, 24))) for _ in range(4)]
    batch = pack(prompts, groups, pictures, together=family != "gemma3")
    size = model.get_output_embeddings().weight.shape[0]
    optimizer, accuracy = torch.optim.AdamW(model.parameters()), torch.tensor([[1.0, 0, 1, 0]] * 4)
    with Peak() as counted:
        for parameter in model.parameters():
            counted.see(parameter)
        for _ in range(2):
            teacher, reference = torch.randn(2, *batch.tokens.shape, size)
            with torch.autocast("cpu", torch.bfloat16, enabled=savings.bf16):
                loss = masters_loss(
                    response_projection(model, batch),
                    *(teacher, batch.tokens, batch.mask),
                    accuracy=accuracy,
                    reference_logits=reference,
                )
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
    seen = sum(patches(config, images["pixel_values"]) for images in pictures)
    guess = estimate(model, Shape(*batch.input_ids.shape, batch.tokens.numel(), seen, size), savings)
    assert guess.total == pytest.approx(counted.peak, rel=0.25)
    assert guess.activations > 0.6 * guess.total


@pytest.mark.parametrize(
    "name",
    [
        *("Llava", "LlavaNext", "LlavaOnevision", "Idefics3", "SmolVLM", "InternVL", "PaliGemma", "Gemma3"),
        *("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "Mistral3", "Glm4v"),
    ],
)
def test_there_is_an_estimate_for_every_family_at_its_own_size(name: str) -> None:
    config = getattr(transformers, f"{name}Config")()
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    guess = estimate(model, Shape(1, 1000, 400, 1000, 30_000), MemorySavings())
    assert guess.weights == 4 * model.num_parameters() > 2**30
    assert 0 < guess.activations < 2**38


def test_an_estimate_that_fails_never_stops_a_run(tmp_path: Path) -> None:
    lacking = {"student": ModelSpec(path=str(tmp_path)), "large": ModelSpec(path=str(tmp_path))}
    lab = Lab(profile().model_copy(update={"ladder": lacking}))
    line = memory_line(lab, arm("masters", lab.profile))
    assert line.startswith("memory per device: no estimate for this student (ValueError: cannot load")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("savings", "questions", "teachers", "knob"),
    [
        (MemorySavings(), 6, True, "accumulate: 2 (now 6 questions at once)"),
        (MemorySavings(accumulate=2), 9, True, "accumulate: 6 (now 9 questions at once)"),
        (MemorySavings(), 1, True, "gradient_checkpointing: true"),
        (MemorySavings(gradient_checkpointing=True), 1, True, "cache_teacher: true"),
        (MemorySavings(gradient_checkpointing=True), 1, False, "responses_at_once: 2"),
        (
            MemorySavings(gradient_checkpointing=True, responses_at_once=2),
            1,
            False,
            "responses_at_once: 1",
        ),
        (
            MemorySavings(gradient_checkpointing=True, responses_at_once=1),
            1,
            False,
            "lora: {rank: 16}",
        ),
        (
            MemorySavings(gradient_checkpointing=True, responses_at_once=1, lora=Lora()),
            *(1, False, "fewer responses"),
        ),
    ],
)
def test_the_next_setting_to_change_is_named(
    savings: MemorySavings, questions: int, teachers: bool, knob: str
) -> None:
    assert knob in advice("a run", savings, questions, teachers)


@pytest.mark.parametrize("kind", ["cpu", "accelerator"])
def test_out_of_memory_is_one_line_with_the_setting_to_change(
    asked: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def full(*args: Any, **options: Any) -> Tensor:
        if kind == "cpu":
            return torch.empty(2**60)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trainer, "response_projection", full)
    student, _ = small.build()
    run = (small.labeled(asked), Objective(), small.BUDGET, tmp_path / "run", "a run")
    with pytest.raises(MemoryError, match=r"^a run: out of memory; set ") as caught:
        train(student, asked, *run)
    assert "accumulate: 2" in str(caught.value) and "\n" not in str(caught.value)


def test_other_errors_are_told_as_they_are(asked: Questions, tmp_path: Path) -> None:
    def broken(position: int) -> Example:
        raise RuntimeError("something else")

    budget = small.BUDGET
    examples = Examples(budget.steps * budget.batch, broken)
    with pytest.raises(RuntimeError, match="something else"):
        train(small.build()[0], asked, examples, Objective(), budget, tmp_path / "run", "a run")
