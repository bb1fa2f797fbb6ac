"""Exit thresholds for target costs, found on held-out data. NumPy only.

Source: arXiv 2306.11248, Sec. 3.4, and the official evaluation code: exits are given geometric shares of the samples
(ratio ** 1, ratio ** 2, ...), bent by per-exit factors; walking the exits in order, an exit's threshold is the
confidence of the last sample that fits into its share. Later exits need not be better than earlier ones: the search
also tries every subset of exits, so an exit that does not earn its cost is left out.

Legend: E exits, N samples. Costs are cumulative: what it takes to reach an exit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEVER = 1e8
"""Threshold of an exit that is not used. Finite, so that tables stay strict JSON."""
ALWAYS = -1e8
"""Threshold of the last exit: everything still there leaves."""
PAPER_FACTORS = (0.85, 1.0, 0.5, 1.0)
TARGET_BAND = 0.9
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Estimate:
    """What thresholds do to a set of samples: share leaving at each exit, mean cost, share of correct answers."""

    thresholds: tuple[float, ...]
    exit_shares: tuple[float, ...]
    expected_cost: float
    accuracy: float


def geometric_ratios() -> list[float]:
    """The paper's 33 ratios: 0.2 to 1 in steps of 0.05, and the inverses of the others."""
    rising = [(i + 4) / 20 for i in range(17)]
    return rising + [1 / ratio for ratio in reversed(rising[:-1])]


def target_shares(ratio: float, factors: Sequence[float]) -> list[float]:
    """Share of the samples that each exit is meant to take; they sum to one.

    Starts from ``ratio ** 1, ratio ** 2, ...`` normalised; then each exit but the last is scaled by its factor and
    those behind it take up the difference. A factor of 0 leaves the exit out.
    """
    shares = np.power(float(ratio), np.arange(1, len(factors) + 1))
    shares /= shares.sum()
    for k, factor in enumerate(factors[:-1]):
        shares[k] *= factor
        rest = max(0.0, 1.0 - float(shares[: k + 1].sum()))
        shares[k + 1 :] *= rest / shares[k + 1 :].sum()
    return [float(share) for share in shares]


def find_thresholds(confidences: Floats, shares: Sequence[float]) -> tuple[float, ...]:
    """Thresholds that make each exit take its share of these samples, or as near as ties allow.

    Args:
        confidences: (E, N).
        shares: (E,), of all N samples.

    Returns: (E,). An exit whose share is below one sample, or larger than what is left, is never used (``NEVER``); the
    last takes everything (``ALWAYS``).
    """
    num_exits, num_samples = confidences.shape
    is_left = np.ones(num_samples, bool)
    thresholds = []
    for k in range(num_exits - 1):
        wanted = int(np.floor(num_samples * shares[k]))
        candidates = np.sort(confidences[k, is_left])[::-1]
        threshold = float(candidates[wanted - 1]) if 0 < wanted <= len(candidates) else NEVER
        is_left &= confidences[k] < threshold
        thresholds.append(threshold)
    return (*thresholds, ALWAYS)


def exits_taken(confidences: Floats, thresholds: Sequence[float]) -> NDArray[np.int64]:
    """Index (N,) of the first exit whose confidence (E, N) reaches its threshold."""
    reached = confidences >= np.asarray(thresholds)[:, None]
    reached[-1] = True
    taken: NDArray[np.int64] = reached.argmax(0)
    return taken


def estimate(
    confidences: Floats, correct: NDArray[np.bool_], costs: Sequence[float], thresholds: Sequence[float]
) -> Estimate:
    """Apply thresholds to samples: ``confidences`` and ``correct`` (E, N), cumulative ``costs`` (E,)."""
    taken = exits_taken(confidences, thresholds)
    shares = np.bincount(taken, minlength=len(costs)) / len(taken)
    return Estimate(
        thresholds=tuple(float(t) for t in thresholds),
        exit_shares=tuple(float(s) for s in shares),
        expected_cost=float(shares @ np.asarray(costs, float)),
        accuracy=float(correct[taken, np.arange(len(taken))].mean()),
    )


def no_early_exit(num_exits: int) -> tuple[float, ...]:
    """Thresholds of the full network."""
    return (*[NEVER] * (num_exits - 1), ALWAYS)


def first_exit_only(num_exits: int) -> tuple[float, ...]:
    """Thresholds of the cheapest operating point; ``num_exits`` is at least 2."""
    return (ALWAYS, *[NEVER] * (num_exits - 2), ALWAYS)


def calibrate(
    confidences: Floats, correct: NDArray[np.bool_], costs: Sequence[float], target_costs: Sequence[float]
) -> list[Estimate]:
    """For each target the most accurate thresholds with an expected cost of 90 to 100% of it; ties go to the cheaper.

    The lower bound keeps points apart and true to their target: where accuracy saturates, a dearer point still means
    higher thresholds, hence more reserve on harder traffic than the samples given. If nothing lies in the band, all
    that is cheaper counts. Everything is measured on the samples given, so judge the result on others.

    Raises:
        ValueError: shapes differ, there are no samples, or a target lies below the cost of the cheapest exit.
    """
    if confidences.shape != correct.shape or confidences.shape[0] != len(costs) or confidences.shape[1] == 0:
        raise ValueError(
            f"confidences {confidences.shape}, correct {correct.shape} and {len(costs)} costs do not belong together; "
            f"pass (exits, samples) twice and one cost per exit, with at least one sample"
        )
    candidates = [estimate(confidences, correct, costs, t) for t in _candidates(confidences)]
    return [_best(candidates, target) for target in target_costs]


def _best(candidates: list[Estimate], target: float) -> Estimate:
    affordable = [c for c in candidates if c.expected_cost <= target]
    if not affordable:
        cheapest = min(c.expected_cost for c in candidates)
        raise ValueError(
            f"target cost {target:g} is below the cheapest operating point, {cheapest:g}; raise the target"
        )
    close = [c for c in affordable if c.expected_cost >= TARGET_BAND * target]
    return max(close or affordable, key=lambda c: (c.accuracy, -c.expected_cost))


def _candidates(confidences: Floats) -> Iterator[tuple[float, ...]]:
    """The paper's thresholds, those of a finer and wider grid, and those of every subset of exits."""
    num_exits = confidences.shape[0]
    paper = PAPER_FACTORS if num_exits == len(PAPER_FACTORS) else (1.0,) * num_exits
    ratios = sorted({*geometric_ratios(), *np.geomspace(0.02, 50.0, 80).tolist()})
    yield no_early_exit(num_exits)
    yield first_exit_only(num_exits)
    for bend in {paper, (1.0,) * num_exits}:
        for used in itertools.product((0.0, 1.0), repeat=num_exits - 1):
            factors = [b * u for b, u in zip(bend, (*used, 1.0), strict=True)]
            for ratio in ratios:
                yield find_thresholds(confidences, target_shares(ratio, factors))
