"""What is done about a request that looks crafted to burn energy: graded, and never a refusal.

What is seen of a request comes in as p-values against benign traffic, one a detector: how often a benign request looks
at least as strange. They need no joint model: the smallest, times their number (Bonferroni), bounds how often a benign
request is taken for a suspect whatever the detectors have in common.

A suspect is looked at twice. Before it is confirmed, it is watched, or goes after its tenant's other requests; neither
changes an answer. Only one that is confirmed, or that repeats a picture that was, ends early: where 95% of benign
answers of its kind have ended, or where it is clearly longer than the answer to the purified copy, whichever comes
first. Whatever was used is charged, as ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Mode(StrEnum):
    """What the guard may do to a tenant. ``observe``: say what it would do before a second look, do nothing, and look
    once."""

    OFF = "off"
    OBSERVE = "observe"
    ENFORCE = "enforce"


class Action(StrEnum):
    """From nothing to most."""

    NORMAL = "normal"
    WATCHED = "watched"
    DEPRIORITISED = "deprioritised"
    CAPPED = "capped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How rare among benign requests one has to be for what: combined p-values.

    Raises:
        ValueError: not 0 < ``suspect_at`` <= ``watch_at`` < 1.
    """

    mode: Mode = Mode.ENFORCE
    watch_at: float = 0.05
    suspect_at: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.suspect_at <= self.watch_at < 1.0:
            raise ValueError(
                f"suspect_at is {self.suspect_at} and watch_at {self.watch_at}; need 0 < suspect_at <= watch_at < 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """``p_values``: by detector, each in (0, 1]. ``is_replay``: of a picture that was confirmed before. ``is_stream``:
    one of many nearly equal pictures of its tenant, as who has no weights must send. ``is_confirmed``: None while
    nobody has looked."""

    p_values: Mapping[str, float] = field(default_factory=dict)
    is_replay: bool = False
    is_stream: bool = False
    is_confirmed: bool | None = None


class Verdict(NamedTuple):
    """``score``: 0 (ordinary) to 1. ``reasons``: detectors that speak against it, the strongest first."""

    action: Action = Action.NORMAL
    score: float = 0.0
    reasons: tuple[str, ...] = ()


REPLAY = "replay"
QUERY_STREAM = "stream"
CONFIRMED = "confirmed"


def combined(p_values: Mapping[str, float]) -> float:
    """Smallest of the p-values times their number, at most 1; 1 where there is none.

    Raises: ValueError: one is not in (0, 1].
    """
    for name, p in p_values.items():
        if not 0.0 < p <= 1.0:
            raise ValueError(f"p-value of {name} is {p}; need one in (0, 1]")
    return min(1.0, min(p_values.values(), default=math.inf) * len(p_values)) if p_values else 1.0


def decide(evidence: Evidence, rules: Rules) -> Verdict:
    """What is done about a request. In mode ``observe``, what would be done before a second look: ``CAPPED`` only for a
    replay."""
    if rules.mode is Mode.OFF:
        return Verdict()
    p = combined(evidence.p_values)
    alone = rules.watch_at / max(1, len(evidence.p_values))
    reasons = tuple(name for name, one in sorted(evidence.p_values.items(), key=lambda item: item[1]) if one <= alone)
    if evidence.is_replay:
        return Verdict(Action.CAPPED, 1.0, (REPLAY, *reasons))
    if evidence.is_confirmed and p <= rules.suspect_at:
        return Verdict(Action.CAPPED, 1.0 - p, (*reasons, CONFIRMED))
    if evidence.is_stream:
        return Verdict(Action.DEPRIORITISED, 1.0 - min(p, rules.suspect_at), (QUERY_STREAM, *reasons))
    if p > rules.watch_at:
        return Verdict(Action.NORMAL, 1.0 - p)
    if p > rules.suspect_at:
        return Verdict(Action.WATCHED, 1.0 - p, reasons)
    return Verdict(Action.DEPRIORITISED, 1.0 - p, reasons)


_ORDER = tuple(Action)


def graver(one: Verdict, other: Verdict) -> Verdict:
    """The graver of two verdicts on the same request, with the reasons of both."""
    first, second = sorted((one, other), key=lambda each: (_ORDER.index(each.action), each.score), reverse=True)
    return first._replace(reasons=tuple(dict.fromkeys((*first.reasons, *second.reasons))))


def goes_last(action: Action) -> bool:
    """Whether a request comes after its tenant's others."""
    return _ORDER.index(action) >= _ORDER.index(Action.DEPRIORITISED)
