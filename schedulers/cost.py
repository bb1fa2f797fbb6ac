"""How long a stage takes on a batch: a measured table, corrected online by what batches really took."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

#: Weight of the newest batch in the running ratio of actual to predicted time.
_CORRECTION_WEIGHT = 0.1
#: A batch this much faster than predicted says that what slowed the others down is over: it counts more.
_RECOVERED, _RECOVERY_WEIGHT = 0.7, 0.5
#: What ``relax`` takes off a correction above 1.
_RELAXATION = 0.25
#: One slow batch (a page fault, a paused process) must not make the scheduler reject everything.
_MIN_CORRECTION, _MAX_CORRECTION = 0.25, 4.0
_MEMO_SAMPLES = 1024


class CostModel(Protocol):
    """Predicted seconds of engine time."""

    @property
    def num_stages(self) -> int:
        """Number of stages of the network."""
        ...

    def batch_s(self, stage: int, num_samples: int) -> float:
        """Seconds that ``stage`` takes on ``num_samples`` (>= 1) samples, > 0."""
        ...

    def observe(self, stage: int, num_samples: int, elapsed_s: float, num_stages: int = 1) -> None:
        """Learn that ``num_stages`` stages from ``stage`` took ``elapsed_s`` on ``num_samples``."""
        ...

    def relax(self, stage: int) -> None:
        """Units were given up at ``stage`` and nothing has run there: forget a part of what makes it seem slow."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAccuracy:
    """Predicted against actual time of one stage since the start; ``correction`` multiplies the table now."""

    stage: int
    num_batches: int
    predicted_s: float
    actual_s: float
    correction: float


class TableCostModel:
    """Interpolates a measured table linearly between batch sizes and continues its last slope beyond them.

    Args:
        batch_sizes: ascending, >= 1.
        stage_seconds: ``[stage][batch size]``, incremental seconds of each stage alone.

    Raises:
        ValueError: if the table is empty, ragged, unsorted, or has a value that is not finite and positive.
    """

    def __init__(self, batch_sizes: Sequence[int], stage_seconds: Sequence[Sequence[float]]) -> None:
        _check_table(batch_sizes, stage_seconds)
        self._batch_sizes = tuple(batch_sizes)
        self._stage_seconds = tuple(tuple(row) for row in stage_seconds)
        #: ``_table_s[stage][n]`` for n up to the largest size asked so far, at most ``_MEMO_SAMPLES``.
        self._table_s: list[list[float]] = [[0.0] for _ in stage_seconds]
        self._corrections = [1.0] * len(stage_seconds)
        self._num_batches = [0] * len(stage_seconds)
        self._predicted_s = [0.0] * len(stage_seconds)
        self._actual_s = [0.0] * len(stage_seconds)

    @property
    def num_stages(self) -> int:
        """Number of stages of the table."""
        return len(self._stage_seconds)

    def batch_s(self, stage: int, num_samples: int) -> float:
        """Corrected prediction in seconds. Raises ValueError for less than one sample."""
        memo = self._table_s[stage]
        if 0 < num_samples < len(memo):  # as table_s, without its call: a decision asks a dozen times
            return memo[num_samples] * self._corrections[stage]
        return self.table_s(stage, num_samples) * self._corrections[stage]

    def table_s(self, stage: int, num_samples: int) -> float:
        """The table's own value in seconds, without the correction."""
        memo = self._table_s[stage]
        if 0 < num_samples < len(memo):
            return memo[num_samples]
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; a batch has at least 1")
        if num_samples >= _MEMO_SAMPLES:
            return self._interpolate(stage, num_samples)
        memo.extend(self._interpolate(stage, n) for n in range(len(memo), num_samples + 1))
        return memo[num_samples]

    def correction(self, stage: int) -> float:
        """Running ratio of actual to table time of ``stage``."""
        return self._corrections[stage]

    def observe(self, stage: int, num_samples: int, elapsed_s: float, num_stages: int = 1) -> None:
        """Move the corrections of the stages that ran towards ``elapsed_s`` / prediction.

        Raises:
            ValueError: if ``elapsed_s`` is negative or not finite.
        """
        if not 0.0 <= elapsed_s < math.inf:
            raise ValueError(f"elapsed_s is {elapsed_s}; need a finite number >= 0")
        stages = range(stage, stage + num_stages)
        predicted_s = sum(self.batch_s(s, num_samples) for s in stages) if num_stages > 1 else 0.0
        for s in stages:
            table_s = self.table_s(s, num_samples)
            mine_s = table_s * self._corrections[s]
            # Of a call that ran several stages, each is charged in proportion to its prediction.
            actual_s = elapsed_s * mine_s / predicted_s if num_stages > 1 else elapsed_s
            self._num_batches[s] += 1
            self._predicted_s[s] += mine_s
            self._actual_s[s] += actual_s
            ratio = min(_MAX_CORRECTION, max(_MIN_CORRECTION, actual_s / table_s))
            has_recovered = ratio < _RECOVERED * self._corrections[s]
            weight = _RECOVERY_WEIGHT if has_recovered else _CORRECTION_WEIGHT
            self._corrections[s] += weight * (ratio - self._corrections[s])

    def relax(self, stage: int) -> None:
        """Expect ``stage`` to be less slow than it was: nothing has run there that could say so."""
        self._corrections[stage] -= _RELAXATION * max(0.0, self._corrections[stage] - 1.0)

    def accuracy(self) -> tuple[StageAccuracy, ...]:
        """Predicted against actual, per stage; what a batch was predicted to take *before* it ran."""
        return tuple(
            StageAccuracy(
                stage=stage,
                num_batches=self._num_batches[stage],
                predicted_s=self._predicted_s[stage],
                actual_s=self._actual_s[stage],
                correction=self._corrections[stage],
            )
            for stage in range(self.num_stages)
        )

    def _interpolate(self, stage: int, num_samples: int) -> float:
        sizes, row = self._batch_sizes, self._stage_seconds[stage]
        if len(sizes) == 1:
            return row[0] * max(1.0, num_samples / sizes[0])
        at = min(max(bisect_right(sizes, num_samples), 1), len(sizes) - 1)
        slope_s = (row[at] - row[at - 1]) / (sizes[at] - sizes[at - 1])
        if num_samples > sizes[-1]:
            # Noise at the table's end must not make larger batches ever cheaper.
            return row[-1] + max(slope_s, 0.0) * (num_samples - sizes[-1])
        value_s = row[at - 1] + slope_s * (num_samples - sizes[at - 1])
        if num_samples < sizes[0]:
            # The line may cross zero: stay between the batch's share of the smallest measured one and all of it.
            return min(max(value_s, row[0] * num_samples / sizes[0]), row[0])
        return value_s


def _check_table(batch_sizes: Sequence[int], stage_seconds: Sequence[Sequence[float]]) -> None:
    sizes = list(batch_sizes)
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f"batch_sizes are {sizes}; need ascending whole numbers from 1")
    if not stage_seconds:
        raise ValueError("stage_seconds is empty; need one row per stage")
    for stage, row in enumerate(stage_seconds):
        if len(row) != len(sizes):
            raise ValueError(f"stage_seconds[{stage}] has {len(row)} values for {len(sizes)} batch sizes")
        for value_s in row:
            if not 0.0 < value_s < math.inf:
                raise ValueError(f"stage_seconds[{stage}] has {value_s}; need finite numbers > 0")
