"""Sends requests and records what becomes of them.

Open loop (``run_open_loop``, ``run_plan``): a request is sent when it is due, whether or not earlier ones are
answered. The only exception is a declared one: at ``RunLimits.max_in_flight`` a due request is not sent and is
recorded as ``generator_dropped``. Closed loop (``run_closed_loop``): a fixed number of callers, each waiting for its
answer before it asks again; it measures capacity and cannot measure what users feel under a stall.

Payloads are encoded before the clock starts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from loadtest.arrivals import bounded
from loadtest.clients.base import Client, Payload, Prepared, Reply
from loadtest.clock import Clock, MonotonicClock
from loadtest.records import Generated, Outcome, Record

Observer = Callable[[Record], None]
"""Called with each record when its request has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """Bounds of a run. They protect the machine of the generator; none of them may be reached in a valid run."""

    max_in_flight: int = 2048
    """Requests waiting for an answer at once (open loop)."""
    timeout_s: float = 30.0
    """Longest wait for one answer."""
    stop_grace_s: float = 2.0
    """After a stop: how long requests in flight may still finish before they are cancelled."""

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        if self.stop_grace_s < 0:
            raise ValueError(f"stop_grace_s is {self.stop_grace_s}; it must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunControl:
    """How a run is watched, stopped and placed in time. The defaults suit a run that stands alone."""

    clock: Clock | None = None
    """Time; by default a ``MonotonicClock`` that lives as long as the run."""
    observer: Observer | None = None
    stop: asyncio.Event | None = None
    """Setting it ends the run early: no more requests are sent, and those never sent have no record."""
    epoch_s: float | None = None
    """The clock's time that counts as 0 in schedule and records; by default the start of the run."""
    first_index: int = 0
    """Index of the first record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request of a plan, encoded and due ``scheduled_at_s`` seconds after the start of the run."""

    scheduled_at_s: float
    prepared: Prepared
    phase: str = "main"
    is_warm_up: bool = False


async def run_open_loop(
    client: Client,
    payloads: Sequence[Payload],
    arrivals: Iterable[float],
    *,
    duration_s: float | None = None,
    num_requests: int | None = None,
    warm_up_s: float = 0.0,
    limits: RunLimits | None = None,
    control: RunControl | None = None,
) -> list[Record]:
    """Send ``payloads`` in turn, over and over, at the times of ``arrivals`` (seconds; see ``arrivals``).

    ``client`` must be started; it is not closed. Requests due before ``warm_up_s`` are marked as warm-up.

    Returns: one record per request that came due, in the order of the plan.
    Raises: ValueError: without payloads, or without a bound for endless arrivals.
    """
    prepared = prepare_all(client, payloads)
    times_s = bounded(arrivals, duration_s=duration_s, num_requests=num_requests)
    plan = [
        Planned(scheduled_at_s=time_s, prepared=item, is_warm_up=time_s < warm_up_s)
        for time_s, item in zip(times_s, cycle(prepared), strict=False)
    ]
    return await run_plan(client, plan, limits=limits, control=control)


async def run_plan(
    client: Client,
    plan: Sequence[Planned],
    *,
    limits: RunLimits | None = None,
    control: RunControl | None = None,
) -> list[Record]:
    """Carry out a plan in open loop.

    Returns: one record per request that came due, in the order of the plan.
    """
    run = _Run(client, limits or RunLimits(), control or RunControl())
    return await run.carry_out(_pace(run, plan))


async def run_closed_loop(
    client: Client,
    payloads: Sequence[Payload],
    concurrency: int,
    *,
    num_requests: int | None = None,
    duration_s: float | None = None,
    warm_up_s: float = 0.0,
    phase: str = "main",
    limits: RunLimits | None = None,
    control: RunControl | None = None,
) -> list[Record]:
    """``concurrency`` callers, each sending the next of ``payloads`` as soon as its last answer is there.

    Ends after ``num_requests`` requests (warm-up included) or when ``duration_s`` has passed, whichever comes first.
    Records have no ``scheduled_at_s``. Requests sent in the first ``warm_up_s`` are marked as warm-up.

    Raises: ValueError: if ``concurrency`` is not positive, without payloads, or if no bound is given.
    """
    if concurrency <= 0:
        raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
    if num_requests is None and duration_s is None:
        raise ValueError("a closed loop has no end of its own; give num_requests or duration_s")
    prepared = prepare_all(client, payloads)
    run = _Run(client, limits or RunLimits(), control or RunControl())
    planned = (Planned(scheduled_at_s=0.0, prepared=item, phase=phase) for item in cycle(prepared))
    calls = _closed_calls(run, islice(planned, num_requests), duration_s or math.inf, warm_up_s)
    return await run.carry_out(_call_concurrently(run, calls, concurrency))


def prepare_all(client: Client, payloads: Sequence[Payload]) -> list[Prepared]:
    """Encode each distinct payload once. Raises: ValueError: if there are none."""
    if not payloads:
        raise ValueError("there are no payloads to send")
    by_identity: dict[int, Prepared] = {}
    for payload in payloads:
        if id(payload) not in by_identity:
            by_identity[id(payload)] = client.prepare(payload)
    return [by_identity[id(payload)] for payload in payloads]


@dataclass(frozen=True, slots=True)
class _Call:
    index: int
    planned: Planned
    is_scheduled: bool


class _Run:
    """The state of one run: what is in flight, what is recorded."""

    def __init__(self, client: Client, limits: RunLimits, control: RunControl) -> None:
        self.limits = limits
        self.clock = control.clock or MonotonicClock()
        self._owns_clock = control.clock is None
        self.start_s = self.clock.now_s()
        self.epoch_s = self.start_s if control.epoch_s is None else control.epoch_s
        self.first_index = control.first_index
        self.stop = control.stop or asyncio.Event()
        self._client = client
        self._observer = control.observer
        self._records: list[Record] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    @property
    def num_in_flight(self) -> int:
        return len(self._tasks)

    async def carry_out(self, work: Coroutine[Any, Any, None]) -> list[Record]:
        """1. send until all is sent or the run is stopped; 2. wait for the answers; 3. leave nothing behind."""
        try:
            await self._until_stopped(work)
            await self._drain()
        finally:
            await _cancel(*self._tasks)
            if self._owns_clock:
                self.clock.close()
        if self._failure is not None:
            raise self._failure
        return sorted(self._records, key=lambda record: record.index)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    async def send(self, call: _Call) -> None:
        """Send one request, record its end, whatever it is."""
        sent_s = self.clock.now_s()
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                reply = await self._client.send(call.planned.prepared)
        except TimeoutError:
            reply = self._reply(Outcome.TIMEOUT, f"no answer within {self.limits.timeout_s} s (limits.timeout_s)")
        except asyncio.CancelledError:
            self.record(call, sent_s, self._reply(Outcome.CANCELLED, "the run was stopped"))
            raise
        except Exception as error:
            reply = self._reply(Outcome.GENERATOR_ERROR, f"{type(error).__name__}: {error}")
        self.record(call, sent_s, reply)

    def record(self, call: _Call, sent_s: float | None, reply: Reply | None) -> None:
        record = _make_record(call, self.epoch_s, sent_s, reply)
        self._records.append(record)
        if self._observer is not None:
            self._observer(record)

    def _reply(self, outcome: Outcome, message: str) -> Reply:
        return Reply(outcome=outcome, done_at_s=self.clock.now_s(), error_message=message)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:  # a fault of ours, or of the observer
            self._failure = self._failure or task.exception()
            self.stop.set()

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            await _cancel(working, stopping)

    async def _drain(self) -> None:
        if not self.stop.is_set():
            await self._until_stopped(self._all_done())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.limits.stop_grace_s)

    async def _all_done(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _pace(run: _Run, plan: Sequence[Planned]) -> None:
    for index, planned in enumerate(plan, start=run.first_index):
        due_s = run.epoch_s + planned.scheduled_at_s
        if due_s > run.clock.now_s():
            await run.clock.sleep_until(due_s)
        else:
            await asyncio.sleep(0)  # late: still let answers in, or lateness would feed on itself
        call = _Call(index, planned, True)
        if run.num_in_flight >= run.limits.max_in_flight:
            run.record(call, None, None)
        else:
            run.spawn(run.send(call))


async def _call_concurrently(run: _Run, calls: Iterator[_Call], concurrency: int) -> None:
    await asyncio.wait([run.spawn(_caller(run, calls)) for _ in range(concurrency)])


async def _caller(run: _Run, calls: Iterator[_Call]) -> None:
    for call in calls:
        if run.stop.is_set():
            return
        await run.send(call)


def _closed_calls(run: _Run, planned: Iterator[Planned], duration_s: float, warm_up_s: float) -> Iterator[_Call]:
    """The calls that all callers draw from, until there are no more or the time is up."""
    for index, item in enumerate(planned, start=run.first_index):
        elapsed_s = run.clock.now_s() - run.start_s
        if elapsed_s >= duration_s:
            return
        yield _Call(index, replace(item, is_warm_up=elapsed_s < warm_up_s), False)


def _make_record(call: _Call, epoch_s: float, sent_s: float | None, reply: Reply | None) -> Record:
    planned, payload = call.planned, call.planned.prepared.payload
    end = reply or Reply(outcome=Outcome.GENERATOR_DROPPED, done_at_s=0.0)
    first_s = end.first_chunk_at_s
    return Record(
        index=call.index,
        phase=planned.phase,
        surface=payload.surface,
        tenant=payload.tenant,
        kind=payload.kind,
        outcome=end.outcome,
        scheduled_at_s=planned.scheduled_at_s if call.is_scheduled else None,
        sent_at_s=None if sent_s is None else sent_s - epoch_s,
        first_chunk_at_s=None if first_s is None else first_s - epoch_s,
        done_at_s=None if reply is None else end.done_at_s - epoch_s,
        is_warm_up=planned.is_warm_up,
        expects_error=payload.expects_error,
        status=end.status,
        error_code=end.error_code,
        error_message=end.error_message,
        retry_after_s=end.retry_after_s,
        request_bytes=planned.prepared.request_bytes,
        response_bytes=end.response_bytes,
        num_images=payload.num_images,
        num_correct=_num_correct(payload, end),
        labels=end.labels,
        exits=end.exits,
        server=end.server,
        generated=_relative(end.generated, epoch_s),
    )


def _relative(generated: Generated | None, epoch_s: float) -> Generated | None:
    if generated is None or generated.first_token_at_s is None:
        return generated
    return replace(generated, first_token_at_s=generated.first_token_at_s - epoch_s)


def _num_correct(payload: Payload, reply: Reply) -> int | None:
    if payload.expected_labels is None or not reply.labels:
        return None
    return sum(got == want for got, want in zip(reply.labels, payload.expected_labels, strict=True))


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and wait, so that no task outlives its run."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
