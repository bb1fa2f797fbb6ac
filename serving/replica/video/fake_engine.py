"""A video engine without a model: deterministic clips, settable pace, failures and hangs. For tests and for plumbing.

A request's state is one number, changed by every step in a way that depends on seed and step, so that a clip shows
whether a step was left out or done twice. Its frames are a gradient that this number shifts.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.methods.attention.setting import AttentionSetting, parse_attention
from serving.errors import EngineFailed
from serving.replica.video.base import Admitted, Frames, StepDone, StepOutcome
from serving.replica.video.snapshots import snapshot_step
from serving.tasks.videos.domain import VideoSettings
from serving.tasks.videos.limits import ClipLimits

Trigger = Callable[[str, VideoSettings, int], bool]
"""Whether something happens to this job, with these settings, in the step after so many."""


def never(job_id: str, settings: VideoSettings, step: int) -> bool:
    """The default trigger."""
    return False


@dataclass(frozen=True, kw_only=True)
class FakeVideoOptions:
    """``step_s`` is the time of a step, whatever its batch; ``step_job_s`` comes on top for each job of it.

    ``hangs``: the step never comes back, until the engine is stopped. ``stuck_after_s``: as in the torch engine.
    """

    limits: ClipLimits
    step_s: float = 0.0
    step_job_s: float = 0.0
    text_s: float = 0.0
    decode_s: float = 0.0
    fails: Trigger = never
    hangs: Trigger = never
    stuck_after_s: float = 300.0


@dataclass(slots=True)
class _Held:
    settings: VideoSettings
    attention: AttentionSetting
    latents: npt.NDArray[np.uint32]
    step: int


class FakeVideoEngine:
    """See the module."""

    def __init__(self, options: FakeVideoOptions) -> None:
        self._options = options
        self._held: dict[str, _Held] = {}
        self._turn = asyncio.Lock()
        self._dead = asyncio.Event()
        self._step_started_s: float | None = None

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Fail what is in flight, forget everything."""
        self.die()
        self._held.clear()

    def die(self) -> None:
        """Behave like an engine whose process was killed."""
        self._dead.set()

    def check_settings(self, settings: VideoSettings) -> None:
        """Refuse what the limits leave out."""
        self._options.limits.check(settings)

    def predicted_bytes(self, settings: VideoSettings) -> int:
        """Exactly what it will hold."""
        return _new_latents(settings).nbytes

    def phase(self, job_id: str) -> Hashable:
        """As in the torch engine."""
        held = self._find(job_id)
        settings = held.settings
        step = held.step if held.attention.has_schedule else None
        return settings.width, settings.height, settings.num_frames, settings.variant, settings.attention, step

    async def admit(self, job_id: str, settings: VideoSettings, snapshot: bytes | None = None) -> Admitted:
        """Take a request."""
        self._options.limits.check(settings)
        attention = parse_attention(settings.attention)
        held = _Held(settings, attention, _new_latents(settings), 0)
        if snapshot is not None:
            held.latents, held.step = _read(snapshot, settings)
        await self._sleep(self._options.text_s)
        self._held[job_id] = held
        return Admitted(step=held.step, held_bytes=held.latents.nbytes, text_s=self._options.text_s)

    async def run_step(self, job_ids: Sequence[str]) -> list[StepOutcome]:
        """Change each state."""
        async with self._turn:
            self._step_started_s = time.monotonic()
            try:
                await self._sleep(self._options.step_s + self._options.step_job_s * len(job_ids))
                return [await self._advance(job_id, len(job_ids)) for job_id in job_ids]
            finally:
                self._step_started_s = None

    async def _advance(self, job_id: str, batch_size: int) -> StepOutcome:
        held = self._held.get(job_id)
        if held is None or held.step >= held.settings.num_steps:
            return EngineFailed("the model has no step left for this request")
        if self._options.hangs(job_id, held.settings, held.step):
            await self._dead.wait()
        if self._dead.is_set() or self._options.fails(job_id, held.settings, held.step):
            return EngineFailed("the model failed on this request; retry, or send another one")
        seen = f"{held.latents[0]},{held.settings.seed},{held.step}".encode()
        held.latents[0] = zlib.crc32(seen)
        held.step += 1
        compute_s = self._options.step_s / batch_size + self._options.step_job_s
        return StepDone(job_id=job_id, step=held.step, compute_s=compute_s, held_bytes=held.latents.nbytes)

    async def decode(self, job_id: str) -> Frames:
        """The whole clip. Beside the steps, like that of the torch engine."""
        held = self._find(job_id)
        await self._sleep(self._options.decode_s)
        return _gradient(held)

    async def preview(self, job_id: str) -> Frames:
        """A corner of the first frame."""
        return np.ascontiguousarray(_gradient(self._find(job_id))[:1, ::8, ::8])

    async def snapshot(self, job_id: str) -> bytes:
        """State and step."""
        held = self._find(job_id)
        return save({"latents": held.latents}, {"step": str(held.step)})

    def release(self, job_id: str) -> None:
        """Forget the request."""
        self._held.pop(job_id, None)

    def held_bytes(self) -> int:
        """Bytes of all states."""
        return sum(held.latents.nbytes for held in self._held.values())

    def check_health(self) -> None:
        """Raises: EngineFailed: ``die`` was called, or a step hangs."""
        started_s = self._step_started_s
        stuck = started_s is not None and time.monotonic() - started_s > self._options.stuck_after_s
        if self._dead.is_set() or stuck:
            raise EngineFailed("the model's process ended; retry" if not stuck else "the model is stuck; retry")

    def _find(self, job_id: str) -> _Held:
        if job_id not in self._held:
            raise EngineFailed("the model does not hold this request")
        return self._held[job_id]

    async def _sleep(self, seconds: float) -> None:
        """Let time pass; death ends the wait."""
        if not self._dead.is_set():
            try:
                await asyncio.wait_for(self._dead.wait(), max(0.0, seconds))
            except TimeoutError:
                return
        raise EngineFailed("the model's process ended; retry")


def _new_latents(settings: VideoSettings) -> npt.NDArray[np.uint32]:
    """As many numbers as the torch engine's latents have: eight pixels by eight, four channels."""
    size = (1 + (settings.num_frames - 1) // 4) * (settings.height // 8) * (settings.width // 8) * 4
    return np.zeros(max(1, size), np.uint32)


def _read(snapshot: bytes, settings: VideoSettings) -> tuple[npt.NDArray[np.uint32], int]:
    try:
        step, latents = snapshot_step(snapshot), load(snapshot)["latents"]
    except (ValueError, KeyError, SafetensorError):
        raise EngineFailed("the checkpoint of this request cannot be read; start it again") from None
    if latents.shape != _new_latents(settings).shape or not 0 <= step <= settings.num_steps:
        raise EngineFailed("the checkpoint is of another request; start it again")
    return latents.astype(np.uint32), step


def _gradient(held: _Held) -> Frames:
    settings = held.settings
    frames = np.arange(settings.num_frames)[:, None, None, None] * 3
    rows = np.arange(settings.height)[None, :, None, None]
    columns = np.arange(settings.width)[None, None, :, None]
    shift = held.latents[:1].view(np.uint8)[:3]
    clip: Frames = ((frames + rows + columns + shift) % 256).astype(np.uint8)
    return clip
