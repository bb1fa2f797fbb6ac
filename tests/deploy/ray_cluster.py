"""A real Ray cluster of one node for a test: own ports, own folders, own token, and nothing left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tests.support.ports import free_ports
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
# Every process of a cluster inherits this variable, so its owner can be told from any other Ray on the machine.
MARK = "VIREO_TEST_CLUSTER"


def free_range(length: int, start: int) -> int:
    """Return the first port of a free range, below the ports that the system hands out by itself."""
    for first in range(start, 30000, length):
        if all(_is_free(port) for port in range(first, first + length)):
            return first
    raise RuntimeError(f"no {length} free ports in a row from {start} to 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True)
class RayCluster:
    """Where a running cluster is, and the environment that commands for it need."""

    folder: Path
    dashboard_url: str
    environment: Mapping[str, str]

    def serve(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run the `serve` command against this cluster and return what it printed.

        Raises: AssertionError: it failed; the message holds its output.
        """
        command = [str(BIN / "serve"), *arguments, "--address", self.dashboard_url]
        run = subprocess.run(
            command, env=dict(self.environment), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert run.returncode == 0, f"{' '.join(command)}: {run.stdout}\n{run.stderr}"
        return run.stdout

    def application(self, name: str) -> tuple[str, str]:
        """Return an application's status (NOT_STARTED before Serve knows it), and what it and its deployments say."""
        status = yaml.safe_load(self.serve("status")) or {}
        found = status.get("applications", {}).get(name, {})
        messages = [found.get("message", ""), *(d.get("message", "") for d in found.get("deployments", {}).values())]
        return str(found.get("status", "NOT_STARTED")), "\n".join(filter(None, messages))

    def wait_running(self, name: str, timeout_s: float) -> None:
        """Wait until an application runs.

        Raises: AssertionError: it failed to deploy, or was not there in time; the message is Serve's own.
        """

        def runs() -> bool:
            status, message = self.application(name)
            assert status != "DEPLOY_FAILED", f"{name} failed to deploy: {message}"
            return status == "RUNNING"

        wait_until(runs, f"{name} runs", timeout_s)


@contextmanager
def ray_cluster(environment: Mapping[str, str], num_cpus: int) -> Iterator[RayCluster]:
    """Start a head, give it over, and end every process of it whatever happened."""
    # Short, because Ray makes Unix sockets below it and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="vr", dir="/tmp"))
    mark = secrets.token_hex(8)
    env = {**os.environ, **environment, **_own_places(folder), MARK: mark, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    gcs, dashboard, client, agent, agent_grpc, metrics, runtime_env = free_ports(7)
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
        "metrics-export-port": metrics,
        "runtime-env-agent-port": runtime_env,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    command += [f"--num-cpus={num_cpus}", "--object-store-memory=100000000", f"--temp-dir={folder / 'ray'}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log_path = folder / "ray-start.log"
    head: subprocess.Popen[bytes] | None = None
    try:
        with log_path.open("wb") as log:
            head = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        _wait_listening(dashboard, head, log_path, timeout_s=60.0)
        yield RayCluster(folder, f"http://127.0.0.1:{dashboard}", env)
    finally:
        end_processes(mark)
        if head is not None:
            head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _own_places(folder: Path) -> dict[str, str]:
    """HAProxy's ports and files are fixed unless told otherwise; another cluster on this machine may hold them."""
    metrics, stats = free_ports(2)
    http = free_range(50, start=21000)
    grpc = free_range(50, start=http + 50)
    return {
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MPLCONFIGDIR": str(folder / "cache" / "matplotlib"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "haproxy" / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "haproxy" / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "haproxy" / "server-state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http + 49),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc + 49),
    }


def _wait_listening(port: int, head: subprocess.Popen[bytes], log_path: Path, timeout_s: float) -> None:
    wait_until(lambda: head.poll() is not None or not _is_free(port), f"a dashboard; see {log_path}", timeout_s)
    assert head.poll() is None, f"ray start ended: {log_path.read_text(errors='replace')}"


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return the living processes that carry this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def end_processes(mark: str, grace_s: float = 10.0) -> None:
    """Ask every process with this mark to end, then make it.

    Raises: AssertionError: some are left.
    """
    for process in marked_processes(mark):
        _signal(process, kill=False)
    psutil.wait_procs(marked_processes(mark), timeout=grace_s)
    for process in marked_processes(mark):
        _signal(process, kill=True)
    psutil.wait_procs(marked_processes(mark), timeout=grace_s)
    left = [f"{p.pid} {p.name()}" for p in marked_processes(mark)]
    assert not left, f"processes of the test cluster are left: {left}"


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return
