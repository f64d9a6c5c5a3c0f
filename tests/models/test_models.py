import json
import shutil
from pathlib import Path

import families
import pytest
import small
import torch
from tokenizers import pre_tokenizers

from masters.masking.teacher_mask import TeacherMask
from masters.models import loading as models
from masters.models.same_inputs import check_same_inputs
from masters.models.small import CHAT_TEMPLATE, build, build_processor
from masters.settings import ModelSpec

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it stands on disk after training."""
    path = tmp_path_factory.mktemp("models") / "saved"
    model, processor = small.build(seed=3)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_a_saved_model_comes_back_bit_for_bit(folder: Path) -> None:
    model, processor = small.build(seed=3)
    again, its_processor = models.load(folder)
    assert not again.training
    assert small.weights_hash(again) == small.weights_hash(model)
    assert its_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    inputs = processor(
        text=["<user> what colour ? <image> <assistant>"], images=[small.picture("red")], return_tensors="pt"
    )
    same = its_processor(
        text=["<user> what colour ? <image> <assistant>"], images=[small.picture("red")], return_tensors="pt"
    )
    assert inputs.keys() == same.keys()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**same).logits)


def test_a_shared_weight_stays_shared_after_loading(folder: Path) -> None:
    model, _ = models.load(folder)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert isinstance(head, torch.Tensor) and isinstance(embedding, torch.Tensor)
    assert head.data_ptr() == embedding.data_ptr()
    both = sum(value.numel() for value in model.state_dict().values())
    assert model.num_parameters() == both - head.numel()


def test_an_unknown_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot load a vision-language model from") as caught:
        models.load(tmp_path / "nowhere")
    message = str(caught.value)
    assert "\n" not in message and "nowhere" in message and "safetensors" in message


def test_the_processor_and_the_shapes_of_a_model_are_read_without_its_weights(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "model.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    # Sparse: every byte behind the header reads as zero.
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(whole[:header])
        file.truncate(len(whole))
    model, processor = models.load(folder)
    bones = models.skeleton(tmp_path)
    assert models.load_processor(tmp_path).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert bones.num_parameters() == model.num_parameters()
    assert {name: p.shape for name, p in bones.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert {p.device.type for p in bones.parameters()} == {"meta"} and bones.dtype == torch.float32
    assert models.local_folder(str(folder)) == folder


def test_a_processor_that_needs_more_packages_is_one_line_with_the_extra(tmp_path: Path) -> None:
    families.qwen3_vl(tmp_path, small.WORDS)
    wanted = json.loads((tmp_path / "processor_config.json").read_text())
    wanted["processor_class"] = "Qwen3VLProcessor"
    (tmp_path / "processor_config.json").write_text(json.dumps(wanted))
    videos = {"video_processor_type": "Qwen3VLVideoProcessor"}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(videos))
    with pytest.raises(ValueError, match=r"needs .*torchvision.*: pip install 'masters\[vlm\]'") as told:
        models.load_processor(tmp_path)
    assert "\n" not in str(told.value)


def test_a_folder_with_pickled_weights_only_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    model, _ = small.build(seed=3)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors") as caught:
        models.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_with_weights_cut_short_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot load a vision-language model") as caught:
        models.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_some_other_kind_of_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="cannot load a vision-language model"):
        models.load(tmp_path)


def test_the_mask_leaves_head_and_embeddings_alone() -> None:
    model, _ = small.build()
    mask = TeacherMask(model)
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = model.get_output_embeddings().weight
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    assert set(mask.names) == linear - {"lm_head.weight"}
    assert {name.split(".")[-2] for name in mask.names} >= {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("out_proj", "fc1", "fc2", "linear_1", "linear_2"),
    }
    assert not any("embed" in name or "norm" in name or name.endswith("bias") for name in mask.names)
    masked = {id(model.get_parameter(name)) for name in mask.names}
    assert id(head) in embeddings and not masked & embeddings
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with mask.apply(0.5):
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(mask.names)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (small.weights_hash(small.build(seed)[0]) for seed in (0, 0, 1))
    assert first == again != other


def test_the_weights_hash_sees_one_changed_bit() -> None:
    model, _ = small.build()
    before = small.weights_hash(model)
    with torch.no_grad():
        weight = next(model.parameters())
        weight.view(torch.int32).view(-1)[0] ^= 1
    assert small.weights_hash(model) != before


def test_a_width_that_is_no_multiple_of_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width 20 .* multiple of 8"):
        build(ModelSpec(width=20), small.WORDS, 0)


def test_special_tokens_and_rows_without_a_token_are_banned_but_not_the_end() -> None:
    model, processor = small.build()
    tokenizer = processor.tokenizer
    banned = models.banned_tokens(processor, len(tokenizer))
    names = ("<pad>", "<unk>", "<image>", "<user>", "<assistant>")
    assert banned == sorted(tokenizer.convert_tokens_to_ids(name) for name in names)
    assert model.config.image_token_id in banned and tokenizer.eos_token_id not in banned
    words = len(tokenizer)
    model.resize_token_embeddings(words + 3, mean_resizing=False)
    assert models.banned_tokens(processor, words + 3) == [*banned, words, words + 1, words + 2]


def test_different_vocabularies_are_refused() -> None:
    ours = build_processor(small.WORDS)
    check_same_inputs(ours, build_processor(small.WORDS))
    with pytest.raises(ValueError, match=r"differ in 1 tokens .*'zebra'") as caught:
        check_same_inputs(ours, build_processor([*small.WORDS, "zebra"]))
    assert "\n" not in str(caught.value)
    moved = [small.WORDS[1], small.WORDS[0], *small.WORDS[2:]]
    with pytest.raises(ValueError, match="differ in 2 tokens"):
        check_same_inputs(ours, build_processor(moved))


def test_every_word_is_one_token_and_comes_back() -> None:
    tokenizer = build_processor(small.WORDS).tokenizer
    ids = small.tokens("The answer is RED .")
    assert len(ids) == 6 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the answer is red ."
    assert small.tokens("zebra")[0] == tokenizer.unk_token_id


def test_a_teacher_that_cuts_text_otherwise_or_has_another_template_is_refused() -> None:
    ours, theirs = build_processor(small.WORDS), build_processor(small.WORDS)
    check_same_inputs(ours, theirs)
    theirs.chat_template = CHAT_TEMPLATE.replace("<image> ", "<image> <image> ")
    with pytest.raises(
        ValueError, match="different chat templates: a question is '<user> <image> what"
    ) as told:
        check_same_inputs(ours, theirs)
    assert "save it with the student's template" in str(told.value) and "\n" not in str(told.value)
    theirs = build_processor(small.WORDS)
    theirs.image_processor.crop_size = {"height": 32, "width": 32}
    with pytest.raises(ValueError, match=r"read a picture differently: .*3x64x64.* and .*3x32x32") as told:
        check_same_inputs(ours, theirs)
    assert "\n" not in str(told.value)
    theirs = build_processor(small.WORDS)
    theirs.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="one vocabulary and tokenize text differently") as told:
        check_same_inputs(ours, theirs)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="differ in 1 tokens"):
        check_same_inputs(ours, build_processor([*small.WORDS, "zebra"]))
