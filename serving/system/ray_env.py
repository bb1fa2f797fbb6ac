"""Environment that Ray and its HAProxy need before ``ray`` is imported anywhere.

The two throughput flags, files and ports of this start alone, and what keeps an embedded start private to the machine.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

from serving.config import ResolvedConfig
from serving.errors import ConfigError
from serving.system.door_keeper import DoorKeeper
from serving.system.haproxy import build_keeper, write_wrapper

_MAX_RUN_DIR_BYTES = 36
"""Below it lie sockets of Ray (70 bytes more) and of HAProxy (61 more), whose paths may have 107 and 97 bytes."""

BEFORE_RAY = "serving.gateway.before_ray.before_ray"

_PORTS = (25_000, 32_700)
"""Where gateway replicas and Ray's own listen: below the ports that Linux deals out for outgoing connections, one of
which could take a port between now and the moment at which it is bound."""
_BLOCK = 140
"""Ports for one protocol of one system: more than twice ``gateway.replicas``, for replacements."""


def _haproxy(config: ResolvedConfig) -> Path:
    """One letter, for the sake of the sockets."""
    return config.run_dir / "h"


def ray_environment(config: ResolvedConfig) -> dict[str, str]:
    """Variables for the process that starts Ray; every Ray process inherits them."""
    haproxy = _haproxy(config)
    return {
        MARK: str(config.run_dir),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # An idle cluster took 0.12 of a core; so it takes 0.09. Nothing here reads Ray's own metrics or list of tasks.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        "RAY_enable_metrics_collection": "0",
        "RAY_task_events_report_interval_ms": "0",
        # Under the flag above Ray keeps a thousand lines of the access log in memory. A gateway that is killed took
        # them along, and a quiet one showed none for hours.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # One image of many megapixels as a pixel tensor must fit; the front door has bounded the body before.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(config.settings.limits.max_body_bytes),
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(config.settings.limits.max_body_bytes),
        # Called before gateways and Ray's own proxies start their servers.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": BEFORE_RAY,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(config.settings.drain_s),
        # A gateway that dies before it answered is retried on another one, while the request is still in the
        # proxy's buffer. Every path of today is idempotent (docs/decisions/0004).
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # The dead one has the fewest connections, so that HAProxy may pick it again until three errors mark it down.
        "RAY_SERVE_HAPROXY_RETRIES": "8",
        # At a change of gateways the old HAProxy lets its clients go one by one, each after an answer that says so;
        # closed all at once, some would be sending just then.
        "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "5",
        # Ray replaces a HAProxy after three failed checks; meanwhile a stand-in serves (``door_keeper``).
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        # Ray kills one that takes longer than five seconds to start, as on a busy machine, and `up` would end with it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 << 10),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy / "haproxy"),
        **_ports(),
        **_token(),
        **(_loopback() if config.is_loopback else {}),
    }


def _ports() -> dict[str, str]:
    """Ray's own are fixed; with ports of its own, a second system on this machine does not meet the first.

    For the replicas' gRPC ports that matters most: Ray 2.60 means to bind them exclusively, but gives gRPC its
    ``so_reuseport`` as text, which gRPC ignores. Two systems then share a port, and the kernel deals out the calls.
    """
    names = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")
    own, *others = _free_blocks(3)
    single = {f"RAY_SERVE_{name}": str(port) for name, port in zip(names, own, strict=False)}
    blocks = zip(("HTTP", "GRPC"), others, strict=True)
    replicas = {
        f"RAY_SERVE_DIRECT_INGRESS_{bound}_{protocol}_PORT": str(port)
        for protocol, block in blocks
        for bound, port in (("MIN", block.start), ("MAX", block[-1]))
    }
    return single | replicas


def _token() -> dict[str, str]:
    """Ray takes code to run from whoever reaches its ports, some of which listen on every interface: ask for a token.

    An operator who has set up Ray's authentication (KubeRay does) keeps what he has.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _loopback() -> dict[str, str]:
    """Make loopback the node's address, so that Ray's own ports are private to this machine (its way, whatever the
    platform)."""
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def prepare(config: ResolvedConfig) -> DoorKeeper:
    """Make the folders, private to this user, and set the variables. Call before importing ray. Returns what keeps the
    door open, still to be started.

    Raises: ConfigError: the path of the run folder is too long.
    """
    num_bytes = len(os.fsencode(config.run_dir))
    if num_bytes > _MAX_RUN_DIR_BYTES:
        raise ConfigError(
            f"the run folder {config.run_dir} has a path of {num_bytes} bytes; limit is {_MAX_RUN_DIR_BYTES}, for the "
            "sake of the sockets below it: set run_dir or VIREO_RUN_DIR to a shorter one"
        )
    make_private(config.run_dir)
    config.keep_secret()
    for name in ("h", "metrics", "ray"):  # of the start before: each would add its own and nobody would remove them
        shutil.rmtree(config.run_dir / name, ignore_errors=True)
    for name in ("h", "metrics", "redis", "ray"):
        (config.run_dir / name).mkdir(exist_ok=True)
    write_wrapper(config, _haproxy(config))
    keeper = build_keeper(config, _haproxy(config))  # before the variables say that our script is HAProxy
    os.environ.update(ray_environment(config))
    return keeper


def make_private(folder: Path) -> None:
    """Create a folder that only this user can enter.

    Raises: PermissionError: somebody else owns it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set run_dir or VIREO_RUN_DIR to a folder of yours")
    folder.chmod(0o700)


_held = ExitStack()
"""What says until this process ends that its blocks are taken; most of their ports are bound much later, if ever."""


def _free_blocks(count: int) -> list[range]:
    """Blocks of ports on which nobody listens and that no other start has claimed, in random order; claims them."""
    blocks = [range(start, start + _BLOCK) for start in range(*_PORTS, _BLOCK)]
    random.SystemRandom().shuffle(blocks)
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.laddr}
    with ExitStack() as claims:
        free: list[range] = []
        for block in blocks:
            if len(free) < count and taken.isdisjoint(block) and _claim(block, claims):
                free.append(block)
        if len(free) < count:
            raise ConfigError(f"no {count} blocks of {_BLOCK} free ports in {_PORTS}: stop what listens there")
        _held.push(claims.pop_all())
    return free


def _claim(block: range, claims: ExitStack) -> bool:
    """Bind a name of the kernel's that exists once on this host, like a port, and goes with the process that bound it:
    between two systems that start at the same moment, and of which neither listens yet, it decides."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0vireo-ports-{block.start}")
    except OSError:
        claim.close()
        return False
    claims.callback(claim.close)
    return True


MARK = "VIREO_STARTED_IN"
"""Every process of a start inherits this variable; its value is the run folder."""
_GRACE_S = 5.0


def started_in() -> set[Path]:
    """Run folders of this user's systems whose processes live, wherever the folders are."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        try:
            if folder := process.environ().get(MARK):
                found.add(Path(folder))
        except psutil.Error:
            continue
    return found


def end_leftovers(run_dir: Path) -> int:
    """Kill the processes of an earlier start in that folder. Call when none is running. Returns how many there were."""
    found = list(_marked(run_dir))
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=_GRACE_S)
    return len(found)


def _marked(run_dir: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(run_dir) or _logs_into(process, run_dir):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _logs_into(process: psutil.Process, run_dir: Path) -> bool:
    """Ray's agents write their titles over their environment; what they log to is still theirs."""
    if not process.name().startswith("ray::"):
        return False
    return any(Path(file.path).is_relative_to(run_dir) for file in process.open_files())
