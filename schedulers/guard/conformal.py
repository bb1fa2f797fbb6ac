"""What is rare among benign answers: p-values, and a bound on length that holds without a model of its errors.

Split-conformal prediction (V. Vovk et al., 2005; J. Lei et al., 1604.04173): of ``n`` benign residuals that were not
used to fit the model, the one of rank ceil((n + 1)(1 - a)) is exceeded by a new benign one with probability ``a`` at
most, whatever their distribution, if all are exchangeable. Traffic drifts, so the level follows what it does (I. Gibbs
and E. Candes, 2106.00170), on trusted traffic only: anybody else could widen the bound by exceeding it on purpose.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEVEL = 0.01
"""How often a benign answer may exceed its bound."""
STEP = 0.005
NO_BOUND = 1 << 30
"""More tokens than any answer has."""
_SLACK = 1e-9
"""Less than any rank or token is worth; what rounding of doubles adds must not count as one."""


def p_value(ascending: Sequence[float], observed: float, num: int | None = None) -> float:
    """How often a benign value is as large: (1 + those that are) / (n + 1). Never 0.

    ``num``: of benign values, where those that are not in ``ascending`` count as larger than anything.
    """
    total = len(ascending) if num is None else num
    return (1 + total - bisect_left(ascending, observed)) / (total + 1)


def p_value_of_low(ascending: Sequence[float], observed: float) -> float:
    """The same of a value that is strange if it is small."""
    return (1 + bisect_right(ascending, observed)) / (len(ascending) + 1)


def quantile(ascending: Sequence[float], num: int, level: float) -> float:
    """The value that a new one exceeds with probability ``level`` at most. ``num``: with those that were censored,
    which are larger than anything; infinite where the rank is among them, or there are too few values for the level."""
    rank = math.ceil((num + 1) * (1.0 - level) - _SLACK)
    return ascending[max(rank, 1) - 1] if rank <= len(ascending) else math.inf


def bound_tokens(log_tokens: float, residual: float) -> int:
    """The most tokens of an ordinary answer: exp(prediction + ``residual``) - 1, rounded up, and ``NO_BOUND`` at most.

    It is not cut to what a request allows: how strange a length is does not depend on where the answer had to end.
    """
    if log_tokens + residual >= math.log1p(NO_BOUND):
        return NO_BOUND
    return max(1, math.ceil(math.expm1(log_tokens + residual) - _SLACK))


@dataclass(frozen=True, slots=True)
class AdaptiveLevel:
    """The level to take the bound at, so that ``target`` of the answers exceed it in the long run.

    Below 0 there is no bound, so that nothing exceeds it, and the level comes up again: it is never lower than one step
    below 0, which must not be cut off, or the target would be missed.

    Raises: ValueError: not 0 < target < 1, or a level outside of its limits, a step below 0 and ten times the target.
    """

    target: float = LEVEL
    level: float = LEVEL
    step: float = STEP

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ValueError(f"target is {self.target}; need 0 < target < 1")
        if not -self.step <= self.level <= self.most:
            raise ValueError(f"level is {self.level}; need {-self.step:g} <= level <= {self.most:g}")

    @property
    def most(self) -> float:
        """A tighter bound would take every long answer for a suspect."""
        return min(0.5, 10.0 * self.target) if self.target < 0.5 else self.target

    def after(self, is_exceeded: bool) -> AdaptiveLevel:
        """One more answer of trusted traffic has ended."""
        moved = self.level + self.step * (self.target - is_exceeded)
        return replace(self, level=min(self.most, max(-self.step, moved)))
