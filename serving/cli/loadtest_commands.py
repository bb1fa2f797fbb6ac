"""The commands ``vireo loadtest`` and ``vireo loadtest-selfcheck``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.client.address import read_key, read_url
from serving.client.exits import Exit
from serving.client.options import KeyOption, QuietOption
from serving.client.told import Failed, leave

_PANEL = "Load tests"
_EXAMPLES = """\b
Examples:
  vireo loadtest smoke
  vireo loadtest my.yaml --url HOST:8000 --grpc HOST:9000 --rate 200
  vireo loadtest smoke --json | jq .summary.goodput_per_s

Exit code 0 if every objective of the scenario was shown to be met, 1 if not. Ctrl-C ends the run early, still writes
the report, and exits with 130.
"""


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("loadtest", rich_help_panel=_PANEL, epilog=_EXAMPLES)(loadtest)
    app.command("loadtest-selfcheck", rich_help_panel=_PANEL)(loadtest_selfcheck)


def _scenarios(incomplete: str) -> list[str]:
    """For the shell."""
    from loadtest.scenario import shipped_names

    return [name for name in shipped_names() if name.startswith(incomplete)]


def loadtest(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped scenario such as 'smoke'.", autocompletion=_scenarios
        ),
    ],
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where to send over HTTP; default: the scenario's target, then $VIREO_URL."),
    ] = None,
    grpc: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where to send over gRPC.")] = None,
    api_key: KeyOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report; default: out/loadtest/NAME.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the scenario's seed.")] = None,
    rate: Annotated[float | None, typer.Option(help="Replaces the rate of measured open phases, per second.")] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Run the scenario this many times.")] = 1,
    vary: Annotated[
        bool, typer.Option("--vary", help="Use another seed (other requests) for each repetition.")
    ] = False,
    watch_pid: Annotated[
        list[int] | None, typer.Option(help="Report the memory of this process and its descendants; repeatable.")
    ] = None,
    watch_metrics: Annotated[
        list[str] | None,
        typer.Option(help="Report process_resident_memory_bytes from this URL, requested with the key; repeatable."),
    ] = None,
    max_growth_mib: Annotated[
        float | None, typer.Option(help="Fail if memory grows by more than this from repetition 2 to the last.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
    quiet: QuietOption = False,
    default_url: Annotated[str | None, typer.Option(hidden=True, envvar="VIREO_URL")] = None,
) -> None:
    """Send a scenario's load and report what came back.

    The key is for scenarios without tenants; otherwise each tenant names the variable that holds its own.
    """
    from loadtest.clients.base import NobodyThere, TargetError
    from loadtest.scenario import ScenarioError, load_scenario
    from serving.cli.loadtest_run import Options, carry_out

    try:
        plan = load_scenario(scenario)
        if url is None and "target" not in plan.model_fields_set:
            url = default_url
        plan = plan.with_overrides(
            http_url=None if url is None else read_url(url), grpc_address=grpc, seed=seed, rate_per_s=rate
        )
        options = Options(
            out=out or Path("out", "loadtest", plan.name),
            repeat=repeat,
            is_varied=vary,
            watched_pids=tuple(watch_pid or ()),
            watched_metrics=tuple(map(_metrics_page, watch_metrics or ())),
            max_growth_mib=max_growth_mib,
            api_key=read_key(api_key),
            as_json=as_json,
            is_quiet=quiet,
        )
        verdict = carry_out(plan, options)
    except NobodyThere as error:
        leave(f"{error}; `vireo up` starts a system here, --url and --grpc name another", Exit.UNREACHABLE)
    except (ScenarioError, TargetError) as error:
        leave(str(error), Exit.USAGE)
    except Failed as error:
        leave(error.line, error.exit_code)
    if verdict.was_stopped:
        leave("stopped; the report says what came until then", Exit.INTERRUPTED)
    raise typer.Exit(Exit.OK if verdict.is_passed else Exit.FAILED)


def _metrics_page(text: str) -> str:
    url = read_url(text)
    return url if "/" in url.partition("://")[2] else f"{url}/metrics"


def loadtest_selfcheck(
    rate: Annotated[list[float] | None, typer.Option(help="Requests per second; repeatable.")] = None,
    duration_s: Annotated[float, typer.Option(help="Seconds for each rate.")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Measure the generator of load tests on this machine.

    It sends to a server that does nothing: what is left is its own error.
    """
    from serving.cli.loadtest_run import check_self

    check_self(rate, duration_s, as_json=as_json)
