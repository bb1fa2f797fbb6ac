"""What benign answers of one checkpoint are like: the content of ``guard.json``, beside its weights.

Written by ``vireo guard calibrate``, from answers that the text model was not fitted to. Values are kept ascending and
whole, since the rank of a new one among them is its p-value.

Whom an answer is compared with (``apart``): those of its group if it is large, those of all other groups (``OTHERS``)
if it is not, or, where either would be too few for anybody, with all (``POOLED``). How often a benign answer is taken
for strange then holds of each large group by itself and of the others together, or of all together: among small groups
one may be more often than stated, and another less often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from schedulers.guard.conformal import LEVEL, bound_tokens, quantile
from schedulers.guard.text import OTHERS, POOLED, Asked, TextModel, group_of

FORMAT = 1
FILE_NAME = "guard.json"
MIN_NUM = 599
"""Answers that one can be compared with: of six detectors together, none can find fewer rare at 1%."""
MIN_NUM_OF_CAP = 99
"""To say where 95% of the answers of a group end."""
_ASCENDING = ("residuals", "repeat", "special_run", "eos", "squeeze")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Benign answers that are alike in what a picture cannot change.

    ``num``: answers. ``residuals``: log(1 + tokens) less the prediction, of those that ended by themselves; the others
    reached their ``max_tokens``, and would have been longer by nobody knows how much. ``p95_tokens``: that 95% of the
    answers do not exceed. The rest is one value for each answer, ascending, empty where it was not measured:
    ``repeat``, the smallest share of different 4-grams in a window; ``special_run``, the longest run of special tokens;
    ``eos``, the largest CUSUM; ``squeeze``, the embedding's distance.
    ``eos_median``: of the end's log-probability, by position; the last one holds for all that follow.

    Raises: ValueError: numbers that contradict each other.
    """

    num: int
    p95_tokens: int
    residuals: tuple[float, ...] = ()
    repeat: tuple[float, ...] = ()
    special_run: tuple[float, ...] = ()
    eos: tuple[float, ...] = ()
    eos_median: tuple[float, ...] = ()
    squeeze: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.num < 1 or self.p95_tokens < 1:
            raise ValueError(f"num is {self.num} and p95_tokens {self.p95_tokens}; need at least 1")
        if len(self.residuals) > self.num:
            raise ValueError(f"{len(self.residuals)} residuals of {self.num} answers; need one each at most")
        for name in (*_ASCENDING, "eos_median"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"{name} has a value that is not finite")
        for name in _ASCENDING:
            if any(one > two for one, two in pairwise(getattr(self, name))):
                raise ValueError(f"{name} is not ascending; sort it")
        if self.eos and not self.eos_median:
            raise ValueError("eos has values, and eos_median none to measure others against")

    @property
    def censored(self) -> float:
        """Share of the answers that reached their ``max_tokens``."""
        return 1.0 - len(self.residuals) / self.num

    def residual_at(self, level: float) -> float:
        """That a benign answer exceeds with probability ``level`` at most; infinite where nothing can be said."""
        return quantile(self.residuals, self.num, level)


class Expected(NamedTuple):
    """Of one request, by its text. ``bound_tokens``: whatever its own limit is. ``cap_tokens``: where it ends if it is
    found to be an attack; within its own limit."""

    group: str
    log_tokens: float
    bound_tokens: int
    cap_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardCalibration:
    """See the module's docstring. ``num_benign``: answers in all. ``special_ids``: tokens that a reader does not see.

    ``groups``: all benign answers (``POOLED``) and, where some groups are compared apart, those and all others together
    (``OTHERS``). One of fewer than ``MIN_NUM`` answers only says where its answers are capped.

    Raises: ValueError: no group ``all``.
    """

    model: str
    checkpoint_sha256: str
    num_benign: int
    text: TextModel
    groups: Mapping[str, Group]
    special_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if POOLED not in self.groups:
            raise ValueError(f"there is no group {POOLED!r}, with which groups that are too small are compared")
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))

    def group(self, name: str) -> Group:
        """What answers of a group are compared with; it may be one that was never heard of."""
        if OTHERS not in self.groups:
            return self.groups[POOLED]
        found = self.groups.get(name)
        return found if found is not None and found.num >= MIN_NUM else self.groups[OTHERS]

    def expected(self, asked: Asked, max_tokens: int, level: float | Callable[[str], float] = LEVEL) -> Expected:
        """What a request's text lets expect. ``level``: at which the bound is taken, or what tells it for a group."""
        log_tokens = self.text.log_tokens(asked)
        name = group_of(asked, log_tokens)
        residual = self.group(name).residual_at(level(name) if callable(level) else level)
        cap = min(self._cap_of(name, log_tokens), max_tokens)
        return Expected(name, log_tokens, bound_tokens(log_tokens, residual), cap)

    def _cap_of(self, name: str, log_tokens: float) -> int:
        """Where its own answers do not say, that of others, unless more is expected of this one."""
        found = self.groups.get(name)
        if found is not None and found.num >= MIN_NUM_OF_CAP:
            return found.p95_tokens
        return max(self.group(name).p95_tokens, bound_tokens(log_tokens, 0.0))

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "model": self.model,
            "checkpoint_sha256": self.checkpoint_sha256,
            "num_benign": self.num_benign,
            "text": {"intercept": self.text.intercept, "weights": list(self.text.weights)},
            "groups": {name: _plain(group) for name, group in sorted(self.groups.items())},
            "special_ids": sorted(self.special_ids),
        }

    @classmethod
    def from_plain(cls, plain: object) -> GuardCalibration:
        """Raises: ValueError: not what ``to_plain`` gives; the message says where."""
        table = _of_kind(plain, dict, "the calibration")
        if table.get("format") != FORMAT:
            raise ValueError(f"format is {table.get('format')!r}; need {FORMAT}: calibrate again")
        try:
            text = _of_kind(table["text"], dict, "text")
            groups = _of_kind(table["groups"], dict, "groups")
            return cls(
                model=_of_kind(table["model"], str, "model"),
                checkpoint_sha256=_of_kind(table["checkpoint_sha256"], str, "checkpoint_sha256"),
                num_benign=_of_kind(table["num_benign"], int, "num_benign"),
                text=TextModel(
                    weights=_numbers(text["weights"], "text.weights"), intercept=_number(text["intercept"], "intercept")
                ),
                groups={str(name): _group(group, str(name)) for name, group in groups.items()},
                special_ids=frozenset(
                    _of_kind(one, int, "special_ids") for one in _of_kind(table["special_ids"], list, "special_ids")
                ),
            )
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from None


def apart(sizes: Mapping[str, int]) -> frozenset[str]:
    """Groups that are compared with their own answers: the largest, as long as ``MIN_NUM`` are left for the others.

    ``sizes``: answers of each group. To compare the others with all would not do: their bound would then be that of
    mostly answers of large groups, and all answers together would exceed theirs more often than stated.
    """
    left, found = sum(sizes.values()), set()
    for name, num in sorted(sizes.items(), key=lambda item: item[1], reverse=True):
        if min(num, left - num) < MIN_NUM:
            break
        left -= num
        found.add(name)
    return frozenset(found)


def _plain(group: Group) -> dict[str, Any]:
    values = {field.name: getattr(group, field.name) for field in fields(Group)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _group(plain: object, name: str) -> Group:
    table = dict(_of_kind(plain, dict, f"group {name}"))
    if unknown := set(table) - {field.name for field in fields(Group)}:
        raise ValueError(f"group {name} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
    counts = {key: _of_kind(table.pop(key), int, f"{name}.{key}") for key in ("num", "p95_tokens")}
    lists = {str(key): _numbers(values, f"{name}.{key}") for key, values in table.items()}
    try:
        return Group(num=counts["num"], p95_tokens=counts["p95_tokens"], **lists)
    except ValueError as error:
        raise ValueError(f"group {name}: {error}") from None


def _numbers(values: object, what: str) -> tuple[float, ...]:
    listed: Sequence[object] = _of_kind(values, list, what)
    return tuple(_number(value, what) for value in listed)


def _number(value: object, what: str) -> float:
    return float(value) if type(value) is int else _of_kind(value, float, what)


def _of_kind(value: object, kind: type[Value], what: str) -> Value:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{what} is {value!r:.60}; need {kind.__name__}")
    return value
