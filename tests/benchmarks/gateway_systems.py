"""The systems that bench_gateway compares: started, paused, counted and ended by process id."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from serving.cli.run_state import RunState
from tests.benchmarks.common import ROOT
from tests.support.ports import free_ports

START_TIMEOUT_S = 180.0
_IMAGE_FREE_BODY = {"model": "dyn-perceiver-nano", "images": []}
#: First match wins; what matches nothing is "other".
_GROUPS = (
    ("engine core", r"VLLM::EngineCore"),
    ("bare server", r"vllm\.entrypoints"),
    ("gateway", r"ServeReplica.*Gateway"),
    ("chat replica", r"ServeReplica.*texthawk2"),
    ("model", r"ServeReplica"),
    ("proxy", r"haproxy|HAProxy|ProxyActor"),
    ("controller", r"ServeController"),
    ("decode workers", r"worker_process|serving\.media"),
    ("raylet and gcs", r"raylet|gcs_server|dashboard|log_monitor|runtime_env"),
    ("redis", r"redis"),
    ("bare server", r"apps\.bare"),
)


@dataclass(kw_only=True)
class System:
    """One served system. ``ports`` by surface ("http", "grpc"); a surface that is absent is not offered."""

    name: str
    title: str
    commands: Sequence[Sequence[str]]
    ports: dict[str, int]
    env: dict[str, str]
    run_dir: Path
    readiness_path: str | None = None
    """A path that answers 200 once the system is ready, where that is how to know."""
    tree: Path = ROOT
    """The working tree whose code runs."""
    roots: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)

    def start(self) -> None:
        """Launch; ``wait_ready`` says when it answers."""
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.tree}:{self.tree / 'proto'}",
            "OMP_NUM_THREADS": "1",
            **self.env,
        }
        for number, command in enumerate(self.commands):
            log = (self.run_dir / f"output-{number}.log").open("wb")
            self.roots.append(
                subprocess.Popen(
                    [sys.executable, "-m", *command],
                    cwd=self.tree,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def wait_ready(self) -> None:
        """Raises: RuntimeError: a process ended, or nothing answered in time; with the end of the log."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            ended = [root for root in self.roots if root.poll() is not None]
            if ended or time.monotonic() > deadline_s:
                why = f"ended with {ended[0].returncode}" if ended else f"not ready after {START_TIMEOUT_S:g} s"
                raise RuntimeError(f"{self.name}: {why}\n{self._log_tail()}")
            time.sleep(0.3)

    def _is_ready(self) -> bool:
        if self.readiness_path is not None:
            return _answers_get(self.ports["http"], self.readiness_path)
        if self.name.startswith("ours"):
            state = RunState.read(self.run_dir)
            return state is not None and state.ready
        return all(_answers(surface, port) for surface, port in self.ports.items())

    def _log_tail(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.run_dir.glob("output-*.log"))

    def processes(self) -> list[psutil.Process]:
        """All processes of the system that live now."""
        found: dict[int, psutil.Process] = {}
        for root in self.roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(root.pid)
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        return list(found.values())

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far by group of processes; of those that live."""
        totals: dict[str, float] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                group = group_of(process)
                totals[group] = totals.get(group, 0.0) + times.user + times.system
        return totals

    def pids(self, group: str) -> list[int]:
        """Processes of a group."""
        return [process.pid for process in self.processes() if group_of(process) == group]

    def signal(self, number: signal.Signals) -> None:
        """To every process: SIGSTOP pauses the system, SIGCONT lets it go on."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        """Ask the roots to end; end by force, and by id, what is left after that."""
        everything = self.processes()
        self.signal(signal.SIGCONT)
        for root in self.roots:
            root.terminate()
        _, alive = psutil.wait_procs(everything, timeout=30)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
        for root in self.roots:
            root.wait()


def group_of(process: psutil.Process) -> str:
    """What a process is for, by its command line; Ray writes the actor's name there."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return "other"
    return next((name for name, pattern in _GROUPS if re.search(pattern, line)), "other")


def _answers(surface: str, port: int) -> bool:
    """HTTP: anything but a proxy that has no backend yet. gRPC is up together with it; see the label check."""
    if surface != "http":
        return True
    try:
        status = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json=_IMAGE_FREE_BODY, timeout=5).status_code
    except httpx.HTTPError:
        return False
    return status not in (404, 502, 503)


def _answers_get(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


# -- the sides ---------------------------------------------------------------------------------------------------------


def make_systems(run_dir: Path, operating_point: str) -> list[System]:
    """The sides in the order of the table. Folders have short names: the path of a socket is bounded."""
    http, grpc = free_ports(2)
    return [
        _plain("plain", "default Ray Serve", run_dir / "p", operating_point, {}),
        _plain("plain-flags", "the same, both flags", run_dir / "f", operating_point, flags(run_dir / "f")),
        _ours("ours", "Vireo, cache off", run_dir / "o", cache=False),
        _ours("ours-cache", "Vireo, cache on (note)", run_dir / "c", cache=True),
        System(
            name="bare",
            title="bare uvicorn / grpc.aio",
            commands=[
                ["tests.benchmarks.apps.bare", "http", "--port", str(http), "--operating-point", operating_point],
                ["tests.benchmarks.apps.bare", "grpc", "--port", str(grpc), "--operating-point", operating_point],
            ],
            ports={"http": http, "grpc": grpc},
            env={},
            run_dir=run_dir / "b",
        ),
    ]


def _plain(name: str, title: str, run_dir: Path, operating_point: str, env: dict[str, str]) -> System:
    http, grpc = free_ports(2)
    arguments = f"--http-port {http} --grpc-port {grpc} --run-dir {run_dir} --operating-point {operating_point}"
    return System(
        name=name,
        title=title,
        commands=[["tests.benchmarks.apps.plain_serve", *arguments.split()]],
        ports={"http": http, "grpc": grpc},
        env={"RAY_USAGE_STATS_ENABLED": "0", **env},
        run_dir=run_dir,
    )


def flags(run_dir: Path) -> dict[str, str]:
    """Both flags, and what lets a second system live on the same machine."""
    ports = dict(zip(("METRICS", "STATS"), free_ports(2), strict=True))
    fallback_http, fallback_grpc, block = *free_ports(2), random.randrange(20_000, 29_000, 200)
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
        **{f"RAY_SERVE_HAPROXY_{name}_PORT": str(port) for name, port in ports.items()},
        # Ray 2.60 lets two systems share replica ports for gRPC; the kernel then deals out calls to both.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(block + 100),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(block + 100),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(block + 200),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
    }


def _ours(name: str, title: str, run_dir: Path, *, cache: bool) -> System:
    http, grpc = free_ports(2)
    others = ("log_level=warning", "models=[{id: dyn-perceiver-nano}]")
    settings = [f"redis.cache={str(cache).lower()}", f"run_dir={run_dir}", *others]
    command = ["serving.cli", "up", "--port", str(http), "--grpc-port", str(grpc)]
    return System(
        name=name,
        title=title,
        commands=[[*command, *(word for setting in settings for word in ("--set", setting))]],
        ports={"http": http, "grpc": grpc},
        env={},
        run_dir=run_dir,
    )


@contextlib.contextmanager
def running(systems: Sequence[System]) -> Iterator[None]:
    """Start them one after another, and end all of them, whatever happens."""
    try:
        for system in systems:
            print(f"starting {system.title}", file=sys.stderr, flush=True)
            system.start()
            system.wait_ready()
            system.signal(signal.SIGSTOP)
        yield
    finally:
        for system in systems:
            system.stop()
