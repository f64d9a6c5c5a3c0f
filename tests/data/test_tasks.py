"""The properties of the question sets, recomputed from pixels and sources."""

import itertools
import multiprocessing
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from datasets import Image, concatenate_datasets
from PIL import ImageColor
from sklearn.datasets import load_digits

from masters.data import charts, digits, easy_vqa, labels, scenes, shapes, tasks
from masters.data.labels import with_labels
from masters.data.tasks import load_task, task_hash, vocabulary
from masters.runtime.files import ROOT
from masters_book.results.paper import paper_table

CARDS = (ROOT / "data" / "README.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Build the sets once for this module, in a temporary cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTERS_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def texts(own_cache):
    """Return all columns except the images, by set and split."""
    return {
        (name, split): load_task(name, split).remove_columns("image").to_pandas()
        for name in tasks.TASKS
        for split in tasks.SPLITS
    }


def rows_on_card(heading: str) -> list[list[str]]:
    """Return the rows of the table under a heading of the data cards, without its header."""
    card = f"\n{CARDS}".split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


# Properties of every set


def test_columns_and_ids(texts):
    for (name, split), frame in texts.items():
        dataset = load_task(name, split)
        promised = "id image image_id question answer skill facts source caption"
        assert dataset.column_names == promised.split()
        assert frame.id.is_unique
        pattern = re.escape(f"{name}/{split}/") + r"\d{6}-\d+"
        assert frame.id.str.fullmatch(pattern).all()
        assert (frame.id.str.rsplit("-", n=1).str[0] == frame.image_id).all()
        image = dataset[0]["image"]
        assert image.size == (64, 64) and image.mode == "RGB"


def test_text_is_lower_case_words_with_single_spaces(texts):
    for frame in texts.values():
        for column in ("question", "answer", "facts"):
            unique = frame[column].unique()
            assert all(text == easy_vqa.normalize(text) and text for text in unique)
        assert frame.question.str.endswith(" ?").all()
        assert frame.question.str.split().str.len().max() <= 12
        assert frame.answer.str.split().str.len().max() <= 5
        assert frame.facts.str.split().str.len().max() <= 14
        assert not frame.facts.str.contains("answer is").any()


@pytest.mark.parametrize("name", tasks.TASKS)
def test_no_picture_in_two_splits(name):
    owner: dict[str, str] = {}
    for split in tasks.SPLITS:
        dataset = load_task(name, split)
        first = dataset.select(np.unique(dataset["image_id"][:], return_index=True)[1])
        hashes = [scenes.pixel_hash(image) for image in first["image"]]
        # Two image ids of one split never share an image.
        assert len(set(hashes)) == len(hashes)
        for key in hashes:
            assert owner.setdefault(key, split) == split


def test_questions_of_an_image_id_share_one_picture():
    dataset = load_task("shapes", "validation")
    pictures = defaultdict(set)
    for image_id, image in zip(dataset["image_id"], dataset["image"], strict=True):
        pictures[image_id].add(scenes.pixel_hash(image))
    assert {len(hashes) for hashes in pictures.values()} == {1}


def test_answers_are_balanced(texts):
    for (name, split), frame in texts.items():
        for skill, group in frame.groupby("skill"):
            commonest = group.answer.value_counts(normalize=True).iloc[0]
            assert commonest < 0.55, (name, split, skill)


def test_easy_vqa_wording_bias_is_what_its_card_says(texts):
    yes_no = texts["easy-vqa", "test"].query("skill == 'existence'")
    guess = np.where(yes_no.question.map(easy_vqa.negated), "yes", "no")
    assert 0.78 < (guess == yes_no.answer).mean() < 0.85


def test_sizes_on_the_cards(texts):
    on_card = {(r[0], r[1]): (int(r[2]), int(r[3])) for r in rows_on_card("# Data cards")}
    built = {key: (frame.image_id.nunique(), len(frame)) for key, frame in texts.items()}
    assert on_card == built


def test_tables_on_the_cards():
    named = {row[0] for row in rows_on_card("## charts")}
    assert named == set(charts.TABLES)
    rows = {row[0]: int(row[1]) for row in rows_on_card("## paper")}
    files = {path.stem for path in (ROOT / "data" / "paper").glob("*.csv")}
    assert rows == {name: len(paper_table(name)) for name in files}
    for name in ("table1_components", "table2_teacher_scaling"):
        frame = paper_table(name)
        scores = frame.drop(columns=["student", "variant", "avg"])
        assert (scores.mean(axis=1) - frame.avg).abs().max() < 0.06


def test_published_counts_of_easy_vqa(texts):
    sizes = {split: len(texts["easy-vqa", split]) for split in tasks.SPLITS}
    assert sizes["train"] + sizes["validation"] == 38575 and sizes["test"] == 9673


# Every answer, recomputed independently


def test_digits_answers_follow_from_the_scans(texts):
    target = load_digits().target
    for split in tasks.SPLITS:
        for row in texts["digits", split].itertuples():
            found = re.findall(r"(\d+) at row (\d), column (\d)", row.source)
            value = {(int(r), int(c)): int(target[int(i)]) for i, r, c in found}
            values = list(value.values())
            question, numbers = row.question, [int(n) for n in re.findall(r"\d+", row.question)]
            if row.skill == "read":
                expected = value[numbers[0], numbers[1]]
            elif row.skill == "count":
                expected = len(values)
            elif "larger than" in question:
                expected = "yes" if values[0] > numbers[0] else "no"
            elif "plus" in question:
                expected = values[0] + numbers[0]
            elif "largest and the smallest" in question:
                expected = max(values) + min(values)
            elif "sum" in question:
                expected = sum(values)
            else:
                expected = max(values) if "largest" in question else min(values)
            assert row.answer == str(expected), row
            if row.skill == "add":
                assert int(row.answer) <= 20 and row.facts.endswith(f"is {row.answer}")
            elif row.skill == "read":
                assert row.facts.endswith(f"the digit {row.answer}")
            elif "the digits are" in row.facts:
                assert Counter(re.findall(r"\d", row.facts)) == Counter(map(str, values))


def test_no_handwritten_digit_in_two_splits(texts):
    used = {
        split: {i for s in texts["digits", split].source.unique() for i in re.findall(r"(\d+) at", s)}
        for split in tasks.SPLITS
    }
    assert not used["train"] & used["test"] and not used["train"] & used["validation"]
    assert not used["validation"] & used["test"]
    assert sorted([int(i) for indices in used.values() for i in indices]) == list(range(1797))
    # All scans differ, so different indices are different handwriting.
    assert len({scan.tobytes() for scan in load_digits().images}) == 1797


def read_bars(image) -> dict[str, int]:
    """Return heights by color, from the pixels in the middle of each grid column."""
    pixels = np.asarray(image)
    bars = {}
    for column in range(4):
        strip = pixels[:, column * 16 + 8]
        for color, rgb in scenes.COLORS.items():
            if height := int((strip == rgb).all(axis=1).sum()):
                assert height % charts.UNIT == 0
                bars[color] = height // charts.UNIT
    return bars


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_charts_answers_can_be_read_off_the_picture(split):
    dataset = load_task("charts", split, 3000)
    for row in dataset:
        bars = read_bars(row["image"])
        named = [word for word in row["question"].split() if word in scenes.COLORS]
        if row["skill"] == "value":
            expected = str(bars[named[0]])
        elif row["skill"] == "difference":
            expected = str(bars[named[0]] - bars[named[1]])
        elif row["skill"] == "compare":
            a, b = bars[named[0]], bars[named[1]]
            assert a != b
            expected = "yes" if (a > b if "taller" in row["question"] else a < b) else "no"
        else:
            best = (max if "tallest" in row["question"] else min)(bars.values())
            assert list(bars.values()).count(best) == 1
            expected = next(color for color, value in bars.items() if value == best)
        assert row["answer"] == expected, row["id"]
        stated = re.findall(r"(\w+) (?:bar is |bar is at )?(\d)", row["facts"])
        assert stated and all(bars[color] == int(value) for color, value in stated), row["facts"]


def test_charts_keep_the_order_of_real_rows_of_their_split(texts):
    for split in tasks.SPLITS:
        dataset = load_task("charts", split, 400)
        for source, image in zip(dataset["source"], dataset["image"], strict=True):
            name, column, rows = re.fullmatch(r"(\w+): (\w+) of (.*)", source).groups()
            frame = charts.table(name)
            assert frame.index.is_unique
            values = frame[column].to_dict()
            real = [values[row] for row in rows.split(" | ")]
            shown = list(read_bars(image).values())
            assert len(shown) == len(real)
            order = np.argsort(real, kind="stable")
            assert (np.diff(np.array(shown)[order]) >= 0).all(), source
            own = set(frame.index[charts.split_rows(name)[split]])
            assert set(rows.split(" | ")) <= own
    for name in charts.TABLES:
        parts = charts.split_rows(name)
        assert sorted(np.concatenate(list(parts.values()))) == list(range(len(charts.table(name))))


def shapes_answer(skill: str, question: str, scene: list[tuple[str, ...]]) -> str:
    """Return the answer in a scene, a list of (color, kind, row, column)."""
    words = question.split()
    names = [f"{color} {kind}" for color, kind, _, _ in scene]
    if skill == "count":
        what = words[2].removesuffix("s")
        return str(sum(what in ("shape", color, kind) for color, kind, _, _ in scene))
    if skill == "existence":
        return "yes" if " ".join(words[3:5]) in names else "no"
    if skill == "list":
        axis = 3 if "left" in words else 2
        assert len({thing[axis] for thing in scene}) == len(scene)
        return " , ".join(thing[0] for thing in sorted(scene, key=lambda thing: thing[axis]))
    if skill == "relation":
        first, second = " ".join(words[2:4]), " ".join(words[-3:-1])
        assert names.count(first) == names.count(second) == 1
        axis = 3 if "left" in words or "right" in words else 2
        a, b = scene[names.index(first)][axis], scene[names.index(second)][axis]
        assert a != b
        return "yes" if (a > b if "right" in words or "below" in words else a < b) else "no"
    if "row" in words:
        fitting = [
            name for name, thing in zip(names, scene, strict=True) if thing[2:] == (words[4], words[7])
        ]
    elif "color" in words:
        fitting = [color for color, kind, _, _ in scene if kind == words[4]]
    else:
        fitting = [kind for color, kind, _, _ in scene if color == words[3]]
    assert len(fitting) == 1
    return fitting[0]


def test_shapes_answers_follow_from_the_scene(texts):
    for split in tasks.SPLITS:
        for row in texts["shapes", split].itertuples():
            scene = re.findall(r"(\w+) (\w+) at row (\d), column (\d)", row.source)
            assert row.answer == shapes_answer(row.skill, row.question, scene), row
            if row.skill == "count":
                counted = row.facts.removeprefix("rows 1 to 4 hold")
                assert sum(map(int, re.findall(r"\d", counted))) == int(row.answer)
            elif row.skill == "list":
                assert re.findall("|".join(scenes.COLORS), row.facts) == row.answer.split(" , ")
            elif row.skill == "relation":
                stated = re.findall(r"the (\w+) (\w+) (?:is )?in (row|column) (\d)", row.facts)
                assert len(stated) == 2
                for color, kind, axis, place in stated:
                    assert any(t[:2] == (color, kind) and t[2 + (axis == "column")] == place for t in scene)
            elif "holds" in row.facts:
                at_row, at_column, color, kind = re.fullmatch(
                    r"row (\d) , column (\d) holds a (\w+) (\w+)", row.facts
                ).groups()
                assert (color, kind, at_row, at_column) in scene
            elif "only" in row.facts:
                color, *kinds = re.findall("|".join([*scenes.COLORS, *shapes.KINDS]), row.facts)
                assert set(kinds) == {thing[1] for thing in scene if thing[0] == color}
            else:
                assert row.facts.removeprefix("no shape is ") not in {thing[0] for thing in scene}


def test_shapes_are_drawn_where_the_source_says():
    dataset = load_task("shapes", "test", 300)
    for source, image in zip(dataset["source"], dataset["image"], strict=True):
        pixels = np.asarray(image)
        drawn = {
            (color, row, column)
            for color, rgb in scenes.COLORS.items()
            for row in range(4)
            for column in range(4)
            if (pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] == rgb).all(axis=2).any()
        }
        stated = re.findall(r"(\w+) \w+ at row (\d), column (\d)", source)
        assert drawn == {(color, int(row) - 1, int(column) - 1) for color, row, column in stated}


def test_captions_say_what_the_pictures_show(texts):
    target = load_digits().target
    for name in ("digits", "shapes"):
        frame = texts[name, "test"].drop_duplicates("image_id")
        for caption, source in zip(frame.caption, frame.source, strict=True):
            cells = ["none"] * 16
            for thing, row, column in re.findall(r"([\w ]+) at row (\d), column (\d)", source):
                thing = str(target[int(thing)]) if name == "digits" else thing.strip()
                cells[(int(row) - 1) * 4 + int(column) - 1] = thing
            assert caption == " , ".join(cells)
    dataset = load_task("charts", "test", 300)
    for caption, image in zip(dataset["caption"], dataset["image"], strict=True):
        assert caption == " , ".join(f"{color} {height}" for color, height in read_bars(image).items())
    easy = texts["easy-vqa", "test"]
    known = easy[easy.facts.str.startswith("the picture shows")]
    assert (known.facts == "the picture shows " + known.caption).mean() > 0.9


def what_easy_vqa_shows(image) -> tuple[str, str]:
    """Return the color of the exactly matching pixels and the shape from the widths at top and bottom."""
    pixels = np.asarray(image)
    rgb = {color: ImageColor.getrgb("lime" if color == "green" else color) for color in easy_vqa.COLOR_WORDS}
    masks = {color: (pixels == rgb[color]).all(axis=2) for color in easy_vqa.COLOR_WORDS}
    color = max(masks, key=lambda c: masks[c].sum())
    widths = masks[color].sum(axis=1)
    widths = widths[widths > 0]
    if widths[-1] >= 2 * widths[0] and widths[-1] >= widths.max() - 1:
        return color, "triangle"
    return color, "rectangle" if np.ptp(widths) <= 1 else "circle"


def test_easy_vqa_answers_and_facts_agree_with_the_pictures():
    dataset = load_task("easy-vqa", "test")
    shown = {}
    for image_id, image in zip(dataset["image_id"][:1000], dataset["image"][:1000], strict=True):
        shown[image_id] = what_easy_vqa_shows(image)
    assert len(shown) == 1000
    for row in dataset.remove_columns("image"):
        color, shape = shown[row["image_id"]]
        named = [w for w in row["question"].split() if w in easy_vqa.COLOR_WORDS + easy_vqa.SHAPE_WORDS]
        if row["skill"] == "existence":
            there = all(word in (color, shape) for word in named)
            expected = "yes" if there != easy_vqa.negated(row["question"]) else "no"
        else:
            expected = color if row["skill"] == "color" else shape
        assert row["answer"] == expected, row["id"]
        stated = set(row["facts"].split()) & set(easy_vqa.COLOR_WORDS + easy_vqa.SHAPE_WORDS)
        if row["facts"].startswith("nothing"):
            assert not stated & {color, shape}
        else:
            assert stated and stated <= {color, shape}


# Order, limits, building


def test_a_limit_is_a_prefix_that_covers_many_images():
    whole, large, small = (load_task("digits", "train", n) for n in (None, 1000, 500))
    assert small["id"][:] == large["id"][:500] and large["id"][:] == whole["id"][:1000]
    assert len(set(large["image_id"])) == 1000
    assert len(set(large["skill"])) == 4
    assert len(load_task("digits", "validation", 10**6)) == 2000


def _build_and_hash(name: str, folder: str) -> tuple[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTERS_DATA", folder)
        return task_hash(name, "validation"), task_hash(name, "test", 200)


@pytest.mark.slow
def test_two_processes_building_at_once_get_the_same_set(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        hashes = pool.starmap(_build_and_hash, [("shapes", str(tmp_path))] * 2)
    # Equal to each other, and to the set built by this process.
    assert {*hashes} == {(task_hash("shapes", "validation"), task_hash("shapes", "test", 200))}
    (folder,) = [path for path in (tmp_path / "cache" / "tasks").iterdir() if path.is_dir()]
    assert not folder.name.startswith(".")


@pytest.mark.parametrize(
    "module",
    [digits, pytest.param(charts, marks=pytest.mark.slow), pytest.param(easy_vqa, marks=pytest.mark.slow)],
)
def test_rows_are_the_same_to_the_byte_when_built_again(module):
    first = module.build()["validation"]
    name = str(first[0]["id"]).split("/")[0]
    stored = load_task(name, "validation")
    assert {row["id"] for row in first} == set(stored["id"])
    files = {row["image_id"]: row["image"]["bytes"] for row in first}
    kept = stored.cast_column("image", Image(decode=False))
    assert all(files[i] == image["bytes"] for i, image in zip(kept["image_id"], kept["image"], strict=True))


def test_hashes_differ_between_sets_splits_and_limits():
    hashes = [task_hash("shapes", "validation", n) for n in (10, 11, 10)]
    assert hashes[0] == hashes[2] != hashes[1]
    assert task_hash("shapes", "test", 10) != hashes[0]
    assert re.fullmatch("[0-9a-f]{16}", hashes[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chart", "train"), "no question set 'chart'; there are: easy-vqa, digits, charts, shapes"),
        (("charts", "dev"), "has no split 'dev'; there are: train, validation, test"),
        (("charts", "train", 0), "limit for question set charts is 0"),
    ],
)
def test_unknown_names_are_refused_in_one_line(arguments, message):
    for function in (load_task, task_hash):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            function(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no question set"):
        vocabulary(("nothing",))


def test_the_error_for_a_damaged_set_names_the_folder_to_delete(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "tasks" / tasks._folder("shapes").name
    shutil.copytree(tasks._folder("shapes"), folder)
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    assert len(load_task("shapes", "test")) == 6000
    arrow: Path = next((folder / "test").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged: delete this folder") as caught:
        load_task("shapes", "test")
    assert folder.name in str(caught.value)


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def broken():
        raise OSError("no space left on device")

    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    monkeypatch.setitem(tasks._BUILD, "shapes", broken)
    with pytest.raises(OSError, match="no space left"):
        load_task("shapes", "test")
    assert not [path for path in (tmp_path / "cache" / "tasks").iterdir() if path.is_dir()]


# Labels and words


def test_registers():
    parts = ("which bar is tallest ?", "red", "the bars are red 7 , blue 4")
    assert labels.label_text(*parts, "bare") == "red ."
    assert labels.label_text(*parts, "sentence") == "the answer is red ."
    assert labels.label_text(*parts, "rationale") == "the bars are red 7 , blue 4 so the answer is red ."
    wordy = {labels.label_text(*parts, "wordy", variant) for variant in range(labels.VARIANTS)}
    assert len(wordy) == labels.VARIANTS
    for text in wordy:
        assert text.endswith("answer is red .") and text.count("answer is") == 1
        assert 14 <= len(text.split()) <= 20
        assert text == easy_vqa.normalize(text)


def test_no_label_is_longer_than_26_words(texts):
    for frame in texts.values():
        unique = frame[["question", "answer", "facts"]].drop_duplicates().itertuples(index=False)
        for row in unique:
            for register in labels.REGISTERS:
                for variant in range(labels.VARIANTS if register == "wordy" else 1):
                    text = labels.label_text(*row, register, variant)
                    assert len(text.split()) <= 26, text
                    assert text.endswith(f"{row.answer} .")


def core(label: str) -> str:
    return label.removesuffix(" .").split("answer is ")[-1]


def test_labels_use_registers_evenly_and_give_the_answer():
    labeled = with_labels(load_task("charts", "train", 4000)).remove_columns("image").to_pandas()
    shares = labeled.register.value_counts(normalize=True)
    assert set(shares.index) == set(labels.REGISTERS)
    assert shares.between(0.22, 0.28).all()
    assert (labeled.label.map(core) == labeled.answer).all() and (labeled.core == labeled.answer).all()
    wordy = labeled.label[labeled.register == "wordy"]
    assert wordy.str.split().str[:2].str.join(" ").nunique() == labels.VARIANTS


def test_wrong_labels_have_their_share_and_stay_within_the_skill():
    dataset = load_task("shapes", "train", 4000)
    labeled = with_labels(dataset, wrong_share=0.24).remove_columns("image").to_pandas()
    said = labeled.label.map(core)
    wrong = said != labeled.answer
    assert abs(wrong.mean() - 0.24) < 0.025 and (said == labeled.core).all()
    for skill, group in labeled.groupby("skill"):
        assert set(said[group.index]) <= set(group.answer), skill
        assert 0.18 < wrong[group.index].mean() < 0.30
    every = with_labels(dataset, wrong_share=1.0).remove_columns("image").to_pandas()
    assert (every.label.map(core) != every.answer).all()


def test_wrong_labels_are_nested():
    dataset = load_task("shapes", "train", 1000)
    shares = [0.0, 0.1, 0.2, 0.5, 1.0]
    cores = [np.array(with_labels(dataset, wrong_share=share)["core"]) for share in shares]
    right = np.array(dataset["answer"])
    assert (cores[0] == right).all()
    for fewer, more in itertools.pairwise(cores):
        kept = fewer != right
        assert (more[kept] == fewer[kept]).all() and (more != right).sum() > kept.sum()


def test_labels_depend_on_the_seed_and_the_id_only():
    small, large = load_task("digits", "train", 200), load_task("digits", "train", 400)
    first = with_labels(small, seed=3)
    assert first["label"][:] == with_labels(small, seed=3)["label"][:]
    assert first["label"][:] == with_labels(large, seed=3)["label"][:200]
    assert first["register"][:] != with_labels(small, seed=4)["register"][:]
    mixed = with_labels(concatenate_datasets([load_task("charts", "train", 50), small]), seed=3)
    assert mixed["label"][50:] == first["label"][:]
    bare = with_labels(small, registers=("bare",))
    assert set(bare["register"]) == {"bare"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"registers": ()}, "must be one or more of"),
        ({"registers": ("bare", "loud")}, "must be one or more of"),
        ({"wrong_share": 1.5}, r"wrong_share is 1.5; it must lie in \[0, 1\]"),
        ({"wrong_share": float("nan")}, "wrong_share is nan"),
    ],
)
def test_impossible_labels_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        with_labels(load_task("digits", "validation", 5), **options)


def test_vocabulary_covers_the_test_split_and_every_label(texts):
    for name in tasks.TASKS:
        words = set(vocabulary((name,)))
        frame = texts[name, "test"]
        for column in ("question", "answer", "facts"):
            assert {w for text in frame[column].unique() for w in text.split()} <= words
        labeled = with_labels(load_task(name, "train", 2000), wrong_share=0.5)
        assert {w for text in labeled["label"] for w in text.split()} <= words
    whole = vocabulary()
    assert whole == sorted(set(whole)) and whole == vocabulary(tasks.TASKS[::-1])
    assert {".", "?", ",", "answer", "is", "yes", "no", "20"} <= set(whole)
    # The cards say "little over a hundred words".
    assert 100 < len(whole) < 150


def test_half_of_the_absent_shapes_combine_a_present_color_and_kind(texts):
    """Such a "no" cannot be found by looking for the color or the kind only."""
    absent = texts["shapes", "train"].query("skill == 'existence' and answer == 'no'")
    tricky = [
        question.split()[3] in source and question.split()[4] in source
        for question, source in zip(absent.question, absent.source, strict=True)
    ]
    assert np.mean(tricky) > 0.4
    assert set(shapes.KINDS) == {question.split()[4] for question in absent.question}
