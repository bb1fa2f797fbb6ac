"""dit-moe in miniature, with random weights, for tests of engines on several ranks."""

from __future__ import annotations

from models.contract import ExpertFacts
from models.families.dit_moe.family import FAMILY, expert_facts
from models.families.dit_moe.networks import build
from models.families.dit_moe.runner import DitMoeRunner
from models.io import ImageRequest
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
