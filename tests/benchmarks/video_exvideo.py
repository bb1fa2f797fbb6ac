"""ExVideo's nano model: 40 frames at once, against the model it was extended from, which sees windows of 8 of them.

The un-extended model is the same folder without the file of the extension. Both go on from the same rendered first
frames, with the same seeds. The judge says, of each clip, in how many frames colour and shape are still those of the
first one, and whether the motion goes on.
"""

from __future__ import annotations

import importlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.io import ClipRequest
from serving.replica.job.base import Frames
from tests.benchmarks.common import markdown_table
from tests.benchmarks.parts import Missing
from tests.benchmarks.video_clips import Model, Side, Taken, by_turns, load, rows

EXVIDEO = "exvideo-nano"
FRAMES, WINDOW, CLIPS = 40, 8, 50
POINT = {"num_inference_steps": 8, "guidance_scale": 1.0}
_MOTION = "motion_bucket_id"


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Rows of both. Raises: Missing: the model is not here."""
    extended = load(EXVIDEO)
    evaluate: Any = importlib.import_module("models.training.exvideo.evaluate")
    scenes = evaluate.held_out_scenes(2 if quick else CLIPS, is_long=True)
    with tempfile.TemporaryDirectory() as folder:
        sides = sides_of(extended, load_unextended(extended, Path(folder)))
        taken = go_on(sides, list(evaluate.firsts(scenes)), [scene.motion_bucket_id for scene in scenes])
    found = rows(sides, taken)
    for row, side in zip(found, sides, strict=True):
        said = evaluate.figures(taken[side.name].outputs, scenes)
        row |= {"kept in all frames": said["kept"]["value"], "frames kept": said["frames_kept"]}
        row |= {"smooth": said["smooth"]["value"], "clips": len(scenes)}
    return {"frames": FRAMES, "rows": found}


def lines(document: dict[str, Any]) -> list[str]:
    """A table."""
    table = document["rows"]
    shown = [{head: value for head, value in row.items() if head not in ("skipped", "search share")} for row in table]
    title = f"**{EXVIDEO}, {document['frames']} frames from a first one**"
    return [title, "", markdown_table(list(shown[0]), [list(row.values()) for row in shown])]


def load_unextended(extended: Model, folder: Path) -> Model:
    """Everything of the folder but weights at its top, which are the extension and statistics of its clips."""
    whole = extended.variant.weights
    if whole is None:
        raise Missing(f"{extended.variant.id} has no weights here")
    for entry in whole.iterdir():
        if entry.suffix != ".safetensors":
            (folder / entry.name).symlink_to(entry.resolve())
    return load(f"{extended.family.name}:base", folder)


def sides_of(extended: Model, base: Model) -> list[Side]:
    """The extension sees all frames, the base a window of as many as it was trained on."""
    return [
        Side("extended", extended, POINT),
        Side(f"not extended, windows of {WINDOW}", base, {**POINT, "window": WINDOW}),
    ]


def go_on(sides: Sequence[Side], pictures: Sequence[Frames], motions: Sequence[int]) -> dict[str, Taken]:
    """Clips of 40 frames from each picture, on every side."""
    clip = sides[0].model.variant.io
    requests = [
        clip.settled(
            ClipRequest(picture=_png(picture), width=picture.shape[1], height=picture.shape[0], num_frames=FRAMES)
        )
        for picture in pictures
    ]
    return by_turns(sides, requests, [{_MOTION: motion} for motion in motions])


def _png(picture: Frames) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
    return file.getvalue()
