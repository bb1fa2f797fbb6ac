"""Redis over TLS, as components/tls sets it up: one's own authority, a password from a file."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from serving.config import load, resolve
from serving.errors import StoreUnavailable
from serving.stores.connection import RedisConfig, RedisConnection
from tests.support.redis_server import external_redis
from tests.support.tls_proxy import tls_proxy
from tests.support.tls_server import write_certificate


@pytest.fixture
def plain() -> Iterator[str]:
    with external_redis() as url:
        yield url


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisConnection]:
    connection = RedisConnection(RedisConfig(url=url, timeout_s=5.0))
    try:
        yield connection
    finally:
        await connection.stop()


async def ping(connection: RedisConnection) -> bool:
    return bool(await connection.call("ping", lambda client: cast(Any, client.ping())))


async def test_settings_of_the_component_reach_a_server_with_tls(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, secrets = write_certificate(tmp_path, "localhost"), tmp_path / "secrets"
    secrets.mkdir()
    password = urlsplit(plain).password
    assert password is not None
    (secrets / "redis.password").write_text(password)
    monkeypatch.setenv("VIREO_SECRETS", str(secrets))
    async with tls_proxy(certificate, "127.0.0.1", urlsplit(plain).port or 0) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"
        config = resolve(load(args={"redis": {"url": url}}))
        async with connected(config.store_url) as connection:
            assert await ping(connection)


@pytest.mark.parametrize("wrong", ["authority", "name", "no tls"])
async def test_server_that_cannot_prove_who_it_is_gets_nothing(wrong: str, plain: str, tmp_path: Path) -> None:
    name = "redis.elsewhere" if wrong == "name" else "localhost"
    certificate = write_certificate(tmp_path, name)
    other = tmp_path / "other"
    other.mkdir()
    trusted = write_certificate(other, name) if wrong == "authority" else certificate
    async with tls_proxy(certificate, "127.0.0.1", urlsplit(plain).port or 0) as port:
        if wrong == "no tls":
            url = f"rediss://:pass@localhost:{urlsplit(plain).port}/0?ssl_ca_certs={trusted}"
        else:
            url = f"rediss://:pass@localhost:{port}/0?ssl_ca_certs={trusted}"
        async with connected(url) as connection:
            with pytest.raises(StoreUnavailable):
                await ping(connection)
