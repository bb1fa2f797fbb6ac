"""What happens in the system, for whoever measures it: plain events into one sink.

A part that has something to tell takes a ``Sink`` and calls it on its own event loop. A sink must neither block nor
raise. Labels are bounded where the event is made, whatever callers send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from serving.domain import Report, Surface
    from serving.replica.chat.base import EngineStats
    from serving.stores.breaker import BreakerState
    from serving.tasks.chat.domain import Usage


@dataclass(frozen=True, slots=True)
class Event:
    """Root of all events."""


OK = "ok"
PARTIAL = "partial"
"""Outcome of a call in which some images failed and some did not."""
UNKNOWN = "unknown"
"""Label of a model that is not served, and of a caller that has not proved who it is."""

Sink: TypeAlias = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """A sink for what nobody measures."""


# -- front door ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallStarted(Event):
    """One more inference call is in flight."""

    surface: Surface


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(Event):
    """It is over. ``outcome`` is ``ok``, ``partial`` or the code of its error; ``model`` a served id or ``unknown``."""

    surface: Surface
    model: str
    tenant: str
    outcome: str
    seconds: float


# -- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageFetched(Event):
    """A URL was fetched ("ok") or not (the code of the error)."""

    outcome: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageDecoded(Event):
    """A decoder was busy for a tenant, whatever came of it."""

    tenant: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageLookedUp(Event):
    """The cache of processed images was asked."""

    model: str
    is_hit: bool


@dataclass(frozen=True, slots=True)
class ImagesHeld(Event):
    """The cache of processed images now holds so much."""

    num_bytes: int


# -- stores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BreakerChanged(Event):
    """The breaker of Redis moved to ``state``."""

    state: BreakerState


@dataclass(frozen=True, slots=True)
class ResultsLookedUp(Event):
    """A look-up was answered by Redis."""

    num_hits: int
    num_misses: int


@dataclass(frozen=True, slots=True)
class StoreCalled(Event):
    """One call on Redis ended: ``outcome`` is ok, timeout, connection, out_of_memory, error or busy."""

    operation: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StoreFellBack(Event):
    """Served without Redis: a miss, a local bucket, or nothing written."""

    operation: str


@dataclass(frozen=True, slots=True)
class SettlementsWaiting(Event):
    """So many settlements wait for Redis to come back."""

    num_waiting: int


@dataclass(frozen=True, slots=True)
class ResultRejected(Event):
    """A cached value was corrupt or forged and was treated as a miss."""


# -- deliveries ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SamplesSent(Event):
    """A call left for a replica."""

    model: str
    num_samples: int


@dataclass(frozen=True, slots=True)
class CallRetried(Event):
    """A call is sent again because its replica was lost."""

    model: str


@dataclass(frozen=True, slots=True)
class ResultShared(Event):
    """A request was given what an equal one, under way when it came, was answered."""

    model: str


@dataclass(frozen=True, slots=True)
class ClassifyAnswered(Event):
    """A request has an answer. ``budget_degraded``: the parts of its budget that made a better point impossible."""

    model: str
    tenant: str
    report: Report
    budget_degraded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChatAnswered(Event):
    """A chat has its whole answer."""

    model: str
    tenant: str
    report: Report
    usage: Usage


@dataclass(frozen=True, slots=True)
class ChatRetried(Event):
    """A chat is sent again because its replica was lost or would not have it."""

    model: str


@dataclass(frozen=True, slots=True)
class JobAdmitted(Event):
    """A durable job is in the index."""

    model: str
    tenant: str
    point: str
    predicted_s: float


# -- replicas --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchRan(Event):
    """A batch came back; one of several stages counts at its first, from 0. ``predicted_s`` 0: nobody predicted it."""

    model: str
    stage: int
    size: int
    seconds: float
    predicted_s: float


@dataclass(frozen=True, slots=True)
class SampleAnswered(Event):
    """A sample has its answer, from this exit (from 0)."""

    model: str
    exit_index: int
    degraded: bool
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class FirstToken(Event):
    """A choice has its first token, so long after it arrived; ``queue_s`` of it without a slot."""

    model: str
    seconds: float
    queue_s: float


@dataclass(frozen=True, slots=True)
class ChoiceFinished(Event):
    """A choice is complete; ``answer_s`` from its first token to its last."""

    model: str
    num_tokens: int
    answer_s: float


@dataclass(frozen=True, slots=True)
class ChoiceEndedEarly(Event):
    """A choice has no answer: ``cancelled``, or the code of its error."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChatEngineCounted(Event):
    """An engine's counters and gauges now, and its counters when they were last told."""

    model: str
    now: EngineStats
    before: EngineStats


@dataclass(frozen=True, slots=True)
class JobClaimed(Event):
    """A job was taken from the queue, ``queue_s`` after it was made, for the ``attempts``-th time."""

    model: str
    queue_s: float
    attempts: int


@dataclass(frozen=True, slots=True)
class JobsStepped(Event):
    """One step of a batch of jobs came back."""

    model: str
    num_jobs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class JobPreempted(Event):
    """A job had to wait for a more urgent one."""

    model: str


@dataclass(frozen=True, slots=True)
class LeaseLost(Event):
    """Somebody else may work on the job."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCompleted(Event):
    """What a job made is in the index. ``sparsity``: mean share of attention that was skipped."""

    model: str
    tenant: str
    stages_s: Mapping[str, float]
    sparsity: float
    joules: float


@dataclass(frozen=True, slots=True)
class JobFailed(Event):
    """A job ended with nothing made."""

    model: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsCounted(Event):
    """What a replica holds now, and what waits for all of them."""

    model: str
    num_held: int
    num_queued: int
    held_bytes: int
