"""What the answers of a chat cost on a replica: their work in named units, corrected by the answers that have run.

An answer is two kinds of slices: a prompt is read, with its pictures, and then tokens are written. Both are charged as
shares of busy time (``schedulers.shared_time``), so that they fall when requests run together. How long somebody waits
for the next token, at the recent load, is a third.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

from schedulers.cost import CostModel, Price, Units
from schedulers.plan import Cost

_READ, _WRITE, _WAIT = "read", "write", "wait"
_UNITS = {_READ: ("image_tokens", "prompt_tokens"), _WRITE: ("output_tokens", "token_steps")}
_UNITS[_WAIT] = _UNITS[_WRITE]
_KEPT = 0.9
"""Of the mean length of answers, so much stays when one ends."""


class Observed(NamedTuple):
    """A part of an answer (``read``, ``write``, ``wait``): what it was predicted to take, what it took, and what its
    price is multiplied by from now on."""

    kind: str
    predicted_s: float
    actual_s: float
    correction: float


class AnswerCost:
    """``busy_s``: seconds that a unit is charged, until answers have been observed. They say what the units cost beside
    each other; how much that is on an engine that forms batches by itself is learnt. ``waiting``: how much longer a
    written token takes for whoever waits for it.
    """

    def __init__(self, busy_s: Units, *, watts: float, waiting: float = 1.0) -> None:
        prices: dict[Hashable, Price] = {}
        for kind, names in _UNITS.items():
            scale = waiting if kind is _WAIT else 1.0
            seconds = {name: {1: scale * busy_s.get(name, 0.0)} for name in names}
            prices[kind] = Price(seconds=seconds, row=dict.fromkeys(names, 1.0), is_guess=True)
        self._prices = prices
        self._model = CostModel(prices, watts=watts)
        self._seen = 0.0
        self._observed_at_s = -math.inf
        self.answer_tokens = 64.0
        """Of an answer, on average."""

    def is_known(self, now_s: float, max_age_s: float) -> bool:
        """Whether an answer was observed within ``max_age_s``: only then may somebody be refused for what answers cost.
        Otherwise a slow moment, after which all are refused and nothing is observed, would last for ever."""
        return now_s - self._observed_at_s <= max_age_s

    def observe(
        self,
        now_s: float,
        units: Units,
        *,
        computed: float,
        tokens: int,
        read_s: float,
        write_s: float,
        answer_s: float,
    ) -> list[Observed]:
        """An answer has ended: learn from it, and say what was expected. ``units``: its work, of the tokens after the
        first. ``computed``: the part of the prompt that no cache had. ``answer_s``: from the first of its ``tokens`` to
        the last. What is no positive time teaches nothing."""
        self._observed_at_s = now_s
        self._seen = _KEPT * self._seen + 1.0
        self.answer_tokens += (tokens - self.answer_tokens) / self._seen
        observed = []
        for kind, share, seconds in ((_READ, computed, read_s), (_WRITE, 1.0, write_s), (_WAIT, 1.0, answer_s)):
            if 0.0 < seconds < math.inf:
                rows = share * self._model.in_rows(kind, units)
                predicted_s = self._model.batch_s(kind, 1, rows)
                self._model.observe(kind, 1, seconds, rows)
                observed.append(Observed(kind, predicted_s, seconds, self._model.correction(kind)))
        return observed

    @property
    def answer_s(self) -> float:
        """How long the tokens of an answer take to come, on average."""
        return self.answer_tokens * self._seconds(_WAIT)["output_tokens"]

    def busy_s(self, units: Units) -> float:
        """Seconds that an answer of this work is charged."""
        return sum(self._model.batch_s(kind, 1, self._model.in_rows(kind, units)) for kind in (_READ, _WRITE))

    def priced(self, num_choices: int) -> Cost:
        """The prices for the planner, of so many answers to one prompt at the same time."""
        busy_s = self._seconds(_READ) | self._seconds(_WRITE)
        return Cost(
            latency_s=self._seconds(_READ) | self._seconds(_WAIT),
            busy_s={name: num_choices * seconds for name, seconds in busy_s.items()},
            watts=self._model.watts,
        )

    def _seconds(self, kind: str) -> dict[str, float]:
        """Of each unit, now."""
        correction = self._model.correction(kind)
        return {name: correction * by_rows[1] for name, by_rows in self._prices[kind].seconds.items()}
