"""The early-exit engine: Dynamic Perceiver samples, advanced exit by exit in whatever batches the scheduler picks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog
import torch

from serving.domain import Pixels
from serving.engines.base import Outcome, Probabilities, StageOutput
from serving.errors import EngineFailed, QueueFull

if TYPE_CHECKING:
    from models.dyn_perceiver.staged import SampleState, StagedDynPerceiver

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_FAILED = "the model failed on this image; retry, or send another image"


@dataclass(slots=True)
class _Sample:
    pixels: Pixels | None
    state: SampleState | None = None
    probabilities: list[Probabilities] = field(default_factory=list)


class EarlyExitEngine:
    """A ``StagedEngine`` around ``StagedDynPerceiver``.

    ``bytes_per_sample`` is the measured peak that one sample holds between stages; ``max_bytes`` bounds their sum.
    """

    def __init__(self, staged: StagedDynPerceiver, *, bytes_per_sample: int, max_bytes: int) -> None:
        self._staged = staged
        self._bytes_per_sample = bytes_per_sample
        self._max_bytes = max_bytes
        self._samples: dict[int, _Sample] = {}

    @property
    def num_stages(self) -> int:
        """Number of stages, equal to the number of exits."""
        return self._staged.num_exits

    @property
    def held_bytes(self) -> int:
        """Upper bound of what the admitted samples hold."""
        return len(self._samples) * self._bytes_per_sample

    def admit(self, sample_id: int, pixels: Pixels) -> None:
        """Take a sample in; its peak bytes are counted from now on."""
        if self.held_bytes + self._bytes_per_sample > self._max_bytes:
            raise QueueFull(
                f"{len(self._samples)} samples hold {self.held_bytes} bytes; limit is {self._max_bytes}; retry later",
                retry_after_s=1.0,
            )
        self._samples[sample_id] = _Sample(pixels)

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        """Advance the samples through consecutive exits; see ``StagedEngine.run``."""
        samples = [self._samples[sample_id] for sample_id in sample_ids]
        try:
            return self._run(stage, num_stages, samples)
        except Exception:
            _log.exception("engine batch failed", stage=stage, batch_size=len(samples))
            return [EngineFailed(_FAILED) for _ in samples]

    def _run(self, stage: int, num_stages: int, samples: list[_Sample]) -> list[Outcome]:
        if stage == 0:
            self._begin(samples)
        states = [_present(sample.state) for sample in samples]
        for _ in range(num_stages):
            states, logits = self._staged.advance(states)
            probabilities = torch.softmax(logits, dim=1).cpu().numpy()
            for sample, row in zip(samples, probabilities, strict=True):
                sample.probabilities.append(row)
        for sample, state in zip(samples, states, strict=True):
            sample.state = state
        return [_outcome(row) for row in probabilities]

    def _begin(self, samples: list[_Sample]) -> None:
        images = np.stack([_present(sample.pixels) for sample in samples])
        for sample, state in zip(samples, self._staged.begin(images), strict=True):
            sample.state = state
            sample.pixels = None

    def result(self, sample_id: int, exit_index: int) -> Probabilities:
        """Class probabilities of an exit that the sample has passed."""
        try:
            return self._samples[sample_id].probabilities[exit_index]
        except IndexError:
            raise KeyError(f"sample {sample_id} has not passed exit {exit_index}") from None

    def release(self, sample_id: int) -> None:
        """Drop the sample and its tensors."""
        self._samples.pop(sample_id, None)


def _present(value: _T | None) -> _T:
    if value is None:
        raise RuntimeError("the scheduler ran a stage out of order")
    return value


def _outcome(row: Probabilities) -> Outcome:
    confidence = float(row.max())
    return StageOutput(confidence) if np.isfinite(confidence) else EngineFailed(_FAILED)
