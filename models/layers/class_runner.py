"""Pictures of classes as jobs, as far as all networks that denoise latents are alike.

Each slice denoises once, or decodes, for several requests together. Rows of a state are its pictures; row r has the
seed of the request plus r. Legend: B rows of all states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Figures, JobState, Phase, Point
from models.io import ImageRequest
from models.layers.latent_colours import LatentColours
from models.methods.samplers.base import Sampler, step_generator


class ClassRunner(ABC):
    """A ``Job`` with ``Previews``, but for its ``group_key``. ``kept``: the step and the latents (rows, C, h, w).
    ``cache``: ``clean``, the present estimate, and ``pictures``.

    ``networks``: ``transformer``, with its config, ``vae`` and ``decode``.
    """

    def __init__(self, networks: Any) -> None:
        self._networks, self._config = networks, networks.transformer.config

    @abstractmethod
    def _predict(self, states: Sequence[JobState], counts: Sequence[int]) -> Tensor:
        """What the network says of each row, guided. ``counts``: rows of each state."""

    @abstractmethod
    def _sampler(self, point: Point) -> Sampler:
        """That of a checkpoint, with the steps of the point."""

    def open(self, request: ImageRequest, point: Point, seed: int) -> JobState:
        """Draw the noise, on the CPU: the same on every device."""
        shape = (1, self._config.latent_channels, self._config.latent_side, self._config.latent_side)
        noise = [torch.randn(shape, generator=step_generator(seed + row, -1)) for row in range(request.count)]
        latents = torch.cat(noise).to(self._networks.vae.device)
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "latents": latents})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """Steps, and one slice that decodes all pictures."""
        left: dict[Phase, int] = {
            "denoise": int(state.point["num_inference_steps"]) - state.kept["step"],
            "decode": int("pictures" not in state.cache),
        }
        return {phase: count for phase, count in left.items() if count}

    @torch.inference_mode()
    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        """One slice of the phase that all of them are in."""
        if "denoise" in self.remaining(states[0]):
            return self._denoise(states)
        for state in states:
            state.cache["pictures"] = self._networks.decode(state.kept["latents"]).cpu().numpy()
        return [{} for _ in states]

    def close(self, state: JobState) -> Mapping[str, Any]:
        """``image``: uint8 RGB (rows, height, width, 3)."""
        return {"image": state.cache["pictures"]}

    @torch.inference_mode()
    def preview(self, state: JobState) -> NDArray[np.uint8]:
        """The first picture's present estimate, one pixel for each latent pixel."""
        latents = state.cache.get("clean", state.kept["latents"])
        return self._colours.picture(latents[:1, :, None])

    def _denoise(self, states: Sequence[JobState]) -> list[Figures | None]:
        """Nothing of a state changes before all have come out."""
        counts = [state.request.count for state in states]
        parts = torch.split(self._predict(states, counts), counts)
        after = [self._advanced(state, part) for state, part in zip(states, parts, strict=True)]
        return [_accept(state, *one) for state, one in zip(states, after, strict=True)]

    def _advanced(self, state: JobState, output: Tensor) -> tuple[Tensor, Tensor]:
        """Latents after the step, and the estimate in it. Each row draws for itself."""
        sampler, step, latents = self._sampler(state.point), state.kept["step"], state.kept["latents"]
        rows = [
            sampler.step(latents[row : row + 1], output[row : row + 1], step, step_generator(state.seed + row, step))
            for row in range(len(latents))
        ]
        return torch.cat(rows), sampler.denoised(latents, output, step)

    @cached_property
    def _colours(self) -> LatentColours:
        return LatentColours.fitted(
            lambda frames: self._networks.decode(frames[:, :, 0]).cpu().numpy(),
            self._config.latent_channels,
            self._networks.vae.device,
        )


def _accept(state: JobState, latents: Tensor, clean: Tensor) -> Figures | None:
    if not bool(torch.isfinite(latents).all()):
        return None
    state.kept = {"step": state.kept["step"] + 1, "latents": latents}
    state.cache["clean"] = clean
    return {}
