"""Answers that went through the guard, and which of them count where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from loadtest.adversarial.figures import share
from loadtest.adversarial.recipes import RECIPES
from loadtest.adversarial.runs import Record
from schedulers.guard.calibration import GuardCalibration
from schedulers.guard.conformal import p_value
from schedulers.policies.guard import Action
from tests.benchmarks.guard.corpus import MAX_TOKENS
from tests.benchmarks.guard.evidence import Evidence, Subject, seen
from tests.benchmarks.guard.replay import Outcome, replayed

DETECTORS = ("length", "repeat", "special", "eos", "screen", "squeeze", "combined", "confirmed")
"""``combined``: all of the answer and the pre-screen, as the guard combines them; ``confirmed``: what is capped."""
LEVELS = (0.01, 0.001)
LARGE = 6.0
"""Times as long, from which an attack is one that has to be found."""
UNBOUNDED = "delayed-eos-unbounded"
CONTROLS = ("noise", "random-pictures", UNBOUNDED)
"""Nobody optimised the first two; who is not held to a bound of the picture is a check, no rival."""
Camp: TypeAlias = Literal["static", "adaptive", "control"]
CAMPS: tuple[Camp, ...] = ("static", "adaptive", "control")
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An answer, what there was to see, and what the guard made of it."""

    subject: Subject
    evidence: Evidence
    outcome: Outcome
    p_squeeze: float | None

    @property
    def record(self) -> Record | None:
        """Of an attack."""
        return self.subject.record

    @property
    def times(self) -> float:
        """By which an attack made it longer; 1 of a benign one."""
        return 1.0 if self.record is None else self.record.amplification

    @property
    def tokens(self) -> int:
        """That were made, those of the second look included."""
        return self.outcome.tokens + self.outcome.probe_tokens

    def p_value(self, detector: str) -> float | None:
        """None where it says nothing, having no benign answers to compare with."""
        if detector == "combined":
            return self.outcome.combined
        return self.p_squeeze if detector == "squeeze" else self.outcome.p_values.get(detector)

    def is_found(self, detector: str, level: float) -> bool | None:
        """At this p-value; None where the detector says nothing."""
        if detector == "confirmed":
            return self.outcome.verdict.action is Action.CAPPED
        p = self.p_value(detector)
        return None if p is None else p <= level


def judge(subject: Subject, evidence: Evidence, calibration: GuardCalibration) -> Judged:
    """Send it through the guard."""
    cap = calibration.expected(subject.answered.asked, MAX_TOKENS).cap_tokens
    outcome = replayed(seen(subject, evidence, cap), calibration)
    squeezes = calibration.group(outcome.expected.group).squeeze
    p_squeeze = p_value(squeezes, evidence.squeeze) if squeezes and evidence.squeeze is not None else None
    return Judged(subject=subject, evidence=evidence, outcome=outcome, p_squeeze=p_squeeze)


def share_found(chosen: Sequence[Judged], detector: str, level: float) -> dict[str, float] | None:
    """By a detector; it finds none of those about which it says nothing. None: it says nothing about any."""
    said = [one.is_found(detector, level) for one in chosen]
    return None if all(hit is None for hit in said) else share([bool(hit) for hit in said])


def limit_at(p_values: Sequence[float], rate: float) -> float:
    """The largest number below which at most ``rate`` of the p-values lie. Raises: IndexError: there are none."""
    return sorted(p_values)[math.floor(rate * len(p_values) + _ROUNDING)]


def camp_of(attack: str) -> Camp:
    """*Adaptive* ones know the guard, *static* ones do not, and *controls* are no attacks."""
    if attack in CONTROLS:
        return "control"
    return "adaptive" if attack in RECIPES and RECIPES[attack].knows_guard else "static"


def counted(attacked: Sequence[Judged]) -> list[Judged]:
    """Without the pictures that a perturbation which many share was made on."""
    shared = {one.subject.kind for one in attacked if one.record is not None and one.record.is_held_out}
    return [
        one for one in attacked if one.record is not None and (one.record.is_held_out or one.subject.kind not in shared)
    ]


def attacks_of(attacked: Sequence[Judged]) -> list[str]:
    """Their names: static ones, adaptive ones, controls."""
    names = dict.fromkeys(one.subject.kind for one in attacked)
    return sorted(names, key=lambda name: CAMPS.index(camp_of(name)))


def records_of(chosen: Sequence[Judged]) -> list[Record]:
    """Of the attacks among them."""
    return [one.record for one in chosen if one.record is not None]
