"""dit-moe in miniature, with random weights, for tests of several ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.contract import ExpertFacts, Move, Slots
from models.families.dit_moe.family import FAMILY, expert_facts
from models.families.dit_moe.networks import build
from models.families.dit_moe.runner import DitMoeRunner
from models.io import ImageRequest
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import make_groups
from serving.replica.job.base import JobInput
from serving.replica.job.engine import EngineOptions

VARIANT = FAMILY.miniatures[1]
OPTIONS = EngineOptions(family=FAMILY, variant=VARIANT, stop_grace_s=2.0)
FACTS: ExpertFacts = expert_facts(VARIANT)


def tiny_runner() -> DitMoeRunner:
    """The same numbers wherever it is made."""
    return DitMoeRunner(build(VARIANT, random_weights=True), VARIANT)


def wanted(seed: int, num_steps: int, *, count: int = 1, guidance: float = 1.0) -> JobInput:
    """Pictures of one class."""
    width, height = VARIANT.io.size
    return JobInput(
        request=ImageRequest(width=width, height=height, prompt=f"class {seed % 4}", count=count),
        point={"num_inference_steps": num_steps, "guidance_scale": guidance},
        seed=seed,
        num_steps=num_steps,
    )


def on_ranks(slots: Slots, better: Slots, moves: Sequence[Move]) -> tuple[float, bool]:
    """In a rank: pictures of two requests with a placement that changes half-way, against one process. The largest
    difference, and whether the same tokens went to the same experts."""
    groups = make_groups(ParallelDegrees(expert=torch.distributed.get_world_size()))
    ours, alone = tiny_runner(), tiny_runner()
    ours.spread(groups.degrees, lambda num_tokens: groups)
    ours.place(slots)
    inputs = [wanted(1, 6, guidance=3.0), wanted(2, 6, count=2, guidance=2.0)]
    points = [FAMILY.check_point(one.point) for one in inputs]
    made, is_alike = [], True
    both = [
        [runner.open(one.request, point, one.seed) for one, point in zip(inputs, points, strict=True)]
        for runner in (ours, alone)
    ]
    for step in range(6):
        if step == 3:
            ours.fetch(better, moves)
            ours.switch()
        for runner, states in zip((ours, alone), both, strict=True):
            runner.step(states)
        loads = [runner.take_loads() for runner in (ours, alone)]
        is_alike &= all((a == b).all() for a, b in zip(*loads, strict=True))
    for one, other in zip(*both, strict=True):
        made.append((one.kept["latents"] - other.kept["latents"]).abs().max() / other.kept["latents"].abs().max())
    groups.close()
    return float(max(made)), is_alike
