"""Parameters of each notebook, ``notebooks/params/PROFILE/NOTEBOOK.yaml``: one class per notebook."""

from pydantic import Field

from masters import settings
from masters.runtime.parameters import Strict, read_parameters
from masters.settings import Count, Few, FewOrNone, Positive, Ratio, load_profile


class NotebookParameters(Strict):
    """Parameters of every notebook."""

    profile: str


class TasksAndModels(NotebookParameters):
    """Notebook 1."""

    samples: Count = Field(description="sample images shown per task")


class MaskingAblations(NotebookParameters):
    """Notebook 2."""

    ratios: tuple[Ratio, ...] = Field(description="mask ratios of the examined teachers; paper: not shown")
    r_max_grid: tuple[Ratio, ...] = Field(description="table 5a: 0.0, 0.1, 0.2, 0.3, 0.4, 0.5")


class ResponseCaching(NotebookParameters):
    """Notebook 3."""

    groups_shown: Count = Field(description="complete groups of responses shown")
    responses_grid: tuple[Few, ...] = Field(description="responses per question, Fig. 5")
    source_grid: tuple[tuple[FewOrNone, FewOrNone], ...] = Field(
        description="table 5c: (student, teacher) responses"
    )
    online_steps: Count = Field(
        description="steps of the run that generates online; paper: only its cost is estimated"
    )


class RewardDesign(NotebookParameters):
    """Notebook 4."""

    arms: tuple[str, ...] = Field(description="arms compared, see masters.experiments.arms; table 5e")


class OfflineRL(NotebookParameters):
    """Notebook 5."""

    arms: tuple[str, ...] = Field(description="arms compared; tables 1, 2, 5b, 5d")
    learning_rates: tuple[Positive, ...] = Field(description="of arm masters; paper: 1e-6 only")
    stabilised: tuple[str, ...] = Field(description="arms that depart from the paper's objective")
    divergences: tuple[str, ...] = Field(
        description="other divergences, without and with Masters; table 5f; paper: DistiLLM and three others"
    )


class BenchmarkEvaluation(NotebookParameters):
    """Notebook 6."""

    arms: tuple[str, ...] = Field(description="distilled students compared with the ladder; tables 3 and 4")
    timed_questions: Count = Field(description="questions for the inference times; Fig. 6")


class Claims(NotebookParameters):
    """Notebook 7."""

    resamples: Count = Field(description="bootstrap resamples per interval; paper: no intervals")


NOTEBOOKS: dict[str, type[NotebookParameters]] = {
    "1_tasks_and_models": TasksAndModels,
    "2_masking_ablations": MaskingAblations,
    "3_response_caching": ResponseCaching,
    "4_reward_design": RewardDesign,
    "5_offline_rl": OfflineRL,
    "6_benchmark_evaluation": BenchmarkEvaluation,
    "7_claims": Claims,
}


def notebook_parameters(profile: str, notebook: str) -> NotebookParameters:
    """Load the parameters of one notebook in one profile.

    Raises:
        ValueError: profile or notebook do not exist, or a parameter is unknown, missing or out of range.
    """
    load_profile(profile)
    if notebook not in NOTEBOOKS:
        raise ValueError(f"there is no notebook {notebook!r}; there are: {', '.join(NOTEBOOKS)}")
    path = settings.PARAMS / profile / f"{notebook}.yaml"
    return NOTEBOOKS[notebook].checked(read_parameters(path) | {"profile": profile}, path)
