"""Which schedulers of diffusers can be stopped after a step and resumed, and what each remembers. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LISTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "FlowMatchEulerDiscreteScheduler": (),
        "EulerDiscreteScheduler": (),
        "EulerAncestralDiscreteScheduler": (),
        "UniPCMultistepScheduler": ("model_outputs",),
        "DPMSolverMultistepScheduler": ("model_outputs",),
    }
)
"""Of each, the lists of tensors of the sample's shape, the newest last."""
SINGLES: Mapping[str, tuple[str, ...]] = MappingProxyType({"UniPCMultistepScheduler": ("last_sample",)})
"""Of each, the tensors of that shape which are there after the first step."""


def num_tensors(kind: str, order: int) -> int:
    """How many tensors of the sample's shape a scheduler of that class keeps. Raises: ValueError: it is not known."""
    if kind not in LISTS:
        raise ValueError(f"scheduler {kind} cannot be stopped and resumed here; known are {', '.join(LISTS)}")
    return len(LISTS[kind]) * order + len(SINGLES.get(kind, ()))
