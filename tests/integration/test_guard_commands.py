"""``vireo guard`` against a real Redis, in which a gateway has put what it caught."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from typer.testing import CliRunner, Result

from serving.cli.app import build
from serving.client.exits import Exit
from serving.guard.fingerprints import FINGERPRINT_BYTES
from serving.guard.store import Quarantine
from serving.stores.connection import RedisConfig
from tests.support.ports import free_port

SECRET = "s" * 32
Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    async def run(*words: str, code: Exit = Exit.OK, url: str = url) -> Result:
        environment = {
            "VIREO_SET": f"redis.url={url};redis.secret={SECRET}",
            "VIREO_RUN_DIR": str(tmp_path),
            "COLUMNS": "200",
            "VIREO_CONFIG": None,
            "VIREO_SECRETS": None,
        }
        result = await asyncio.to_thread(CliRunner().invoke, build(), ["guard", *words], env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
async def quarantine(admin: aioredis.Redis, url: str) -> AsyncIterator[Quarantine]:
    quarantine = Quarantine(RedisConfig(url=url, timeout_s=5.0), SECRET.encode())
    for place, tenant in enumerate(("mallory", "mallory", "eve")):
        fingerprint = bytes([place]) * FINGERPRINT_BYTES
        caught: dict[str, Any] = {
            "model": "nano",
            "checkpoint": "a" * 64,
            "score": 0.99,
            "reasons": ("eos", "confirmed"),
            "num_tokens": 40,
        }
        assert await quarantine.put(tenant, b"%d" % place, fingerprint, request_id=f"r{place}", **caught)
    yield quarantine
    await quarantine.stop()


async def listed(run: Run, *words: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((await run("list", "--json", *words)).stdout)
    return rows


async def test_what_was_caught_is_listed_and_shown(run: Run, quarantine: Quarantine) -> None:
    rows = await listed(run)
    assert sorted(row["tenant"] for row in rows) == ["eve", "mallory", "mallory"]
    assert {row["num_tokens"] for row in rows} == {40}
    assert {(row["model"], row["checkpoint"]) for row in rows} == {("nano", "a" * 64)}
    assert "fingerprint" not in rows[0]
    assert len(await listed(run, "--tenant", "eve")) == 1
    assert len(await listed(run, "--count", "2")) == 2
    table = (await run("list")).stdout
    assert rows[0]["id"][:12] in table
    assert "eos, confirmed" in table

    shown = json.loads((await run("show", rows[0]["id"][:8], "--json")).stdout)
    assert shown == rows[0]
    assert rows[0]["request_id"] in (await run("show", rows[0]["id"])).stdout


async def test_what_is_released_is_gone_and_logged(run: Run, quarantine: Quarantine) -> None:
    (row,) = await listed(run, "--tenant", "eve")
    assert "released 1 picture" in (await run("release", row["id"][:8])).stderr
    assert await listed(run, "--tenant", "eve") == []
    assert "@" in (await run("audit")).stdout
    latest, *_ = json.loads((await run("audit", "--json")).stdout)
    assert (latest["action"], latest["entry_id"], latest["tenant"]) == ("released", row["id"], "eve")
    assert not (await quarantine.look("eve", b"2", bytes([2]) * FINGERPRINT_BYTES, "a" * 64)).is_replay


async def test_all_of_a_tenant_are_released_together(run: Run, quarantine: Quarantine) -> None:
    assert "released 2 pictures" in (await run("release", "--all", "--tenant", "mallory")).stderr
    assert [row["tenant"] for row in await listed(run)] == ["eve"]


async def test_what_is_meant_must_be_clear(run: Run, quarantine: Quarantine) -> None:
    assert "no picture" in (await run("show", "ffff0000", code=Exit.USAGE)).stderr
    (row,) = await listed(run, "--tenant", "eve")
    assert "at least 4 digits" in (await run("release", row["id"][:2], code=Exit.USAGE)).stderr
    assert "name one picture, or --all" in (await run("release", code=Exit.USAGE)).stderr
    assert "name one picture, or --all" in (await run("release", row["id"], "--all", code=Exit.USAGE)).stderr
    assert len(await listed(run)) == 3


async def test_an_empty_quarantine_is_no_failure(run: Run, admin: aioredis.Redis) -> None:
    assert await listed(run) == []
    assert json.loads((await run("audit", "--json")).stdout) == []


async def test_without_redis_it_says_where_it_looked(run: Run) -> None:
    gone = f"redis://127.0.0.1:{free_port()}"
    assert "is the system up?" in (await run("list", code=Exit.UNREACHABLE, url=gone)).stderr
