"""The choices of one request on their way: joined, counted, sent again when a replica is lost, freed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from schedulers.answer_cost import AnswerCost, Observed
from schedulers.cost import Units
from schedulers.policies.guard import Verdict
from schedulers.retry_budget import RetryBudget
from serving.delivery.pipeline import retries_spent
from serving.delivery.stream.links import ChatLinks, Route, SentChoices
from serving.delivery.stream.wire import (
    ChatDelta,
    ChoiceStart,
    Delta,
    EngineRequest,
    Failure,
    FinishReason,
    GuardOrder,
    GuardSaid,
    Item,
)
from serving.domain import Degradation
from serving.energy.spent import Spent, total
from serving.errors import DeadlineExceeded, Draining, ReplicaLost, ServingError
from serving.telemetry.tracing import traceparent

_log = structlog.get_logger(__name__)
MAX_LOST = 3
"""A request that has taken this many replicas with it is not given another."""
MAX_REFUSED = 20
"""Replicas that were stopping or dead already and never ran it."""
_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one choice may use; ``num_choices`` of them are generated. ``point``: how reports call it. ``max_tiles``: of
    a picture; None where nothing is cut, or nobody has a say in it."""

    point: str
    prompt_tokens: int
    max_tokens: int
    max_tiles: int | None = None
    num_choices: int
    work: Callable[[int], Units]
    """Of a choice of so many tokens."""
    max_choice_s: float
    """Busy seconds of a choice that uses all its tokens: what is reserved."""
    alone_choice_s: float = 0.0
    """The same where nothing runs beside it."""
    expected_choice_s: float
    """Busy seconds of a choice of the usual length: what the router counts with."""
    is_capped: bool
    """Whether a budget or the load, and nothing else, made ``max_tokens`` what it is."""
    is_coarser: bool = False
    """Whether a budget, the load, or the room that there is, made pictures coarser than at the best point."""
    degradation: Degradation | None = None
    """What was given up against the best point, if the answer is as long as it may be, or its pictures coarser."""

    @property
    def reserved_s(self) -> float:
        """Busy seconds of all choices."""
        return self.max_choice_s * self.num_choices

    @property
    def share(self) -> float:
        """How many times its busy seconds a choice may take, if nothing runs beside it."""
        return max(1.0, self.alone_choice_s / self.max_choice_s) if self.max_choice_s else 1.0

    @property
    def expected_s(self) -> float:
        """Predicted busy seconds of all choices."""
        return self.expected_choice_s * self.num_choices


class StoredChoice(NamedTuple):
    """One complete answer."""

    text: str
    num_tokens: int
    finish_reason: FinishReason


class StoredChat(NamedTuple):
    """What was answered to a request, how long its prompt was, and what its guard found, where there was one."""

    choices: tuple[StoredChoice, ...]
    prompt_tokens: int
    guard: Verdict | None = None


class Ended(NamedTuple):
    """How a choice ended. ``guard``: what the replica's guard says; None where nobody watched."""

    num_tokens: int
    finish_reason: FinishReason
    guard: GuardSaid | None = None


@dataclass(eq=False, slots=True)
class _Choice:
    """What is known of one choice."""

    pieces: list[str] = field(default_factory=list)
    num_tokens: int = 0
    last: Delta | None = None

    def add(self, delta: Delta) -> None:
        self.pieces.append(delta.text)
        self.num_tokens += delta.num_tokens
        self.last = delta

    @property
    def is_over(self) -> bool:
        return self.last is not None and self.last.finish_reason is not None


class Generation:
    """Starts at once. ``run`` it to its end; ``close`` it in any case."""

    def __init__(
        self,
        links: ChatLinks,
        cost: AnswerCost,
        requests: Sequence[EngineRequest],
        plan: Plan,
        *,
        tenant: str,
        rank: int,
        is_streamed: bool,
        deadline_s: float,
        clock: Callable[[], float],
        retries: RetryBudget,
        on_retry: Callable[[], None],
        on_priced: Callable[[Observed], None] = lambda _: None,
        elsewhere_j: float = 0.0,
        guard: GuardOrder | None = None,
    ) -> None:
        self._links = links
        self._cost = cost
        self._requests = requests
        self._plan = plan
        self._tenant = tenant
        self._rank = rank
        self._is_streamed = is_streamed
        self._deadline_s = deadline_s
        self._clock = clock
        self._retries = retries
        self._on_retry = on_retry
        self._on_priced = on_priced
        self._elsewhere_j = elsewhere_j
        self._guard = guard
        self._has_given = False
        self._num_lost = self._num_refused = 0
        self._avoid: tuple[str, ...] = ()
        self._spent = Spent()
        self._num_unsettled = 0
        self._settle: Callable[[Spent], None] | None = None
        self._say: Callable[[ChatDelta], None] = lambda _: None
        retries.add_request(clock())
        self._sent = self._start()
        remaining_s = max(0.0, deadline_s - clock())
        self._timer = asyncio.get_running_loop().call_later(remaining_s, self._expire)

    def _start(self) -> SentChoices:
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._choices = [_Choice() for _ in self._requests]
        first = self._requests[0]
        key = first.images[0].key if first.images else ""
        start = ChoiceStart(
            id=0,  # the links number it
            request=first,
            remaining_s=max(0.0, self._deadline_s - self._clock()),
            predicted_s=self._plan.expected_choice_s,
            is_streamed=self._is_streamed,
            tenant=self._tenant,
            rank=self._rank,
            traceparent=traceparent(),
            guard=self._guard,
        )
        route = Route(key=key, predicted_s=self._plan.expected_s, avoid=self._avoid)
        starts = [start._replace(request=request) for request in self._requests]
        starts[0] = starts[0]._replace(elsewhere_j=self._elsewhere_j)
        self._elsewhere_j = 0.0  # told once
        return self._links.start(starts, route, self)

    # -- events ------------------------------------------------------------------------------------------------------

    async def run(self, say: Callable[[ChatDelta], None]) -> None:
        """Wait until every choice is complete; ``say`` gets each delta as it comes. Where the request is not streamed
        it gets one per choice, at the end.

        Raises:
            ServingError: a choice failed, the deadline passed, or the replica was lost and nothing may be sent again.
        """
        self._say = say
        while True:
            try:
                await self._over
                break
            except (ReplicaLost, Draining) as error:
                await self._again(error)
        if not self._is_streamed:
            for index, choice in enumerate(self._choices):
                assert choice.last is not None, "it is over"
                self._say_delta(index, choice.last)

    def hear(self, index: int, item: Item) -> None:
        """See ``Listener``."""
        if self._over.done():
            return
        if isinstance(item, Failure):
            self.fail(item.error)
            return
        choice = self._choices[index]
        choice.add(item)
        if item.finish_reason is not None:
            self._learn(item, choice.num_tokens)
        if self._is_streamed:
            self._say_delta(index, item)
        if all(choice.is_over for choice in self._choices):
            self._over.set_result(None)

    def fail(self, error: ServingError) -> None:
        """See ``Listener``. The first error stays."""
        if not self._over.done():
            self._over.set_exception(error)
            self._over.exception()  # seen, whoever has left meanwhile

    def _say_delta(self, index: int, delta: Delta) -> None:
        self._has_given = True
        self._say(
            ChatDelta(index, delta.text, delta.num_tokens, delta.finish_reason, delta.logprobs, delta.num_prompt_tokens)
        )

    async def _again(self, error: ServingError) -> None:
        """Send the request again, if nobody has seen anything of it. Raises: ServingError: no more."""
        is_lost = isinstance(error, ReplicaLost)
        self._num_lost += is_lost
        self._num_refused += not is_lost
        if self._has_given or self._num_lost >= MAX_LOST or self._num_refused >= MAX_REFUSED:
            raise error
        if is_lost and not self._retries.spend(self._clock()):
            raise retries_spent()
        if is_lost:  # it is all done again, and that the replica died is not the caller's fault
            self._sent.close(lambda _: None)
        else:
            self._close_sent()
        if self._sent.replica_id is not None:
            self._avoid = (*self._avoid, self._sent.replica_id)[-MAX_LOST:]
        _log.warning("chat is sent again", num_lost=self._num_lost, num_refused=self._num_refused)
        self._on_retry()
        backoff_s = min(_MAX_BACKOFF_S, _BACKOFF_S * 2 ** (self._num_lost + self._num_refused - 1))
        await asyncio.sleep(min(backoff_s, max(0.0, self._deadline_s - self._clock())))
        if self._clock() >= self._deadline_s:
            raise _too_late()
        self._sent = self._start()

    def _expire(self) -> None:
        self.fail(_too_late())

    def _learn(self, delta: Delta, num_tokens: int) -> None:
        observed = self._cost.observe(
            self._clock(),
            self._plan.work(num_tokens - 1),
            computed=1.0 - delta.num_cached_tokens / max(1, delta.num_prompt_tokens),
            tokens=num_tokens,
            read_s=delta.prefill_s,
            write_s=delta.decode_s - _probe_s(delta),  # which is no part of what an answer costs
            answer_s=delta.answer_s,
        )
        for one in observed:
            self._on_priced(one)

    def close(self, settle: Callable[[Spent], None]) -> None:
        """Free whatever still runs, at once. ``settle`` is called once, with what the choices have taken as their
        replica says: now if all have ended, else when it has answered. What a lost replica had not said
        is not known, and counts for nothing."""
        self._timer.cancel()
        self._settle = settle
        if not self._sent.is_closed:
            self._close_sent()
        self._settle_if_over()

    def _close_sent(self) -> None:
        self._num_unsettled += 1
        self._sent.close(self._took)

    def _took(self, spent: Spent) -> None:
        self._spent = total((self._spent, spent))
        self._num_unsettled -= 1
        self._settle_if_over()

    def _settle_if_over(self) -> None:
        if self._settle is not None and not self._num_unsettled:
            settle, self._settle = self._settle, None
            settle(self._spent)

    # -- sums --------------------------------------------------------------------------------------------------------

    def spent(self) -> Spent:
        """What the choices took, as their replica says."""
        return total((self._spent, self._sent.spent))

    def predicted_s(self) -> float:
        """Busy seconds that the choices, as they have turned out, would now be predicted to take; 0 unless all have
        come to their end. What the guard took to look twice counts as it was: no price was wrong for it, and nobody
        else is to reserve more."""
        if not all(choice.is_over for choice in self._choices):
            return 0.0
        written = [self._cost.busy_s(self._plan.work(max(1, choice.num_tokens) - 1)) for choice in self._choices]
        return sum(written) + sum(_probe_s(choice.last) for choice in self._choices)

    @property
    def queue_s(self) -> float:
        """Longest wait of a choice in its replica."""
        return max((choice.last.queue_s for choice in self._choices if choice.last is not None), default=0.0)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, once, as the engine counted."""
        last = self._choices[0].last
        return self._plan.prompt_tokens if last is None else last.num_prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Those that the first choice did not have to compute."""
        last = self._choices[0].last
        return 0 if last is None else last.num_cached_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def is_capped(self) -> bool:
        """Whether a choice ended at a cap that a budget had lowered, and not before, where a guard ended it."""
        return self._plan.is_capped and any(
            choice.finish_reason is FinishReason.LENGTH and choice.num_tokens >= self._plan.max_tokens
            for choice in self.ended
        )

    @property
    def ended(self) -> list[Ended]:
        """The choices that are complete."""
        return [
            Ended(choice.num_tokens, choice.last.finish_reason, choice.last.guard)
            for choice in self._choices
            if choice.last is not None and choice.last.finish_reason is not None
        ]

    def stored(self, guard: Verdict | None = None) -> StoredChat:
        """The complete answer, for the cache. ``guard``: its verdict."""
        ended = zip(self._choices, self.ended, strict=True)
        return StoredChat(
            tuple(StoredChoice("".join(choice.pieces), end.num_tokens, end.finish_reason) for choice, end in ended),
            self.prompt_tokens,
            guard,
        )


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the deadline passed before the answer was complete; allow more latency_ms, or fewer tokens"
    )


def _probe_s(delta: Delta | None) -> float:
    """Busy seconds of the guard's second look, part of the ``decode_s`` of a last delta."""
    return 0.0 if delta is None or delta.guard is None else delta.guard.probe_s
