"""Pictures of classes as jobs: each slice denoises once, or decodes, for several requests together.

Requests at different timesteps share a step: each row has the matrices of its own. Rows of a state are its pictures;
row r has the seed of the request plus r.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Figures, JobState, Phase, Point, Variant
from models.families.dit_moe.words import number_of
from models.families.switch_dit.family import is_guided
from models.families.switch_dit.network import guided
from models.families.switch_dit.networks import Networks
from models.io import ImageRequest
from models.layers.latent_colours import LatentColours
from models.methods.samplers.base import step_generator
from models.methods.samplers.ddpm import Ddpm
from models.methods.samplers.schedule import NoiseSchedule


class SwitchDitRunner:
    """A ``Job`` with ``Previews`` and ``ExpertPhases``. ``kept``: the step and the latents (rows, C, h, w). ``cache``:
    ``clean``, the present estimate, and ``pictures``."""

    def __init__(self, networks: Networks, variant: Variant) -> None:
        self._networks, self._classes = networks, variant.config["classes"]
        self._config = networks.transformer.config

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

    def group_key(self, state: JobState) -> Hashable:
        """Whether a step takes two passes. Timesteps, classes and scales may differ."""
        return next(iter(self.remaining(state)), None), is_guided(state.point)

    def expert_phase(self, state: JobState) -> Hashable:
        """A number for the experts that all blocks take at the timestep."""
        if "denoise" not in self.remaining(state):
            return None
        return self._phases[self._timestep(state)]

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

    # -- slices ------------------------------------------------------------------------------------------------------

    def _denoise(self, states: Sequence[JobState]) -> list[Figures | None]:
        """Nothing of a state changes before all have come out."""
        counts = [state.request.count for state in states]
        parts = torch.split(self._predict(states, counts), counts)
        after = [self._advanced(state, part) for state, part in zip(states, parts, strict=True)]
        return [_accept(state, *one) for state, one in zip(states, after, strict=True)]

    def _predict(self, states: Sequence[JobState], counts: Sequence[int]) -> Tensor:
        """Noise and the place of its variance for each row (B, 2 C, h, w), guided."""
        network, latents = self._networks.transformer, torch.cat([state.kept["latents"] for state in states])
        rows = torch.tensor(counts, device=latents.device)

        def by_row(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=latents.device).repeat_interleave(rows)

        timesteps = by_row([self._timestep(state) for state in states])
        classes = by_row([number_of(self._classes, state.request.prompt) for state in states])
        shown = latents.to(network.pos_embed.dtype)
        if not is_guided(states[0].point):
            output: Tensor = network(shown, timesteps, classes)
            return output.float()
        scales = by_row([float(state.point["guidance_scale"]) for state in states])
        return guided(network, shown, timesteps, classes, scales.to(shown.dtype)).float()

    def _advanced(self, state: JobState, output: Tensor) -> tuple[Tensor, Tensor]:
        """Latents after the step, and the estimate in it. Each row draws for itself."""
        sampler, step, latents = self._sampler(state), state.kept["step"], state.kept["latents"]
        rows = [
            sampler.step(latents[row], output[row], step, step_generator(state.seed + row, step))
            for row in range(len(latents))
        ]
        return torch.stack(rows), sampler.denoised(latents, output, step)

    def _timestep(self, state: JobState) -> int:
        return int(self._sampler(state).timestep(state.kept["step"]))

    def _sampler(self, state: JobState) -> Ddpm:
        return _sampler(self._config.curve, int(state.point["num_inference_steps"]))

    @cached_property
    def _phases(self) -> tuple[int, ...]:
        """Of each timestep, a number for the experts that the blocks take."""
        taken = (self._networks.transformer.gates > 0).permute(1, 0, 2).flatten(1).cpu()
        return tuple(torch.unique(taken, dim=0, return_inverse=True)[1].tolist())

    @cached_property
    def _colours(self) -> LatentColours:
        vae = self._networks.vae
        return LatentColours.fitted(
            lambda frames: self._networks.decode(frames[:, :, 0]).cpu().numpy(),
            self._config.latent_channels,
            vae.device,
        )


@lru_cache(maxsize=64)
def _sampler(curve: Any, num_steps: int) -> Ddpm:
    return Ddpm(num_steps=num_steps, schedule=NoiseSchedule(curve=curve))


def _accept(state: JobState, latents: Tensor, clean: Tensor) -> Figures | None:
    if not bool(torch.isfinite(latents).all()):
        return None
    state.kept = {"step": state.kept["step"] + 1, "latents": latents}
    state.cache["clean"] = clean
    return {}
