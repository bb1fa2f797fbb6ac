"""A job runner without a model: deterministic clips, settable pace and failures. For tests and for plumbing.

A request's state is one number, changed by every step in a way that depends on seed and step, so that a clip shows
whether a step was left out or done twice. Its frames are a gradient that this number shifts.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from models.contract import Figures, JobState, Phase, Point
from models.io import ClipIO, ClipRequest
from serving.replica.job.base import Frames

_PREVIEW_STRIDE = 8


def never(request: ClipRequest, step: int) -> bool:
    """The default trigger."""
    return False


@dataclass(frozen=True, kw_only=True)
class FakePace:
    """``step_s`` is the time of a step, whatever its batch; ``step_job_s`` comes on top for each job of it. ``fails``:
    whether a request fails in the step after so many."""

    step_s: float = 0.0
    step_job_s: float = 0.0
    decode_s: float = 0.0
    fails: Callable[[ClipRequest, int], bool] = never


class FakeRunner:
    """See the module. A first frame is there in every frame of the clip, under the gradient. Schedules of attention are
    those that its setting names: ``adaspa`` and ``ras``."""

    def __init__(self, io: ClipIO, pace: FakePace | None = None) -> None:
        self._io = io
        self._pace = pace or FakePace()

    def open(self, request: ClipRequest, point: Point, seed: int) -> JobState:
        """As many numbers as real latents have."""
        request = self._io.settled(request)
        t, h, w = self._io.grid(request.num_frames, (request.width, request.height))
        numbers = np.zeros(t * h * w * self._io.patch[1] * self._io.patch[2] * self._io.latent_channels, np.uint32)
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "latents": numbers})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """Steps and a decode."""
        made = next(iter(self._io.samplers.values()))
        steps = int(state.point.get("num_inference_steps", made.default_steps)) - state.kept["step"]
        left: dict[Phase, int] = {"denoise": steps, "decode": int("frames" not in state.cache)}
        return {phase: count for phase, count in left.items() if count}

    def group_key(self, state: JobState) -> Hashable:
        """As a real one's."""
        point, clip = state.point, state.request
        attention, sampler = str(point.get("attention")), str(point.get("sampler", next(iter(self._io.samplers))))
        step = state.kept["step"] if attention.startswith(("adaspa", "ras")) else None
        return clip.num_frames, clip.width, clip.height, self._io.samplers[sampler].weights, attention, step

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        """Change each number, or make the frames."""
        if "denoise" in self.remaining(states[0]):
            time.sleep(self._pace.step_s + self._pace.step_job_s * len(states))
            return [self._advance(state) for state in states]
        time.sleep(self._pace.decode_s)
        for state in states:
            state.cache["frames"] = self._gradient(state)
        return [{} for _ in states]

    def _advance(self, state: JobState) -> Figures | None:
        step, numbers = state.kept["step"], state.kept["latents"].copy()
        if self._pace.fails(state.request, step):
            return None
        numbers[0] = zlib.crc32(f"{numbers[0]},{state.seed},{step}".encode())
        state.kept = {"step": step + 1, "latents": numbers}
        return {}

    def close(self, state: JobState) -> Mapping[str, Any]:
        """``frames``."""
        return {"frames": state.cache["frames"]}

    def preview(self, state: JobState) -> Frames:
        """A corner of the first frame."""
        return np.ascontiguousarray(self._gradient(state)[:1, ::_PREVIEW_STRIDE, ::_PREVIEW_STRIDE])

    def _gradient(self, state: JobState) -> Frames:
        request = state.request
        frames = np.arange(request.num_frames)[:, None, None, None] * 3
        rows, columns = np.arange(request.height)[:, None, None], np.arange(request.width)[None, :, None]
        shift = state.kept["latents"][:1].view(np.uint8)[:3]
        clip: Frames = ((frames + rows + columns + shift) % 256).astype(np.uint8)
        if request.picture:
            clip = clip // 8 + np.asarray(Image.open(BytesIO(request.picture)).convert("RGB")) // 8 * 7
        return clip
