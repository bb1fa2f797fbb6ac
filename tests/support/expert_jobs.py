"""A job of a small mixture of experts, of random weights, for tests of engines on several ranks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.contract import (
    Choose,
    Family,
    Figures,
    JobState,
    Knob,
    LazyRef,
    Move,
    Phase,
    Point,
    Slots,
    Variant,
    Work,
)
from models.families.dit_moe.config import DitMoeConfig
from models.families.dit_moe.network import DitMoe, Gated
from models.families.dit_moe.spread import SpreadDitMoe
from models.methods.experts.parallel import ExpertRanks
from models.methods.experts.recording import LoadRecorder
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import SequenceGroups

CONFIG = DitMoeConfig(width=32, depth=2, num_heads=2, num_experts=8, latent_side=8, num_classes=5)


def work(variant: Variant, request: int, point: Point) -> Work:
    """Of one picture."""
    return Work({"token_steps": 16.0 * float(point["num_inference_steps"])}, bytes_held=1 << 16)


FAMILY = Family(
    name="tiny-moe",
    summary="Experts for tests.",
    tasks=("images",),
    shape="job",
    variants=(Variant(id="tiny-moe", summary="Experts for tests.", io=None),),
    knobs=(Knob(name="num_inference_steps", default=8, low=1, high=1000, is_integer=True, summary="Steps."),),
    work=LazyRef("tests.support.expert_jobs:work"),
)


def tiny_moe() -> TinyMoe:
    """The same numbers wherever it is made."""
    torch.manual_seed(0)
    network = DitMoe(CONFIG).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.1)
    return TinyMoe(network)


class TinyMoe:
    """A request is a class, whose latents (1, C, side, side) drift."""

    expert_shape = (CONFIG.depth, CONFIG.num_experts)

    def __init__(self, network: DitMoe) -> None:
        self._network: Any = network
        self._loads: Tensor = torch.zeros(0)

    def spread(self, degrees: ParallelDegrees, groups_of: Callable[[int], SequenceGroups]) -> None:
        self._groups = groups_of(CONFIG.num_tokens)

    def place(self, slots: Slots, choose: Choose | None = None) -> None:
        layers = [block.moe.experts for block in self._network.blocks]
        self._ranks = ExpertRanks(layers, slots, self._groups.expert, self._groups.beside, choose)
        self._network = SpreadDitMoe(self._network, self._ranks)

    def fetch(self, slots: Slots, moves: Sequence[Move]) -> None:
        self._ranks.fetch(slots, moves)

    def switch(self) -> None:
        self._ranks.switch()

    def open(self, request: int, point: Point, seed: int) -> JobState:
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "latents": latents})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        steps = int(state.point["num_inference_steps"]) - state.kept["step"]
        return {"denoise": steps} if steps else {}

    def group_key(self, state: JobState) -> Hashable:
        return "denoise"

    @torch.inference_mode()
    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        gated: list[Gated] = []
        latents = torch.cat([state.kept["latents"] for state in states])
        times = torch.tensor([float(state.kept["step"]) for state in states])
        output = self._network(latents, times, torch.tensor([state.request for state in states]), None, gated)
        recorder = LoadRecorder(CONFIG.num_experts)
        for layer in gated:
            recorder.record(layer.ids)
        self._loads = recorder.counts(len(states))
        after = (latents + 0.1 * output[:, :4]).clamp(-3, 3)
        for state, row in zip(states, after, strict=True):
            state.kept = {"step": state.kept["step"] + 1, "latents": row[None]}
        return [{} for _ in states]

    def take_loads(self) -> Sequence[Any]:
        return [row.numpy() for row in self._loads]

    def close(self, state: JobState) -> Mapping[str, Any]:
        return {"latents": state.kept["latents"].numpy()}
