"""What travels between a gateway and a replica of rows. Named tuples of bytes: the cheapest thing to pickle.

Deadlines travel as seconds remaining, because monotonic clocks of two nodes have nothing in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from models.contract import Value
from models.inputs import Array, Inputs
from models.io import ImageIO
from serving.energy.meter import ESTIMATE
from serving.energy.spent import Spent
from serving.errors import ServingError

Packed: TypeAlias = tuple[str, tuple[int, ...], bytes]
"""An array: its type as numpy spells it, its shape, and its elements, row-major."""


def pack(outputs: Mapping[str, Array]) -> dict[str, Packed]:
    """Outputs as they travel and are stored: an array that is pickled by itself costs several times as much."""
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in outputs.items()}


def unpack(outputs: Mapping[str, Packed]) -> dict[str, Array]:
    """The arrays again, read-only."""
    return {name: np.frombuffer(data, dtype).reshape(shape) for name, (dtype, shape, data) in outputs.items()}


class SampleCall(NamedTuple):
    """One row for a replica."""

    inputs: Inputs
    """As the family's network takes it."""
    remaining_s: float
    thresholds: tuple[float, ...]
    priority: int
    tenant: str
    settings: Mapping[str, Value] | None = None
    """Of the family's knobs, where they are not the defaults; thresholds aside."""
    traceparent: str = ""
    elsewhere_j: float = 0.0
    """Joules that other models served its tenant since the last row that said so (``schedulers.elsewhere``)."""


class SampleAnswer(NamedTuple):
    """One row's answer. ``compute_s`` is the row's share of the batches it was in, ``joules`` what the replica's meter,
    ``source``, says of it; None: nothing."""

    outputs: Mapping[str, Packed]
    exit_index: int
    degraded: bool
    queue_s: float
    compute_s: float
    joules: float | None = None
    source: str = ESTIMATE

    @property
    def spent(self) -> Spent:
        """What it took."""
        return Spent(self.compute_s, self.joules, self.source)


class SampleFailure(NamedTuple):
    """One row without an answer, or whose caller left. ``compute_s`` and ``joules`` as above: what ran, ran."""

    error: ServingError
    compute_s: float
    joules: float | None = None
    source: str = ESTIMATE

    @property
    def spent(self) -> Spent:
        """What it took."""
        return Spent(self.compute_s, self.joules, self.source)


SampleOutcome: TypeAlias = SampleAnswer | SampleFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAsked:
    """Rows as the payload of a durable job: ``count`` of the same prompt and picture (PNG), with seeds from the job's
    on."""

    prompt: str = ""
    picture: bytes = b""
    count: int = 1


def most_held(io: ImageIO, count: int) -> int:
    """Bytes that ``count`` rows of a job hold at most: each of the largest size, whatever their own is."""
    return 3 * io.largest.width * io.largest.height * count
