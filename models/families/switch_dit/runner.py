"""Pictures of classes as jobs. Requests at different timesteps share a step: each row has the matrices of its own."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from models.class_card import is_guided
from models.class_words import number_of
from models.contract import JobState, Point, Variant
from models.families.switch_dit.network import guided
from models.families.switch_dit.networks import Networks
from models.layers.class_runner import ClassRunner
from models.methods.samplers.ddpm import Ddpm
from models.methods.samplers.schedule import NoiseSchedule


class SwitchDitRunner(ClassRunner):
    """See ``ClassRunner``; also ``ExpertPhases``."""

    def __init__(self, networks: Networks, variant: Variant) -> None:
        super().__init__(networks)
        self._classes = variant.config["classes"]

    def group_key(self, state: JobState) -> Hashable:
        """Whether a step takes two passes. Timesteps, classes and scales may differ."""
        return next(iter(self.remaining(state)), None), is_guided(state.point)

    def expert_phase(self, state: JobState) -> Hashable:
        """A number for the experts that all blocks take at the timestep."""
        if "denoise" not in self.remaining(state):
            return None
        return self._phases[self._timestep(state)]

    # -- slices ------------------------------------------------------------------------------------------------------

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

    def _timestep(self, state: JobState) -> int:
        return int(self._sampler(state.point).timestep(state.kept["step"]))

    def _sampler(self, point: Point) -> Ddpm:
        return _sampler(self._config.curve, int(point["num_inference_steps"]))

    @cached_property
    def _phases(self) -> tuple[int, ...]:
        """Of each timestep, a number for the experts that the blocks take."""
        taken = (self._networks.transformer.gates > 0).permute(1, 0, 2).flatten(1).cpu()
        return tuple(torch.unique(taken, dim=0, return_inverse=True)[1].tolist())


@lru_cache(maxsize=64)
def _sampler(curve: Any, num_steps: int) -> Ddpm:
    return Ddpm(num_steps=num_steps, schedule=NoiseSchedule(curve=curve))
