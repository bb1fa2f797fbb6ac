"""What travels between a gateway and a classifier replica. Named tuples: the cheapest thing to pickle.

Deadlines travel as seconds remaining, because monotonic clocks of two nodes have nothing in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from models.contract import Value
from serving.domain import Pixels
from serving.errors import ServingError
from serving.replica.staged.base import Probabilities


class SampleCall(NamedTuple):
    """One image for a replica."""

    pixels: Pixels
    """Model input, uint8 (S, S, 3)."""
    remaining_s: float
    thresholds: tuple[float, ...]
    priority: int
    tenant: str
    settings: Mapping[str, Value] | None = None
    """Of the family's knobs, where they are not the defaults; thresholds aside."""
    traceparent: str = ""


class SampleAnswer(NamedTuple):
    """One image's answer. ``compute_s`` is the sample's share of the batches it was in."""

    probabilities: bytes
    """float32, little-endian, one per class."""
    exit_index: int
    degraded: bool
    queue_s: float
    compute_s: float

    def as_array(self) -> Probabilities:
        """The probabilities, shape (num_classes,)."""
        return np.frombuffer(self.probabilities, dtype="<f4")


class SampleFailure(NamedTuple):
    """One image without an answer, or whose caller left. ``compute_s`` as above: what ran, ran."""

    error: ServingError
    compute_s: float


SampleOutcome: TypeAlias = SampleAnswer | SampleFailure
