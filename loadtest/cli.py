"""The commands ``vireo loadtest`` and ``vireo loadtest-selfcheck``."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from loadtest.clients.base import TargetError
from loadtest.environment import describe_environment
from loadtest.execute import Result, execute, make_clients
from loadtest.memory import FIRST_STEADY, MemorySource, Process, growth_bytes, memory_tables
from loadtest.records import Outcome, Record
from loadtest.report import write_repetitions, write_report
from loadtest.scenario import Scenario, ScenarioError, load_scenario
from loadtest.selfcheck import DEFAULT_RATES, check_generator, selfcheck_table
from loadtest.tables import (
    Table,
    chat_tables,
    counts_table,
    latency_table,
    load_table,
    repetitions_table,
    server_table,
    slo_table,
)
from loadtest.workloads.mix import PhaseLoad, build_load, count_requests

EXIT_SLO_FAILED = 1
EXIT_UNUSABLE = 2
_REFRESH_S = 1.0
"""Between two drawings of the bar. Drawing takes about a millisecond, in which nothing is sent; so it is rare."""


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("loadtest")(loadtest)
    app.command("loadtest-selfcheck")(loadtest_selfcheck)


def loadtest(
    scenario: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped scenario such as 'smoke'.")],
    target: Annotated[str | None, typer.Option(help="Base URL of the HTTP surfaces.")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT of the gRPC surfaces.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report. Default: out/loadtest/NAME.")] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the scenario's seed.")] = None,
    rate: Annotated[float | None, typer.Option(help="Replaces the rate of the measured open phases, per s.")] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Carry the scenario out so many times.")] = 1,
    vary: Annotated[bool, typer.Option(help="Another seed for each repetition: other requests.")] = False,
    watch_pid: Annotated[
        list[int] | None, typer.Option(help="Report the memory of this process and its descendants; may be repeated.")
    ] = None,
    watch_metrics: Annotated[
        list[str] | None, typer.Option(help="Report process_resident_memory_bytes of this URL; may be repeated.")
    ] = None,
    max_growth_mib: Annotated[
        float | None, typer.Option(help="Fail if memory grows by more from repetition 2 to the last.")
    ] = None,
) -> None:
    """Send a scenario's load to a server and report what came back.

    Ends with status 0 if every objective of the scenario was shown, 1 if one was not,
    2 if the test could not be made. Ctrl-C ends the run early and still writes the report.
    """
    console = Console()
    source = MemorySource(pids=tuple(watch_pid or ()), metrics_urls=tuple(watch_metrics or ()))
    try:
        if max_growth_mib is not None and (source.is_empty or repeat <= FIRST_STEADY):
            raise ScenarioError(f"--max-growth-mib needs --watch-pid or --watch-metrics, and --repeat > {FIRST_STEADY}")
        plan = load_scenario(scenario).with_overrides(http_url=target, grpc_address=grpc, seed=seed, rate_per_s=rate)
        folder, memory = out or Path("out", "loadtest", plan.name), _Memory(source, max_growth_mib)
        is_passed = _repeat(plan, repeat, vary, folder, memory, console)
    except (ScenarioError, TargetError) as error:
        console.print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(EXIT_UNUSABLE) from error
    if not is_passed:
        raise typer.Exit(EXIT_SLO_FAILED)


class _Memory:
    """What the server's processes held after each repetition."""

    def __init__(self, source: MemorySource, max_growth_mib: float | None) -> None:
        self._source = source
        self._max_growth_mib = max_growth_mib
        self.readings: list[list[Process]] = []

    def read(self) -> None:
        """Raises: TargetError: there is nothing to read any more."""
        self.readings.append(asyncio.run(self._source.read()))

    @property
    def is_passed(self) -> bool:
        growth = growth_bytes(self.readings)
        return self._max_growth_mib is None or growth is None or growth <= self._max_growth_mib * 2**20


def _repeat(plan: Scenario, repeat: int, vary: bool, folder: Path, memory: _Memory, console: Console) -> bool:
    """Carry ``plan`` out ``repeat`` times. One repetition is reported in ``folder``, several in folders below it."""
    api_keys, results = _api_keys(plan), list[Result]()
    memory.read()  # what cannot be read later is told before the first request
    memory.readings.clear()
    is_passed = True
    for number in range(1, repeat + 1):
        now = plan.with_overrides(seed=plan.seed + number - 1) if vary else plan
        result = _run(now, api_keys, console)
        memory.read()
        where = folder if repeat == 1 else folder / f"repetition-{number:03d}"
        _print_result(console, result, write_report(result, where, describe_environment()))
        results.append(result)
        is_passed = is_passed and result.is_passed
        if result.was_stopped:
            break
    tables = memory_tables(memory.readings)
    if repeat > 1:
        tables.insert(0, repetitions_table(results))
        console.print(f"Report: {escape(str(write_repetitions(tables, folder, describe_environment())))}")
    for table in tables:
        console.print(_rich(table))
    return is_passed and memory.is_passed


def loadtest_selfcheck(
    rate: Annotated[list[float] | None, typer.Option(help="Requests per second; may be repeated.")] = None,
    duration_s: Annotated[float, typer.Option(help="Seconds for each rate.")] = 8.0,
) -> None:
    """Measure the generator itself on this machine, against a server that does nothing."""
    rows = asyncio.run(check_generator(rate or DEFAULT_RATES, duration_s=duration_s))
    Console().print(_rich(selfcheck_table(rows)))


def _api_keys(scenario: Scenario) -> dict[str, str]:
    """Keys from the environment. Raises: ScenarioError: naming the variable that is not set."""
    keys = {}
    for tenant in scenario.tenants:
        key = os.environ.get(tenant.api_key_env)
        if not key:
            raise ScenarioError(f"tenants: {tenant.api_key_env} is not set; it must hold the API key of {tenant.name}")
        keys[tenant.name] = key
    return keys


def _run(scenario: Scenario, api_keys: Mapping[str, str], console: Console) -> Result:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
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
        progress.console.print(f"sending: {escape(scenario.name)}, {_length_s(scenario):g} s")
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


def _print_result(console: Console, result: Result, paths: Sequence[Path]) -> None:
    main = result.summary
    phases = load_table({"all": main, **result.phases} if len(result.phases) > 1 else result.phases, is_brief=True)
    outcomes = counts_table("Outcomes", main.outcomes, main.num_offered)
    times = latency_table(main, is_brief=True)
    for table in (phases, times, *chat_tables(result), outcomes, server_table(main), slo_table(result)):
        if table.rows:
            console.print(_rich(table))
    for warning in main.warnings:
        console.print(f"[yellow]{escape(warning)}[/yellow]")
    if result.was_stopped:
        console.print("[yellow]The run was stopped before its end.[/yellow]")
    console.print(f"Report: {escape(str(paths[0]))}")
    verdict = "[green]passed[/green]" if result.is_passed else "[red]failed[/red]"
    console.print(f"Objectives of {escape(result.scenario.name)}: {verdict}")


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in table.head:
        shown.add_column(escape(head))
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    return shown
