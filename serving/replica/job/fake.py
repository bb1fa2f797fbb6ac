"""A job runner without a model: deterministic clips, settable pace and failures. For tests and for plumbing.

A request's state is one number, changed by every step in a way that depends on seed and step, so that a clip shows
whether a step was left out or done twice. Its frames are a gradient that this number shifts.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    """See the module. Schedules of attention are those that its setting names: ``adaspa`` and ``ras``."""

    def __init__(self, io: ClipIO, pace: FakePace | None = None) -> None:
        self._io = io
        self._pace = pace or FakePace()

    def open(self, request: ClipRequest, point: Point, seed: int) -> JobState:
        """As many numbers as real latents have."""
        t, h, w = self._io.grid(request.num_frames)
        numbers = np.zeros(t * h * w * self._io.patch[1] * self._io.patch[2] * self._io.latent_channels, np.uint32)
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "latents": numbers})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """Steps and a decode."""
        steps = int(state.point["num_inference_steps"]) - state.kept["step"]
        left: dict[Phase, int] = {"denoise": steps, "decode": int("frames" not in state.cache)}
        return {phase: count for phase, count in left.items() if count}

    def group_key(self, state: JobState) -> Hashable:
        """As a real one's."""
        point = state.point
        has_schedule = str(point["attention"]).startswith(("adaspa", "ras"))
        weights = self._io.samplers[str(point["sampler"])].weights
        return state.request.num_frames, weights, point["attention"], state.kept["step"] if has_schedule else None

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
        frames = np.arange(state.request.num_frames)[:, None, None, None] * 3
        rows, columns = np.arange(self._io.height)[:, None, None], np.arange(self._io.width)[None, :, None]
        shift = state.kept["latents"][:1].view(np.uint8)[:3]
        clip: Frames = ((frames + rows + columns + shift) % 256).astype(np.uint8)
        return clip
