"""Seconds of a denoising step, learnt: what was predicted for each job alone, corrected by what batches really took.

    seconds(batch) = scale(tokens) * (largest + share * (the others' sum)),    largest, others: predicted, alone

``scale`` is learnt for each number of tokens, and over all for sizes never seen; ``share`` says what a companion costs:
1 on a machine that one job fills, 0 where a second one is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_SIZES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPart:
    """One job of a step: its tokens, and the seconds that were predicted for it alone."""

    tokens: int
    seconds: float


class StepCost:
    """What steps have cost recently. ``first_share``: until batches were observed; ``weight``: that of each new batch.

    Raises: ValueError: a number is out of range.
    """

    def __init__(self, *, first_share: float = 1.0, weight: float = 0.2) -> None:
        if not 0.0 <= first_share <= 1.0 or not 0.0 < weight <= 1.0:
            raise ValueError(f"first_share {first_share} must be in [0, 1] and weight {weight} in (0, 1]")
        self._share = first_share
        self._weight = weight
        self._scale = 1.0
        self._scales: dict[int, float] = {}
        self._decode_s = 0.0

    @property
    def share(self) -> float:
        """What a companion costs, as a part of what it costs alone."""
        return self._share

    def scale(self, tokens: int) -> float:
        """Measured over predicted seconds, for jobs of that many tokens."""
        return self._scales.get(tokens, self._scale)

    def seconds(self, parts: Sequence[StepPart]) -> float:
        """Expected seconds of a step of these jobs; 0 for none."""
        if not parts:
            return 0.0
        alone = [self.scale(part.tokens) * part.seconds for part in parts]
        largest_s = max(alone)
        return largest_s + self._share * (math.fsum(alone) - largest_s)

    def observe(self, parts: Sequence[StepPart], elapsed_s: float) -> None:
        """A step of these jobs took that long. Batches of one teach the scale, larger ones the share."""
        if not parts or not 0.0 < elapsed_s < math.inf or min(part.seconds for part in parts) <= 0.0:
            return
        if len(parts) == 1:
            self._move(parts[0].tokens, elapsed_s / parts[0].seconds)
            return
        alone = [self.scale(part.tokens) * part.seconds for part in parts]
        largest_s, sum_s = max(alone), math.fsum(alone)
        share = min(1.0, max(0.0, (elapsed_s - largest_s) / (sum_s - largest_s)))
        self._share += self._weight * (share - self._share)
        if not largest_s <= elapsed_s <= sum_s:  # no share explains it: the scale is off
            bound_s = largest_s if elapsed_s < largest_s else sum_s
            for tokens in {part.tokens for part in parts}:
                self._move(tokens, self.scale(tokens) * elapsed_s / bound_s)

    def _move(self, tokens: int, scale: float) -> None:
        before = self._scales.pop(tokens, None)
        weight = self._weight if before is not None or self._scales else 1.0
        self._scales[tokens] = scale if before is None else before + self._weight * (scale - before)
        self._scale += weight * (scale - self._scale)
        if len(self._scales) > _MAX_SIZES:
            del self._scales[next(iter(self._scales))]

    @property
    def decode_s(self) -> float:
        """Recent seconds of a decode; 0 until one was observed."""
        return self._decode_s

    def observe_decode(self, elapsed_s: float) -> None:
        """A decode took that long."""
        if 0.0 <= elapsed_s < math.inf:
            weight = self._weight if self._decode_s > 0.0 else 1.0
            self._decode_s += weight * (elapsed_s - self._decode_s)
