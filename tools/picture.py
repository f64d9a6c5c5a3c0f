"""Draw the claims in the tracked study for README.md: ``python tools/picture.py`` writes docs/claims.svg."""

from pathlib import Path

from masters.runtime.files import ROOT
from masters_book.claims.comparisons import EFFECTS
from masters_book.claims.verdicts import judge_claims
from masters_book.figures.claims import claims_figure
from masters_book.figures.style import write_svg
from masters_book.results import STUDY
from masters_book.results.tables import read_table


def draw(path: Path) -> None:
    """Draw the study's claims and write the figure to ``path``."""
    effects = read_table(STUDY / "comparisons.csv", EFFECTS)
    write_svg(claims_figure(judge_claims(effects)), path)


if __name__ == "__main__":
    draw(ROOT / "docs" / "claims.svg")
