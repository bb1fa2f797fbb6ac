"""The early-exit engine: Dynamic Perceiver samples, advanced exit by exit in whatever batches the scheduler picks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import structlog
import torch

from serving.domain import Pixels
from serving.errors import EngineFailed, QueueFull
from serving.replica.staged.base import Outcome, Probabilities, StageOutput

if TYPE_CHECKING:
    from models.families.dyn_perceiver.staged import SampleState, StagedDynPerceiver

_log = structlog.get_logger(__name__)
_FAILED = "the model failed on this image; retry, or send another image"


@dataclass(slots=True)
class _Sample:
    pixels: Pixels | None
    state: SampleState | None = None
    probabilities: list[Probabilities] = field(default_factory=list)


class EarlyExitEngine:
    """A ``StagedEngine`` around ``StagedDynPerceiver``.

    ``bytes_per_sample`` is the measured peak of one sample's share of its batch between stages; ``max_bytes`` bounds
    what all samples hold. Each is charged twice its peak: see ``_copy_out``.
    """

    def __init__(self, staged: StagedDynPerceiver, *, bytes_per_sample: int, max_bytes: int) -> None:
        self._staged = staged
        self._charge_bytes = 2 * bytes_per_sample
        self._max_bytes = max_bytes
        self._largest_batch = 1
        self._samples: dict[int, _Sample] = {}

    @property
    def num_stages(self) -> int:
        """Number of stages, equal to the number of exits."""
        return self._staged.num_exits

    @property
    def held_bytes(self) -> int:
        """Upper bound of what the admitted samples hold."""
        return len(self._samples) * self._charge_bytes

    def admit(self, sample_id: int, pixels: Pixels) -> None:
        """Take a sample in; its peak bytes are counted from now on."""
        if self.held_bytes + self._charge_bytes > self._max_bytes:
            raise QueueFull(
                f"{len(self._samples)} samples hold {self.held_bytes} bytes; limit is {self._max_bytes}; retry later",
                retry_after_s=1.0,
            )
        self._samples[sample_id] = _Sample(pixels)

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        """Advance the samples through consecutive exits; see ``StagedEngine.run``.

        When a batch fails, its samples are tried one by one: the one to blame must not take its neighbours along.
        """
        try:
            self._copy_out()
            return self._run(stage, num_stages, [self._samples[sample_id] for sample_id in sample_ids])
        except Exception:
            _log.exception("engine batch failed", stage=stage, batch_size=len(sample_ids))
        if len(sample_ids) == 1:
            return [EngineFailed(_FAILED)]
        return [outcome for sample_id in sample_ids for outcome in self.run(stage, num_stages, (sample_id,))]

    def _run(self, stage: int, num_stages: int, samples: list[_Sample]) -> list[Outcome]:
        """Nothing of a sample changes before all stages are through."""
        states = self._begin(samples) if stage == 0 else [_at(stage, sample) for sample in samples]
        self._largest_batch = max(self._largest_batch, len(samples))
        passed: list[npt.NDArray[np.float32]] = []
        for _ in range(num_stages):
            states, logits = self._staged.advance(states)
            passed.append(torch.softmax(logits.float(), dim=1).cpu().numpy())
        for row, (sample, state) in enumerate(zip(samples, states, strict=True)):
            sample.pixels = None
            sample.state = state
            # Copies: a view of one row would keep the whole batch.
            sample.probabilities.extend(probabilities[row].copy() for probabilities in passed)
        return [_outcome(confidence) for confidence in passed[-1].max(axis=1).tolist()]

    def _begin(self, samples: list[_Sample]) -> list[SampleState]:
        images = [sample.pixels for sample in samples if sample.pixels is not None]
        if len(images) < len(samples):
            raise RuntimeError("the scheduler ran the first stage twice")
        return self._staged.begin(np.stack(images))

    def _copy_out(self) -> None:
        """Keep ``held_bytes`` true.

        A sample shares storage with its batch, and keeps all of it when the others leave. Those that hold more than
        they are charged for get storage of their own, unless even so the bound cannot be reached.
        """
        if self.held_bytes * self._largest_batch <= self._max_bytes:
            return
        lonely: dict[int, list[tuple[_Sample, SampleState]]] = {}
        for sample in tuple(self._samples.values()):
            if sample.state is not None and sample.state.nbytes > self._charge_bytes:
                lonely.setdefault(sample.state.next_exit, []).append((sample, sample.state))
        for group in lonely.values():
            for (sample, _), state in zip(group, self._staged.compact([state for _, state in group]), strict=True):
                sample.state = state

    def result(self, sample_id: int, exit_index: int) -> Probabilities:
        """Class probabilities of an exit that the sample has passed."""
        try:
            return self._samples[sample_id].probabilities[exit_index]
        except IndexError:
            raise KeyError(f"sample {sample_id} has not passed exit {exit_index}") from None

    def release(self, sample_id: int) -> None:
        """Drop the sample and its tensors."""
        self._samples.pop(sample_id, None)


def _at(stage: int, sample: _Sample) -> SampleState:
    if sample.state is None or sample.state.next_exit != stage:
        raise RuntimeError(f"the scheduler ran stage {stage} out of order")
    return sample.state


def _outcome(confidence: float) -> Outcome:
    return StageOutput(confidence) if math.isfinite(confidence) else EngineFailed(_FAILED)
