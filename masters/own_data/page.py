"""One HTML page that shows what was read: counts, problems, lengths, picture sizes and sample rows.

The page needs no other file and no network. Every text from the data is escaped.
"""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from jinja2 import Environment

from masters.data.labels import accepted
from masters.own_data.pictures import open_picture
from masters.own_data.question_set import OwnQuestions

SAMPLES = 10
LISTED = 200  # skipped rows
SIDE = 320  # pixels, longest side of a sample picture
BINS = 24

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .7rem; text-align: left;
border-bottom: 1px solid #ddd; vertical-align: top; overflow-wrap: anywhere } .number { text-align: right }
figure { display: inline-block; margin: 0 1rem 1rem 0 } svg { display: block }
figcaption, .quiet { color: #555; font-size: .85rem }
.sample { border: 1px solid #ddd; border-radius: 6px; padding: .7rem 1rem; margin: 1rem 0 }
.sample img { max-width: 100%; margin-right: .5rem; vertical-align: top }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 }
</style></head><body>
<h1>{{ title }}</h1>
<table><tr><th>split</th>
{% for name in splits[0].counts %}<th class="number">{{ name }}</th>{% endfor %}</tr>
{% for split in splits %}<tr><td>{{ split.name }}</td>
{% for value in split.counts.values() %}<td class="number">{{ "{:,}".format(value) }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if problems %}<h2>Problems</h2>
<ul>{% for line in problems %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% for split in splits %}<h2>{{ split.name | capitalize }}</h2>
{% for chart in split.charts %}<figure><svg width="270" height="90" role="img" aria-label="{{ chart.title }}">
{% for height in chart.heights %}<rect x="{{ loop.index0 * 11 }}" y="{{ 88 - height }}" width="10"
height="{{ height }}" fill="#2a6fbb"/>{% endfor %}<rect y="88" width="264" height="1" fill="#888"/></svg>
<figcaption>{{ chart.title }}: {{ chart.low }} to {{ chart.high }}, median {{ chart.median }}</figcaption>
</figure>
{% endfor %}
{% for sample in split.samples %}<div class="sample"><div class="quiet">{{ sample.place }}</div>
{% for image in sample.images %}<img src="data:image/jpeg;base64,{{ image }}" alt="picture {{ loop.index }}">
{% endfor %}
{% for role, text in sample.turns %}<div class="said"><b>{{ role }}</b> {{ text }}</div>{% endfor %}
<div class="said"><b>accepted</b> {{ sample.answers | join(" | ") or "no answer" }}</div></div>
{% endfor %}{% endfor %}
{% if skipped %}<h2>Skipped rows</h2>
<table><tr><th>source</th><th class="number">row</th><th>reason</th></tr>
{% for source, row, reason in skipped %}<tr><td>{{ source }}</td><td class="number">{{ row }}</td>
<td>{{ reason }}</td></tr>
{% endfor %}</table>{% if more %}<p>and {{ "{:,}".format(more) }} more</p>{% endif %}{% endif %}
</body></html>
"""


def page(own: OwnQuestions, title: str) -> str:
    """Return the page of a question set."""
    skipped = own.skipped.head(LISTED)
    return (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(
            title=title,
            problems=own.problems,
            splits=[
                {"name": name, "counts": counts(rows), "charts": _charts(rows), "samples": _samples(rows)}
                for name, rows in own.splits.items()
            ],
            skipped=list(skipped.itertuples(index=False, name=None)),
            more=len(own.skipped) - len(skipped),
        )
    )


def counts(rows: datasets.Dataset) -> dict[str, int]:
    """Return how many rows, answers and pictures a split has."""
    pictures = list(rows["pixels"])
    skills = list(rows["skill"])
    return {
        "rows": len(rows),
        "with options": skills.count("choice"),
        "without answer": skills.count("unanswered"),
        "without picture": sum(not of_row for of_row in pictures),
        "several pictures": sum(len(of_row) > 1 for of_row in pictures),
        "different pictures": len({picture for of_row in pictures for picture in of_row}),
    }


def _charts(rows: datasets.Dataset) -> list[dict[str, Any]]:
    questions = [len(text.split()) for text in rows["question"]]
    answers = [len(text.split()) for label in rows["answer"] for text in accepted(label)[:1]]
    sizes = [size for of_row in rows["sizes"] for size in of_row]
    charts = [_chart("words per question", questions), _chart("words per answer", answers)]
    charts.append(_chart("longest side of a picture in pixels", [max(size) for size in sizes]))
    charts.append(_chart("shortest side of a picture in pixels", [min(size) for size in sizes]))
    return [chart for chart in charts if chart]


def _chart(title: str, values: Sequence[int]) -> dict[str, Any]:
    if not values:
        return {}
    found, _ = np.histogram(values, BINS)
    return {
        "title": title,
        "heights": [round(84 * count / found.max(), 1) for count in found.tolist()],
        "low": min(values),
        "high": max(values),
        "median": f"{np.median(values):g}",
    }


def _samples(rows: datasets.Dataset) -> list[dict[str, Any]]:
    chosen = np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(int)).tolist()
    return [
        {
            "place": f"{row['source']} row {row['row']}",
            "images": [_small(image) for image in row["images"]],
            "turns": [(turn["role"], _text(turn["content"])) for turn in json.loads(row["messages"])],
            "answers": accepted(row["answer"]),
        }
        for row in map(rows.__getitem__, chosen)
    ]


def _small(image: dict[str, Any]) -> str:
    picture = open_picture(image)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def _text(parts: Sequence[dict[str, Any]]) -> str:
    return " ".join("[picture]" if part["type"] == "image" else part["text"] for part in parts)
