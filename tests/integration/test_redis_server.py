"""The embedded server as a process: private, supervised, and never left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from serving.errors import ConfigError
from serving.stores.redis_server import EmbeddedRedis
from tests.support.redis_server import embedded_redis, stopped
from tests.support.waiting import wait_until


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with embedded_redis() as server:
        yield server


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


def test_listens_on_a_private_socket_only(server: EmbeddedRedis, client: redis.Redis) -> None:
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.run_dir.stat().st_mode) == 0o700
    assert client.config_get("port") == {"port": "0"}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
    assert client.config_get("save") == {"save": ""}
    assert server.is_alive()
    assert server.log_path.read_text()


def test_stop_ends_it_and_it_can_be_started_again(server: EmbeddedRedis) -> None:
    first = server.pid
    assert first is not None
    server.stop()
    server.stop()
    assert not exists(first)
    assert server.pid is None
    assert not server.is_alive()
    server.start()
    assert server.is_alive()


def test_killed_server_is_started_again_and_empty(server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("a", "1")
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: server.pid not in (None, first) and server.is_alive())
    assert server.num_restarts == 1
    with redis.Redis.from_url(server.url) as client:
        assert client.get("a") is None


def test_persistent_server_keeps_what_it_was_told() -> None:
    with embedded_redis(is_persistent=True) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("job", "1")
        server.stop()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("job") == b"1"


def test_frozen_server_is_seen_as_not_alive_and_can_still_be_stopped(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.stores.redis_server._STOP_TIMEOUT_S", 0.2)
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert not server.is_alive()
    server.stop()
    assert not exists(pid)


def test_waking_up_makes_it_alive_again(server: EmbeddedRedis) -> None:
    with stopped(server):
        assert not server.is_alive()
    assert wait_until(server.is_alive)


def test_survives_the_thread_that_started_it() -> None:
    with embedded_redis() as template:
        folder = template.run_dir / "inner"
        server = EmbeddedRedis(folder)
        starter = threading.Thread(target=server.start)
        starter.start()
        starter.join()
        try:
            assert server.is_alive()
            assert server.num_restarts == 0
        finally:
            server.stop()


def test_memory_pressure_evicts_results_and_never_a_quota() -> None:
    with embedded_redis(max_memory_bytes=4 << 20) as server, redis.Redis.from_url(server.url) as client:
        client.hset("bucket", "joules", "0")
        for number in range(4_000):
            client.set(f"result:{number}", b"x" * 4_000, ex=3600)
        assert client.info("stats")["evicted_keys"] > 1_000
        assert client.hget("bucket", "joules") == b"0"


def test_second_start_and_second_server_in_one_directory_are_refused(server: EmbeddedRedis) -> None:
    with pytest.raises(ConfigError, match="started already"):
        server.start()
    with pytest.raises(ConfigError, match="already answers"):
        EmbeddedRedis(server.run_dir).start()


def test_socket_path_over_the_limit_of_unix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the limit of unix sockets is 107"):
        EmbeddedRedis(tmp_path / ("x" * 120)).start()


def test_directory_that_others_may_write_to_is_refused(server: EmbeddedRedis) -> None:
    folder = server.run_dir / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        EmbeddedRedis(folder).start()


def test_server_that_cannot_start_is_reported_with_its_log(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.stores.redis_server._START_TIMEOUT_S", 0.5)
    broken = EmbeddedRedis(server.run_dir / "broken", eviction_policy="no-such-policy")
    with pytest.raises(ConfigError, match=r"did not answer within 0\.5 s; see .*redis\.log"):
        broken.start()
    assert broken.pid is None


PARENT = """
import sys, time
from pathlib import Path
from serving.stores.redis_server import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_server_does_not_outlive_a_parent_that_was_killed(server: EmbeddedRedis) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, str(server.run_dir / "child")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
        parent.kill()
    assert wait_until(lambda: not exists(pid))
