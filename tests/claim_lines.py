"""Lines of claims.csv for the tests of the pages that show it."""

import csv
from pathlib import Path

HOSTILE = "a <b>bold</b> claim & $x_1$ `code` *star* | pipe"


def claim_line(number: int, verdict: str, **changes: str) -> dict[str, str]:
    """A line of claims.csv with characters that mean something to Markdown, HTML and matplotlib."""
    words = {"id": f"C{number}", "statement": HOSTILE, "unit": "points", "where": "5_offline_rl"}
    figures = {"paper": "+1.3", "ours": "+0.4", "low": "-0.2", "high": "+1.0", "verdict": verdict}
    numbers = {"paper_effect": "1.3", "effect": "0.4", "effect_low": "-0.2", "effect_high": "1.0"}
    arms = {
        "margin": "0.5",
        "kind": "gain",
        "treatment": "masters",
        "control": "r_max=0.4",
        "limits": HOSTILE,
    }
    sure = {"smallest": "0.74", "p": "0.01", "p_holm": "0.04", "seeds": "3"}
    sure |= {"share": "2.5", "sampled": "0.3", "sampled_low": "0.1", "sampled_high": "0.5"}
    sure |= {"excludes_paper": "yes", "disagree": f"{HOSTILE}: greedy +0.4, sampled +0.3"}
    line = words | figures | numbers | arms | {"cells": HOSTILE} | sure
    if verdict == "not tested":
        line |= dict.fromkeys(("ours", "low", "high", "effect", "effect_low", "effect_high", *sure), "")
    return line | changes


def write_lines(path: Path, lines: list[dict[str, str]]) -> None:
    """A CSV file of lines that have the same columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
