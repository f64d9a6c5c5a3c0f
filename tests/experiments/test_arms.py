import re

import pytest
from pydantic import ValidationError

from masters.experiments.arms import CHANGES, RunSpec, arm, title
from masters.settings import LanguageJudge, Profile, load_profile
from masters_book.analysis.trained_with import is_papers_form, setting


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("smoke")


def difference(one: RunSpec, other: RunSpec) -> set[str]:
    a, b = one.model_dump(), other.model_dump()
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("name", CHANGES)
def test_every_name_is_a_run_with_the_profiles_settings(name: str, profile: Profile) -> None:
    spec, settings = arm(name, profile), profile.distillation
    shared = ("questions", "steps", "batch", "learning_rate", "beta", "r_step")
    assert all(getattr(spec, field) == getattr(settings, field) for field in shared)
    assert title(name) == CHANGES[name][0]
    assert all(teacher in profile.ladder for teacher in (spec.student, *spec.teachers))


def test_titles_and_specs_are_different(profile: Profile) -> None:
    assert len({title(name) for name in CHANGES}) == len(CHANGES)
    assert len({arm(name, profile).model_dump_json() for name in CHANGES}) == len(CHANGES)


def test_the_papers_form(profile: Profile) -> None:
    spec = arm("masters", profile)
    assert (spec.teacher_responses, spec.student_responses) == (4, 4)
    assert spec.r_max == profile.distillation.r_max and spec.teachers == ("large",)
    options = spec.objective()
    assert options is not None and options.model_dump() == {
        "clip": 0.2,
        "rewards": ("accuracy", "distillation"),
        "normalize": True,
        "beta": 0.1,
        "policy_ratio": "one",
        "advantages": "all",
        "flat": "keep",
        "policy_weight": 1.0,
        "distillation_on": "mean",
        "averaging": "response",
        "divergence": "jsd",
        "mix": 0.5,
        "teacher_temperature": 1.0,
    }


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("masked", {"rewards"}),
        ("naive_rewards", {"r_max"}),
        ("naive_multi", {"rewards", "r_max"}),
        ("accuracy_only", {"rewards"}),
        ("distillation_only", {"rewards"}),
        ("unnormalised", {"normalize"}),
        ("mid_only", {"teachers"}),
        ("mid_then_large", {"teachers"}),
        ("clipped", {"policy_ratio"}),
        ("positive", {"advantages"}),
        ("skip_flat", {"flat"}),
        ("summed", {"distillation_on"}),
        ("by_token", {"averaging"}),
        ("policy_weight=0.1", {"policy_weight"}),
        ("beta=0.003", {"beta"}),
        ("judge=embedding", {"judge"}),
        ("student=mid", {"student"}),
        ("label_noise=0.2", {"label_noise"}),
        ("teacher_temperature=0.5", {"teacher_temperature"}),
        ("label_noise=0+teacher_temperature=1", set()),
        ("criterion=random", {"criterion"}),
        ("criterion=activation+masked=language", {"criterion", "masked"}),
        ("masked=vision", {"masked"}),
        ("masked=vision+masked=all+criterion=magnitude", set()),
        ("teachers=mid,large", {"teachers"}),
        ("clipped+r_max=0.4", {"policy_ratio", "r_max"}),
        ("r_max=0.4+r_max=0.2", set()),
        ("own_accuracy", {"rewards", "teacher_responses", "student_responses"}),
        ("r_max=0.4", {"r_max"}),
        ("responses=2", {"teacher_responses", "student_responses"}),
        ("source=6:2", {"teacher_responses", "student_responses"}),
        ("masters=reverse_kl", {"divergence"}),
        ("masters=skewed_kl", {"divergence", "mix"}),
        ("alone=forward_kl", {"divergence", "rewards", "r_max"}),
    ],
)
def test_a_variant_differs_from_the_paper_in_nothing_else(
    name: str, fields: set[str], profile: Profile
) -> None:
    assert difference(arm(name, profile), arm("masters", profile)) == fields


def test_the_papers_form_is_a_name_for_nothing_else(profile: Profile) -> None:
    papers = arm("masters", profile).model_copy(update={"r_step": 0.05, "lr_schedule": "constant"})
    assert is_papers_form(papers) and setting(papers).endswith("5 mask stages from r 0.2, the paper's form")
    for other in (
        {"policy_weight": 0.03},
        {"beta": 0.003},
        {"r_step": 0.1},
        {"lr_schedule": "linear"},
        {"policy_ratio": "clipped"},
        {"student_responses": 8},
        {"rewards": ("accuracy",)},
        {"r_max": 0.0},
    ):
        changed = papers.model_copy(update=other)
        assert not is_papers_form(changed) and "paper" not in setting(changed), other
    two = papers.model_copy(update={"teachers": ("mid", "large"), "learning_rate": 1e-6})
    assert is_papers_form(two)


def test_an_arm_says_what_it_was_trained_with(profile: Profile) -> None:
    spec = arm("masters+learning_rate=0.001+policy_weight=0.03+beta=0.003", profile)
    assert setting(spec) == ("weight 0.03, beta 0.003, lr 0.001 constant, 3 mask stages from r 0.2")
    plain = arm("naive_multi+learning_rate=2e-3", profile)
    assert setting(plain) == "lr 0.002 constant, no mask"
    assert setting(arm("sft+learning_rate=2e-3", profile)) == "lr 0.002 constant"
    assert setting(arm("base", profile)) == "not trained"


def test_those_without_responses(profile: Profile) -> None:
    for name, student in (("base", "student"), ("mid", "mid"), ("large", "large")):
        spec = arm(name, profile)
        assert (spec.student, spec.teachers, spec.learn_from) == (student, (), "nothing")
    sft, naive = arm("sft", profile), arm("naive", profile)
    assert sft.objective() is None and sft.teachers == () and sft.learn_from == "labels"
    assert naive.learn_from == "labels" and naive.teachers == ("large",)
    assert naive.r_max == 0 and naive.rewards == () and naive.objective() is not None
    assert difference(arm("reasoning", profile), sft) == {"learn_from"}


def test_own_accuracy_learns_from_eight_responses_of_its_own(profile: Profile) -> None:
    spec = arm("own_accuracy", profile)
    assert (spec.student_responses, spec.teacher_responses) == (8, 0)
    assert spec.rewards == ("accuracy",)


def test_online_differs_from_its_offline_counterpart_in_who_answers_when(profile: Profile) -> None:
    spec = arm("online", profile)
    assert difference(spec, arm("own_accuracy", profile)) == {"learn_from", "teachers", "r_max"}
    assert arm("online+steps=60", profile) == spec.model_copy(update={"steps": 60})
    assert title("online+steps=60") == "online GRPO, accuracy reward, 60 steps"


def test_families(profile: Profile) -> None:
    assert arm("r_max=0.4", profile).r_max == 0.4 and arm("r_max=0", profile).r_max == 0
    for total in (2, 4, 8, 16):
        spec = arm(f"responses={total}", profile)
        assert spec.teacher_responses == spec.student_responses == total // 2
    spec = arm("source=6:2", profile)
    assert (spec.student_responses, spec.teacher_responses) == (6, 2)
    assert arm("source=4:4", profile) == arm("masters", profile)
    assert arm("r_max=0.2", profile) == arm("masters", profile)
    assert title("source=6:2") == "6 student, 2 teacher responses"
    assert title("r_max=0.4") == "first mask ratio 0.4"
    assert arm("masters=jsd", profile) == arm("masters", profile)
    assert arm("alone=jsd", profile) == arm("naive_multi", profile)
    assert arm("alone=skewed_kl", profile).mix == 0.1  # as DistiLLM has it
    assert title("alone=skewed_kl") == "skewed KL alone"
    assert title("masters=generalised_jsd") == "Masters with generalised JSD"


@pytest.mark.parametrize(
    "name",
    ["", "master", "Masters", "r_max=1", "r_max=-0.2", "r_max=1.5", "r_max=", "responses=3", "responses=0",
     "responses=-2", "responses=two", "source=0:0", "source=8", "source=1:2:3", "masters ", "r_max=0.4\n",
     "masters=cosine", "alone=", "both=jsd", "policy_weight=-1", "teachers=", "teachers=mid,", "tuned",
     "learning_rate=1e-4=2", "criterion=", "criterion=size", "masked=", "masked=random", "masked=head",
     "r_max", "steps=0", "steps=-1", "steps=", "label_noise=1.5",
     "label_noise=-0.1", "label_noise=", "teacher_temperature=0", "teacher_temperature=0.0"],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_those_that_exist(name: str, profile: Profile) -> None:
    for call in (lambda: arm(name, profile), lambda: title(name)):
        with pytest.raises(ValueError, match=re.escape(repr(name))) as error:
            call()
        assert all(known in str(error.value) for known in CHANGES)
        assert "\n" not in str(error.value)


def test_a_spec_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="colour"):
        RunSpec(colour=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="rewards"):
        RunSpec(rewards=("beauty",))


@pytest.mark.parametrize(("name", "rate"), [("learning_rate=0.0001", 1e-4), ("learning_rate=1e-05", 1e-5)])
def test_the_learning_rate_family_changes_nothing_else(name: str, rate: float) -> None:
    profile = load_profile("mini")
    assert arm(name, profile) == arm("masters", profile).model_copy(update={"learning_rate": rate})


def test_names_are_put_together(profile: Profile) -> None:
    spec = arm("alone=skewed_kl+learning_rate=1e-4", profile)
    assert spec == arm("alone=skewed_kl", profile).model_copy(update={"learning_rate": 1e-4})
    assert arm("teachers=mid,large", profile) == arm("mid_then_large", profile)
    assert title("clipped+learning_rate=1e-4") == "clipped ratio, learning rate 1e-4"
    assert title("teachers=mid,large") == "teachers mid, then large"
    for call in (lambda: arm("clipped+tuned", profile), lambda: title("clipped+tuned")):
        with pytest.raises(ValueError, match=r"no arm 'tuned' \(in 'clipped\+tuned'\)"):
            call()


def test_what_is_masked_has_titles_and_needs_masks(profile: Profile) -> None:
    assert title("criterion=activation") == "masked by activation (Wanda)"
    assert title("clipped+masked=vision") == "clipped ratio, only the vision encoder masked"
    for name in ("naive+criterion=random", "masked=vision+r_max=0", "online+criterion=activation"):
        with pytest.raises(ValueError, match=re.escape(f"{name!r} masks nothing, so ")):
            arm(name, profile)


def test_a_model_that_the_ladder_lacks_is_named(profile: Profile) -> None:
    with pytest.raises(ValueError, match="needs the model huge; profile smoke has student, mid, large"):
        arm("teachers=mid,huge", profile)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sft+teacher_temperature=2", "has no teacher"),
        ("online+teacher_temperature=0.5", "has no teacher"),
        ("base+label_noise=0.2", "learns neither from labels nor"),
        ("masked+label_noise=0.2", "learns neither from labels nor"),
        ("distillation_only+label_noise=0.2", "learns neither from labels nor"),
        ("online+label_noise=0.2", "learns neither from labels nor"),
        ("masked+judge=embedding", "has no accuracy reward"),
        ("distillation_only+judge=llm", "has no accuracy reward"),
    ],
)
def test_a_part_that_has_nothing_to_change_is_refused(name: str, reason: str, profile: Profile) -> None:
    with pytest.raises(ValueError, match=f"arm {re.escape(repr(name))} {reason}.*: leave out") as error:
        arm(name, profile)
    assert "\n" not in str(error.value)


def test_what_the_profile_does_not_allow_is_refused(profile: Profile) -> None:
    def of(**changes: int) -> Profile:
        return profile.model_copy(update={"distillation": profile.distillation.model_copy(update=changes)})

    with pytest.raises(ValueError, match="full distribution, and the 8 largest entries are kept"):
        arm("teacher_temperature=2", of(top_k_logprobs=8))
    assert arm("teacher_temperature=1", of(top_k_logprobs=8)) == arm("masters", profile)


def test_a_language_model_judges_where_the_profile_names_one(profile: Profile) -> None:
    with pytest.raises(
        ValueError, match=r"'judge=llm' needs .* profile smoke names none: add judge: {server"
    ):
        arm("judge=llm", profile)
    judge = LanguageJudge(server="http://127.0.0.1:1", model="grader")
    named = profile.model_copy(update={"judge": judge})
    assert difference(arm("judge=llm", named), arm("masters", named)) == {"judge"}
    assert arm("online+judge=llm", named).judge == "llm"


def test_titles_of_the_parts_of_a_name() -> None:
    assert title("masked+label_noise=0.2") == "mask-progressive, 20 % wrong labels"
    assert title("naive+teacher_temperature=0.5") == "naive distillation, one label, teacher temperature 0.5"


def test_a_field_that_is_not_used_is_in_no_key(profile: Profile) -> None:
    """Results made before there was label noise or temperature count for ever."""
    new = {"label_noise", "teacher_temperature"}
    assert new.isdisjoint(arm("masters", profile).determining())
    changed = arm("label_noise=0.1+teacher_temperature=2", profile).determining()
    assert {name: changed[name] for name in new} == {"label_noise": 0.1, "teacher_temperature": 2.0}
