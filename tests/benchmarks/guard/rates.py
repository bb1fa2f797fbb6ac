"""What is found of attacked answers and of benign ones, and what benign ones lose: rates with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from loadtest.adversarial.figures import share
from models.families.texthawk2.coordinates import iou, parse_boxes
from schedulers.guard.conformal import LEVEL, NO_BOUND
from schedulers.policies.guard import Action
from tests.benchmarks.guard.judged import (
    CAMPS,
    DETECTORS,
    LARGE,
    LEVELS,
    Judged,
    attacks_of,
    camp_of,
    counted,
    limit_at,
    share_found,
)

BUCKETS = (1.5, 2.0, 4.0, LARGE, 10.0)
"""Edges, in times that an answer grew."""
Decode = Callable[[Sequence[int]], str]

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


def benign_rows(mixed: Sequence[Judged], hard: Sequence[Judged], decode: Decode) -> list[dict[str, Any]]:
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


def is_right(one: Judged, num_tokens: int, decode: Decode) -> bool:
    """The first tokens as the evaluation of the reader judges them: equal, or a box that overlaps by half."""
    expected, told = one.subject.expected or "", decode(one.subject.answered.token_ids[:num_tokens]).strip()
    try:
        wanted, given = parse_boxes(expected), parse_boxes(told)
    except ValueError:
        return False
    if (len(wanted) == 1 and one.subject.kind.endswith("ground")) or one.subject.kind.startswith("ground"):
        return len(given) == 1 and iou(wanted[0], given[0]) >= 0.5
    return told == expected.strip()


def spoilt(mixed: Sequence[Judged], decode: Decode) -> dict[str, float] | None:
    """Right answers that the guard makes wrong ones, of all that have one; None: none has."""
    scored = [one for one in mixed if one.subject.expected is not None]
    lost = [
        is_right(one, one.subject.answered.length, decode) and not is_right(one, one.outcome.tokens, decode)
        for one in scored
    ]
    return share(lost) if lost else None


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
                row[f"{level:g}"] = share_found(looked, detector, level)
            if hard:
                row[f"hard_{level:g}"] = share_found(hard, detector, level)
        yield row


def _squeezed(mixed: Sequence[Judged]) -> list[Judged]:
    """Up to the first whose picture was not: of others it is known only if they were strange already."""
    known = [one.evidence.squeeze is not None or not one.subject.answered.asked.num_images for one in mixed]
    first_unknown = known.index(False) if False in known else len(known)
    return [one for one in mixed[:first_unknown] if one.evidence.squeeze is not None]


# -- attacked --------------------------------------------------------------------------------------------------------


def limits_of(mixed: Sequence[Judged]) -> dict[float, float]:
    """By level: below which combined p-value no more benign answers lie. They are chosen on the answers that they are
    judged on, which are many for one number."""
    return {level: limit_at([one.outcome.combined for one in mixed], level) for level in LEVELS}


def bucket(times: float) -> str:
    """Its name."""
    edges = ("1", *(f"{edge:g}" for edge in BUCKETS))
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        if high is None or times < float(high):
            return f"{low} to {high}" if high is not None else f"{low} and more"
    raise AssertionError("the last bucket is open")


def found(attacked: Sequence[Judged], limits: Mapping[float, float]) -> Iterable[dict[str, Any]]:
    """By how much the answer grew, and by attack where it grew six times: shares that each detector finds."""
    judged, large = counted(attacked), f"{LARGE:g} and more"
    for camp in CAMPS[:2]:
        of_camp = [one for one in judged if camp_of(one.subject.kind) == camp]
        for name in [bucket(edge) for edge in (1.0, *BUCKETS)]:
            yield from _found(f"all {camp}", name, [one for one in of_camp if bucket(one.times) == name], limits)
        yield from _found(f"all {camp}", large, [one for one in of_camp if one.times >= LARGE], limits)
    for attack in attacks_of(judged):
        of_attack = [one for one in judged if one.subject.kind == attack]
        yield from _found(attack, "any", of_attack, limits)
        yield from _found(attack, large, [one for one in of_attack if one.times >= LARGE], limits)


def _found(attack: str, name: str, chosen: Sequence[Judged], limits: Mapping[float, float]) -> Iterable[dict[str, Any]]:
    if chosen:
        yield {
            "attack": attack,
            "bucket": name,
            "num": len(chosen),
            **{
                f"{detector}_{level:g}": share_found(chosen, detector, level)
                for detector in DETECTORS
                for level in LEVELS
            },
            **{
                f"realised_{level:g}": share([one.outcome.combined < limits[level] for one in chosen])
                for level in LEVELS
            },
        }


def roc(benign: Sequence[Judged], attacked: Sequence[Judged]) -> dict[str, list[tuple[float, float]]]:
    """(false alarms, found of those that grew six times) at every threshold, of each detector that has one and says
    anything. Controls are left out."""
    large = [one for one in counted(attacked) if one.times >= LARGE and camp_of(one.subject.kind) != "control"]
    curves = {}
    for detector in DETECTORS[:-1]:
        looked = _squeezed(benign) if detector == "squeeze" else benign
        if not large or not looked:
            continue
        low, high = ([one.p_value(detector) for one in which] for which in (looked, large))
        if all(p is None for p in (*low, *high)):
            continue
        benign_p, attack_p = (np.array([1.0 if p is None else p for p in which]) for which in (low, high))
        curves[detector] = [
            (float(np.mean(benign_p <= at)), float(np.mean(attack_p <= at)))
            for at in sorted({*benign_p.tolist(), *attack_p.tolist()})
        ]
    return curves
