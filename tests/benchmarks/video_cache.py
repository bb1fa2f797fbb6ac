"""Step caches, on models that have a knob ``cache``: time, and how far from the clip or picture without one.

Their miniatures have random weights, so nothing is said of quality; they are small, so that what a cache itself costs
counts for more, and what it saves for less, than in a model of a useful size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.registry import families
from models.testing.subject import Subject, example_request
from tests.benchmarks.common import markdown_table
from tests.benchmarks.parts import Missing
from tests.benchmarks.video_clips import Side, Taken, by_turns, load, rows

KNOB = "cache"
REQUESTS, STEPS = 10, 20


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Rows by model. Raises: Missing: no model here has the knob."""
    examples = {
        f"{family.name}:{example}": Subject(family, example)
        for family in families().values()
        if family.shape == "job"
        for example in family.examples
    }
    found = {name: one for name, one in examples.items() if _has_knob(one)}
    if not found:
        raise Missing(f"none of {', '.join(examples) or 'the families'} has a knob {KNOB!r}")
    return {"models": {name: _measured(name, one, 1 if quick else REQUESTS) for name, one in found.items()}}


def lines(document: dict[str, Any]) -> list[str]:
    """Tables."""
    found: list[str] = []
    for model, table in document["models"].items():
        found += [*([""] if found else []), f"**{model}, a miniature with random weights**", ""]
        found.append(markdown_table(list(table[0]), [list(row.values()) for row in table]))
    return found


def _has_knob(subject: Subject) -> bool:
    return any(knob.name == KNOB for knob in subject.family.of(subject.variant).knobs)


def _measured(name: str, subject: Subject, count: int) -> list[dict[str, Any]]:
    model = load(name)
    requests = [example_request(subject, seed) for seed in range(count)]
    steps = {"num_inference_steps": STEPS}
    sides = [Side(str(value), model, {**steps, KNOB: value}) for value in model.family.knob(KNOB).points]
    sides.sort(key=lambda side: side.name != "off")
    taken = by_turns(sides, requests)
    found = rows(sides, taken)
    for row, side in zip(found, sides, strict=True):
        row["mean difference of 255"] = _difference(taken[side.name], taken[sides[0].name])
    return found


def _difference(one: Taken, other: Taken) -> float:
    pairs = zip(one.outputs, other.outputs, strict=True)
    return round(float(np.mean([np.abs(a.astype(float) - b.astype(float)).mean() for a, b in pairs])), 2)
