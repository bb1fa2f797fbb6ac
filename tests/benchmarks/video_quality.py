"""Steps, sparse attention and region-adaptive sampling, each against the same dense clips of 20 steps.

Quality is of the nano model: the share of held-out prompts whose clip its judge finds wholly right, and, of the same
prompts, how many only this side got right and how many only the first one. Speed also of a larger random model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.io import ClipRequest
from models.training.vdit.evaluate import held_out_scenes
from models.training.vdit.judge import Judge
from tests.benchmarks.common import markdown_table
from tests.benchmarks.video_clips import MID_TITLE, NANO, Model, Side, by_turns, load, mid_model, rows

PROMPTS, MID_CLIPS = 50, 1
#: Of each part: name of a side, steps, attention; the first is what the others are compared with.
SIDES: dict[str, list[tuple[str, int, str]]] = {
    "steps": [("20 steps", 20, "dense"), ("10 steps", 10, "dense"), ("8 steps", 8, "dense"), ("4 steps", 4, "dense")],
    "sparsity": [
        ("dense", 20, "dense"),
        ("tile 2:6", 20, "tile:2:6"),
        ("AdaSpa 0.5", 20, "adaspa:0.5"),
        ("AdaSpa 0.8", 20, "adaspa:0.8"),
    ],
    "ras": [("all tokens", 20, "dense"), ("RAS 0.5", 20, "ras:0.5"), ("RAS 0.25", 20, "ras:0.25")],
}
STUDENT_STEPS = 4


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Rows of the nano model, and of the larger one where its size says something."""
    measured: dict[str, Any] = {"nano": _nano(name, 2 if quick else PROMPTS)}
    if name != "steps" and not quick:
        measured["mid"] = _mid(name)
    return measured


def lines(document: dict[str, Any]) -> list[str]:
    """Tables."""
    titles = {
        "nano": f"{NANO}, 29 frames of 64x64, 128 tokens, {document['nano'][0]['prompts']} prompts",
        "mid": MID_TITLE,
    }
    found: list[str] = []
    for key, title in titles.items():
        if key in document:
            cells = [[value for head, value in row.items() if head != "prompts"] for row in document[key]]
            header = [head for head in document[key][0] if head != "prompts"]
            found += [*([""] if found else []), f"**{title}**", "", markdown_table(header, cells)]
    return found


def _nano(name: str, count: int) -> list[dict[str, Any]]:
    model = load(NANO)
    sides, folder = _sides(name, model, model.variant.io.default_guidance), model.variant.weights
    assert folder is not None
    if name == "steps" and (folder / "student").is_dir():
        settings = {"sampler": "consistency", "num_inference_steps": STUDENT_STEPS, "guidance_scale": 1.0}
        sides.append(Side(f"{STUDENT_STEPS} steps of the student", model, settings))
    scenes = held_out_scenes(count, 0.0)
    requests = [ClipRequest(prompt=scene.prompt(), num_frames=29) for scene in scenes]
    taken = by_turns(sides, requests)
    judge = Judge.load(folder / "judge")
    right = {side.name: [one.is_right for one in judge.verdicts(taken[side.name].outputs, scenes)] for side in sides}
    found = rows(sides, taken)
    for row, side in zip(found, sides, strict=True):
        row |= {"prompts": count, **_quality(right[side.name], right[sides[0].name])}
    return found


def _quality(own: Sequence[bool], base: Sequence[bool]) -> dict[str, Any]:
    share = float(np.mean(own))
    return {
        "right": round(share, 3),
        "standard error": round((share * (1 - share) / len(own)) ** 0.5, 3),
        "only this": sum(one and not other for one, other in zip(own, base, strict=True)),
        "only the first": sum(other and not one for one, other in zip(own, base, strict=True)),
    }


def _mid(name: str) -> list[dict[str, Any]]:
    sides = _sides(name, mid_model(), 1.0)
    kept = [side for side in sides if side.name not in ("AdaSpa 0.5", "RAS 0.25")]
    return rows(kept, by_turns(kept, [ClipRequest(prompt="x", num_frames=29)] * MID_CLIPS))


def _sides(name: str, model: Model, guidance_scale: float) -> list[Side]:
    return [
        Side(
            title,
            model,
            {
                "sampler": "ddim",
                "num_inference_steps": steps,
                "attention": attention,
                "guidance_scale": guidance_scale,
            },
        )
        for title, steps, attention in SIDES[name]
    ]
