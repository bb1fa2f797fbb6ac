"""Everything that one request holds between steps.

Legend: R rows of the request in a batch: 2 under guidance (unconditional first), else 1; S text tokens.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.methods.samplers.base import Sampler, step_generator
from serving.errors import EngineFailed
from serving.replica.video.attention_state import AttentionState
from serving.replica.video.snapshots import snapshot_step
from serving.replica.video.weights import VideoWeights
from serving.tasks.videos.domain import VideoSettings


class Progress(NamedTuple):
    """Replaced as a whole after each step, so that another thread never sees half of it. ``latents`` (1, C, t, h, w);
    ``clean`` is the model's present estimate of the finished ones, for previews."""

    step: int
    latents: Tensor
    clean: Tensor


@dataclass(slots=True)
class RequestState:
    """See the module. Only ``progress`` and the inside of ``attention`` change. ``text`` (R, S, C), mask (R, S)."""

    job_id: str
    settings: VideoSettings
    weights: VideoWeights
    sampler: Sampler
    text: Tensor
    text_mask: Tensor
    attention: AttentionState
    progress: Progress

    @property
    def rows(self) -> int:
        """R."""
        return len(self.text)

    @property
    def is_denoised(self) -> bool:
        """Whether no step is left."""
        return self.progress.step >= self.settings.num_steps

    @property
    def phase(self) -> Hashable:
        """See ``VideoEngine.phase``. Where the attention has a schedule, it depends on the number of steps, too."""
        settings = self.settings
        when = (self.progress.step, settings.num_steps) if self.attention.setting.has_schedule else None
        shape = (settings.width, settings.height, settings.num_frames, self.rows)
        return (*shape, settings.variant, settings.attention, when, self.attention.is_warm)

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors that are held now."""
        own = {tensor.data_ptr(): tensor for tensor in (self.text, self.text_mask, *self.progress[1:])}
        return sum(tensor.nbytes for tensor in own.values()) + self.attention.held_bytes

    def snapshot(self) -> bytes:
        """Latents and step, as safetensors."""
        progress = self.progress
        return save({"latents": progress.latents.cpu().contiguous()}, {"step": str(progress.step)})


def rows_of(settings: VideoSettings) -> int:
    """R."""
    return 1 if settings.guidance_scale == 1 else 2


def first_latents(settings: VideoSettings, shape: tuple[int, ...], sampler: Sampler) -> Tensor:
    """What denoising begins with, float32 (1, C, t, h, w). Drawn on the CPU: the same on every device."""
    noise = torch.randn(shape, generator=step_generator(settings.seed, -1))
    return sampler.initial(noise)


def read_snapshot(snapshot: bytes, settings: VideoSettings, shape: tuple[int, ...]) -> tuple[int, Tensor]:
    """Step and latents.

    Raises: EngineFailed: unreadable, or of another request.
    """
    try:
        step, latents = snapshot_step(snapshot), load(snapshot)["latents"]
    except (ValueError, KeyError, SafetensorError):
        raise EngineFailed("the checkpoint of this request cannot be read; start it again") from None
    if tuple(latents.shape) != shape or not 0 <= step <= settings.num_steps:
        raise EngineFailed("the checkpoint is of another request; start it again")
    return step, latents.float()
