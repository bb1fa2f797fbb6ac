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
from loadtest.records import Record
from loadtest.runner import Planned, RunControl, RunLimits, prepare_all, run_closed_loop, run_plan
from loadtest.scenario import Closed, Scenario
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

    @property
    def is_passed(self) -> bool:
        """True if the run was not cut short and showed every objective."""
        return not self.was_stopped and all(check.is_passed for check in self.slo)


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
    assert control.clock is not None
    assert control.stop is not None
    prepared = {id(phase_load): prepare_all(client, phase_load.payloads) for phase_load in load if phase_load.payloads}
    limits = RunLimits(max_in_flight=scenario.limits.max_in_flight, timeout_s=scenario.limits.timeout_s)
    epoch_s = control.clock.now_s() + LEAD_S
    records: list[Record] = []
    windows: list[PhaseWindow] = []
    for is_closed, group in groupby(load, key=lambda phase_load: isinstance(phase_load.phase.arrival, Closed)):
        segment = list(group)
        if control.stop.is_set():
            break
        start_s = max(0.0, control.clock.now_s() - epoch_s + LEAD_S) if records else 0.0
        here = replace(control, epoch_s=epoch_s, first_index=len(records))
        if is_closed:
            for phase_load in segment:
                records += await _run_closed(client, phase_load, limits, here, windows)
                here = replace(here, first_index=len(records))
        else:
            windows += _open_windows(segment, start_s)
            plan = _open_plan(segment, start_s, prepared)
            records += await run_plan(client, plan, limits=limits, control=here)
    return records, windows


def _open_windows(segment: Sequence[PhaseLoad], start_s: float) -> list[PhaseWindow]:
    windows = []
    for phase_load in segment:
        phase = phase_load.phase
        end_s = start_s + phase.duration_s
        windows.append(
            PhaseWindow(name=phase.name, start_s=start_s, end_s=end_s, is_warm_up=phase.is_warm_up, is_open=True)
        )
        start_s = end_s
    return windows


def _open_plan(segment: Sequence[PhaseLoad], start_s: float, prepared: Mapping[int, list[Prepared]]) -> list[Planned]:
    plan = []
    for phase_load in segment:
        phase = phase_load.phase
        plan += [
            Planned(scheduled_at_s=start_s + time_s, prepared=item, phase=phase.name, is_warm_up=phase.is_warm_up)
            for time_s, item in zip(phase_load.times_s, prepared.get(id(phase_load), []), strict=True)
        ]
        start_s += phase.duration_s
    return plan


async def _run_closed(
    client: Client, phase_load: PhaseLoad, limits: RunLimits, control: RunControl, windows: list[PhaseWindow]
) -> list[Record]:
    phase = phase_load.phase
    assert isinstance(phase.arrival, Closed)
    assert control.clock is not None
    assert control.epoch_s is not None
    start_s = control.clock.now_s() - control.epoch_s
    records = await run_closed_loop(
        client,
        phase_load.payloads,
        phase.arrival.concurrency,
        duration_s=phase.duration_s,
        warm_up_s=phase.duration_s if phase.is_warm_up else 0.0,
        phase=phase.name,
        limits=limits,
        control=control,
    )
    end_s = start_s + phase.duration_s
    windows.append(
        PhaseWindow(name=phase.name, start_s=start_s, end_s=end_s, is_warm_up=phase.is_warm_up, is_open=False)
    )
    return records


def _conclude(
    scenario: Scenario, records: Sequence[Record], windows: Sequence[PhaseWindow], *, was_stopped: bool
) -> Result:
    deadline_s = scenario.slo.deadline_ms / 1e3
    measured = [window for window in windows if not window.is_warm_up]
    phases = {window.name: _summarise(records, [window], deadline_s, scenario.seed) for window in measured}
    main = [window for window in measured if window.is_open] or measured
    summary = _summarise(records, main, deadline_s, scenario.seed)
    return Result(
        scenario=scenario,
        records=tuple(records),
        windows=tuple(windows),
        summary=summary,
        phases=phases,
        slo=tuple(check_slo(scenario.slo, summary)),
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
    from loadtest.clients.grpc_classify import GrpcClassifyClient, GrpcStreamClient
    from loadtest.clients.grpc_oip import GrpcOipClient
    from loadtest.clients.http_classify import HttpClassifyClient
    from loadtest.clients.http_oip import HttpOipClient

    url, address = scenario.target.http_url, scenario.target.grpc_address
    makers: dict[str, Callable[[], Client]] = {
        "http_classify": lambda: HttpClassifyClient(url, api_keys=api_keys),
        "http_oip": lambda: HttpOipClient(url, api_keys=api_keys),
        "grpc_vireo": lambda: GrpcClassifyClient(address, api_keys=api_keys),
        "grpc_vireo_stream": lambda: GrpcStreamClient(address, api_keys=api_keys),
        "grpc_oip": lambda: GrpcOipClient(address, api_keys=api_keys),
    }
    return makers[surface]()
