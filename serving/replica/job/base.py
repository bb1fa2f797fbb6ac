"""What the worker of a replica of jobs needs of an engine: requests are state, and each call runs one slice of them.

An engine has one thread of its own; every method that computes is a coroutine that waits for it, and steps and decodes
of different requests may be asked for at the same time. Failure is per request: a step returns an outcome for each.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from models.contract import Figures, Point, Work
from schedulers.experts.placement import Placement
from schedulers.types import Priority
from serving.delivery.job.experts import PlacedFacts
from serving.errors import ServingError

Frames = npt.NDArray[np.uint8]
"""uint8 RGB, shape (T, H, W, 3)."""
Outputs: TypeAlias = Mapping[str, Any]
"""What a family's ``close`` gives, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInput:
    """What is to be made, and how: what a family's ``open`` is given. ``num_steps``: slices of its main phase.
    ``tenant`` and ``priority``: for an engine that has a queue of its own."""

    request: Any
    point: Point
    seed: int
    num_steps: int
    tenant: str = ""
    priority: Priority = Priority.NORMAL


def tokens_of(work: Work, wanted: JobInput) -> int:
    """Of the request's latent: what a step of it costs, beside one of another request."""
    return max(1, round(work.units.get("token_steps", 1.0) / max(1, wanted.num_steps)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that the engine now holds.

    ``step``: steps already done (more than 0 when resumed). ``held_bytes``: tensors that belong to it now.
    ``text_s``: seconds of the text encoder.
    """

    step: int
    held_bytes: int
    text_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One request after one step. ``compute_s`` is its share of the batch's time, and ``joules`` of its energy, where
    that is known; ``figures``: what the family says of the step; ``loads``: tokens that went to each expert, int64
    (layers, experts), of a mixture of experts."""

    job_id: str
    step: int
    compute_s: float
    joules: float | None = None
    held_bytes: int = 0
    figures: Figures = field(default_factory=dict)
    loads: Any = None


StepOutcome: TypeAlias = StepDone | ServingError


class Engine(Protocol):
    """See the module."""

    async def start(self) -> None:
        """Load the weights. Raises: EngineFailed."""
        ...

    async def stop(self) -> None:
        """End the thread and drop everything."""
        ...

    def work(self, wanted: JobInput) -> Work:
        """What the request takes, and the most bytes that it will hold at a time. Raises: ClientError."""
        ...

    def phase(self, job_id: str) -> Hashable:
        """Requests of equal phase may share a step: the family says which. ``None``: only alone.
        ``schedulers.policies.experts.Wakes``: with the experts that the step wakes."""
        ...

    async def admit(self, job_id: str, wanted: JobInput, snapshot: bytes | None = None) -> Admitted:
        """Take a request, from the beginning or from a snapshot of an earlier attempt.

        Raises: ClientError, EngineFailed.
        """
        ...

    async def run_step(self, job_ids: Sequence[str]) -> list[StepOutcome]:
        """One denoising step for each, in one batch; outcomes in order."""
        ...

    async def decode(self, job_id: str) -> Outputs:
        """Turn the finished state into what was asked for. Raises: EngineFailed."""
        ...

    async def preview(self, job_id: str) -> Frames:
        """A rough small picture of one frame, (1, h, w, 3), from the present estimate; cheap."""
        ...

    async def snapshot(self, job_id: str) -> bytes:
        """What ``admit`` needs to go on from here: latents and step, as safetensors; caches are made anew."""
        ...

    def leave(self, job_id: str) -> None:
        """Nobody wants the request any more: a step of it that runs may end early."""
        ...

    def release(self, job_id: str) -> None:
        """Free everything that the request holds. Unknown ids are ignored."""
        ...

    def held_bytes(self) -> int:
        """Bytes of all requests that are here."""
        ...

    @property
    def placement(self) -> Placement | None:
        """Which ranks have which experts now; None as of ``placed``."""
        ...

    def placed(self) -> PlacedFacts | None:
        """Where the model's experts are; None where one process has all of them, or there are none."""
        ...

    def check_health(self) -> None:
        """Raises: EngineFailed: dead, or stuck in one call."""
        ...
