"""The book: executed notebooks and pages from the run's files, built offline.

No number in the generated pages is typed. They come from files that the run writes into ``build/PROFILE``
(``claims.csv``, ``provenance.json``) and from the study's tables in ``data/results``. Generated files are in
``book/notebooks`` and ``book/generated``, which git does not track. MathJax comes from a package, so that no
page loads from another host.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pandas as pd

from masters.experiments.lab import Lab
from masters.runtime.files import ROOT, write_atomic
from masters.settings import load_profile, profiles
from masters_book.analysis.example import read_worked
from masters_book.analysis.trained_with import settings_of
from masters_book.claims.comparisons import COLUMNS, EFFECTS
from masters_book.claims.table import read_claims
from masters_book.claims.verdicts import write_claims
from masters_book.imitation.tables import FOLDER
from masters_book.pages.api import api_pages
from masters_book.pages.departures import departures_page
from masters_book.pages.earlier import earlier_page
from masters_book.pages.first import Judged, claims_section, edition, headline
from masters_book.pages.imitation import imitation_page
from masters_book.pages.method import method_parts
from masters_book.pages.mind import mind_page
from masters_book.pages.paper import paper_page
from masters_book.pages.rendering import fill
from masters_book.pages.responses import FILE as RESPONSES
from masters_book.pages.responses import responses_page, stored_groups
from masters_book.pages.run_file import run_file_table
from masters_book.pages.settings import settings_table
from masters_book.pages.study import judged, study_page
from masters_book.pages.why import why_page
from masters_book.report.finish import finish
from masters_book.report.glossary import link_terms
from masters_book.report.notebook_pages import write_notebooks
from masters_book.results.intact import read_intact, read_json
from masters_book.results.tables import read_table
from masters_book.study.study import Study


def build(profile: str) -> Path:
    """Build the book of a profile in ``book/_build/html``; return its first page.

    Raises:
        ValueError: an executed notebook is missing, or jupyter-book warned.
    """
    book, run = ROOT / "book", ROOT / "build" / profile
    if groups := stored_groups(Lab(profile)):
        write_atomic(run / RESPONSES, json.dumps(groups, ensure_ascii=False))
    assemble(profile, book, run)
    return render(book)


def assemble(profile: str, book: Path, run: Path) -> None:
    """Write the executed notebooks and the generated pages of one run into the book's folder.

    Args:
        profile: name of the run's profile.
        book: folder with ``_config.yml``; ``notebooks`` and ``generated`` in it are replaced.
        run: folder with the executed notebooks, the files they wrote (``claims.csv``, ``comparisons.csv``,
            ``dose.csv``, ``rewards.csv``, ``example.json``), ``responses.json`` and ``provenance.json``.

    Raises:
        ValueError: an executed notebook is missing.
    """
    for name in ("notebooks", "generated"):
        shutil.rmtree(book / name, ignore_errors=True)
    settings, path = load_profile(profile), run / "comparisons.csv"
    provenance = run / "provenance.json"
    entries = read_json(provenance) if provenance.is_file() else {}
    write_notebooks(run, book, entries, settings.minutes)
    effects = read_table(path, EFFECTS) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    arms = [*effects["treatment"], *effects["control"]]
    own = Judged(
        f"Your run ({profile})", read_claims(run / "claims.csv"), effects, settings_of(settings, arms)
    )
    generated = book / "generated"
    # Copied beside the first page, so that pages can show and link to its files.
    extra = generated / "extra"
    study = Study()
    found = judged(study)
    places = study.tables.read("map.csv") if found else None
    pages = {
        "headline": headline(found or own, places, extra / "claims.svg"),
        "claims": claims_section(settings, own, found),
        "citation": fill("citation.md", edition=edition()),
        "study": study_page(study, own, extra / "study.svg"),
        "why": why_page(settings, run, FOLDER, study),
        "earlier": earlier_page(),
        "imitation": imitation_page(extra / "imitation.svg"),
        "mind": mind_page(found, study),
        **{
            f"method/{part}": page
            for part, page in method_parts(read_worked(run / "example.json"), extra / "method.svg").items()
        },
        "paper": paper_page(study),
        "responses": responses_page(run / RESPONSES, settings.cannot_show),
        "settings": settings_table("mini", study),
        "run_file": run_file_table(),
        "departures": departures_page(book / "api.md", ROOT),
        **{f"api/{name}": page for name, page in api_pages((book / "api.md").read_text()).items()},
        "provenance": provenance_page(profile, entries, settings.minutes),
        "profiles": profiles_table(),
    }
    for name, page in pages.items():
        write_atomic(generated / f"{name}.md", page)
    for shown in (
        "examples/run.yaml",
        "examples/profile.yaml",
        "data/results/on_device.csv",
        "data/results/fuzz.csv",
        "data/results/bench.csv",
        "data/results/store.csv",
        "data/results/scale.csv",
    ):
        write_atomic(generated / Path(shown).name, read_intact(ROOT / shown))
    write_atomic(extra / "claims.csv", (run / "claims.csv").read_bytes())
    for source in sorted(study.folder.glob("*.csv")):
        write_atomic(extra / "study" / source.name, source.read_bytes())
    if found:
        write_claims(found.claims, extra / "study" / "claims.csv")  # judged by today's rule, like the pages
    _copy_mathjax(extra / "_static" / "mathjax.js")


def render(book: Path) -> Path:
    """Run jupyter-book with every warning an error; return the first page.

    Raises:
        ValueError: it warned or failed; its messages are on standard error.
    """
    shutil.rmtree(book / "_build", ignore_errors=True)
    first = book / "_build" / "html" / "index.html"
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(book), "-W", "-n", "--keep-going", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not first.is_file():
        print(done.stdout[-4000:] + done.stderr[-8000:], file=sys.stderr)
        raise ValueError("the book did not build clean: see the warnings above")
    link_terms(first.parent)
    finish(first.parent)
    return first


def provenance_page(profile: str, entries: dict[str, dict[str, Any]], expected: Mapping[str, float]) -> str:
    """Return when, where, from which commit and for how long each notebook ran.

    Args:
        profile: name of the run's profile.
        entries: the run's provenance, by notebook.
        expected: expected minutes, by notebook.
    """
    runs = [
        [
            name,
            entry["started"].replace("+00:00", "").replace("T", " "),
            f"{entry['minutes']:.1f}",
            f"{entry['minutes_longest']:.1f}",
            f"{expected[name]:g}" if name in expected else "",
            (entry["commit"] or "unknown")[:10] + (" with changes" if entry["dirty"] else ""),
            entry["parameters"],
        ]
        for name, entry in entries.items()
    ]
    machines = {
        (
            entry["processor"],
            f"{entry['cores']} cores, {entry['memory_gib']} GiB",
            ", ".join([f"Python {entry['python']}", *(f"{k} {v}" for k, v in entry["packages"].items())]),
        )
        for entry in entries.values()
    }
    hashes = {task: value for entry in entries.values() for task, value in entry["data"].items()}
    return fill(
        "provenance.md",
        profile=profile,
        expected=f"{sum(expected.values()):g}" if expected else "",
        longest=f"{sum(entry['minutes_longest'] for entry in entries.values()):.1f}",
        runs=runs,
        machines=sorted(machines),
        hashes=sorted(hashes.items()),
    )


def profiles_table() -> str:
    """Return a table of the profiles."""
    rows = []
    for profile in map(load_profile, profiles()):
        minutes = f"{sum(profile.minutes.values()):g}" if profile.minutes else "not run here"
        rows.append([profile.name, profile.description, minutes, profile.shows, profile.cannot_show])
    header = ["Profile", "For", "Minutes on two cores", "It can show", "It cannot show"]
    return fill("table.md", header=header, rows=rows, caption="The profiles")


def _copy_mathjax(target: Path) -> None:
    for file in files("sphinx-mathjax-offline") or ():
        if file.name == "tex-svg-full.js":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(str(file.locate())), target)
            return
    raise ValueError("sphinx-mathjax-offline has no tex-svg-full.js: install the versions of constraints.txt")
