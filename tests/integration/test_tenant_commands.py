"""``vireo tenants`` against a real Redis, with a gateway's watch beside it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from serving.cli.app import build
from serving.client.exits import Exit
from serving.config import TenantSettings
from serving.stores import keys
from serving.stores.connection import RedisConfig
from serving.stores.tenants import Announcement, TenantStore, TenantWatch
from serving.tenants import KeyRecord, Known, LiveTenants, TenantRecord, TenantRecords
from tests.support.waiting import until

SECRET = "s" * 32
ADA = TenantSettings(name="ada", api_key_sha256=("ab" * 32,), weight=2.0)
Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    environment = {
        "VIREO_SET": f"redis.url={url};redis.secret={SECRET}",
        "VIREO_RUN_DIR": str(tmp_path),
        "COLUMNS": "200",
        "VIREO_CONFIG": None,
        "VIREO_SECRETS": None,
    }

    async def run(*words: str, code: Exit = Exit.OK) -> Result:
        result = await asyncio.to_thread(CliRunner().invoke, build(), ["tenants", *words], env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
async def live(admin: Any, url: str, tmp_path: Path) -> AsyncIterator[LiveTenants]:
    live = LiveTenants([ADA])
    store = TenantStore(RedisConfig(url=url, timeout_s=5.0), SECRET.encode())
    watch = TenantWatch(live, store, copy=tmp_path / "copy", every_s=0.02)
    await watch.begin()
    yield live
    await watch.stop()


async def listed(run: Run) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((await run("list", "--json")).stdout)}


async def changed(run: Run, live: LiveTenants, *words: str) -> Result:
    """Run a command that changes something, and wait until it counts."""
    before = live.now.version
    result = await run(*words)
    await until(lambda: live.now.version > before)
    return result


async def test_from_the_first_key_to_the_last(run: Run, live: LiveTenants) -> None:
    assert (await listed(run))["ada"]["from"] == "configuration"

    made = await changed(run, live, "add", "bob", "weight=3", "max_priority=high")
    key = made.stdout.strip()
    assert re.fullmatch(r"vk-[\w-]{43}", key), "nothing but the key"
    assert "once" in made.stderr
    assert live.now.settings["bob"].max_priority == "high"
    row = (await listed(run))["bob"]
    assert (row["from"], row["open_keys"], row["fields"]["weight"]) == ("added here", 1, 3.0)

    await changed(run, live, "set", "ada", "burst_j=12.5", "admin=true", "seconds_per_s=1e-3")
    await changed(run, live, "set", "ada", "max_joules_per_day=36e5", "max_joules_per_month=7.2e7")
    ada = live.now.settings["ada"]
    assert (ada.burst_j, ada.seconds_per_s, ada.weight) == (12.5, 1e-3, 2.0)
    assert (ada.max_joules_per_day, ada.max_joules_per_month) == (3.6e6, 7.2e7)
    shown = (await run("show", "ada")).stdout
    assert re.search(r"burst_j +12\.5 \(set here\)", shown)
    assert re.search(r"max_joules_per_day +3.6e\+06 \(set here\)", shown)
    assert re.search(r"weight +2\n", shown)

    await changed(run, live, "rotate", "ada", "--keep-old-for", "2h")
    assert (await listed(run))["ada"]["open_keys"] == 2
    await changed(run, live, "rotate", "ada", "--drop-old")
    assert (await listed(run))["ada"]["open_keys"] == 1
    assert "keys of the configuration  1, closed" in (await run("show", "ada")).stdout

    await changed(run, live, "remove", "bob")
    assert "bob" not in live.now.settings
    assert (await listed(run))["bob"]["from"] == "removed here"

    log = (await run("audit")).stdout
    assert [line.split()[2] for line in log.splitlines()[1:]] == ["remove", "rotate", "rotate", "set", "set", "add"]
    assert "burst_j=12.5, admin=yes" in log
    assert key not in log


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "ada"), "exists"),
        (("add", "bob", "weight=0"), "weight"),
        (("add", "bob", "weight"), "FIELD=VALUE"),
        (("set", "bob", "weight=1"), "no tenant is called 'bob'; there are: ada"),
        (("set", "ada"), "nothing to set"),
        (("set", "ada", "colour=red"), "no field 'colour'"),
        (("rotate", "ada", "--keep-old-for", "soon"), "no duration"),
        (("rotate", "ada", "--keep-old-for", "99999999d"), "at most 10 years"),
        (("rotate", "ada", "--keep-old-for", f"{'9' * 400}d"), "at most 10 years"),
        (("rotate", "ada", "--keep-old-for", "1h", "--drop-old"), "exclude"),
        (("remove", "eve"), "no tenant"),
        (("show", "eve"), "no tenant"),
    ],
)
async def test_mistake_is_told_in_a_line_and_changes_nothing(
    words: tuple[str, ...], said: str, run: Run, live: LiveTenants
) -> None:
    result = await run(*words, code=Exit.USAGE)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert json.loads((await run("audit", "--json")).stdout) == []


async def test_first_key_says_that_everybody_needs_one(run: Run, admin: Any, url: str, tmp_path: Path) -> None:
    store = TenantStore(RedisConfig(url=url, timeout_s=5.0), SECRET.encode())
    live = LiveTenants()
    watch = TenantWatch(live, store, copy=tmp_path / "copy", every_s=0.02)
    await watch.begin()
    assert "every caller needs one" in (await run("add", "bob")).stderr
    await until(lambda: live.now.keys)
    assert "every caller needs one" not in (await run("add", "eve")).stderr
    assert "last" not in (await run("remove", "eve")).stderr
    assert "last key" in (await run("remove", "bob")).stderr
    await until(lambda: not live.now.settings)
    assert live.now.needs_key
    await watch.stop()


async def test_a_record_that_is_no_tenant_is_listed_and_can_be_mended(run: Run, live: LiveTenants, url: str) -> None:
    store = TenantStore(RedisConfig(url=url, timeout_s=5.0), SECRET.encode())
    broken = TenantRecord(fields={"weight": -1}, keys=(KeyRecord("ab" * 32),))
    await store.write(b"", store.seal(TenantRecords(version=3, by_name={"bob": broken})))
    await until(lambda: live.now.version == 3)
    row = (await listed(run))["bob"]
    assert (row["open_keys"], row["fields"]) == (0, {})
    assert "weight" in row["unusable"]
    assert re.search("unusable, nobody is let in +weight", (await run("show", "bob")).stdout)
    await changed(run, live, "set", "bob", "weight=2")
    assert (await listed(run))["bob"]["open_keys"] == 1
    await store.stop()


async def test_nothing_is_changed_where_no_gateway_is(run: Run, admin: Any) -> None:
    assert "--config" in (await run("add", "bob", code=Exit.UNREACHABLE)).stderr
    assert await admin.dbsize() == 0


async def test_nothing_is_changed_upon_tenants_that_are_older_than_those_of_gateways(
    run: Run, admin: Any, url: str
) -> None:
    """Else a change would make a tenant count that was removed and that somebody has put back."""
    store = TenantStore(RedisConfig(url=url, timeout_s=5.0), SECRET.encode())
    await store.announce(Announcement(at_s=time.time(), version=7, base=[Known.of(ADA)]))
    await store.write(b"", store.seal(TenantRecords(version=6)))
    assert "older" in (await run("add", "bob", code=Exit.BUSY)).stderr
    await store.write(await store.read(), store.seal(TenantRecords(version=7)))
    await run("add", "bob")
    await store.stop()


async def test_a_missing_entry_is_told(run: Run, live: LiveTenants, admin: Any) -> None:
    for weight in (1, 2, 3):
        await changed(run, live, "set", "ada", f"weight={weight}")
    log = next(one for one in await admin.keys() if one.endswith(b":log"))
    middle = (await admin.xrange(log))[1][0]
    await admin.xdel(log, middle)
    result = await run("audit")
    assert "entries are missing" in result.stderr
    assert len(result.stdout.splitlines()) == 3


async def test_redis_away_is_unreachable_and_its_password_not_told(tmp_path: Path) -> None:
    environment = {"VIREO_SET": f"redis.url=redis://:hidden@127.0.0.1:1/0;redis.secret={SECRET}"}
    result = await asyncio.to_thread(CliRunner().invoke, build(), ["tenants", "list"], env=environment)
    assert result.exit_code == Exit.UNREACHABLE
    assert "hidden" not in result.output


def test_keys_of_tenants_are_no_tenants() -> None:
    assert keys.bucket("/tenants").split("{")[1] != keys.tenants("x")[0].split("{")[1]
