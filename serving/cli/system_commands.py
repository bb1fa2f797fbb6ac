"""``vireo up``, ``down`` and ``status``: the whole system on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from serving import config as configuration
from serving.cli.parts import parts
from serving.cli.run_state import RunState
from serving.client.options import LicenceOption
from serving.errors import ConfigError

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML configuration file.")]
ProfileOption = Annotated[str | None, typer.Option(help="local (default), gpu or cluster.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="section.field=value, over everything else; repeatable.")
]
PortOption = Annotated[int | None, typer.Option(help="HTTP port; default 8000.")]

_console = Console()


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    port: PortOption = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; default 9000.")] = None,
    overrides: SetOption = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="ID[=FOLDER]", help="Serve this model and no others; repeatable."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="[ID.]NAME=VALUE",
            help="Set up a model: replicas, gpus, ... or one of its options; ID. where several are served. Repeatable.",
        ),
    ] = None,
    accept_licence: LicenceOption = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is up; `vireo down` stops it.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Answer one request of each kind before saying so.")] = True,
) -> None:
    """Start everything: Redis, Ray, HAProxy, gateway and models. Stays up until Ctrl-C or `vireo down`."""
    extra = [*(overrides or ()), *_ports(port, grpc_port)]
    named = [name.partition("=")[0] for name in models or ()]
    if accept_licence and not named:
        raise ConfigError("--accept-licence goes with --model: say whose licence you accept")
    set_up = [*(f"{name}.accept_licence=true" for name in named if accept_licence), *(options or ())]
    resolved = configuration.resolve(configuration.load(config, extra, profile, models=models or (), options=set_up))
    if detach:
        _detach(resolved)
        return
    from serving.cli.up import run

    raise typer.Exit(run(resolved, check=check, console=_console))


def down(port: PortOption = None, wait_s: Annotated[float, typer.Option(help="Seconds to wait.")] = 90.0) -> None:
    """Stop the system that `vireo up` started on this port."""
    from serving.system.ray_env import end_leftovers

    run_dir = _run_dir(port)
    state = RunState.read(run_dir)
    if state is None or not state.is_running():
        num_left = end_leftovers(run_dir)
        _console.print("nothing is running" + (f"; ended {num_left} processes of a killed start" if num_left else ""))
        return
    os.kill(state.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + wait_s
    while state.is_running():
        if time.monotonic() > deadline_s:
            sys.exit(f"vireo: process {state.pid} did not stop within {wait_s:g} s; see {state.run_dir}")
        time.sleep(0.1)
    _console.print("stopped")


def status(
    port: PortOption = None, as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """Say what is running, where, which of its parts live, and whether it is ready. Exit code 1 when it is not."""
    import httpx

    state = RunState.read(_run_dir(port))
    if state is None or not state.is_running():
        typer.echo(json.dumps({"running": False}) if as_json else "nothing is running")
        raise typer.Exit(1)
    try:
        ready = httpx.get(f"{state.http_url}/v2/health/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        ready = False
    found = parts(state)
    rows = {"running": True, "ready": ready, **state.public(), "parts": found, "processes": _processes(state.pid)}
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        told = {"parts": ", ".join(f"{name} {count or 'missing'}" for name, count in found.items())}
        told["models"] = ", ".join(state.models)
        told["tasks"] = "; ".join(f"{task}: {', '.join(served)}" for task, served in state.tasks.items())
        table = Table(show_header=False)
        for name, value in (rows | told).items():
            table.add_row(name, str(value))
        _console.print(table)
    raise typer.Exit(0 if ready else 1)


def _ports(port: int | None, grpc_port: int | None = None) -> list[str]:
    given = {"http.port": port, "http.grpc_port": grpc_port}
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def _run_dir(port: int | None) -> Path:
    return configuration.run_dir_of(configuration.load(None, _ports(port)))


def _processes(pid: int) -> int:
    try:
        return 1 + len(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return 0


def _detach(config: configuration.ResolvedConfig) -> None:
    """Run the same command in a session of its own, and wait until it says that it is ready."""
    from serving.system.ray_env import make_private

    make_private(config.run_dir)
    log_path = config.run_dir / "up.log"
    command = [sys.executable, "-m", "serving.cli", *(word for word in sys.argv[1:] if word not in ("-d", "--detach"))]
    with log_path.open("wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    with _console.status("starting"):
        while (state := RunState.read(config.run_dir)) is None or state.pid != child.pid or not state.ready:
            if child.poll() is not None:
                sys.exit(f"vireo: start failed:\n{log_path.read_text()[-4000:]}")
            time.sleep(0.2)
    _console.print(log_path.read_text())
