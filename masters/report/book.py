"""The book: executed notebooks and what is read from the run's files, put together and built offline.

No number in the prose is typed: the headline comes from ``build/<profile>/claims.csv``, the page on how it
was made from ``build/<profile>/provenance.json``, both written by the run, and the pages of the studies from
their tables in ``data/results``. What is made here lies in ``book/notebooks`` and ``book/generated``, which
git does not track. MathJax comes from a package, so that no page loads from another host.
"""

import json
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from masters.claims.comparisons import COLUMNS, read_effects
from masters.claims.table import read_frame
from masters.claims.verdicts import write_claims
from masters.experiments.arms import settings_of
from masters.report.departures import departures_page
from masters.report.first_page import Judged, headline
from masters.report.markup import table
from masters.report.study_page import judged, study_page, study_sentences
from masters.report.why_page import why_page
from masters.runtime.files import ROOT, STUDY, write_atomic
from masters.settings import NOTEBOOKS, load_profile, profiles
from masters.study.plan import studies
from masters.study.study import Study


def build(profile: str) -> Path:
    """Assemble and build the book of a profile in ``book/_build/html``; returns its first page.

    Raises:
        ValueError: an executed notebook is missing, or jupyter-book found something to warn about.
    """
    book = ROOT / "book"
    assemble(profile, book, ROOT / "build" / profile)
    return render(book)


def assemble(profile: str, book: Path, run: Path) -> None:
    """Put the executed notebooks and the generated fragments of one run into the book's folder.

    Args:
        profile: its name, for the headline.
        book: the folder with ``_config.yml``; ``notebooks`` and ``generated`` in it are replaced.
        run: the folder with the executed notebooks, what they wrote (``claims.csv``, ``comparisons.csv``,
            ``dose.csv``, ``rewards.csv``) and ``provenance.json``.

    Raises:
        ValueError: an executed notebook is missing.
    """
    for name in ("notebooks", "generated"):
        shutil.rmtree(book / name, ignore_errors=True)
    for notebook in NOTEBOOKS:
        source = run / f"{notebook}.ipynb"
        if not source.is_file():
            raise ValueError(f"{source} is missing: run `make reproduce PROFILE={profile}` first")
        write_atomic(book / "notebooks" / f"{notebook}.ipynb", _for_reading(source))
    settings, path = load_profile(profile), run / "comparisons.csv"
    effects = read_effects(path) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    arms = [*effects["treatment"], *effects["control"]]
    own = Judged(
        f"Your run ({profile})", read_frame(run / "claims.csv"), effects, settings_of(settings, arms)
    )
    provenance = run / "provenance.json"
    entries = json.loads(provenance.read_text()) if provenance.is_file() else {}
    generated = book / "generated"
    # Copied as it is into the folder of the first page, so that a page can show and link to what is in it.
    extra = generated / "extra"
    pages_of_studies = [name for name in studies() if (book / f"{name}.md").is_file()]
    kept = {name: Study(name, STUDY.with_name(name)) for name in pages_of_studies}
    found = {name: of for name, study in kept.items() if (of := judged(study))}
    pages = {
        "headline": headline(settings, own, extra / "claims.svg", list(found.values()))
        + "\n"
        + study_sentences(found, {name: study.runs for name, study in kept.items()}),
        **{name: study_page(study, settings, own, extra / f"{name}.svg") for name, study in kept.items()},
        "why": why_page(profile, run, STUDY.parent / "mask_dose.csv", next(iter(kept.values()), None)),
        "departures": departures_page(book / "api.md", ROOT),
        "provenance": provenance_page(profile, entries),
        "profiles": profiles_table(),
    }
    for name, page in pages.items():
        write_atomic(generated / f"{name}.md", page)
    write_atomic(extra / "claims.csv", (run / "claims.csv").read_bytes())
    for name, study in kept.items():
        for source in sorted(study.folder.glob("*.csv")):
            write_atomic(extra / name / source.name, source.read_bytes())
    for name, of_study in found.items():
        write_claims(of_study.claims, extra / name / "claims.csv")  # as the pages have them
    _copy_mathjax(extra / "_static" / "mathjax.js")


def render(book: Path) -> Path:
    """Run jupyter-book from nothing, every warning an error; returns the first page.

    Raises:
        ValueError: it warned or failed; its own lines are on standard error.
    """
    shutil.rmtree(book / "_build", ignore_errors=True)
    first = book / "_build" / "html" / "index.html"
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(book), "-W", "-n", "--keep-going", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not first.is_file():
        print(done.stdout[-4000:] + done.stderr[-8000:], file=sys.stderr)
        raise ValueError("the book did not build clean: see the warnings above")
    return first


def provenance_page(profile: str, entries: dict[str, dict[str, Any]]) -> str:
    """When, where, from which commit and for how long each notebook ran, as MyST."""
    if not entries:
        return "This copy was built from notebooks that carry no record of their run.\n"
    columns = ["Notebook", "Started (UTC)", "Minutes", "Minutes, nothing cached", "Commit", "Parameters"]
    rows = []
    for name, entry in entries.items():
        commit = (entry["commit"] or "unknown")[:10] + (" with changes" if entry["dirty"] else "")
        started = entry["started"].replace("+00:00", "").replace("T", " ")
        rows.append(
            [
                name,
                started,
                f"{entry['minutes']:.1f}",
                f"{entry['minutes_longest']:.1f}",
                commit,
                entry["parameters"],
            ]
        )
    machines = {
        (
            entry["processor"],
            f"{entry['cores']} cores, {entry['memory_gib']} GiB",
            ", ".join([f"Python {entry['python']}", *(f"{k} {v}" for k, v in entry["packages"].items())]),
        )
        for entry in entries.values()
    }
    hashes = {task: value for entry in entries.values() for task, value in entry["data"].items()}
    longest = sum(entry["minutes_longest"] for entry in entries.values())
    return "\n".join(
        [
            f"Profile `{profile}`, {longest:.1f} minutes together with nothing cached.",
            "",
            table(columns, rows),
            "",
            table(
                ["Processor", "Cores and memory", "Software"], [list(machine) for machine in sorted(machines)]
            ),
            "",
            table(
                ["Question set", "Content hash"], [[task, value] for task, value in sorted(hashes.items())]
            ),
            "",
        ]
    )


def profiles_table() -> str:
    """The profiles that exist, from their own files, as MyST."""
    rows = []
    for profile in map(load_profile, profiles()):
        minutes = f"{sum(profile.minutes.values()):g}" if profile.minutes else "not run here"
        rows.append([profile.name, profile.description, minutes, profile.shows, profile.cannot_show])
    return table(["Profile", "For", "Minutes on two cores", "It can show", "It cannot show"], rows) + "\n"


def _for_reading(source: Path) -> str:
    """A notebook as the book shows it: no execution metadata, overridden defaults folded away."""
    notebook = nbformat.read(source, as_version=4)
    tags = [set(cell.metadata.get("tags", [])) for cell in notebook.cells]
    injected = any("injected-parameters" in of_cell for of_cell in tags)
    notebook.metadata.pop("papermill", None)
    for cell, of_cell in zip(notebook.cells, tags, strict=True):
        cell.metadata.pop("papermill", None)
        if injected and "parameters" in of_cell:
            of_cell.add("hide-input")
        if of_cell:
            cell.metadata["tags"] = sorted(of_cell)
    return str(nbformat.writes(notebook)) + "\n"


def _copy_mathjax(target: Path) -> None:
    for file in files("sphinx-mathjax-offline") or ():
        if file.name == "tex-svg-full.js":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(str(file.locate())), target)
            return
    raise ValueError("sphinx-mathjax-offline has no tex-svg-full.js: install the versions of constraints.txt")
