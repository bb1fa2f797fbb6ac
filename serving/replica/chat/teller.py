"""Turns what the engine says of one choice into what is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schedulers.shared_time import SharedTime
from serving.delivery.stream.wire import ChoiceStart, Delta
from serving.replica.chat.base import EngineDelta


class Teller:
    """Of one choice. ``started_at``: reading of ``shared`` when it got its slot, ``queue_s`` after it had come.

    ``first_s``: clock of its first token. ``answer_s``: seconds from there to its last.
    """

    def __init__(
        self, start: ChoiceStart, shared: SharedTime, clock: Callable[[], float], started_at: float, queue_s: float
    ) -> None:
        self._start = start
        self._shared = shared
        self._clock = clock
        self._started_at = started_at
        self._queue_s = queue_s
        self._first_at = started_at
        self.first_s: float | None = None
        self.answer_s = 0.0
        self.num_tokens = 0
        self._held: list[EngineDelta] = []

    def add(self, delta: EngineDelta) -> Delta | None:
        """What is sent of it; None: nothing yet, as what is not streamed is sent whole, at its end."""
        now_s = self._clock()
        reading = self._shared.read(now_s)
        if self.first_s is None:
            self.first_s, self._first_at = now_s, reading
        self.answer_s = now_s - self.first_s
        self.num_tokens += len(delta.token_ids)
        if not self._start.is_streamed:
            self._held.append(delta)
            if delta.finish_reason is None:
                return None
            delta = _joined(self._held)
        return Delta(
            self._start.id,
            delta.text,
            len(delta.token_ids),
            delta.finish_reason,
            delta.logprobs,
            delta.num_prompt_tokens,
            delta.num_cached_tokens,
            self._queue_s,
            self._first_at - self._started_at,
            reading - self._first_at,
            self.answer_s,
        )


def _joined(deltas: Sequence[EngineDelta]) -> EngineDelta:
    return deltas[-1]._replace(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
    )
