"""The life of `vireo up`: Redis, then Ray and Serve, then a request of each kind, then wait; and back.

Shutdown order: HAProxy takes no new connection and what is under way is answered; Serve, Ray and Redis end. If a part
dies that nobody brings back (``serving.cli.watch``) the order is the same, in a few seconds, and the exit code is 1. A
start that is stopped has nothing to answer yet: its processes are ended at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
import structlog
from rich.console import Console

from serving.cli import drain
from serving.cli.memory import check_fits, small_limits
from serving.cli.run_state import RunState
from serving.cli.watch import Part, Watch, vital_children
from serving.client.exits import Exit
from serving.client.told import Failed
from serving.config import JobOptions, ResolvedConfig
from serving.errors import ConfigError
from serving.system import ray_env
from serving.system.door_keeper import DoorKeeper
from serving.system.ray_env import end_leftovers
from serving.tasks.base import Task
from serving.tasks.table import TASKS
from serving.telemetry import logs

_log = structlog.get_logger(__name__)
_LOST_DRAIN_S = 5.0
"""After the loss of a part, requests that are under way may still end: what serves them outlives it for a while."""
_HANGS_AFTER_S = 10.0


def run(config: ResolvedConfig, *, check: bool, console: Console) -> int:
    """Start, report, wait for a signal, stop. Returns the exit code.

    Raises: ConfigError: the configuration is wrong. Failed: it did not start.
    """
    logs.configure(config.settings.log_level)
    _refuse_second_start(config)
    end_leftovers(config.run_dir)
    _refuse_taken_ports(config)
    _refuse_unservable_models(config)
    check_fits(config)
    for model in config.models:
        if model.id != model.variant.id:
            console.print(f"{model.id} is {model.variant.id}: {model.variant.summary}", soft_wrap=True)
    for line in small_limits(config):
        console.print(line, soft_wrap=True)
    keeper = ray_env.prepare(config)
    _log.info("configuration", **config.describe())
    stop = threading.Event()
    signals = _Signals(config, stop)
    signals.handle()
    losses = _Losses(config, stop)
    state = _state(config)
    state.write()
    started_s = time.monotonic()
    try:
        with _redis(config, console), _door(keeper), _ray(config, console, keeper, losses, signals):
            if check and not stop.is_set():
                from serving.cli.self_check import check_every_surface

                check_every_surface(state, console, is_open=config.allow_anonymous_loopback)
            signals.is_starting = False
            _state(config, ready=True).write()
            announce(config, console, time.monotonic() - started_s)
            stop.wait()
            console.print("stopping")
            keeper.close()
            drain.close_front_door(config.metrics_dir, _drain_s(config, losses))
    except RayFailed as error:
        if losses.first is None and signals.ended_start is None:
            _end(config.run_dir, error.line, error.exit_code)
        raise
    finally:
        RunState.forget(config.run_dir)
        if losses.first is not None:
            losses.end()
        if signals.ended_start is not None:
            signals.end()
    console.print("stopped")
    return 0


class RayFailed(Failed):
    """Ray did not come up, or not in its time. Of what it has started nothing can be asked to end."""


def _end(run_dir: Path, line: str, code: Exit) -> NoReturn:
    """End what has been started and this process. At an ordinary exit Ray would look for what is gone."""
    end_leftovers(run_dir)
    RunState.forget(run_dir)
    sys.stdout.flush()
    print(f"vireo: {line}", file=sys.stderr, flush=True)
    os._exit(code)


class _Signals:
    """SIGINT and SIGTERM: a system that is up stops in order, a start is broken off where it is."""

    def __init__(self, config: ResolvedConfig, stop: threading.Event) -> None:
        self._run_dir = config.run_dir
        self._stop = stop
        self.is_starting = True
        self.ended_start: int | None = None
        """The signal that broke the start off."""

    def handle(self) -> None:
        """Put the handler in place; once more after ``ray.init``, whose own dumps the stack and dies."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """A signal has come; further ones change nothing."""
        is_first = not self._stop.is_set()
        self._stop.set()
        if self.is_starting and is_first:
            self.ended_start = number
            guard = threading.Timer(_HANGS_AFTER_S, self.end)
            guard.daemon = True
            guard.start()
            raise KeyboardInterrupt

    def end(self) -> NoReturn:
        """End what has been started and this process."""
        code = Exit.INTERRUPTED if self.ended_start == signal.SIGINT else Exit.OK
        _end(self._run_dir, "stopped before it was up", code)


class _Losses:
    """Stops `vireo up` when a part is lost; one that hangs because of that (Ray may) is ended without further order."""

    def __init__(self, config: ResolvedConfig, stop: threading.Event) -> None:
        self._config = config
        self._stop = stop
        self.first: Part | None = None

    def __call__(self, part: Part) -> None:
        """A part has died."""
        if self._stop.is_set():  # it may: everything is being stopped
            return
        self.first = part
        self._stop.set()
        guard = threading.Timer(_HANGS_AFTER_S, self.end)
        guard.daemon = True
        guard.start()

    def end(self) -> NoReturn:
        """End this process and what is left of the system."""
        assert self.first is not None
        name, pid = self.first.name, self.first.pid
        line = f"{name} (process {pid}) died, which nothing can mend; all else was stopped. Start again"
        _end(self._config.run_dir, line, Exit.FAILED)


def _drain_s(config: ResolvedConfig, losses: _Losses) -> float:
    whole_s = config.settings.drain_s + config.settings.gateway.default_deadline_s
    return whole_s if losses.first is None else min(whole_s, _LOST_DRAIN_S)


def _refuse_second_start(config: ResolvedConfig) -> None:
    state = RunState.read(config.run_dir)
    if state is not None and state.is_running():
        raise ConfigError(
            f"already running on port {config.settings.http.port} (pid {state.pid}): `vireo down` stops it"
        )


def _refuse_taken_ports(config: ResolvedConfig) -> None:
    http = config.settings.http
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    for port in (http.port, http.grpc_port):
        if port in taken:
            raise ConfigError(f"port {port} is taken by another process; choose others with --port and --grpc-port")


def _refuse_unservable_models(config: ResolvedConfig) -> None:
    """Now, rather than by a failed deployment in half a minute."""
    for model in config.models:
        for read in {task.read for task in TASKS if task.name in model.tasks}:
            read.load()(model)


def _state(config: ResolvedConfig, *, ready: bool = False) -> RunState:
    http = config.settings.http
    host = "127.0.0.1" if http.host in ("0.0.0.0", "localhost") else http.host
    return RunState(
        pid=os.getpid(),
        created_s=psutil.Process().create_time(),
        run_dir=str(config.run_dir),
        http_url=f"http://{host}:{http.port}",
        grpc_address=f"{host}:{http.grpc_port}",
        profile=config.settings.profile,
        models=tuple(model.id for model in config.models),
        tasks={task.name: served for task in TASKS if (served := config.models_for(task.name))},
        ready=ready,
    )


@contextlib.contextmanager
def _redis(config: ResolvedConfig, console: Console) -> Iterator[None]:
    if config.redis_url is not None:
        yield
        return
    from serving.stores.redis_server import EmbeddedRedis

    server = EmbeddedRedis(config.redis_socket.parent, is_persistent=bool(config.models_with(JobOptions)))
    try:
        with console.status("starting Redis"):
            server.start()
        yield
    finally:
        server.stop()


@contextlib.contextmanager
def _door(keeper: DoorKeeper) -> Iterator[None]:
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


@contextlib.contextmanager
def _ray(
    config: ResolvedConfig, console: Console, keeper: DoorKeeper, losses: _Losses, signals: _Signals
) -> Iterator[None]:
    """A Ray cluster of this process's own, with the graph on it."""
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import gRPCOptions

    from serving.app import GRPC_SERVICERS

    settings = config.settings
    with console.status("starting Ray"), _told(config, Exception):  # it raises no class of its own
        ray.init(
            address="local",
            num_cpus=_cpus(config),
            include_dashboard=False,
            object_store_memory=256 << 20,
            _temp_dir=str(config.run_dir / "ray"),
            _node_ip_address="127.0.0.1" if config.is_loopback else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    signals.handle()
    watch = Watch(vital_children(), losses)
    watch.start()
    has_failed = False
    try:
        with console.status("starting gateway and models"), _told(config, RayError, TimeoutError, ConnectionError):
            serve.start(
                http_options={"host": settings.http.host, "port": settings.http.port},
                # Reflection is one of ours: Ray's parses what it gets from callers without a key.
                grpc_options=gRPCOptions(
                    port=settings.http.grpc_port,
                    grpc_servicer_functions=list(GRPC_SERVICERS),
                    enable_reflection=False,
                ),
            )
            _deploy(config)
        yield
    except RayFailed:
        has_failed = True
        raise
    finally:
        watch.stop()
        keeper.close()
        # Ray would look for what is gone for a minute, and replicas outlive their raylet.
        if has_failed or losses.first is not None or signals.ended_start is not None:
            end_leftovers(config.run_dir)
        else:
            with contextlib.suppress(Exception):
                serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


@contextlib.contextmanager
def _told(config: ResolvedConfig, *kinds: type[Exception]) -> Iterator[None]:
    """Raises: RayFailed: for what Ray raises while it starts."""
    try:
        yield
    except (Failed, ConfigError):
        raise
    except kinds as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        line = (
            f"Ray did not start ({why}). The machine may be too busy or short of memory: start again when it is not. "
            f"Logs are in {config.run_dir}/ray/session_latest"
        )
        raise RayFailed(line, Exit.FAILED) from error


def _deploy(config: ResolvedConfig) -> None:
    from ray import serve

    from serving.app import build_graph

    try:
        serve.run(build_graph(config), name="vireo", route_prefix="/")
    except RuntimeError as error:
        line = f"the graph did not start: {error}; logs are in {config.run_dir}/ray/session_latest"
        raise Failed(line, Exit.FAILED) from error


def _cpus(config: ResolvedConfig) -> int:
    """Logical CPUs that Ray may hand out: replicas must be placed even on a machine with fewer cores."""
    gateway = config.settings.gateway
    wanted = gateway.replicas * gateway.cpus
    wanted += sum(model.replicas * model.cpus * model.num_ranks for model in config.models)
    return max(os.cpu_count() or 1, int(wanted) + 2)


def _examples(task: Task, config: ResolvedConfig) -> tuple[str, ...]:
    """What to type for a task: something for the first of its models, which is what a command asks that names none."""
    served = config.models_for(task.name)
    if not served:
        return ()
    (io,) = [model.variant.io for model in config.models if model.id == served[0]]
    if not task.picture_examples or not getattr(io, "needs_picture", io.takes_picture):
        return task.examples
    return task.both_examples if io.takes_prompt else task.picture_examples


def announce(config: ResolvedConfig, console: Console, seconds: float) -> None:
    """Say where it listens, what it serves, and what to type next."""
    state = _state(config)
    keys = "no API keys: loopback callers only" if config.allow_anonymous_loopback else "API keys required"
    console.print(f"\nVireo is up after {seconds:.0f} s (profile {state.profile}; {keys})", style="bold")
    console.print(f"  HTTP   {state.http_url:<22}  a page at /, API at /docs, metrics at /metrics", soft_wrap=True)
    console.print(f"  gRPC   {state.grpc_address:<22}  vireo.v1, Open Inference Protocol v2, health", soft_wrap=True)
    console.print(f"  models {', '.join(state.models)}", soft_wrap=True)
    examples = [example for task in TASKS for example in _examples(task, config)]
    for word, example in zip(("try", *[""] * len(examples)), examples, strict=False):
        console.print(f"  {word:<6} {example}", soft_wrap=True)
    console.print("  stop   Ctrl-C or `vireo down`")
