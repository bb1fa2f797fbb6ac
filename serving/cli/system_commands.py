"""``vireo up``, ``down`` and ``status``: the whole system on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.client.exits import Exit
from serving.client.options import KeyOption, LicenceOption, QuietOption, model_ids
from serving.client.told import Failed, console, leave, show_table
from serving.errors import ConfigError

if TYPE_CHECKING:
    from serving.cli.run_state import RunState
    from serving.config import ResolvedConfig

_PANEL = "The system on this machine"
_UP_EXAMPLES = """\b
Examples:
  vireo up                                    stays in the foreground
  vireo up --detach --port 8100 --grpc-port 9100
  vireo up --model ID --option replicas=2
  vireo up --model NAME=FOLDER                a folder, under a name of yours
  vireo up --config vireo.yaml --set log_level=debug
"""
_DOWN_EXAMPLES = """\b
Examples:
  vireo down
  vireo down --port 8100
"""
_STATUS_EXAMPLES = """\b
Examples:
  vireo status
  vireo status --url https://vireo.example.com --key @key.txt
  vireo status --json | jq .ready

Exit code 0 when it is ready, 1 when it is not, 4 when nothing is running.
"""

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML configuration.", exists=True, dir_okay=False),
]
ProfileOption = Annotated[str | None, typer.Option(help="local (default), gpu or cluster.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="section.field=value, overrides all else; repeatable."),
]
PortOption = Annotated[int | None, typer.Option(help="HTTP port; default 8000.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=_PANEL, epilog=_UP_EXAMPLES)(up)
    app.command(rich_help_panel=_PANEL, epilog=_DOWN_EXAMPLES)(down)
    app.command(rich_help_panel=_PANEL, epilog=_STATUS_EXAMPLES)(status)


def up(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    port: PortOption = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; default 9000.")] = None,
    overrides: SetOption = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="ID[=FOLDER]",
            help="Serve this model and no others; NAME=FOLDER for a folder under a name of your own. Repeatable.",
            autocompletion=model_ids,
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="[ID.]NAME=VALUE",
            help="Set up a model: replicas, gpus, ... or one of its options; ID. if several are served. Repeatable.",
        ),
    ] = None,
    accept_licence: LicenceOption = False,
    detach: Annotated[
        bool, typer.Option("--detach/--no-detach", "-d", help="Return once it is up; `vireo down` stops it.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Answer one request of each kind before reporting that it is up.")] = True,
    quiet: QuietOption = False,
) -> None:
    """Start everything, and stay up until Ctrl-C.

    This starts Redis, Ray, HAProxy, the gateway and the models. `vireo down` stops them too.
    """
    from serving import config as configuration

    extra = [*(overrides or ()), *_ports(port, grpc_port)]
    named = [name.partition("=")[0] for name in models or ()]
    if accept_licence and not named:
        raise ConfigError("--accept-licence goes with --model: say whose licence you accept")
    set_up = [*(f"{name}.accept_licence=true" for name in named if accept_licence), *(options or ())]
    resolved = configuration.resolve(configuration.load(config, extra, profile, models=models or (), options=set_up))
    if detach:
        _detach(resolved, is_quiet=quiet)
        return
    from serving.cli.up import run

    raise typer.Exit(run(resolved, check=check, console=console(quiet=quiet)))


def down(
    port: PortOption = None,
    wait_s: Annotated[float, typer.Option(help="Seconds to wait.")] = 90.0,
    quiet: QuietOption = False,
) -> None:
    """Stop the system that `vireo up` started on a port.

    It is found whatever its run folder is. Leftovers of a killed start are ended too.
    """
    from serving.system.ray_env import end_leftovers

    port, run_dir, state = _find(port)
    if state is None:
        num_left = end_leftovers(run_dir)
        _tell("nothing is running" + (f"; ended {num_left} processes of a killed start" if num_left else ""), quiet)
        _name_others(port)
        return
    os.kill(state.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + wait_s
    while state.is_running():
        if time.monotonic() > deadline_s:
            raise Failed(f"process {state.pid} did not stop within {wait_s:g} s; see {state.run_dir}", Exit.FAILED)
        time.sleep(0.1)
    _tell("stopped", quiet)


def status(
    port: PortOption = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="VIREO_URL", help="A system anywhere, as it describes itself over HTTP."),
    ] = None,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what is running, where, and whether it is ready.

    For a system on this machine, also show which of its parts are alive.
    """
    if url is not None and port is None:
        rows = _told_by(url, api_key)
    else:
        port, _, state = _find(port)
        if state is None:
            typer.echo(json.dumps({"running": False}) if as_json else "nothing is running")
            _name_others(port)
            raise typer.Exit(Exit.UNREACHABLE)
        rows = _seen_of(state)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        show_table(("", ""), [(name.replace("_", " "), _in_words(value)) for name, value in rows.items()])
    raise typer.Exit(Exit.OK if rows["ready"] else Exit.FAILED)


def _seen_of(state: RunState) -> dict[str, Any]:
    import httpx
    import psutil

    from serving.cli.parts import parts

    try:
        ready = httpx.get(f"{state.http_url}/v2/health/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        ready = False
    try:
        processes = 1 + len(psutil.Process(state.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        processes = 0
    return {"running": True, "ready": ready, **state.public(), "parts": parts(state), "processes": processes}


def _told_by(url: str, api_key: str | None) -> dict[str, Any]:
    """Raises: Failed."""
    from serving.client.http import Client

    with Client(url, api_key) as client:
        tasks: dict[str, list[str]] = {}
        for model, block in client.models():
            for task in block["tasks"]:
                tasks.setdefault(task, []).append(model)
        ready = client.is_ready()
        models = list(dict.fromkeys(model for served in tasks.values() for model in served))
        return {"running": True, "ready": ready, "http_url": client.url, "models": models, "tasks": tasks}


def _in_words(value: object) -> str:
    """Return a fact as people write it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            said = {name: _in_words(inner) for name, inner in value.items()}
            if all(isinstance(inner, int) for inner in value.values()):
                return ", ".join(name if count == "1" else f"{name} {_times(count)}" for name, count in said.items())
            return "; ".join(f"{name}: {inner}" for name, inner in said.items())
        case list() | tuple():
            return ", ".join(map(str, value))
    return str(value)


def _times(count: str) -> str:
    return "missing" if count == "0" else f"x {count}"


def _ports(port: int | None, grpc_port: int | None = None) -> list[str]:
    given = {"http.port": port, "http.grpc_port": grpc_port}
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def _find(port: int | None) -> tuple[int, Path, RunState | None]:
    """Return the port, the run folder that goes with it, and what runs on it: in that folder or in any other."""
    from serving import config as configuration
    from serving.cli.run_state import found

    settings = configuration.load(None, _ports(port))
    return settings.http.port, *found(settings.http.port, configuration.run_dir_of(settings))


def _name_others(port: int) -> None:
    """On standard error, for whoever forgot the port."""
    from serving.cli.run_state import started

    if others := [state.http_url for state in started() if state.port != port and state.is_running()]:
        typer.echo(f"vireo: nothing on port {port}, but at {', '.join(others)}; name one with --port", err=True)


def _tell(line: str, is_quiet: bool) -> None:
    if not is_quiet:
        typer.echo(line)


def _detach(config: ResolvedConfig, *, is_quiet: bool) -> None:
    """Run the same command in a session of its own, and wait until it says that it is ready."""
    from serving.cli.run_state import RunState
    from serving.system.ray_env import make_private

    make_private(config.run_dir)
    log_path = config.run_dir / "up.log"
    command = [sys.executable, "-m", "serving.cli", *sys.argv[1:], "--no-detach"]
    with log_path.open("wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    with _stopped_with_us(child), console(stderr=True, quiet=is_quiet).status("starting"):
        while (state := RunState.read(config.run_dir)) is None or state.pid != child.pid or not state.ready:
            if child.poll() is not None:
                code = Exit(child.returncode) if child.returncode in list(Exit) else Exit.FAILED
                leave(f"start failed:\n{log_path.read_text()[-4000:]}", code or Exit.FAILED)
            time.sleep(0.2)
    typer.echo(log_path.read_text(), nl=False)


@contextmanager
def _stopped_with_us(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whoever gives up waiting wants no system."""
    try:
        yield
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
