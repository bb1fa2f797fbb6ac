"""``vireo metrics``: the metrics of one node on a port of their own, apart from the one that callers reach."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="The system on this machine", epilog=_EXAMPLES)(metrics)


_EXAMPLES = """\b
Examples:
  vireo metrics /tmp/vireo-1000/8000/metrics --port 9102
"""


def metrics(
    folder: Annotated[Path, typer.Argument(help="Where the processes of this node write: RUN_DIR/metrics.")],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9102,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    tenants: Annotated[
        bool, typer.Option("--tenants", help="Name the tenants; for a port that only the operator can reach.")
    ] = False,
) -> None:
    """Serve the metrics of this node on a port of their own.

    They are those of every process, added up, until SIGTERM or Ctrl-C. The folder is in the run dir that `vireo status`
    shows.
    """
    from prometheus_client import start_http_server

    from serving.telemetry.exposition import node_registry

    folder.mkdir(parents=True, exist_ok=True)  # the first process that writes may come later
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    server, thread = start_http_server(port, host, registry=node_registry(folder, names_tenants=tenants))
    typer.echo(f"metrics of {folder} on {host}:{server.server_port}")
    signal.sigwait((signal.SIGTERM, signal.SIGINT))
    server.shutdown()
    server.server_close()
    thread.join()
