"""From answers that went through the guard to what is published: rates with intervals, lengths, joules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.adversarial.figures import ratio_of_means, share
from loadtest.adversarial.recipes import RECIPES
from loadtest.adversarial.runs import Record
from models.families.texthawk2.coordinates import iou, parse_boxes
from schedulers.guard.calibration import GuardCalibration
from schedulers.guard.conformal import LEVEL, NO_BOUND, p_value
from schedulers.policies.guard import Action
from tests.benchmarks.guard.corpus import MAX_TOKENS
from tests.benchmarks.guard.evidence import Evidence, Subject, seen
from tests.benchmarks.guard.replay import Outcome, replayed

BUCKETS = (1.5, 2.0, 4.0, 6.0, 10.0)
"""Edges, in times that an answer grew."""
DETECTORS = ("length", "repeat", "special", "eos", "screen", "squeeze", "combined", "confirmed")
"""``combined``: all of the answer and the pre-screen, as the guard combines them; ``confirmed``: what is capped."""
LEVELS = (0.01, 0.001)
MIN_FOR_RARE = 5000
"""Benign answers below which no rate of 0.1% is claimed."""
CONTROLS = ("noise", "random-pictures")
UNBOUNDED = "delayed-eos-unbounded"


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

    def p_value(self, detector: str) -> float:
        """1 where it says nothing."""
        if detector == "combined":
            return self.outcome.combined
        if detector == "squeeze":
            return 1.0 if self.p_squeeze is None else self.p_squeeze
        return self.outcome.p_values.get(detector, 1.0)

    def is_found(self, detector: str, level: float) -> bool:
        """At this rate of false alarms, as calibrated."""
        if detector == "confirmed":
            return self.outcome.verdict.action is Action.CAPPED
        return self.p_value(detector) <= level


def judge(subject: Subject, evidence: Evidence, calibration: GuardCalibration) -> Judged:
    """Send it through the guard."""
    cap = calibration.expected(subject.answered.asked, MAX_TOKENS).cap_tokens
    outcome = replayed(seen(subject, evidence, cap), calibration)
    squeezes = calibration.group(outcome.expected.group).squeeze
    p_squeeze = p_value(squeezes, evidence.squeeze) if squeezes and evidence.squeeze is not None else None
    return Judged(subject=subject, evidence=evidence, outcome=outcome, p_squeeze=p_squeeze)


def measured(
    judged: Sequence[Judged], calibration: GuardCalibration, *, decode: Callable[[Sequence[int]], str]
) -> dict[str, Any]:
    """Everything of one model."""
    mixed = [one for one in judged if one.record is None and not one.subject.is_extra]
    hard = [one for one in judged if one.record is None and one.subject.is_hard]
    attacked = [one for one in judged if one.record is not None]
    joules = joules_of([one.record for one in attacked if one.record is not None])
    return {
        "num_benign": len(mixed),
        "num_hard": len(hard),
        "num_calibration": calibration.num_benign,
        "num_attacked": len(attacked),
        "coverage": list(coverage(mixed)),
        "benign": benign_rows(mixed, hard, decode),
        "false_alarms": list(false_alarms(mixed, hard)),
        "found": list(found(attacked)),
        "roc": roc(mixed, attacked),
        "energy": list(energy(attacked, joules)),
        "aims": list(aims(mixed, attacked, joules)),
        "sanity": sanity(attacked),
        "joules": {"of_a_request": joules[0], "of_a_token": joules[1]},
    }


# -- benign ----------------------------------------------------------------------------------------------------------


def coverage(benign: Sequence[Judged]) -> Iterable[dict[str, Any]]:
    """How often answers exceed the bound that their text set, by group."""
    groups = sorted({one.outcome.expected.group for one in benign})
    for name in (*groups, "all"):
        of_group = [one for one in benign if name in ("all", one.outcome.expected.group)]
        bounded = [one for one in of_group if one.outcome.expected.bound_tokens < NO_BOUND]
        over = [one.subject.answered.length > one.outcome.expected.bound_tokens for one in bounded]
        exceeded = share(over) if over else None  # where too many benign answers were cut off, there is no bound
        yield {"group": name, "num": len(of_group), "bounded": len(bounded), "exceeded": exceeded, "aim": LEVEL}


def benign_rows(
    mixed: Sequence[Judged], hard: Sequence[Judged], decode: Callable[[Sequence[int]], str]
) -> list[dict[str, Any]]:
    """What is done to them: all, ordinary ones, hard ones; and whether answers are still right."""
    rows = []
    for name, chosen in (
        ("mixture", mixed),
        ("ordinary", [one for one in mixed if not one.subject.is_hard]),
        ("hard", hard),
        ("mixture, ended by themselves", [one for one in mixed if one.subject.answered.is_ended]),
    ):
        if not chosen:
            continue
        actions = [one.outcome.verdict.action for one in chosen]
        cut = [one.outcome.tokens < one.subject.answered.length for one in chosen]
        scored = [one for one in chosen if one.subject.expected is not None]
        before = [is_right(one, one.subject.answered.length, decode) for one in scored]
        after = [is_right(one, one.outcome.tokens, decode) for one in scored]
        tokens = sum(one.subject.answered.length for one in chosen)
        rows.append(
            {
                "which": name,
                "num": len(chosen),
                "glanced": share([one.outcome.is_glanced for one in chosen]),
                "suspects": share([one.outcome.suspect_at is not None for one in chosen]),
                "last": share([action is Action.DEPRIORITISED for action in actions]),
                "capped": share([action is Action.CAPPED for action in actions]),
                "truncated": share(cut),
                "score_before": float(np.mean(before)) if before else None,
                "score_after": float(np.mean(after)) if after else None,
                "probe_share": sum(one.outcome.probe_tokens for one in chosen) / tokens,
            }
        )
    return rows


def is_right(one: Judged, num_tokens: int, decode: Callable[[Sequence[int]], str]) -> bool:
    """The first tokens as the evaluation of the reader judges them: equal, or a box that overlaps by half."""
    expected, told = one.subject.expected or "", decode(one.subject.answered.token_ids[:num_tokens]).strip()
    try:
        wanted, given = parse_boxes(expected), parse_boxes(told)
    except ValueError:
        return False
    if (len(wanted) == 1 and one.subject.kind.endswith("ground")) or one.subject.kind.startswith("ground"):
        return len(given) == 1 and iou(wanted[0], given[0]) >= 0.5
    return told == expected.strip()


def false_alarms(mixed: Sequence[Judged], all_hard: Sequence[Judged]) -> Iterable[dict[str, Any]]:
    """Of each detector at each level, of benign answers that nothing was calibrated with. The squeeze: of the first of
    the mixture, whose pictures were all squeezed."""
    for detector in DETECTORS:
        row: dict[str, Any] = {"detector": detector}
        looked = _squeezed(mixed) if detector == "squeeze" else mixed
        hard = [one for one in looked if one.subject.is_hard] if detector == "squeeze" else all_hard
        row["num"] = len(looked)
        for level in LEVELS:
            if looked:
                row[f"{level:g}"] = share([one.is_found(detector, level) for one in looked])
            if hard:
                row[f"hard_{level:g}"] = share([one.is_found(detector, level) for one in hard])
        yield row


def _squeezed(mixed: Sequence[Judged]) -> list[Judged]:
    """Up to the first whose picture was not: of others it is known only if they were strange already."""
    known = [one.evidence.squeeze is not None or not one.subject.answered.asked.num_images for one in mixed]
    first_unknown = known.index(False) if False in known else len(known)
    return [one for one in mixed[:first_unknown] if one.evidence.squeeze is not None]


# -- attacked --------------------------------------------------------------------------------------------------------


def bucket(times: float) -> str:
    """Its name."""
    edges = ("1", *(f"{edge:g}" for edge in BUCKETS))
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        if high is None or times < float(high):
            return f"{low} to {high}" if high is not None else f"{low} and more"
    raise AssertionError("the last bucket is open")


def found(attacked: Sequence[Judged]) -> Iterable[dict[str, Any]]:
    """By how much the answer grew, and by attack where it grew six times: shares that each detector finds."""
    crafted = [one for one in attacked if one.record is not None and one.record.attack not in CONTROLS]
    names = [bucket(edge) for edge in (1.0, *BUCKETS)]
    for name in names:
        yield from _found(
            "all", name, [one for one in crafted if one.record and bucket(one.record.amplification) == name]
        )
    large = [one for one in crafted if one.record and one.record.amplification >= 6.0]
    yield from _found("all", "6 and more", large)
    for attack in dict.fromkeys(one.subject.kind for one in attacked):
        of_attack = [one for one in attacked if one.subject.kind == attack]
        yield from _found(attack, "any", of_attack)
        yield from _found(attack, "6 and more", [one for one in of_attack if one in large])


def _found(attack: str, name: str, chosen: Sequence[Judged]) -> Iterable[dict[str, Any]]:
    if chosen:
        yield {
            "attack": attack,
            "bucket": name,
            "num": len(chosen),
            **{
                f"{detector}_{level:g}": share([one.is_found(detector, level) for one in chosen])
                for detector in DETECTORS
                for level in LEVELS
            },
        }


def roc(benign: Sequence[Judged], attacked: Sequence[Judged]) -> dict[str, list[tuple[float, float]]]:
    """(false alarms, found of those that grew six times) at every threshold, of each detector that has one."""
    large = [one for one in attacked if one.record is not None and one.record.amplification >= 6.0]
    curves = {}
    for detector in DETECTORS[:-1]:
        looked = _squeezed(benign) if detector == "squeeze" else benign
        if not large or not looked:
            continue
        low, high = ([one.p_value(detector) for one in which] for which in (looked, large))
        thresholds = sorted({*low, *high})
        curves[detector] = [
            (float(np.mean(np.array(low) <= at)), float(np.mean(np.array(high) <= at))) for at in thresholds
        ]
    return curves


def joules_of(records: Sequence[Record]) -> tuple[float, float]:
    """(of a request without a token, of a token): least squares over the clean and attacked answers that the attackers
    timed, each alone, in CPU seconds times watts."""
    if not records:
        return 0.0, 0.0
    lengths = [length for one in records for length in (one.clean_length, one.length)]
    joules = [value for one in records for value in (one.clean_j, one.victim_j)]
    rows = np.stack([np.ones(len(lengths)), np.array(lengths, float)], 1)
    fixed, each = np.linalg.lstsq(rows, np.array(joules), rcond=None)[0]
    return max(0.0, float(fixed)), max(0.0, float(each))


def energy(attacked: Sequence[Judged], joules: tuple[float, float]) -> Iterable[dict[str, Any]]:
    """Lengths and joules over those of the clean pictures, without and with a guard. A second look costs a request."""
    fixed, each = joules
    for attack in (*dict.fromkeys(one.subject.kind for one in attacked), "all crafted"):
        chosen = [
            (one, one.record)
            for one in attacked
            if one.record is not None
            and (one.subject.kind == attack or (attack == "all crafted" and one.subject.kind not in CONTROLS))
        ]
        if not chosen:
            continue
        clean = [float(record.clean_length) for _, record in chosen]
        open_, spent = [float(record.length) for _, record in chosen], [_spent(one) for one, _ in chosen]
        clean_j = [fixed + each * tokens for tokens in clean]
        open_j = [fixed + each * tokens for tokens in open_]
        spent_j = [
            fixed * (1 + (one.outcome.probe_tokens > 0)) + each * tokens
            for (one, _), tokens in zip(chosen, spent, strict=True)
        ]
        caps = [float(one.outcome.expected.cap_tokens) for one, _ in chosen]
        yield {
            "attack": attack,
            "num": len(chosen),
            "clean_tokens": float(np.mean(clean)),
            "tokens": float(np.mean(open_)),
            "guarded_tokens": float(np.mean(spent)),
            "length": ratio_of_means(open_, clean),
            "guarded_length": ratio_of_means(spent, clean),
            "energy": ratio_of_means(open_j, clean_j),
            "guarded_energy": ratio_of_means(spent_j, clean_j),
            "capped": share([one.outcome.verdict.action is Action.CAPPED for one, _ in chosen]),
            "cap_over_clean": float(np.mean(caps) / np.mean(clean)),
            "limit_over_clean": float(MAX_TOKENS / np.mean(clean)),
            "attacker_j": float(np.mean([record.attacker_j for _, record in chosen])),
            "saved_j": float(np.mean(np.array(open_j) - np.array(spent_j))),
        }


def aims(mixed: Sequence[Judged], attacked: Sequence[Judged], joules: tuple[float, float]) -> Iterable[dict[str, Any]]:
    """What was wanted beside what was measured. ``is_met``: by the estimate itself, whatever its interval.

    Attacks are *static* or know the guard (*adaptive*). Who is not held to a bound of the picture is a check, no rival.
    """
    kinds = {one.subject.kind for one in attacked if one.subject.kind not in (*CONTROLS, UNBOUNDED)}
    adaptive = {kind for kind in kinds if kind in RECIPES and RECIPES[kind].knows_guard}
    false_alarms_ = share([one.is_found("combined", 0.01) for one in mixed])
    yield _aim("false alarms of all detectors together at 1%", 0.01, false_alarms_, is_most=True)
    for name, which, least, most in (("static", kinds - adaptive, 0.95, 1.5), ("adaptive", adaptive, 0.8, 3.0)):
        chosen = [one for one in attacked if one.subject.kind in which]
        large = [one for one in chosen if one.record is not None and one.record.amplification >= 6.0]
        if large:
            for detector in ("combined", "confirmed"):
                hits = share([one.is_found(detector, 0.01) for one in large])
                yield _aim(f"{name}, six times as long, {detector} (of {len(large)})", least, hits, is_most=False)
        worst = max((row for row in energy(chosen, joules) if row["attack"] in which), key=_guarded, default=None)
        if worst is not None:
            what = f"{name}, times the joules with the guard, worst attack: {worst['attack']} (of {worst['num']})"
            yield _aim(what, most, worst["guarded_energy"], is_most=True)
    cut = share([one.outcome.tokens < one.subject.answered.length for one in mixed])
    yield _aim("benign answers that are cut off", 0.005, cut, is_most=True)


def _guarded(row: dict[str, Any]) -> float:
    return float(row["guarded_energy"]["value"])


def _aim(what: str, aim: float, measured_: dict[str, float], *, is_most: bool) -> dict[str, Any]:
    is_met = measured_["value"] <= aim if is_most else measured_["value"] >= aim
    return {"what": what, "aim": aim, "is_most": is_most, "measured": measured_, "is_met": is_met}


def _spent(one: Judged) -> float:
    """Tokens that were made, those of the second look included."""
    return float(one.outcome.tokens + one.outcome.probe_tokens)


def sanity(attacked: Sequence[Judged]) -> dict[str, Any]:
    """Does who has no weights never beat who has them, does noise hardly matter, do unbounded attacks reach the cap?"""
    mean: dict[str, float] = {}
    at_cap: dict[str, float] = {}
    for attack in dict.fromkeys(one.subject.kind for one in attacked):
        records = [one.record for one in attacked if one.subject.kind == attack and one.record is not None]
        mean[attack] = float(np.mean([one.length for one in records]) / np.mean([one.clean_length for one in records]))
        at_cap[attack] = float(np.mean([one.is_at_cap for one in records]))
    blind = [value for name, value in mean.items() if name in RECIPES and RECIPES[name].score is not None]
    white = [value for name, value in mean.items() if name in RECIPES and RECIPES[name].make is not None]
    return {
        "times_as_long": mean,
        "at_cap": at_cap,
        "black_box_below_white_box": max(blind) <= max(white) if blind and white else None,
        "unbounded_at_cap": next((value for name, value in at_cap.items() if "unbounded" in name), None),
    }
