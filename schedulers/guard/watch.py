"""One answer under guard: what is known of it, when to look twice, when to end it. Decides; whoever calls it acts.

A suspect is looked at twice by asking the same question about a purified copy of its picture. If that answer ends
within the benign length while this one goes on, the picture is the cause, and this one ends where 95% of benign answers
have ended, or where it is clearly longer than the purified one, whichever comes first. If it goes on as well, the text
is the cause, or the picture shows much: nothing is done, unless its embedding had moved and the answer is strange by
itself, as are those of who prepared for purification. An answer without a picture is never found to be an attack here,
and costs its sender what it costs.

The embedding is looked at before that: of whoever is rare at ``GLANCE_AT`` for any one detector. It takes one more pass
of the vision tower and nothing else, and may tell of an attack before its first token.

In mode ``observe`` nobody looks twice, since that takes time on the engine, which is charged: it then says of a suspect
what would be done before anybody looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum, auto

from schedulers.guard.conformal import p_value
from schedulers.guard.detectors import Layer
from schedulers.guard.stream import StreamMonitor
from schedulers.policies.guard import Evidence, Mode, Rules, Verdict, combined, decide

GLANCE_AT = 0.01
"""A p-value at which the embedding is looked at. Nothing else follows from it, so it need not be divided by how many
detectors there are; a few benign requests in a hundred pay for it."""
MOVED_AT = 0.005
"""A p-value of the embedding that stands in for a purified answer: who prepares for purification leaves a picture whose
embedding moves more than that of almost any benign one. It takes a detector of the answer itself beside it."""
LONGER, LONGER_BY = 1.5, 8
"""So many times as long as the purified answer, and so many tokens more, is clearly longer."""
LOOK_EVERY = 8
"""Tokens between two looks at the p-values, which cost more than a token does."""


class Next(Enum):
    """What to do after a token."""

    GO_ON = auto()
    LOOK_TWICE = auto()
    """It is a suspect, or its embedding should be looked at (``is_suspect``). Said again after every token until
    somebody has: whoever has no room now may have later."""
    END = auto()


class Watch:
    """Of one choice.

    ``p_values``: what the gateway has seen. ``monitor``: None where there is nothing to compare tokens with.
    ``can_confirm``: whether a purified copy can be asked about. ``squeeze``: ascending benign distances of the
    embedding if it will be asked for. It counts among the detectors from the start, with a p-value of 1, lest a suspect
    cease to be one because one more has looked. ``is_replay``: of a picture that was confirmed before.
    """

    def __init__(
        self,
        rules: Rules,
        cap_tokens: int,
        *,
        p_values: Mapping[str, float],
        monitor: StreamMonitor | None = None,
        can_confirm: bool = False,
        squeeze: Sequence[float] = (),
        is_replay: bool = False,
    ) -> None:
        self._rules = rules
        self._cap_tokens = cap_tokens
        self._seen = dict(p_values)
        self._monitor = monitor
        self._can_confirm = can_confirm and rules.mode is Mode.ENFORCE
        self._squeeze = squeeze if self._can_confirm else ()
        if self._squeeze:
            self._seen[str(Layer.SQUEEZE)] = 1.0
        self._is_replay = is_replay
        self._num_tokens = 0
        self._look_at = 1
        self._is_suspect = self._is_glanced_at = self._is_squeezed = False
        self._is_cut = False
        self._purified_ended: bool | None = None
        self.num_probe_tokens = 0

    @property
    def num_tokens(self) -> int:
        """So far."""
        return self._num_tokens

    @property
    def is_confirmed(self) -> bool | None:
        """Whether the picture makes it long; None while nobody has looked, or it is no longer than benign ones."""
        if self._purified_ended is None:
            return None
        if not (self._purified_ended or self._is_moved_and_strange()):
            return False
        return True if self._is_cut or self._num_tokens > self._cap_tokens else None

    def _is_moved_and_strange(self) -> bool:
        """Whether the answer is strange of a picture whose embedding moved, whatever a purified copy says."""
        if self._monitor is None or self._seen.get(str(Layer.SQUEEZE), 1.0) > MOVED_AT:
            return False
        return min(self._monitor.p_values().values(), default=1.0) <= self._rules.suspect_at

    def push(self, token_ids: Sequence[int], log_p_ends: Sequence[float] | None = None, is_last: bool = False) -> Next:
        """Tokens were added; ``is_last``: the answer has ended."""
        self._num_tokens += len(token_ids)
        if self._monitor is not None:
            self._monitor.push(token_ids, log_p_ends)
        if is_last or self._rules.mode is not Mode.ENFORCE:
            return Next.GO_ON
        if self._num_tokens >= self._cap_tokens and self._should_end():
            self._is_cut = True
            return Next.END
        if self._can_confirm and self._purified_ended is None and self._should_be_looked_at():
            return Next.LOOK_TWICE
        return Next.GO_ON

    def _should_end(self) -> bool:
        if self._is_replay or self._purified_ended:
            return True
        return self._purified_ended is False and self._is_moved_and_strange()

    def _should_be_looked_at(self) -> bool:
        if not self._is_suspect and self._num_tokens >= self._look_at:
            self._look_at = self._num_tokens + LOOK_EVERY
            p_values = self.p_values()
            self._is_suspect = combined(p_values) <= self._rules.suspect_at
            self._is_glanced_at |= min(p_values.values(), default=1.0) <= GLANCE_AT
        return self._is_suspect or (self._is_glanced_at and self.wants_squeeze)

    @property
    def is_suspect(self) -> bool:
        """Whether the purified copy should be asked about. Once it is one, it stays one."""
        return self._is_suspect

    @property
    def wants_squeeze(self) -> bool:
        """Whether a distance would say anything that has not been said."""
        return bool(self._squeeze) and not self._is_squeezed

    def squeezed(self, distances: Sequence[float]) -> None:
        """So far did the embedding of each picture move; benign distances are those of one. None at all: the engine
        cannot say."""
        self._is_squeezed = True
        if self._squeeze and distances:
            p = len(distances) * p_value(self._squeeze, max(distances))
            self._seen[str(Layer.SQUEEZE)] = min(1.0, p)
            self._is_suspect |= combined(self.p_values()) <= self._rules.suspect_at

    def looked(self, is_ended: bool, num_tokens: int) -> None:
        """The purified answer has run for so many tokens; ``is_ended``: by itself, within the benign length."""
        self.num_probe_tokens += num_tokens
        self._purified_ended = is_ended
        if is_ended:
            self._cap_tokens = min(self._cap_tokens, math.ceil(LONGER * num_tokens) + LONGER_BY)

    def gave_up(self, num_tokens: int) -> None:
        """The purified answer was broken off after so many tokens, and says nothing."""
        self.num_probe_tokens += num_tokens

    def p_values(self) -> dict[str, float]:
        """By detector, the gateway's included."""
        return self._seen | (self._monitor.p_values() if self._monitor is not None else {})

    def verdict(self) -> Verdict:
        """As of now."""
        return decide(
            Evidence(p_values=self.p_values(), is_replay=self._is_replay, is_confirmed=self.is_confirmed), self._rules
        )
