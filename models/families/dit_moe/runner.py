"""Pictures of classes as jobs: steps of several requests together, on one rank or several. Legend: B rows of all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.class_card import is_guided
from models.class_words import number_of
from models.contract import Choose, JobState, Move, Point, Slots, Variant
from models.families.dit_moe.config import Process
from models.families.dit_moe.network import DitMoe, Gated
from models.families.dit_moe.networks import Networks
from models.families.dit_moe.spread import SpreadDitMoe
from models.layers.class_runner import ClassRunner
from models.methods.experts.parallel import ExpertRanks
from models.methods.experts.recording import LoadRecorder
from models.methods.samplers.base import Sampler
from models.methods.samplers.ddpm import Ddpm
from models.methods.samplers.rectified_flow import RectifiedFlow
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import SequenceGroups


class DitMoeRunner(ClassRunner):
    """See ``ClassRunner``; also ``LaidOut``, ``Experts``, ``Parallel`` and ``PlacedExperts``."""

    def __init__(self, networks: Networks, variant: Variant) -> None:
        super().__init__(networks)
        self._variant = variant
        self._transformer: DitMoe | SpreadDitMoe = networks.transformer
        self._loads: list[NDArray[np.int64]] = []

    @property
    def expert_shape(self) -> tuple[int, int]:
        """See ``Experts``."""
        return self._config.depth, self._config.num_experts

    def take_loads(self) -> Sequence[NDArray[np.int64]]:
        """See ``Experts``."""
        loads, self._loads = self._loads, []
        return loads

    def lay_out(self) -> None:
        """See ``LaidOut``."""
        for block in self._networks.transformer.blocks:
            block.moe.lay_out()

    def spread(self, degrees: ParallelDegrees, groups_of: Callable[[int], SequenceGroups]) -> None:
        """See ``Parallel``."""
        if degrees.total != degrees.expert:
            raise ValueError("dit-moe shares rows and experts among its ranks, and nothing else")
        self._groups = groups_of(self._config.num_tokens)

    def place(self, slots: Slots, choose: Choose | None = None) -> None:
        """See ``PlacedExperts``."""
        layers = [block.moe.experts for block in self._networks.transformer.blocks]
        self._ranks = ExpertRanks(layers, slots, self._groups.expert, self._groups.beside, choose)
        self._transformer = SpreadDitMoe(self._networks.transformer, self._ranks)

    def fetch(self, slots: Slots, moves: Sequence[Move]) -> None:
        """See ``PlacedExperts``."""
        self._ranks.fetch(slots, moves)

    def switch(self) -> None:
        """See ``PlacedExperts``."""
        self._ranks.switch()

    def group_key(self, state: JobState) -> Hashable:
        """Experts a token, and whether a step takes two passes. Steps, classes and scales may differ."""
        return next(iter(self.remaining(state)), None), state.point["k0"], is_guided(state.point)

    # -- slices ------------------------------------------------------------------------------------------------------

    def _predict(self, states: Sequence[JobState], counts: Sequence[int]) -> Tensor:
        """What the network says of each row (B, channels, h, w), guided."""
        latents = torch.cat([state.kept["latents"] for state in states])
        rows = torch.tensor(counts, device=latents.device)
        times = [self._sampler(state.point).timestep(state.kept["step"]) for state in states]
        classes = [number_of(self._variant.config["classes"], state.request.prompt) for state in states]
        output = self._run(
            latents,
            torch.tensor(times, device=latents.device).repeat_interleave(rows),
            torch.tensor(classes, device=latents.device).repeat_interleave(rows),
            states[0].point,
            counts,
        )
        if not is_guided(states[0].point):
            return output
        scales = torch.tensor([float(state.point["guidance_scale"]) for state in states], device=latents.device)
        conditional, unconditional = output.chunk(2)
        guided = unconditional + scales.repeat_interleave(rows)[:, None, None, None] * (conditional - unconditional)
        channels: int = self._variant.config["guided_channels"]
        return torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)

    def _run(self, latents: Tensor, times: Tensor, classes: Tensor, point: Point, counts: Sequence[int]) -> Tensor:
        """Under guidance, all rows once more, with no class."""
        passes = 1 + is_guided(point)
        if passes == 2:
            latents, times = torch.cat([latents, latents]), torch.cat([times, times])
            classes = torch.cat([classes, torch.full_like(classes, self._config.null_class)])
        dtype, gated = self._networks.transformer.pos_embed.dtype, list[Gated]()
        output: Tensor = self._transformer(latents.to(dtype), times, classes, int(point["k0"]), gated)
        recorder = LoadRecorder(self._config.num_experts)
        for layer in gated:
            recorder.record(layer.ids)
        loads = recorder.counts(len(latents)).unflatten(0, (passes, -1)).sum(0)  # type: ignore[no-untyped-call]
        self._loads = [part.sum(0).numpy() for part in loads.split(list(counts))]
        return output.float()

    def _sampler(self, point: Point) -> Sampler:
        return _sampler(self._variant.config["process"], int(point["num_inference_steps"]))


@lru_cache(maxsize=64)
def _sampler(process: Process, num_steps: int) -> Sampler:
    return Ddpm(num_steps=num_steps) if process == "ddpm" else RectifiedFlow(num_steps=num_steps)
