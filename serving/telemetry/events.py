"""What happens in the system, for whoever measures it: plain events into one sink.

A part that has something to tell takes a ``Sink`` and calls it on its own event loop. A sink must neither block nor
raise. Labels are bounded where the event is made, or by its metric, whatever callers send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from serving.domain import Report, Surface
    from serving.replica.chat.base import EngineStats
    from serving.stores.breaker import BreakerState
    from serving.tasks.chat.domain import Usage


class Event(msgspec.Struct, frozen=True):
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


class CallStarted(Event, frozen=True):
    """One more inference call is in flight."""

    surface: Surface


class CallFinished(Event, frozen=True, kw_only=True):
    """It is over. ``outcome`` is ``ok``, ``partial`` or the code of its error; ``model`` a served id or ``unknown``."""

    surface: Surface
    model: str
    tenant: str
    outcome: str
    seconds: float


# -- images ----------------------------------------------------------------------------------------------------------


class ImageFetched(Event, frozen=True):
    """A URL was fetched ("ok") or not (the code of the error)."""

    outcome: str
    num_bytes: int
    seconds: float


class ImageDecoded(Event, frozen=True):
    """A decoder was busy for a tenant, whatever came of it."""

    tenant: str
    seconds: float


class ImageLookedUp(Event, frozen=True):
    """The cache of processed images was asked."""

    model: str
    is_hit: bool


class ImagesHeld(Event, frozen=True):
    """The cache of processed images now holds so much."""

    num_bytes: int


# -- stores ----------------------------------------------------------------------------------------------------------


class BreakerChanged(Event, frozen=True):
    """The breaker of Redis moved to ``state``."""

    state: BreakerState


class ResultsLookedUp(Event, frozen=True):
    """A look-up was answered by Redis."""

    num_hits: int
    num_misses: int


class StoreCalled(Event, frozen=True):
    """One call on Redis ended: ``outcome`` is ok, timeout, connection, out_of_memory, error or busy."""

    operation: str
    outcome: str
    seconds: float


class StoreFellBack(Event, frozen=True):
    """Served without Redis: a miss, a local bucket, or nothing written."""

    operation: str


class SettlementsWaiting(Event, frozen=True):
    """So many settlements wait for Redis to come back."""

    num_waiting: int


class ResultRejected(Event, frozen=True):
    """A cached value was corrupt or forged and was treated as a miss."""


class BucketRepaired(Event, frozen=True):
    """A tenant's bucket in Redis held what no bucket can, and was put right."""

    tenant: str


# -- deliveries ------------------------------------------------------------------------------------------------------


class SamplesSent(Event, frozen=True):
    """A call left for a replica."""

    model: str
    num_samples: int


class CallRetried(Event, frozen=True):
    """A call is sent again because its replica was lost."""

    model: str


class ResultShared(Event, frozen=True):
    """A request was given what an equal one, under way when it came, was answered."""

    model: str


class BendingChanged(Event, frozen=True):
    """Under the load that this gateway sees, quality of a model bends so far: 0 (not at all) to 4."""

    model: str
    level: int


class PointsLowered(Event, frozen=True):
    """A request was planned below its best point, for these reasons."""

    model: str
    tenant: str
    reasons: tuple[str, ...]


class RowsAnswered(Event, frozen=True):
    """A request has an answer. ``budget_degraded``: what made a better point impossible, of budget or tenant."""

    model: str
    tenant: str
    report: Report
    budget_degraded: tuple[str, ...]


class ChatAnswered(Event, frozen=True):
    """A chat has its whole answer."""

    model: str
    tenant: str
    report: Report
    usage: Usage


class ChatRetried(Event, frozen=True):
    """A chat is sent again because its replica was lost or would not have it."""

    model: str


class EnergySpent(Event, frozen=True, kw_only=True):
    """Something that a tenant asked for has run, answered or not, and is charged. ``source``: of the joules.
    ``point``: what callers set is part of it."""

    model: str
    tenant: str
    point: str
    source: str
    joules: float


class JobAdmitted(Event, frozen=True):
    """A durable job is in the index."""

    model: str
    tenant: str
    point: str
    predicted_s: float


# -- guard -----------------------------------------------------------------------------------------------------------


class GuardScreened(Event, frozen=True):
    """A picture was looked at, for so long, waiting for a thread included."""

    model: str
    seconds: float


class GuardFailed(Event, frozen=True):
    """A layer of the guard failed, and a request went on without it."""

    layer: str


class ChatGuarded(Event, frozen=True):
    """A chat that was watched has ended. ``mode``: of its tenant; ``action``: what was done, or would have been."""

    model: str
    tenant: str
    mode: str
    action: str
    reasons: tuple[str, ...]


class GuardConfirmed(Event, frozen=True):
    """A suspect was looked at twice, which took so many tokens. None: it came to nothing."""

    model: str
    is_confirmed: bool | None
    probe_tokens: int


class GuardKept(Event, frozen=True):
    """What was caught is in quarantine, or could not be kept."""

    model: str
    is_kept: bool


class GuardLevelMoved(Event, frozen=True):
    """How many of the benign answers of a group may exceed their bound, as learnt from trusted tenants."""

    model: str
    group: str
    level: float


# -- replicas --------------------------------------------------------------------------------------------------------


class EnergyMetered(Event, frozen=True, kw_only=True):
    """A replica's meter has grown. ``elsewhere_j``: what others on a shared counter took, or work that nobody was told
    the joules of. ``carried_j``: joules that requests took and have not been told, of all windows."""

    model: str
    source: str
    metered_j: float
    idle_j: float
    elsewhere_j: float
    carried_j: float


class BatchRan(Event, frozen=True):
    """A batch came back; one of several stages counts at its first, from 0. ``predicted_s`` 0: nobody predicted it.
    ``correction``: what the price of the stage is multiplied by from now on."""

    model: str
    stage: int
    size: int
    seconds: float
    predicted_s: float
    correction: float = 1.0


class WorkPriced(Event, frozen=True):
    """Work of a kind took ``actual_s``: a job, its steps, the parts of a chat's answer. ``correction``: what its price
    is multiplied by from now on; None where nothing is learnt."""

    model: str
    kind: str
    predicted_s: float
    actual_s: float
    correction: float | None = None


class SampleAnswered(Event, frozen=True):
    """A sample has its answer, from this exit (from 0)."""

    model: str
    exit_index: int
    degraded: bool
    queue_s: float
    compute_s: float


class FirstToken(Event, frozen=True):
    """A choice has its first token, so long after it arrived; ``queue_s`` of it without a slot."""

    model: str
    seconds: float
    queue_s: float


class ChoiceFinished(Event, frozen=True):
    """A choice is complete; ``answer_s`` from its first token to its last."""

    model: str
    num_tokens: int
    answer_s: float


class ChoiceEndedEarly(Event, frozen=True):
    """A choice has no answer: ``cancelled``, or the code of its error."""

    model: str
    reason: str


class ChatEngineCounted(Event, frozen=True):
    """An engine's counters and gauges now, and its counters when they were last told."""

    model: str
    now: EngineStats
    before: EngineStats


class JobClaimed(Event, frozen=True):
    """A job was taken from the queue, ``queue_s`` after it was made, for the ``attempts``-th time."""

    model: str
    queue_s: float
    attempts: int


class JobsStepped(Event, frozen=True):
    """One step of a batch of jobs came back."""

    model: str
    num_jobs: int
    seconds: float


class ExpertsRan(Event, frozen=True):
    """A slice of a mixture of experts woke so many of a layer's experts, the mean of layers."""

    model: str
    distinct: float


class ExpertsCounted(Event, frozen=True, kw_only=True):
    """What experts were sent in the last minute: mean over largest load by phase, largest over mean by layers."""

    model: str
    balancedness: Mapping[str, float]
    load_ratios: Mapping[str, float]


class ExpertsPlaced(Event, frozen=True):
    """Experts are spread over ranks, by this version of the placement; so many slots got another one since it was last
    told. ``balancedness``: mean over largest load of a rank, of late."""

    model: str
    version: int
    num_moved: int
    balancedness: float


class JobPreempted(Event, frozen=True):
    """A job had to wait for a more urgent one."""

    model: str


class LeaseLost(Event, frozen=True):
    """Somebody else may work on the job."""

    model: str


class JobCompleted(Event, frozen=True, kw_only=True):
    """What a job made is in the index. ``sparsity``: mean share of attention that was skipped. ``degraded``: as in its
    report."""

    model: str
    tenant: str
    stages_s: Mapping[str, float]
    sparsity: float
    degraded: tuple[str, ...] = ()


class JobFailed(Event, frozen=True):
    """A job ended with nothing made."""

    model: str
    code: str


class JobsCounted(Event, frozen=True, kw_only=True):
    """What a replica holds now, and what waits for all of them."""

    model: str
    num_held: int
    num_queued: int
    held_bytes: int
