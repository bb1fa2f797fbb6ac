"""How far quality bends under load: seldom changing levels of pressure, and who gives way first.

``Pressure`` turns the seconds of work that wait for a model into a level: up by one while more than ``rise_s`` wait,
down by one once no more than ``fall_s`` have waited for a while. In between it stays, and so it does for
``rise_every_s`` after each change: what was decided is seen in the queue only later. A level that had to be taken back
is kept four times as long before the next try, as a sender backs off, so that a load that lasts is probed more and more
seldom instead of being swung around.

``depth`` says what a level means for one request, from 0 (its best point) to 1 (the cheapest that it accepts): low
priority gives way one level earlier than normal, high priority two levels later; a tenant over its share one or two
levels earlier, one well below it a level later. ``schedulers.plan`` turns a depth into a point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from schedulers.fair_queue import EQUAL, Weights, checked
from schedulers.types import Priority

LEVELS: Final = 4
"""At the highest, a request of normal priority gets the cheapest point that it accepts."""
_BACKOFF, _MAX_PATIENCE = 4.0, 16.0
_LEAN: Final = {Priority.LOW: 1, Priority.NORMAL: 0, Priority.HIGH: -2}
_SHARE_STEPS: Final = ((2.0, 2), (1.25, 1), (0.75, 0))
"""From so many times a tenant's share on, it gives way so many levels earlier."""
_MAX_TENANTS = 4096
_NOTHING_S = 1e-6
_FALLS_AFTER = 10.0
"""Calm for this many times the queue that it takes to rise: what is queued is long worked off by then."""
_SCALES = 5.0
"""A newcomer counts until this many times ``fades_s`` have passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the level of a model changes; seconds of predicted work that wait, and seconds of time.

    Raises: ValueError: a number is not finite and positive, or ``fall_s`` is not below ``rise_s``.
    """

    rise_s: float
    fall_s: float
    rise_every_s: float
    fall_after_s: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} is {value}; need a finite number > 0")
        if self.fall_s >= self.rise_s:
            raise ValueError(f"fall_s is {self.fall_s} and rise_s {self.rise_s}; fall_s must be below it")


def limits_of(after_s: float) -> Limits:
    """The limits of a model whose quality bends while more than ``after_s`` seconds of work wait."""
    return Limits(rise_s=after_s, fall_s=after_s / 2, rise_every_s=after_s, fall_after_s=_FALLS_AFTER * after_s)


@dataclass(slots=True)
class Pressure:
    """The level of one model. Tell it what waits whenever a request comes, and now and then while none does."""

    limits: Limits
    level: int = 0
    num_changes: int = 0
    _patience: float = 1.0
    _changed_s: float = -math.inf
    _fell_s: float = -math.inf
    _calm_since_s: float | None = None
    _seen: tuple[float, float] | None = None
    """When what waits was told last, and how much it was."""

    def observe(self, now_s: float, queued_s: float) -> int:
        """The level, now that ``queued_s`` seconds of work wait."""
        if queued_s > self.limits.fall_s:
            self._calm_since_s = None
            if queued_s > self.limits.rise_s:
                self._rise(now_s)
        else:
            self._calm_since_s = self._calm_from(now_s) if self._calm_since_s is None else self._calm_since_s
            self._fall(now_s, self._calm_since_s)
        self._seen = (now_s, queued_s)
        return self.level

    def expected_s(self, now_s: float) -> float:
        """What still waits, if nobody came since it was told last."""
        if self._seen is None:
            return 0.0
        seen_s, queued_s = self._seen
        return max(0.0, queued_s - max(0.0, now_s - seen_s))

    def _calm_from(self, now_s: float) -> float:
        """Nobody came since it was told last, so what waited then was worked off, second by second."""
        if self._seen is None:
            return now_s
        seen_s, queued_s = self._seen
        return min(now_s, seen_s + max(0.0, queued_s - self.limits.fall_s))

    def _rise(self, now_s: float) -> None:
        if self.level == LEVELS or now_s < self._changed_s + self.limits.rise_every_s:
            return
        if now_s < self._fell_s + self._wait_s():  # the last try to go down was too early
            self._patience = min(_MAX_PATIENCE, self._patience * _BACKOFF)
            self._fell_s = -math.inf
        elif self.level == 0:
            self._patience = 1.0
        self._change(now_s, 1)

    def _fall(self, now_s: float, calm_since_s: float) -> None:
        while self.level:
            due_s = max(calm_since_s, self._changed_s) + self._wait_s()
            if now_s < due_s:
                return
            if self._fell_s == self._changed_s:  # the last try held
                self._patience = max(1.0, self._patience / 2)
            self._fell_s = due_s
            self._change(due_s, -1)

    def _wait_s(self) -> float:
        return self.limits.fall_after_s * self._patience

    def _change(self, now_s: float, by: int) -> None:
        self.level += by
        self._changed_s = now_s
        self.num_changes += 1


def depth(level: int, priority: Priority, share: float = 1.0) -> float:
    """How far the request of a tenant that has ``share`` times what is its own gives way, from 0 to 1."""
    if level == 0:
        return 0.0
    over = next((steps for least, steps in _SHARE_STEPS if share >= least), -1)
    return min(LEVELS, max(0, level + _LEAN[priority] + over)) / LEVELS


@dataclass(slots=True)
class Shares:
    """What tenants had of a model lately, in predicted seconds that fade with time. ``fades_s``: to 37%.

    What is added grows with time instead, which leaves the shares the same; all is scaled down now and then.
    """

    weights: Weights = field(default_factory=lambda: EQUAL)
    fades_s: float = 10.0
    _used: dict[str, float] = field(default_factory=dict)
    _total: float = 0.0
    _total_weight: float = 0.0
    _since_s: float | None = None

    def __post_init__(self) -> None:
        checked(self.weights)

    def add(self, now_s: float, tenant: str, seconds: float) -> None:
        """A tenant was given so much."""
        if self._since_s is None or now_s - self._since_s > _SCALES * self.fades_s or len(self._used) > _MAX_TENANTS:
            self._scale_down(now_s)
        grown = seconds * math.exp((now_s - (self._since_s or 0.0)) / self.fades_s)
        if tenant not in self._used:
            self._total_weight += self.weights.get(tenant, 1.0)
        self._used[tenant] = self._used.get(tenant, 0.0) + grown
        self._total += grown

    def of(self, tenant: str) -> float:
        """What a tenant had over what its weight gives it among those who had something; 1 where nobody had."""
        if self._total <= 0.0:
            return 1.0
        weight = self.weights.get(tenant, 1.0)
        total_weight = self._total_weight + (0.0 if tenant in self._used else weight)
        return self._used.get(tenant, 0.0) / self._total * total_weight / weight

    def _scale_down(self, now_s: float) -> None:
        """And forget who has next to nothing."""
        factor = 0.0 if self._since_s is None else math.exp((self._since_s - now_s) / self.fades_s)
        left = sorted(((used * factor, tenant) for tenant, used in self._used.items()), reverse=True)
        self._used = {tenant: used for used, tenant in left[: _MAX_TENANTS // 2] if used > _NOTHING_S}
        self._total = math.fsum(self._used.values())
        self._total_weight = math.fsum(self.weights.get(tenant, 1.0) for tenant in self._used)
        self._since_s = now_s
