"""What Ray and HAProxy are told before they start."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.config import ResolvedConfig, from_mapping, resolve
from serving.errors import ConfigError
from serving.system import ray_env
from tests.support.system import short_folder

KEYED = {"tenants": [{"name": "a", "api_key_sha256": ["ab" * 32]}]}


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    """A process starts one system, and holds its blocks of ports until it ends."""
    yield
    ray_env._held.close()


def config(folder: Path, **settings: object) -> ResolvedConfig:
    return resolve(from_mapping({"run_dir": str(folder), **settings}))


def test_start_makes_a_token_of_its_own_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    first, second = (ray_env.ray_environment(config(tmp_path)) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_operators_own_authentication_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "RAY_AUTH_TOKEN" not in ray_env.ray_environment(config(tmp_path))


def test_only_a_loopback_start_has_loopback_as_its_nodes_address(tmp_path: Path) -> None:
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    assert ray_env.ray_environment(config(tmp_path))[name] == "0"
    assert name not in ray_env.ray_environment(config(tmp_path, http={"host": "0.0.0.0"}, **KEYED))


def block(environment: dict[str, str], protocol: str) -> range:
    ends = [int(environment[f"RAY_SERVE_DIRECT_INGRESS_{end}_{protocol}_PORT"]) for end in ("MIN", "MAX")]
    return range(*ends)


def test_replica_ports_are_blocks_in_which_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(20):
            environment = ray_env.ray_environment(config(tmp_path))
            http, grpc = block(environment, "HTTP"), block(environment, "GRPC")
            assert len(http) == len(grpc) > 2 * 64, "room for twice the gateways that may be configured"
            assert set(http).isdisjoint(grpc)
            assert listener.getsockname()[1] not in [*http, *grpc]
            ray_env._held.close()


def test_systems_that_start_at_the_same_moment_get_blocks_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither listens anywhere yet. The numbers are above those of ports, so that nobody else has claimed them."""
    first = 100_000 * os.getpid()
    monkeypatch.setattr(ray_env, "_PORTS", (first, first + 6 * ray_env._BLOCK))
    environments = [ray_env.ray_environment(config(tmp_path)) for _ in range(2)]
    ports = [value for environment in environments for name, value in environment.items() if name.endswith("_PORT")]
    assert len(ports) == len(set(ports)) == 16
    with pytest.raises(ConfigError, match="no 3 blocks"):
        ray_env.ray_environment(config(tmp_path))
    ray_env._held.close()
    assert ray_env.ray_environment(config(tmp_path)), "a system that has ended holds none"


def test_no_port_is_one_that_an_outgoing_connection_may_take_before_it_is_bound(tmp_path: Path) -> None:
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    environment = ray_env.ray_environment(config(tmp_path))
    ports = {name: int(value) for name, value in environment.items() if name.endswith("_PORT")}
    assert len(ports) == 8
    assert len(set(ports.values())) == 8
    assert max(ports.values()) <= min(first_outgoing, 32_768)


def test_neighbouring_blocks_share_no_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes the last one of a range as well."""
    monkeypatch.setattr(ray_env, "_free_blocks", lambda count: [range(5 * at, 5 * at + 5) for at in range(count)])
    environment = ray_env.ray_environment(config(tmp_path))
    ports = [value for name, value in environment.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 8


def test_no_free_block_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_env, "_PORTS", (25_000, 25_100))
    with pytest.raises(ConfigError, match="free ports"):
        ray_env.ray_environment(config(tmp_path))


def test_run_folder_is_private_and_without_the_files_of_the_start_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("serving.system.haproxy.get_haproxy_binary", lambda: "haproxy")
    with short_folder() as folder:
        resolved = config(folder / "run")
        ray_env.prepare(resolved)
        assert (resolved.run_dir / "secret").read_text() == resolved.secret
        (resolved.metrics_dir / "counter_1.db").touch()
        ray_env.prepare(resolved)
        assert list(resolved.metrics_dir.iterdir()) == []
        assert stat.S_IMODE(resolved.run_dir.stat().st_mode) == 0o700


def test_run_folder_whose_sockets_would_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bytes; limit is 36"):
        ray_env.prepare(config(Path("/tmp") / ("x" * 40)))
