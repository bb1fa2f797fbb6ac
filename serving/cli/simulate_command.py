"""``vireo simulate``: what a trace would meet, on a clock that does not wait."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.client.options import QuietOption
from serving.client.told import progress_bar, show_table, told_plainly

if TYPE_CHECKING:
    from schedulers.lab.cluster import System
    from schedulers.lab.outcomes import Outcome, Summary
    from schedulers.lab.traces import Request

_PANEL = "Load tests"
_EXAMPLES = """\b
Examples:
  vireo simulate --trace examples/traces/mixed.csv
  vireo simulate --trace mixed.csv --policy fcfs,vireo --rate 400 --plot p.png
  vireo simulate --trace azure.csv --latency-ms 9000 --replicas 2000 --json

Traces, policies and what is simulated: docs/simulator.md.
"""
_POLICIES = "fcfs,least_loaded,edf,vireo"
_COLUMNS = (
    "number",
    "arrived_s",
    "done_s",
    "tenant",
    "task",
    "model",
    "priority",
    "state",
    "reason",
    "is_good",
    "point",
    "quality",
    "degraded",
    "is_cut_short",
    "joules",
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("simulate", rich_help_panel=_PANEL, epilog=_EXAMPLES)(simulate)


def simulate(
    trace: Annotated[
        Path, typer.Option(metavar="FILE", help="CSV of ours or of Azure's LMM trace, or Mooncake's JSON lines.")
    ],
    policy: Annotated[str, typer.Option(metavar="NAME[,NAME...]", help="fcfs, least_loaded, edf, vireo.")] = _POLICIES,
    replicas: Annotated[
        list[str] | None,
        typer.Option(metavar="N|MODEL=N", help="Replicas of each model, or of one; default: just enough. Repeatable."),
    ] = None,
    system: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Models, replicas and tenants as JSON; default: the shipped models."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Play the trace at so many requests per second.")] = None,
    duration: Annotated[float | None, typer.Option(help="Stop after so many seconds of the trace.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Latency budget of requests that bring none.")] = None,
    noise: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="How far times scatter: standard deviation of their logarithm.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of noise, and of which inputs are hard.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the summary and a CSV of outcomes per policy.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw latencies and attainment (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Play a trace through schedulers on a virtual clock.

    No engine runs: costs are those of the operating points, and the policy vireo is the scheduler that serves.
    """
    from schedulers.lab.cluster import POLICIES
    from schedulers.lab.outcomes import summarise

    with told_plainly():
        names = _policies(policy, POLICIES)
        requests = _requests(trace, rate, duration, latency_ms)
        made = _system(system, replicas or [], requests, noise)
        found = _play(made, requests, names, seed, is_quiet=quiet or as_json)
        summaries = {name: summarise(outcomes, made.weights) for name, outcomes in found.items()}
        document = _document(trace, made, requests, seed, summaries)
        if out is not None:
            _write(out, found, document)
        if plot is not None:
            from serving.cli.simulate_plot import draw

            plot.write_bytes(draw(found, summaries))
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    _show(document, summaries)


def _policies(text: str, known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--policy: {unknown[0]!r} is unknown; there are {', '.join(known)}")
    return names


def _requests(path: Path, rate: float | None, duration: float | None, latency_ms: float | None) -> list[Request]:
    from schedulers.lab.traces import read_trace, scaled

    if latency_ms is not None and not 0.0 < latency_ms < math.inf:
        raise ValueError(f"--latency-ms is {latency_ms}; need a finite number > 0")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            requests = scaled(read_trace(lines), rate_per_s=rate, duration_s=duration)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if latency_ms is None:
        return requests
    return [
        replace(request, latency_s=latency_ms / 1e3) if request.latency_s is None else request for request in requests
    ]


def _system(path: Path | None, replicas: Sequence[str], requests: Sequence[Request], noise: float) -> System:
    """What is simulated; of a model that nothing is said about, as many replicas as the trace just needs."""
    from schedulers.lab.cluster import System, busy_s_per_s
    from serving.cli.simulated import read_system, shipped_models

    made = System(models=shipped_models()) if path is None else read_system(path)
    ids = [model.id for model in made.models]
    try:
        needed = {model: max(1, math.ceil(busy)) for model, busy in busy_s_per_s(made, requests).items()}
    except LookupError as error:
        raise ValueError(str(error.args[0])) from None
    counts = {**needed, **made.replicas}
    for text in replicas:
        model, is_one, number = text.rpartition("=")
        if is_one and model not in ids:
            raise ValueError(f"--replicas: there is no model {model!r}; there are {', '.join(ids)}")
        if not number.isdecimal() or not 1 <= int(number) <= 100_000:
            raise ValueError(f"--replicas {text!r}: need a whole number from 1 to 100000")
        counts |= dict.fromkeys([model] if is_one else ids, int(number))
    asked = {made.model_for(request).id for request in requests}
    return replace(
        made,
        models=[model for model in made.models if model.id in asked],
        replicas={model: count for model, count in counts.items() if model in asked},
        noise=noise,
    )


def _play(
    made: System, requests: Sequence[Request], names: Sequence[str], seed: int, *, is_quiet: bool
) -> dict[str, list[Outcome]]:
    from schedulers.lab.cluster import simulate_system

    found = {}
    with progress_bar(quiet=is_quiet) as progress:
        for name in names:
            task = progress.add_task(name, total=len(requests))
            found[name] = simulate_system(
                made,
                requests,
                name,
                seed=seed,
                on_progress=lambda count, task=task: progress.update(task, completed=count),  # type: ignore[misc]
            )
    return found


def _document(
    trace: Path, made: System, requests: Sequence[Request], seed: int, summaries: Mapping[str, Summary]
) -> dict[str, Any]:
    return {
        "trace": trace.name,
        "requests": len(requests),
        "seconds": requests[-1].arrived_s - requests[0].arrived_s,
        "replicas": dict(made.replicas),
        "seed": seed,
        "noise": made.noise,
        "policies": {name: asdict(summary) for name, summary in summaries.items()},
    }


def _write(folder: Path, found: Mapping[str, Sequence[Outcome]], document: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    for name, outcomes in found.items():
        with (folder / f"outcomes-{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(_row(one) for one in outcomes)


def _row(one: Outcome) -> list[Any]:
    request = one.request
    quality = "" if one.quality is None else f"{one.quality:.6g}"
    return [
        one.number,
        f"{request.arrived_s:.6f}",
        f"{one.done_s:.6f}",
        request.tenant,
        request.task,
        one.model,
        request.priority.name.lower(),
        one.state,
        one.reason,
        int(one.is_good),
        one.point,
        quality,
        int(one.degraded),
        int(one.is_cut_short),
        f"{one.joules:.6g}",
    ]


def _show(document: Mapping[str, Any], summaries: Mapping[str, Summary]) -> None:
    replicas = ", ".join(f"{count} x {model}" for model, count in document["replicas"].items())
    typer.echo(f"{document['requests']} requests in {document['seconds']:.1f} s; {replicas}")
    shares = ("attainment", "degraded", "rejected", "expired", "late")
    head = ("policy", "in budget", "degraded", "rejected", "expired", "late", "good/s", "J", "over share", "quality")
    rows = [
        (
            name,
            *(f"{getattr(one, share):.1%}" for share in shares),
            f"{one.goodput_per_s:.4g}",
            f"{one.joules:.4g}",
            f"{one.worst_over_share:.2f}",
            "" if one.quality is None else f"{one.quality:.4f}",
        )
        for name, one in summaries.items()
    ]
    show_table(head, rows)
    typer.echo()
    tasks = next(iter(summaries.values())).by_task
    rows = [
        (name, task, f"{group.attainment:.1%}", _ms(group.p50_s), _ms(group.p99_s))
        for task in tasks
        for name, one in summaries.items()
        if (group := one.by_task[task]) is not None
    ]
    show_table(("policy", "task", "in budget", "p50 ms", "p99 ms"), rows)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.4g}"
