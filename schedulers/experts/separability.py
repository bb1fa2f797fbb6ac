"""How much there is to gain from keeping requests apart that wake different experts, and whether that is enough.

**Separability** s is how far the gates prefer other experts for one group of requests than for another: the standard
deviation between groups of an expert's logit. A token that takes its k best of E experts with Gumbel noise, as softmax
routing does, takes one whose logit is x above the usual with probability ``1 - exp(-exp(x - threshold))``, where the
threshold makes k of E. So s decides how unequal an expert's shares are between groups; that variance can be read off
sketches, which keep sums of squares, and s is what explains it.

**Saving** is what part of the distinct experts that a slice reads in a layer would not be read if each slice were of
one group. It depends on s and on how many tokens a slice has: with many of them all experts are awake whatever the
groups, and nothing can be saved. That is so for a picture, with hundreds of tokens a step, and not for an answer, with
one. The saving decides (``Switch``); for a given size of slices, that is a bound on s.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean

from schedulers.experts.signature import Signature, Sketch, dot, mean_sketch

ON, OFF = 0.08, 0.05
"""Savings from which affinity is switched on, and below which it is switched off."""
_QUANTILES = tuple(NormalDist().inv_cdf((number + 0.5) / 64) for number in range(64))
_MAX_S, _STEP_S = 8.0, 0.05


def separability(groups: Sequence[Sketch], chosen: float, noise: float = 0.0) -> float:
    """Of groups that are equally large, by their mean sketches; from 0 to 8.

    ``chosen``: k/E, the share of the experts of a layer that a token is sent to. ``noise``: what the squared distances
    of the groups from their mean have from being means of few requests, on average.
    """
    if len(groups) < 2:
        return 0.0
    usual = mean_sketch(groups)
    spread = fmean(_squared(group, usual) for group in groups) * len(groups) / (len(groups) - 1) - noise
    if spread <= 0.0:
        return 0.0
    mean = dot(usual, usual) - spread / len(groups)  # what few groups happen to have in common
    return _s_of(math.inf, chosen) if mean <= 0.0 else _s_of(spread / mean, chosen)


def _s_of(unequal: float, chosen: float) -> float:
    curve = _curve(chosen)
    if len(curve) < 2:
        return 0.0  # every token is sent to every expert
    at = min(max(bisect_right(curve, unequal), 1), len(curve) - 1)
    part = (unequal - curve[at - 1]) / (curve[at] - curve[at - 1])
    return _STEP_S * (at - 1 + min(1.0, part))


@lru_cache(maxsize=16)
def _curve(chosen: float) -> tuple[float, ...]:
    """How unequal shares are at each s, in steps; it rises. What is beyond the steps that change something is left
    out."""
    curve = [0.0]
    for number in range(1, round(_MAX_S / _STEP_S) + 1):
        if (unequal := _unequal(_inclusions(number * _STEP_S, chosen))) <= curve[-1] * (1 + 1e-6):
            break
        curve.append(unequal)
    return tuple(curve)


def _squared(one: Sketch, other: Sketch) -> float:
    """Distance."""
    apart = [a - b for a, b in zip(one, other, strict=True)]
    return dot(apart, apart)


def _unequal(shares: Sequence[float]) -> float:
    """Their variance over the square of their mean."""
    mean = fmean(shares)
    return fmean((share - mean) ** 2 for share in shares) / mean**2


@lru_cache(maxsize=1024)
def _inclusions(s: float, chosen: float) -> tuple[float, ...]:
    """How likely a token is to take an expert, at each quantile of the expert's logit, ``chosen`` on average."""

    def at(threshold: float) -> list[float]:
        return [-math.expm1(-math.exp(min(s * z + threshold, 60.0))) for z in _QUANTILES]

    low, high = -60.0, 60.0
    for _ in range(32):
        middle = (low + high) / 2
        low, high = (middle, high) if fmean(at(middle)) < chosen else (low, middle)
    return tuple(at(high))


def expected_saving(s: float, tokens: float, chosen: float, num_groups: int) -> float:
    """Of slices of so many tokens, where all experts are equally popular on the whole."""
    if num_groups < 2 or s <= 0.0:
        return 0.0
    apart = _inclusions(_stepped(s), chosen)
    mixed = _inclusions(_stepped(_s_of(_unequal(apart) / num_groups, chosen)), chosen)
    return max(0.0, 1.0 - _awake(apart, tokens) / _awake(mixed, tokens))


def _stepped(s: float) -> float:
    return round(s / _STEP_S) * _STEP_S


def _awake(inclusions: Sequence[float], tokens: float) -> float:
    """Share of the experts that so many tokens wake."""
    return fmean(1.0 - (1.0 - share) ** tokens for share in inclusions)


def table_saving(shares: Sequence[Signature], draws: float) -> float:
    """The same of signatures that are known in full: slices of one of them each, beside slices of all.
    ``draws``: tokens of a slice, times the experts that each is sent to in a layer."""
    usual = [[fmean(column) for column in zip(*layers, strict=True)] for layers in zip(*shares, strict=True)]
    mixed = _distinct(usual, draws)
    return max(0.0, 1.0 - fmean(_distinct(one, draws) for one in shares) / mixed)


def _distinct(signature: Signature, draws: float) -> float:
    return math.fsum(1.0 - (1.0 - min(1.0, share)) ** draws for layer in signature for share in layer)


@dataclass(slots=True)
class Switch:
    """On from a saving of ``on``, off below ``off``; in between, as it was.

    Raises: ValueError: ``off`` above ``on``.
    """

    on: float = ON
    off: float = OFF
    is_on: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.off <= self.on:
            raise ValueError(f"off is {self.off} and on is {self.on}; need 0 <= off <= on")

    def measure(self, saving: float) -> bool:
        """Go by this saving. Returns whether it is on."""
        self.is_on = saving >= (self.off if self.is_on else self.on)
        return self.is_on
