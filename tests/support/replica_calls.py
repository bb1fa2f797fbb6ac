"""Calls to a replica that never leave the process; a test answers, breaks or watches them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import numpy as np

from serving.delivery.unary.wire import SampleAnswer, SampleCall, SampleOutcome


class ReplicaGone(Exception):
    """Stands for Ray's errors about a dead actor."""


class FakeCall:
    """A ``PendingCall`` that its test ends."""

    def __init__(self, call_id: str, samples: list[SampleCall], predicted_s: float) -> None:
        self.call_id = call_id
        self.samples = samples
        self.predicted_s = predicted_s
        self.is_cancelled = False
        self._future: asyncio.Future[list[SampleOutcome]] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, list[SampleOutcome]]:
        return self._future.__await__()

    def cancel(self) -> None:
        """As Ray: the awaiting side gets CancelledError."""
        self.is_cancelled = True
        self._future.cancel()

    @property
    def is_open(self) -> bool:
        """Whether nothing has ended it yet."""
        return not self._future.done()

    def answer(self) -> None:
        """Come back with one ``echo`` per sample."""
        self._future.set_result([echo(sample) for sample in self.samples])

    def answer_with(self, outcomes: list[SampleOutcome]) -> None:
        """Come back with these."""
        self._future.set_result(outcomes)

    def fail(self, error: BaseException) -> None:
        """Come back with an error."""
        self._future.set_exception(error)


def sample(number: int, remaining_s: float = 10.0) -> SampleCall:
    """A sample that can be told from others by its number."""
    pixels = np.full((2, 2, 3), number % 256, dtype=np.uint8)
    return SampleCall(pixels, remaining_s, (float(number),), priority=1, tenant="t")


def number_of(call: SampleCall) -> int:
    """The number it was made with."""
    return int(call.thresholds[0])


def echo(call: SampleCall) -> SampleAnswer:
    """An answer that names its sample."""
    return SampleAnswer({}, number_of(call), degraded=False, queue_s=0.0, compute_s=0.0)
