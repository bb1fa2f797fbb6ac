"""Samplers by name."""

from __future__ import annotations

from models.methods.samplers.base import Sampler
from models.methods.samplers.ddim import Consistency, Ddim
from models.methods.samplers.euler_ancestral import EulerAncestral
from models.methods.samplers.schedule import NoiseSchedule

NAMES = ("euler_ancestral", "ddim", "consistency")


def make_sampler(name: str, num_steps: int, schedule: NoiseSchedule | None = None, segments: int = 4) -> Sampler:
    """Build one. ``segments``: those of a consistency student.

    Raises: ValueError: an unknown name, or steps that it cannot do.
    """
    schedule = schedule or NoiseSchedule()
    if name == "euler_ancestral":
        return EulerAncestral(num_steps=num_steps, schedule=schedule)
    if name == "ddim":
        return Ddim(num_steps=num_steps, schedule=schedule)
    if name == "consistency":
        return Consistency(num_steps=num_steps, schedule=schedule, segments=segments)
    raise ValueError(f"sampler is {name!r}; choose one of {', '.join(NAMES)}")
