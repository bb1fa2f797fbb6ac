"""An engine without a model: deterministic answers, settable pace and failures. For tests and for plumbing checks.

The class of a sample is the value of its first pixel modulo ``num_classes``; its confidence grows with every stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from models.contract import Point
from serving.domain import Pixels
from serving.errors import EngineFailed, QueueFull
from serving.replica.staged.base import NOTHING_SET, Outcome, Outputs


class FakeEngine:
    """See the module's docstring. ``stage_seconds`` is the time that a stage takes, whatever the batch."""

    def __init__(
        self,
        *,
        num_stages: int = 4,
        num_classes: int = 10,
        stage_seconds: float = 0.0,
        fails: Callable[[Pixels], bool] = lambda pixels: False,
        max_bytes: int = 1 << 30,
    ) -> None:
        self._num_stages = num_stages
        self._num_classes = num_classes
        self._stage_seconds = stage_seconds
        self._fails = fails
        self._max_bytes = max_bytes
        self._samples: dict[int, Pixels] = {}
        self._reached: dict[int, int] = {}

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return self._num_stages

    @property
    def held_bytes(self) -> int:
        """Bytes of the pixels held."""
        return sum(pixels.nbytes for pixels in self._samples.values())

    def admit(self, sample_id: int, inputs: Pixels, settings: Point = NOTHING_SET) -> Hashable:
        """Take a sample in; any may run beside any other."""
        if self.held_bytes + inputs.nbytes > self._max_bytes:
            raise QueueFull(
                f"the engine holds {self.held_bytes} bytes; limit is {self._max_bytes}; retry later", retry_after_s=1.0
            )
        self._samples[sample_id] = inputs
        self._reached[sample_id] = 0
        return ()

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        """Pretend to run."""
        time.sleep(self._stage_seconds * num_stages)
        return [self._advance(sample_id, stage + num_stages) for sample_id in sample_ids]

    def _advance(self, sample_id: int, reached: int) -> Outcome:
        pixels = self._samples.get(sample_id)
        if pixels is None or self._fails(pixels):
            return EngineFailed("the model failed on this image; retry, or send another image")
        self._reached[sample_id] = reached
        return reached / self._num_stages

    def result(self, sample_id: int, exit_index: int) -> Outputs:
        """Probabilities of an exit passed."""
        if self._reached[sample_id] <= exit_index:
            raise KeyError(f"sample {sample_id} has not passed exit {exit_index}")
        confidence = (exit_index + 1) / self._num_stages
        probabilities = np.full(self._num_classes, (1 - confidence) / self._num_classes, dtype=np.float32)
        probabilities[int(self._samples[sample_id].flat[0]) % self._num_classes] += confidence
        return {"probabilities": probabilities}

    def release(self, sample_id: int) -> None:
        """Forget the sample."""
        self._samples.pop(sample_id, None)
        self._reached.pop(sample_id, None)
