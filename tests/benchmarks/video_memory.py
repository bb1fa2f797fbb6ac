"""Bytes of tensors that live at a time in a denoising step and in a piece of the decode, counted at every operation.

Without the weights. Beside them what the family declares of a whole request, by which a replica decides how many it
holds.
"""

from __future__ import annotations

from typing import Any

from models.testing.subject import Subject, example_request
from tests.benchmarks.common import markdown_table
from tests.benchmarks.parts import Missing
from tests.benchmarks.video_clips import NANO, Model, load, mid_model
from tests.benchmarks.video_exvideo import EXVIDEO, FRAMES
from tests.support.live_bytes import LiveBytes

STEPS = 4


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """A row for each model and length that is here."""
    found = [_row(NANO, load(NANO), frames) for frames in (29, 61)]
    if not quick:
        found.append(_row("vdit, width 384", mid_model(), 29, decodes=False))
    try:
        extended = load(EXVIDEO)
    except Missing:
        return {"rows": found}
    return {"rows": [*found, *(_row(EXVIDEO, extended, frames) for frames in (8, FRAMES))]}


def lines(document: dict[str, Any]) -> list[str]:
    """A table."""
    table = document["rows"]
    return [markdown_table(list(table[0]), [list(row.values()) for row in table])]


def _row(name: str, model: Model, frames: int, *, decodes: bool = True) -> dict[str, Any]:
    subject = Subject(model.family, model.variant.id)
    subject.variant = model.variant
    request = model.variant.io.settled(example_request(subject))
    request = type(request)(**{**_fields(request), "num_frames": frames})
    settings = {"num_inference_steps": STEPS}
    state, peaks = model.open(request, settings, 0), {"denoise": 0, "decode": 0}
    while left := model.runner.remaining(state):
        phase, live = next(iter(left)), LiveBytes()
        with live:
            model.runner.step([state])
        if phase in peaks:
            peaks[phase] = max(peaks[phase], live.peak)
    assert model.family.work is not None, "jobs count their work"
    declared = model.family.work.load()(model.variant, request, model.family.check_point(settings)).bytes_held
    return {
        "model": name,
        "clip": f"{frames} of {request.width}x{request.height}",
        "denoise MiB": _mib(peaks["denoise"]),
        "denoise KiB/frame": round(peaks["denoise"] / 1024 / frames, 1),
        "decode MiB": _mib(peaks["decode"]) if decodes else None,
        "decode KiB/frame": round(peaks["decode"] / 1024 / frames, 1) if decodes else None,
        "declared MiB": _mib(declared),
    }


def _fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def _mib(num_bytes: int) -> float:
    return round(num_bytes / 2**20, 2)
