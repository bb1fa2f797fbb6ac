"""What ``vireo calibrate`` judges exvideo-nano by: held-out first frames, and the judge that knows the renderer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from models.contract import Variant
from models.io import ClipRequest
from models.training.exvideo.evaluate import held_out_scenes
from models.training.exvideo.judge import judge
from models.training.exvideo.scenes import FRAMES, SIZE, Scene, render

ROWS = 32


def judge_of(variant: Variant) -> KeptAndSmooth | None:
    """The family's part ``judge``; nobody has judged the published variants here."""
    return KeptAndSmooth() if variant.is_nano else None


def first_frame(scene: Scene) -> bytes:
    """As PNG."""
    file = io.BytesIO()
    Image.fromarray(render(scene, 1)[0]).save(file, "PNG")
    return file.getvalue()


class KeptAndSmooth:
    """A ``Judge`` of clips of the usual length, each of which is right or wrong; of 40 frames, see the model card."""

    metric = "share of clips that keep colour and shape in all frames and turn only at walls"

    def __init__(self) -> None:
        self._scenes = held_out_scenes(ROWS)
        self.rows = [
            ClipRequest(width=SIZE, height=SIZE, num_frames=FRAMES, picture=first_frame(scene))
            for scene in self._scenes
        ]
        self.data: Mapping[str, Any] = {"clips": ROWS, "frames": FRAMES, "judge": "colours and drawn templates"}

    def score(self, row: int, clip: Any) -> float:
        """1 where the frames (T, H, W, 3) keep what the first one shows, and move as they should."""
        scene = self._scenes[row]
        verdict = judge(np.asarray(clip), scene.colour, scene.shape, scene.speed)
        return float(verdict.is_kept and verdict.is_smooth)
