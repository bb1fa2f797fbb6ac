"""From benign answers to ``GuardCalibration``: the text model, the groups, and what is usual in each.

The answers are split by chance. One part fits the text model and the medians that CUSUMs are taken from; all statistics
are of the other part, which nothing was fitted to, so that ranks among them are p-values of new benign answers.

A p-value is never below 1 / (n + 1), and the guard multiplies the smallest by the number of detectors: groups with few
answers are compared with those of all that have few (``calibration.apart``). How far an embedding moves is a matter of
the picture and not of the question, so all groups share those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from schedulers.guard.calibration import MIN_NUM, MIN_NUM_OF_CAP, Group, GuardCalibration, apart
from schedulers.guard.stream import StreamStatistics
from schedulers.guard.text import OTHERS, POOLED, Asked, TextModel, features, group_of

DIMENSIONS = 256
FIT_SHARE = 0.2
MIN_ANSWERS = 2000
"""That anybody should calibrate with; fewer work, and see less."""
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_MIN_AT_POSITION = 10
_DIGITS = 4
Parts: TypeAlias = "tuple[Sequence[Benign], Sequence[Benign]]"
"""Answers to compare with, and those that medians are taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benign:
    """One benign answer. ``token_ids``: as the monitor saw them. ``log_p_ends``: of the end, at each step; None: the
    engine does not tell. ``is_ended``: False where ``max_tokens`` cut it off. ``squeeze``: how far the embedding of
    its first picture moved; None: not measured, or no picture."""

    asked: Asked
    token_ids: Sequence[int]
    log_p_ends: Sequence[float] | None = None
    is_ended: bool = True
    squeeze: float | None = None

    @property
    def log_tokens(self) -> float:
        """What the text model predicts."""
        return float(np.log1p(len(self.token_ids)))


def fit(
    answers: Sequence[Benign],
    *,
    model: str,
    checkpoint_sha256: str,
    special_ids: Iterable[int] = (),
    seed: int = 0,
) -> GuardCalibration:
    """Raises: ValueError: too few answers for anything to be rare."""
    order = np.random.default_rng(seed).permutation(len(answers))
    cut = max(1, round(FIT_SHARE * len(answers)))
    fitted, kept = ([answers[place] for place in part] for part in (order[:cut], order[cut:]))
    if len(kept) < MIN_NUM:
        least = round(MIN_NUM / (1 - FIT_SHARE)) + 1
        raise ValueError(f"{len(answers)} answers leave {len(kept)} to compare with; record at least {least}")
    text = text_model([(one.asked, one.log_tokens) for one in fitted])
    special = frozenset(special_ids)
    squeeze = _ascending(one.squeeze for one in kept if one.squeeze is not None)
    groups = {name: _group(*both, text, special, squeeze) for name, both in _grouped(kept, fitted, text).items()}
    return GuardCalibration(
        model=model,
        checkpoint_sha256=checkpoint_sha256,
        num_benign=len(answers),
        text=text,
        groups=groups,
        special_ids=special,
    )


# -- the text model --------------------------------------------------------------------------------------------------


def text_model(pairs: Sequence[tuple[Asked, float]], dimensions: int = DIMENSIONS) -> TextModel:
    """Ridge regression of log(1 + tokens); the penalty is that of the least generalised cross-validation
    (G. Golub et al., 1979)."""
    rows = np.zeros((len(pairs), dimensions))
    for row, (asked, _) in zip(rows, pairs, strict=True):
        for place, value in features(asked, dimensions).items():
            row[place] = value
    targets = np.array([value for _, value in pairs])
    centre, mean = rows.mean(0), float(targets.mean())
    weights = _ridge(rows - centre, targets - mean)
    return TextModel(weights=tuple(np.round(weights, 6).tolist()), intercept=round(float(mean - centre @ weights), 6))


def _ridge(rows: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    left, sizes, right = np.linalg.svd(rows, full_matrices=False)
    seen = left.T @ targets
    best, found = np.inf, np.zeros(rows.shape[1])
    for penalty in _RIDGES:
        kept = sizes**2 / (sizes**2 + penalty)
        freedom = len(targets) - 1.0 - kept.sum()
        if freedom <= 0.0:
            continue
        score = float(((targets - left @ (kept * seen)) ** 2).sum()) / freedom**2
        if score < best:
            best, found = score, right.T @ (sizes / (sizes**2 + penalty) * seen)
    return found


# -- groups ----------------------------------------------------------------------------------------------------------


def _by_group(answers: Sequence[Benign], text: TextModel) -> Mapping[str, list[Benign]]:
    found: dict[str, list[Benign]] = {}
    for one in answers:
        found.setdefault(group_of(one.asked, text.log_tokens(one.asked)), []).append(one)
    return found


def _grouped(kept: Sequence[Benign], fitted: Sequence[Benign], text: TextModel) -> Mapping[str, Parts]:
    """A group that is large and not apart makes up most of the others, and is left to them."""
    by_group, by_group_fitted = _by_group(kept, text), _by_group(fitted, text)
    own = apart({name: len(members) for name, members in by_group.items()})
    found: dict[str, Parts] = {POOLED: (kept, fitted)}
    if own:
        found[OTHERS] = _without(own, by_group), _without(own, by_group_fitted)
    for name, members in sorted(by_group.items()):
        if name in own or MIN_NUM_OF_CAP <= len(members) < MIN_NUM:
            found[name] = members, by_group_fitted.get(name, [])
    return found


def _without(names: Collection[str], by_group: Mapping[str, Sequence[Benign]]) -> list[Benign]:
    return [one for name, members in sorted(by_group.items()) if name not in names for one in members]


def _group(
    kept: Sequence[Benign],
    fitted: Sequence[Benign],
    text: TextModel,
    special: frozenset[int],
    squeeze: tuple[float, ...],
) -> Group:
    median = end_median([one.log_p_ends for one in fitted if one.log_p_ends])
    followed = [_followed(one, special, median) for one in kept]
    now = [one.now() for one in followed]
    lengths = sorted(len(one.token_ids) for one in kept)
    return Group(
        num=len(kept),
        p95_tokens=max(1, lengths[int(np.ceil(0.95 * len(lengths))) - 1]),
        residuals=_ascending(one.log_tokens - text.log_tokens(one.asked) for one in kept if one.is_ended),
        repeat=_ascending(one.unique_share for one in now),
        special_run=_ascending(one.special_run for one in now),
        eos=_ascending(one.cusum for one, said in zip(now, followed, strict=True) if said.has_ends),
        eos_median=median,
        squeeze=squeeze,
    )


def end_median(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Of the end's log-probability by position, as far as enough answers go."""
    longest = max(map(len, curves), default=0)
    found = []
    for position in range(longest):
        there = [curve[position] for curve in curves if len(curve) > position]
        if len(there) < _MIN_AT_POSITION:
            break
        found.append(round(float(np.median(there)), _DIGITS))
    return tuple(found)


def _followed(one: Benign, special: frozenset[int], median: Sequence[float]) -> StreamStatistics:
    statistics = StreamStatistics(special, median)
    statistics.push(one.token_ids, one.log_p_ends)
    return statistics


def _ascending(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(sorted(round(float(value), _DIGITS) for value in values))
