"""An answer on its way, as token ids: how far it is from benign ones. O(1) a token, and memory that does not grow.

Ids are looked at, not text, since the special tokens of a hidden tail have none. Each statistic is an extreme of what
the answer was so far, so it only ever gets stranger: the smallest p-value of an answer is its last one, and looking
often makes no more false alarms than looking once.

The CUSUM (E. S. Page, 1954) adds up by how much the end was less probable than at the same place of half of the benign
answers, less ``EOS_DRIFT``, and starts again at 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from schedulers.guard.calibration import Group
from schedulers.guard.conformal import LEVEL, p_value, p_value_of_low
from schedulers.guard.detectors import ON_TOKENS, Layer

WINDOW = 256
"""4-grams of which the share of different ones is taken."""
MIN_GRAMS = 64
"""Below that many every answer is full of different ones."""
EOS_DRIFT = 0.5
EOS_LIMIT = 4.0
"""Most nats that one token adds or takes, lest one that was sure make up for a hundred."""
_ROUNDING = 1e-12
"""Less than a token of any answer, more than doubles lose: the bound itself is not over the bound."""
_TOKEN_BITS = 20
_TOKEN = (1 << _TOKEN_BITS) - 1
_GRAM = (1 << 4 * _TOKEN_BITS) - 1


class Statistics(NamedTuple):
    """Of an answer so far. ``unique_share``: the smallest of any window of 4-grams; 1 while there are too few."""

    num_tokens: int = 0
    unique_share: float = 1.0
    special_run: int = 0
    cusum: float = 0.0


class StreamStatistics:
    """Follows one answer. ``layers``: what is worth following; the number of tokens always is.

    ``eos_median``: of benign answers, see ``Group``; without it the end's log-probabilities are not looked at.
    """

    def __init__(
        self,
        special_ids: Collection[int] = (),
        eos_median: Sequence[float] = (),
        layers: Collection[str] = ON_TOKENS,
    ) -> None:
        self._special = frozenset(special_ids) if Layer.SPECIAL in layers else frozenset()
        self._median = tuple(eos_median) if Layer.EOS in layers else ()
        self._follows_grams = Layer.REPEAT in layers
        self._gram = 0
        self._ring = [0] * WINDOW
        self._counts: dict[int, int] = {}
        self._min_unique = 1.0
        self._run = self._max_run = 0
        self._cusum = self._max_cusum = 0.0
        self._num_ends = 0
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """So far."""
        return self._num_tokens

    @property
    def has_ends(self) -> bool:
        """Whether a log-probability of the end was looked at."""
        return self._num_ends > 0

    def now(self) -> Statistics:
        """What there is to say."""
        return Statistics(self._num_tokens, self._min_unique, self._max_run, self._max_cusum)

    def push(self, token_ids: Sequence[int], log_p_ends: Sequence[float] | None = None) -> None:
        """Tokens were added. ``log_p_ends``: of the end, where each of them was drawn; None: unknown."""
        for token in token_ids:
            if self._special:
                self._push_special(token)
            if self._follows_grams:
                self._push_gram(token)
            self._num_tokens += 1
        if self._median and log_p_ends:
            for log_p in log_p_ends:
                self._push_end(log_p)

    def _push_special(self, token: int) -> None:
        if token not in self._special:
            self._run = 0
            return
        self._run += 1
        self._max_run = max(self._max_run, self._run)

    def _push_gram(self, token: int) -> None:
        gram = self._gram = (self._gram << _TOKEN_BITS | token & _TOKEN) & _GRAM
        number = self._num_tokens - 3
        if number < 0:
            return
        counts, place = self._counts, number % WINDOW
        if number >= WINDOW:
            old = self._ring[place]
            if counts[old] == 1:
                del counts[old]
            else:
                counts[old] -= 1
        self._ring[place] = gram
        counts[gram] = counts.get(gram, 0) + 1
        if number >= MIN_GRAMS - 1:
            share = len(counts) / min(number + 1, WINDOW)
            if share < self._min_unique:
                self._min_unique = share

    def _push_end(self, log_p: float) -> None:
        median = self._median[min(self._num_ends, len(self._median) - 1)]
        self._num_ends += 1
        added = min(EOS_LIMIT, max(-EOS_LIMIT, median - log_p - EOS_DRIFT))
        self._cusum = max(0.0, self._cusum + added)
        self._max_cusum = max(self._max_cusum, self._cusum)


class StreamMonitor:
    """One answer beside the benign ones of its group.

    ``bound_tokens``: see ``conformal.bound_tokens``. An answer that exceeds it has a p-value of ``LEVEL`` at most in
    ``length``, also where the bound was moved by what traffic does: residuals are counted from the bound, not from the
    prediction. ``layers``: detectors that are switched on. One without benign values to compare with is silent, and so
    are ``repeat`` for a structured answer, whose schema repeats itself and bounds it, and ``length`` where too many
    benign answers were cut off for a bound.
    """

    def __init__(
        self,
        group: Group,
        bound_tokens: int,
        special_ids: Collection[int] = (),
        is_structured: bool = False,
        layers: Collection[str] = ON_TOKENS,
    ) -> None:
        self._group = group
        residual = group.residual_at(LEVEL)
        self._offset = residual - math.log1p(bound_tokens) - _ROUNDING
        known = {
            Layer.LENGTH: math.isfinite(residual),
            Layer.REPEAT: bool(group.repeat) and not is_structured,
            Layer.SPECIAL: bool(group.special_run),
            Layer.EOS: bool(group.eos),
        }
        self._layers = frozenset(str(layer) for layer, is_known in known.items() if is_known and layer in layers)
        self._statistics = StreamStatistics(special_ids, group.eos_median, self._layers)
        self.push = self._statistics.push
        """See ``StreamStatistics``."""

    @property
    def num_tokens(self) -> int:
        """So far."""
        return self._statistics.num_tokens

    def p_values(self) -> dict[str, float]:
        """By detector that is switched on and has something to compare with. O(log n) in the benign answers."""
        now, group, layers = self._statistics.now(), self._group, self._layers
        found: dict[str, float] = {}
        if Layer.LENGTH in layers:
            residual = math.log1p(now.num_tokens) + self._offset
            found[str(Layer.LENGTH)] = p_value(group.residuals, residual, group.num)
        if Layer.REPEAT in layers:
            found[str(Layer.REPEAT)] = p_value_of_low(group.repeat, now.unique_share)
        if Layer.SPECIAL in layers:
            found[str(Layer.SPECIAL)] = p_value(group.special_run, now.special_run)
        if Layer.EOS in layers and self._statistics.has_ends:
            found[str(Layer.EOS)] = p_value(group.eos, now.cusum)
        return found
