"""A load test in the terminal: its progress to standard error, its figures to standard output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.environment import describe_environment
from loadtest.execute import Result, execute, make_clients
from loadtest.memory import FIRST_STEADY, MemorySource, Process, growth_bytes, memory_tables
from loadtest.records import Outcome, Record
from loadtest.report import to_json, write_repetitions, write_report
from loadtest.scenario import Scenario, ScenarioError
from loadtest.selfcheck import DEFAULT_RATES, check_generator, selfcheck_table
from loadtest.tables import (
    Table,
    chat_tables,
    counts_table,
    isolation_table,
    latency_table,
    load_table,
    repetitions_table,
    server_table,
    slo_table,
)
from loadtest.workloads.mix import PhaseLoad, build_load, count_requests
from serving.client.told import console, show_table

_REFRESH_S = 1.0
"""Between two drawings of the bar. Drawing takes about a millisecond, in which nothing is sent; so it is rare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a scenario is carried out and told of. ``api_key``: of all requests where the scenario has no tenants."""

    out: Path
    repeat: int = 1
    is_varied: bool = False
    watched_pids: tuple[int, ...] = ()
    watched_metrics: tuple[str, ...] = ()
    max_growth_mib: float | None = None
    api_key: str | None = None
    as_json: bool = False
    is_quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How it ended."""

    is_passed: bool
    was_stopped: bool


def carry_out(plan: Scenario, options: Options) -> Verdict:
    """Carry ``plan`` out, once or more often. One repetition is reported in the folder, several in folders below it.

    Raises: ScenarioError, TargetError: the test cannot be made.
    """
    source = MemorySource(pids=options.watched_pids, metrics_urls=options.watched_metrics, api_key=options.api_key)
    if options.max_growth_mib is not None and (source.is_empty or options.repeat <= FIRST_STEADY):
        raise ScenarioError(f"--max-growth-mib needs --watch-pid or --watch-metrics, and --repeat > {FIRST_STEADY}")
    api_keys, environment = _api_keys(plan, options.api_key), describe_environment()
    asyncio.run(source.read())  # what cannot be read later is told before the first request
    readings, results = list[list[Process]](), list[Result]()
    for number in range(1, options.repeat + 1):
        now = plan.with_overrides(seed=plan.seed + number - 1) if options.is_varied else plan
        result = _run(now, api_keys, console(stderr=True, quiet=options.is_quiet))
        readings.append(asyncio.run(source.read()))
        where = options.out if options.repeat == 1 else options.out / f"repetition-{number:03d}"
        paths = write_report(result, where, environment)
        if not options.as_json:
            _print_result(result, paths)
        results.append(result)
        if result.was_stopped:
            break
    growth = growth_bytes(readings)
    is_small = options.max_growth_mib is None or growth is None or growth <= options.max_growth_mib * 2**20
    is_passed = is_small and all(result.is_passed for result in results)
    _conclude(results, memory_tables(readings), options, environment, is_passed=is_passed)
    return Verdict(is_passed=is_passed, was_stopped=results[-1].was_stopped)


def _conclude(
    results: Sequence[Result],
    tables: list[Table],
    options: Options,
    environment: Mapping[str, str],
    *,
    is_passed: bool,
) -> None:
    """Tell of all repetitions together."""
    if options.repeat > 1:
        tables.insert(0, repetitions_table(results))
        path = write_repetitions(tables, options.out, environment)
    if options.as_json:
        documents = [to_json(result, environment) for result in results]
        many = {"is_passed": is_passed, "repetitions": documents}
        typer.echo(json.dumps(documents[0] if options.repeat == 1 else many, indent=2, allow_nan=False))
        return
    _show(tables)
    if options.repeat > 1:
        typer.echo(f"report: {path}")


def check_self(rates_per_s: Sequence[float] | None, duration_s: float, *, as_json: bool) -> None:
    """Measure the generator and print how good it is."""
    rows = asyncio.run(check_generator(rates_per_s or DEFAULT_RATES, duration_s=duration_s))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False))
    else:
        _show([selfcheck_table(rows)])


def _api_keys(scenario: Scenario, api_key: str | None) -> dict[str, str]:
    """Keys by tenant. Raises: ScenarioError: naming the variable that is not set."""
    keys = {} if api_key is None else {entry.tenant: api_key for entry in scenario.mix}
    for tenant in scenario.tenants:
        key = os.environ.get(tenant.api_key_env)
        if not key:
            raise ScenarioError(f"tenants: {tenant.api_key_env} is not set; it must hold the API key of {tenant.name}")
        keys[tenant.name] = key
    return keys


def _run(scenario: Scenario, api_keys: Mapping[str, str], notes: Console) -> Result:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, auto_refresh=False, transient=True) as progress:
        load = _draw(scenario, progress)
        return asyncio.run(_run_until_signal(scenario, load, api_keys, progress))


def _draw(scenario: Scenario, progress: Progress) -> list[PhaseLoad]:
    total = count_requests(scenario)
    task = progress.add_task("drawing the requests", total=total)
    step = max(1, total // 50)

    def on_request() -> None:
        progress.advance(task)
        if progress.tasks[task].completed % step == 0:
            progress.refresh()

    load = build_load(scenario, on_request=on_request)
    progress.refresh()
    return load


async def _run_until_signal(
    scenario: Scenario, load: Sequence[PhaseLoad], api_keys: Mapping[str, str], progress: Progress
) -> Result:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if not progress.console.is_terminal:  # no bar is drawn there; a log should still say what is going on
        progress.console.print(f"sending: {scenario.name}, {_length_s(scenario):g} s")
    counter = _Counter()
    drawing = loop.create_task(_draw_progress(progress, counter, _num_scheduled(load)))
    try:
        return await execute(scenario, load, make_clients(scenario, api_keys), observer=counter, stop=stop)
    finally:
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _length_s(scenario: Scenario) -> float:
    return sum(phase.duration_s for phase in scenario.phases)


class _Counter:
    """Counts records; cheap, because it is called for each request while others are due."""

    def __init__(self) -> None:
        self.num_done = 0
        self.num_failed = 0

    def __call__(self, record: Record) -> None:
        self.num_done += 1
        self.num_failed += record.outcome is not Outcome.OK and not record.expects_error


def _num_scheduled(load: Sequence[PhaseLoad]) -> int | None:
    """Requests of the run; ``None`` if it has a closed loop, whose number nobody knows before."""
    return sum(len(item.times_s) for item in load) if all(item.times_s for item in load) else None


async def _draw_progress(progress: Progress, counter: _Counter, total: int | None) -> None:
    """Redraw once a second; without a total the bar only counts."""
    task = progress.add_task("sending", total=total)
    try:
        while True:
            progress.update(task, completed=counter.num_done, description=f"sending ({counter.num_failed} failed)")
            progress.refresh()
            await asyncio.sleep(_REFRESH_S)
    finally:
        progress.update(task, completed=counter.num_done, description=f"sent ({counter.num_failed} failed)")
        progress.refresh()


def _print_result(result: Result, paths: Sequence[Path]) -> None:
    main = result.summary
    phases = load_table({"all": main, **result.phases} if len(result.phases) > 1 else result.phases, is_brief=True)
    outcomes = counts_table("Outcomes", main.outcomes, main.num_offered)
    times = latency_table(main, is_brief=True)
    by_tenant = isolation_table(result)
    _show([phases, times, *chat_tables(result), by_tenant, outcomes, server_table(main), slo_table(result)])
    for warning in main.warnings:
        typer.echo(f"note: {warning}")
    if result.was_stopped:
        typer.echo("note: the run was stopped before its end")
    typer.echo(f"report: {paths[0]}")
    typer.echo(f"objectives of {result.scenario.name}: {'passed' if result.is_passed else 'FAILED'}")


def _show(tables: Sequence[Table]) -> None:
    for table in tables:
        if table.rows:
            show_table(table.head, table.rows, title=table.title)
            typer.echo()
