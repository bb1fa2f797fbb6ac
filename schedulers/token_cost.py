"""What a token costs on a replica, learnt from the requests that have run.

Two prices, both ratios of sums over recent requests with exponentially falling weight, so that large requests count
for more than small ones: busy seconds per prompt token that was computed, and per generated token. They are shares of
busy time (``schedulers.shared_time``), so that they fall when requests run together. Beside them the seconds between
two tokens of one answer, which is what a deadline meets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schedulers.plan import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """Seconds per token.

    Raises:
        ValueError: a price is not a positive finite number.
    """

    prefill_s: float
    decode_s: float
    interval_s: float
    """Between two tokens of one answer, at the recent load."""
    answer_tokens: float = 64.0
    """Tokens of an answer, on average; not a price, and learnt like one."""

    def __post_init__(self) -> None:
        for name in ("prefill_s", "decode_s", "interval_s", "answer_tokens"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; need a finite number > 0")


class TokenCost:
    """Recent prices. ``first`` holds until requests have been observed; ``weight`` is that of each new one."""

    def __init__(self, first: TokenPrices, weight: float = 0.1) -> None:
        if not 0.0 < weight <= 1.0:
            raise ValueError(f"weight is {weight}; it must be over 0 and at most 1")
        self._prefill = _Ratio(first.prefill_s, 1.0)
        self._decode = _Ratio(first.decode_s, 1.0)
        self._interval = _Ratio(first.interval_s, 1.0)
        self._answers = _Ratio(first.answer_tokens, 1.0)
        self._prices = first
        self._weight = weight
        self._num_observed = 0
        self._observed_at_s = -math.inf

    def is_known(self, now_s: float, max_age_s: float) -> bool:
        """Whether the prices were observed within ``max_age_s``: only then may somebody be refused for them. Otherwise
        a moment of high prices, after which all are refused and nothing is observed, would last for ever."""
        return now_s - self._observed_at_s <= max_age_s

    @property
    def prices(self) -> TokenPrices:
        """The prices now."""
        return self._prices

    def observe(
        self,
        now_s: float,
        *,
        prefill_tokens: int,
        prefill_s: float,
        decode_tokens: int,
        decode_s: float,
        answer_s: float,
    ) -> None:
        """A request has run. ``decode_tokens``: those after the first; ``answer_s``: from the first token to the last.

        The first observations weigh as in a plain mean, so that the guess at the start is soon forgotten. What is not
        a positive number (no token computed, a clock that stood still) teaches nothing.
        """
        self._num_observed += 1
        self._observed_at_s = now_s
        weight = max(self._weight, 1.0 / self._num_observed)
        self._prefill.observe(prefill_s, prefill_tokens, weight)
        self._decode.observe(decode_s, decode_tokens, weight)
        self._interval.observe(answer_s, decode_tokens, weight)
        self._answers.observe(decode_tokens + 1.0, 1, weight)
        self._prices = TokenPrices(
            prefill_s=self._prefill.value,
            decode_s=self._decode.value,
            interval_s=self._interval.value,
            answer_tokens=self._answers.value,
        )

    def seconds(self, prefill_tokens: int, decode_tokens: int) -> float:
        """Busy seconds that a request of this size is charged."""
        return prefill_tokens * self._prices.prefill_s + decode_tokens * self._prices.decode_s

    def priced(self, watts: float, num_choices: int) -> Cost:
        """The prices for the planner, of so many answers to one prompt at the same time."""
        prices = self._prices
        return Cost(
            latency_s={"prompt_tokens": prices.prefill_s, "output_tokens": prices.interval_s},
            busy_s={"prompt_tokens": num_choices * prices.prefill_s, "output_tokens": num_choices * prices.decode_s},
            watts=watts,
        )


@dataclass(slots=True)
class _Ratio:
    """Recent sums, and the ratio of one to the other."""

    seconds: float
    tokens: float

    @property
    def value(self) -> float:
        return self.seconds / self.tokens

    def observe(self, seconds: float, tokens: int, weight: float) -> None:
        if tokens > 0 and 0.0 < seconds < math.inf:
            self.seconds += weight * (seconds - self.seconds)
            self.tokens += weight * (tokens - self.tokens)
