"""The whole of Vireo as a stranger gets it: ``vireo up`` in a process of its own, on ports and in folders of its own.

Whatever happens to the tests, nothing is left: the process stops in order when its context ends, is told to when the
process of the tests dies, and what is then still there, Ray's, HAProxy's and Redis' processes included, is killed. Each
of them inherits a variable with the mark of its system, by which it can be told from everybody else's.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from serving.cli.parts import parts
from serving.cli.run_state import RunState
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MODEL = "dyn-perceiver-nano"
MARK = "VIREO_TEST_SYSTEM"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
# Set in the child and not by a preexec_fn, which is unsafe in a process with threads; it survives exec.
_LAUNCHER = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "os.getppid() == int(sys.argv[1]) or os._exit(1)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'serving.cli', *sys.argv[2:]])\n"
)


def free_service_ports(count: int) -> list[int]:
    """Ports below those that the kernel and Ray give to whoever asks, so that nobody takes them while we start."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            port = random.SystemRandom().randrange(20_000, 25_000)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


@dataclass(frozen=True)
class Metrics:
    """One scrape."""

    samples: Sequence[tuple[str, Mapping[str, str], float]]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name which have these labels."""
        return sum(v for n, have, v in self.samples if n == name and labels.items() <= have.items())

    def names(self) -> set[str]:
        """Names of all samples."""
        return {name for name, _labels, _value in self.samples}


@dataclass
class System:
    """A running system."""

    port: int
    grpc_port: int
    base_dir: Path
    mark: str
    process: subprocess.Popen[bytes]
    environment: Mapping[str, str] = field(repr=False)
    admin_key: str | None = field(repr=False)
    """Of a tenant that metrics name the others to; None where nobody has a key."""
    launch: Callable[[], subprocess.Popen[bytes]] = field(repr=False)

    @property
    def http_url(self) -> str:
        """Where HTTP is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        """Where gRPC is."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def run_dir(self) -> Path:
        """Folder of the running system."""
        return self.base_dir / str(self.port)

    @property
    def output(self) -> str:
        """What `vireo up` has printed."""
        return (self.base_dir / "up.log").read_text(errors="replace")

    def metrics(self) -> Metrics:
        """Scrape ``/metrics``, as one who sees the tenants."""
        headers = {"x-api-key": self.admin_key} if self.admin_key else {}
        answer = httpx.get(f"{self.http_url}/metrics", headers=headers, timeout=10.0).raise_for_status()
        families = text_string_to_metric_families(answer.text)
        return Metrics([(s.name, s.labels, s.value) for family in families for s in family.samples])

    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        try:
            return httpx.get(f"{self.http_url}/v2/health/ready", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def in_flight(self) -> float:
        """Requests being served, all surfaces and gateways together."""
        return self.metrics().total("vireo_in_flight_requests")

    def processes(self) -> list[psutil.Process]:
        """Every living process of this system."""
        return processes_of(self.mark, self.process.pid)

    def named(self, name: str) -> list[psutil.Process]:
        """This system's living processes of this name."""
        return [process for process in self.processes() if name_of(process) == name]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The replicas of a deployment, oldest first; the newest may still be starting."""
        title = f"ray::ServeReplica:vireo:{deployment}"
        found = [process for process in self.processes() if _command_line(process).startswith(title)]
        return sorted(found, key=lambda process: process.create_time())

    def command(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the `vireo` command in this system's environment."""
        return run_cli(*arguments, environment=self.environment, timeout_s=timeout_s)

    def parts(self) -> Mapping[str, int]:
        """How many of each part live, as `vireo status` says, without the seconds that a command takes to start."""
        state = RunState.read(self.run_dir)
        assert state is not None
        return parts(state)

    def status(self) -> dict[str, Any]:
        """What `vireo status` says."""
        document: dict[str, Any] = json.loads(self.command("status", "--port", str(self.port), "--json").stdout)
        return document


def run_cli(
    *arguments: str, environment: Mapping[str, str], timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run the `vireo` command."""
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", *arguments],
        cwd=ROOT,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def cli_environment(base_dir: Path, mark: str, root: Path = ROOT) -> dict[str, str]:
    """Environment of `vireo` commands of one system, without anything that the tests' own environment sets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIREO_", "RAY_", "PYTEST_"))}
    paths = [str(root), str(root / "proto"), kept.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": ":".join(filter(None, paths)),
        "VIREO_RUN_DIR": str(base_dir),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        MARK: mark,
    }


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path: Ray and Redis make sockets below it, whose paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="v", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_system(
    *settings: str,
    models: Sequence[Mapping[str, Any]] = ({"id": MODEL},),
    tenants: Sequence[Mapping[str, Any]] = (),
    start_timeout_s: float = START_TIMEOUT_S,
    root: Path = ROOT,
    check: bool = False,
) -> Iterator[System]:
    """Start a system, give it over when it is ready, take it down. ``settings`` are as for `vireo up --set`;
    ``root`` is the working tree whose code runs. ``check``: whether it asks itself one question of each kind.

    Without ``models`` it neither chats nor makes clips: that takes its start from seconds to half a minute.

    Raises: AssertionError: it did not start, or something of it is left after its end.
    """
    mark = secrets.token_hex(8)
    settings = (f"models={json.dumps(list(models))}", *settings)
    if root == ROOT:  # the counters that a machine happens to have are no business of most tests
        settings = ("energy.meter=estimate", *settings)
    flags = () if check else ("--no-check",)
    with short_folder() as base_dir:
        port, grpc_port = free_service_ports(2)
        environment = cli_environment(base_dir, mark, root)
        admin_key = f"admin-{mark}" if tenants and root == ROOT else None  # earlier code knows no admin
        if admin_key is not None:
            digest = hashlib.sha256(admin_key.encode()).hexdigest()
            tenants = [*tenants, {"name": "admin", "admin": True, "api_key_sha256": [digest]}]
        launch = partial(_launch, base_dir, environment, root, port, grpc_port, settings, tenants, flags)
        system = System(port, grpc_port, base_dir, mark, launch(), environment, admin_key, launch)
        try:
            _wait_ready(system, start_timeout_s)
            yield system
        finally:
            stop(system)


def _launch(
    base_dir: Path,
    environment: Mapping[str, str],
    root: Path,
    port: int,
    grpc_port: int,
    settings: Sequence[str],
    tenants: Sequence[Mapping[str, Any]],
    flags: Sequence[str],
) -> subprocess.Popen[bytes]:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start systems in the main thread: the death signal is tied to the thread that forks")
    options = [part for setting in settings for part in ("--set", setting)]
    if tenants:
        options += ["--set", f"tenants={json.dumps(list(tenants))}"]
    command = [sys.executable, "-c", _LAUNCHER, str(os.getpid()), "up", *flags]
    command += ["--port", str(port), "--grpc-port", str(grpc_port), *options]
    with (base_dir / "up.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=root,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop it in order
        )


def _wait_ready(system: System, timeout_s: float) -> None:
    def is_up() -> bool:
        assert system.process.poll() is None, f"vireo up ended: {system.output[-4000:]}"
        state = system.run_dir / "run.json"
        return state.exists() and json.loads(state.read_text())["ready"] and system.is_ready()

    wait_until(is_up, "vireo up is ready", timeout_s)


def restart(system: System) -> None:
    """Stop in order and start again in the same folder. Raises: AssertionError."""
    stop(system)
    system.process = system.launch()
    _wait_ready(system, START_TIMEOUT_S)


def stop(system: System) -> None:
    """Stop in order, then make sure.

    Raises: AssertionError: it had to be killed, or a process or a port of it was left behind.
    """
    if system.process.poll() is None:
        system.process.terminate()
    try:
        system.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        system.process.kill()
        system.process.wait()
    _, left = psutil.wait_procs(system.processes(), timeout=10.0)
    names = [f"{process.pid} {_command_line(process)}" for process in left]
    for process in left:
        _kill(process)
    psutil.wait_procs(left, timeout=10.0)
    assert not names, f"processes outlived their system: {names}\n{system.output[-2000:]}"
    for port in (system.port, system.grpc_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is still open"


def name_of(process: psutil.Process) -> str:
    """The process's name, or nothing when it has ended since it was listed."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return "?"


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def processes_of(mark: str, session: int) -> list[psutil.Process]:
    """Return the living processes that carry this mark in their environment or belong to this session.

    Redis writes its title over its environment, so the mark alone would miss it.
    """
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get(MARK) == mark or os.getsid(process.pid) == session
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            continue
    return found
