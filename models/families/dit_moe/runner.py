"""Pictures of classes as jobs: each slice denoises once, or decodes, for several requests together.

Rows of a state are its pictures; row r has the seed of the request plus r. Legend: B rows of all states.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Choose, Figures, JobState, Move, Phase, Point, Slots, Variant
from models.families.dit_moe.config import Process
from models.families.dit_moe.family import is_guided
from models.families.dit_moe.network import DitMoe, Gated
from models.families.dit_moe.networks import Networks
from models.families.dit_moe.spread import SpreadDitMoe
from models.families.dit_moe.words import number_of
from models.io import ImageRequest
from models.layers.latent_colours import LatentColours
from models.methods.experts.parallel import ExpertRanks
from models.methods.experts.recording import LoadRecorder
from models.methods.samplers.base import Sampler, step_generator
from models.methods.samplers.ddpm import Ddpm
from models.methods.samplers.rectified_flow import RectifiedFlow
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import SequenceGroups


class DitMoeRunner:
    """A ``Job`` with ``Previews``, ``LaidOut``, ``Experts`` and ``PlacedExperts``. ``kept``: the step and the latents
    (rows, C, h, w). ``cache``: ``clean``, the present estimate, and ``pictures``."""

    def __init__(self, networks: Networks, variant: Variant) -> None:
        self._networks, self._variant = networks, variant
        self._config = networks.transformer.config
        self._transformer: DitMoe | SpreadDitMoe = networks.transformer
        self._loads: list[NDArray[np.int64]] = []
        self._colours: LatentColours | None = None

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
        """Experts a token, and whether a step takes two passes. Steps, classes and scales may differ."""
        return next(iter(self.remaining(state)), None), state.point["k0"], is_guided(state.point)

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
        if self._colours is None:
            self._colours = LatentColours.fitted(
                lambda frames: self._networks.decode(frames[:, :, 0]).cpu().numpy(), latents.shape[1], latents.device
            )
        return self._colours.picture(latents[:1, :, None])

    # -- slices ------------------------------------------------------------------------------------------------------

    def _denoise(self, states: Sequence[JobState]) -> list[Figures | None]:
        """Nothing of a state changes before all have come out."""
        counts = [state.request.count for state in states]
        parts = torch.split(self._predict(states, counts), counts)
        after = [self._advanced(state, part) for state, part in zip(states, parts, strict=True)]
        return [_accept(state, *one) for state, one in zip(states, after, strict=True)]

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

    def _advanced(self, state: JobState, output: Tensor) -> tuple[Tensor, Tensor]:
        """Latents after the step, and the estimate in it. Each row draws for itself."""
        sampler, step, latents = self._sampler(state.point), state.kept["step"], state.kept["latents"]
        rows = [
            sampler.step(latents[row : row + 1], output[row : row + 1], step, step_generator(state.seed + row, step))
            for row in range(len(latents))
        ]
        return torch.cat(rows), sampler.denoised(latents, output, step)

    def _sampler(self, point: Point) -> Sampler:
        return _sampler(self._variant.config["process"], int(point["num_inference_steps"]))


@lru_cache(maxsize=64)
def _sampler(process: Process, num_steps: int) -> Sampler:
    return Ddpm(num_steps=num_steps) if process == "ddpm" else RectifiedFlow(num_steps=num_steps)


def _accept(state: JobState, latents: Tensor, clean: Tensor) -> Figures | None:
    if not bool(torch.isfinite(latents).all()):
        return None
    state.kept = {"step": state.kept["step"] + 1, "latents": latents}
    state.cache["clean"] = clean
    return {}
