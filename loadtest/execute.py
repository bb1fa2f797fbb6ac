"""Carries out a scenario: clients for its surfaces, its phases one after the other, its objectives checked."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

from loadtest.clients.base import Client, Prepared
from loadtest.clients.routing import SurfaceRouter
from loadtest.clock import Clock, MonotonicClock
from loadtest.isolation import TenantShift, check_isolation, tenant_shifts
from loadtest.records import Record
from loadtest.runner import Planned, RunControl, RunLimits, prepare_all, run_closed_loop, run_plan
from loadtest.scenario import Closed, Phase, Scenario
from loadtest.slo import SloCheck, check_slo
from loadtest.summary import Summary, summarise
from loadtest.workloads.mix import PhaseLoad

LEAD_S = 0.05
"""Time between the last preparation and the first request, so that the first is not late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseWindow:
    """When a phase ran, in seconds of the run."""

    name: str
    start_s: float
    end_s: float
    is_warm_up: bool
    is_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything that a run showed."""

    scenario: Scenario
    records: tuple[Record, ...]
    windows: tuple[PhaseWindow, ...]
    summary: Summary
    """All open measured phases together; all measured phases if none is open."""
    phases: Mapping[str, Summary]
    """Each measured phase alone."""
    slo: tuple[SloCheck, ...]
    was_stopped: bool
    shifts: tuple[TenantShift, ...] = ()
    """Where the scenario compares two phases: each tenant in both."""

    @property
    def is_passed(self) -> bool:
        """True if the run was not cut short and showed every objective."""
        return not self.was_stopped and all(check.is_passed for check in self.slo)

    @property
    def main_records(self) -> list[Record]:
        """The records that ``summary`` is taken of."""
        names = main_phases(self.windows)
        return [record for record in self.records if record.phase in names]


def main_phases(windows: Sequence[PhaseWindow]) -> set[str]:
    """Names of the measured open phases; of all measured phases if none is open."""
    measured = [window for window in windows if not window.is_warm_up]
    return {window.name for window in measured if window.is_open} or {window.name for window in measured}


def make_clients(scenario: Scenario, api_keys: Mapping[str, str]) -> SurfaceRouter:
    """A client for each surface of the mix. ``api_keys`` maps tenants to their keys."""
    return SurfaceRouter(
        {surface: _make_client(surface, scenario, api_keys) for surface in {entry.surface for entry in scenario.mix}}
    )


async def execute(
    scenario: Scenario,
    load: Sequence[PhaseLoad],
    client: Client,
    *,
    clock: Clock | None = None,
    observer: Callable[[Record], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Run ``load`` (from ``workloads.mix.build_load``) and summarise it.

    Consecutive open phases run as one schedule, without a pause for stragglers between them. A closed phase starts when
    everything before it is answered. Starts the client, and closes it whatever happens.
    Raises: TargetError: if the target cannot be tested at all.
    """
    own_clock = clock or MonotonicClock()
    end = stop or asyncio.Event()
    try:
        await client.start()
        with settled_memory():
            control = RunControl(clock=own_clock, observer=observer, stop=end)
            records, windows = await _run_phases(scenario, load, client, control)
    finally:
        await client.close()
        if clock is None:
            own_clock.close()
    return _conclude(scenario, records, windows, was_stopped=end.is_set())


@contextmanager
def settled_memory() -> Iterator[None]:
    """Keep the garbage collector away from everything that was made before the run.

    A full collection walks every prepared payload and stops the generator for milliseconds. What the run itself makes
    is still collected.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _run_phases(
    scenario: Scenario, load: Sequence[PhaseLoad], client: Client, control: RunControl
) -> tuple[list[Record], list[PhaseWindow]]:
    """Segments in turn; all times count from the start of the first."""
    segments = [list(group) for _, group in groupby(load, key=_is_closed)]
    plans = [None if _is_closed(segment[0]) else _prepare_segment(client, segment) for segment in segments]
    limits = RunLimits(max_in_flight=scenario.limits.max_in_flight, timeout_s=scenario.limits.timeout_s)
    run = _PhaseRun(client, limits, control)
    for segment, prepared in zip(segments, plans, strict=True):
        if prepared is not None:
            await run.open_segment(segment, prepared)
        else:
            for phase_load in segment:
                await run.closed_phase(phase_load)
    return run.records, run.windows


def _is_closed(phase_load: PhaseLoad) -> bool:
    return isinstance(phase_load.phase.arrival, Closed)


def _prepare_segment(client: Client, segment: Sequence[PhaseLoad]) -> list[Prepared]:
    payloads = [payload for phase_load in segment for payload in phase_load.payloads]
    return prepare_all(client, payloads) if payloads else []


class _PhaseRun:
    """Phases as they are carried out: where the run is in time, and what it has recorded so far."""

    def __init__(self, client: Client, limits: RunLimits, control: RunControl) -> None:
        assert control.clock is not None
        assert control.stop is not None
        self.records: list[Record] = []
        self.windows: list[PhaseWindow] = []
        self._client = client
        self._limits = limits
        self._clock = control.clock
        self._stop = control.stop
        self._control = replace(control, epoch_s=self._clock.now_s() + LEAD_S)

    async def open_segment(self, segment: Sequence[PhaseLoad], prepared: Sequence[Prepared]) -> None:
        """Consecutive open phases as one schedule."""
        start_s = self._next_start_s()
        if self._stop.is_set():
            return
        windows = _open_windows(segment, start_s)
        plan = _open_plan(segment, windows, prepared)
        self.windows += windows
        self.records += await run_plan(self._client, plan, limits=self._limits, control=self._here())

    async def closed_phase(self, phase_load: PhaseLoad) -> None:
        """One closed phase, from the end of the phase before."""
        phase = phase_load.phase
        assert isinstance(phase.arrival, Closed)
        assert self._control.epoch_s is not None
        await self._clock.sleep_until(self._control.epoch_s + self._next_start_s())
        if self._stop.is_set():
            return
        records = await run_closed_loop(
            self._client,
            phase_load.payloads,
            phase.arrival.concurrency,
            duration_s=phase.duration_s,
            num_requests=phase.arrival.num_requests,
            warm_up_s=phase.duration_s if phase.is_warm_up else 0.0,
            phase=phase.name,
            limits=self._limits,
            control=self._here(),
        )
        if records:
            start_s = min(record.started_at_s for record in records)
            window = _window(phase, start_s, is_open=False)
            ends = [record.done_at_s for record in records if record.done_at_s is not None]
            if phase.arrival.num_requests is not None and ends and max(ends) < window.end_s:
                window = replace(window, end_s=max(ends))  # all were sent before the time was up
            self.windows.append(window)
        self.records += records

    def _here(self) -> RunControl:
        return replace(self._control, first_index=len(self.records))

    def _next_start_s(self) -> float:
        """The end of the phases before, or shortly from now if answers to them took longer than that."""
        assert self._control.epoch_s is not None
        if not self.windows:
            return 0.0
        return max(self.windows[-1].end_s, self._clock.now_s() + LEAD_S - self._control.epoch_s)


def _window(phase: Phase, start_s: float, *, is_open: bool) -> PhaseWindow:
    return PhaseWindow(
        name=phase.name,
        start_s=start_s,
        end_s=start_s + phase.duration_s,
        is_warm_up=phase.is_warm_up,
        is_open=is_open,
    )


def _open_windows(segment: Sequence[PhaseLoad], start_s: float) -> list[PhaseWindow]:
    windows: list[PhaseWindow] = []
    for phase_load in segment:
        windows.append(_window(phase_load.phase, windows[-1].end_s if windows else start_s, is_open=True))
    return windows


def _open_plan(
    segment: Sequence[PhaseLoad], windows: Sequence[PhaseWindow], prepared: Sequence[Prepared]
) -> list[Planned]:
    starts = [
        (window, window.start_s + time_s)
        for phase_load, window in zip(segment, windows, strict=True)
        for time_s in phase_load.times_s
    ]
    return [
        Planned(scheduled_at_s=at_s, prepared=item, phase=window.name, is_warm_up=window.is_warm_up)
        for (window, at_s), item in zip(starts, prepared, strict=True)
    ]


def _conclude(
    scenario: Scenario, records: Sequence[Record], windows: Sequence[PhaseWindow], *, was_stopped: bool
) -> Result:
    deadline_s = scenario.slo.deadline_ms / 1e3
    measured = [window for window in windows if not window.is_warm_up]
    phases = {window.name: _summarise(records, [window], deadline_s, scenario.seed) for window in measured}
    main = [window for window in measured if window.name in main_phases(windows)]
    summary = _summarise(records, main, deadline_s, scenario.seed)
    isolation = scenario.slo.isolation
    shifts = () if isolation is None else tuple(tenant_shifts(records, isolation))
    return Result(
        scenario=scenario,
        records=tuple(records),
        windows=tuple(windows),
        summary=summary,
        phases=phases,
        slo=(*check_slo(scenario.slo, summary), *check_isolation(scenario.slo, shifts)),
        shifts=shifts,
        was_stopped=was_stopped,
    )


def _summarise(records: Sequence[Record], windows: Sequence[PhaseWindow], deadline_s: float, seed: int) -> Summary:
    """One summary of some phases. The rates of phases that do not adjoin count the time between them too."""
    names = {window.name for window in windows}
    span = (min(window.start_s for window in windows), max(window.end_s for window in windows)) if windows else None
    chosen = [record for record in records if record.phase in names]
    return summarise(chosen, deadline_s=deadline_s, window_s=span, seed=seed)


def _make_client(surface: str, scenario: Scenario, api_keys: Mapping[str, str]) -> Client:
    # Imported here: a scenario without gRPC needs no stubs, and gRPC starts threads when it is loaded.
    from loadtest.clients.grpc_chat import GrpcChatClient
    from loadtest.clients.grpc_classify import GrpcClassifyClient, GrpcStreamClient
    from loadtest.clients.grpc_images import GrpcImagesClient
    from loadtest.clients.grpc_oip import GrpcOipClient
    from loadtest.clients.grpc_videos import GrpcVideosClient
    from loadtest.clients.http_chat import HttpChatClient
    from loadtest.clients.http_classify import HttpClassifyClient
    from loadtest.clients.http_images import HttpImagesClient
    from loadtest.clients.http_oip import HttpOipClient
    from loadtest.clients.http_videos import HttpVideosClient

    url, address = scenario.target.http_url, scenario.target.grpc_address
    makers: dict[str, Callable[[], Client]] = {
        "http_classify": lambda: HttpClassifyClient(url, api_keys=api_keys),
        "http_oip": lambda: HttpOipClient(url, api_keys=api_keys),
        "grpc_vireo": lambda: GrpcClassifyClient(address, api_keys=api_keys),
        "grpc_vireo_stream": lambda: GrpcStreamClient(address, api_keys=api_keys),
        "grpc_oip": lambda: GrpcOipClient(address, api_keys=api_keys),
        "http_chat": lambda: HttpChatClient(url, is_streamed=True, api_keys=api_keys),
        "http_chat_unary": lambda: HttpChatClient(url, is_streamed=False, api_keys=api_keys),
        "grpc_chat": lambda: GrpcChatClient(address, api_keys=api_keys),
        "http_images": lambda: HttpImagesClient(url, api_keys=api_keys),
        "grpc_images": lambda: GrpcImagesClient(address, api_keys=api_keys),
        "http_videos": lambda: HttpVideosClient(url, api_keys=api_keys),
        "grpc_videos": lambda: GrpcVideosClient(address, api_keys=api_keys),
    }
    return makers[surface]()
