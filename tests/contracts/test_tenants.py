"""Tenants that change while the system runs, over every Redis that it may meet; and what others may write there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio as aioredis

from serving.config import TenantSettings
from serving.errors import StoreUnavailable
from serving.stores import keys
from serving.stores.connection import RedisConfig
from serving.stores.tenants import Announcement, Change, TenantStore, TenantWatch
from serving.tenants import Known, LiveTenants, TenantRecords, added, changed, removed
from tests.support.redis_server import REDIS_KINDS, embedded_redis, redis_of, stopped
from tests.support.waiting import until

SECRET = b"s" * 32
ADA = TenantSettings(name="ada", api_key_sha256=("ab" * 32,))
BASE = {"ada": Known.of(ADA)}
KEY = "cd" * 32
OFTEN_S = 0.02


@pytest.fixture(scope="module", params=REDIS_KINDS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_of(request.param) as url:
        yield url


@pytest.fixture
async def admin(url: str) -> AsyncIterator[Any]:
    client = aioredis.Redis.from_url(url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(admin: Any, url: str) -> AsyncIterator[TenantStore]:
    store = a_store(url)
    yield store
    await store.stop()


def a_store(url: str, secret: bytes = SECRET) -> TenantStore:
    return TenantStore(RedisConfig(url=url, timeout_s=5.0), secret)


class Watched(LiveTenants):
    """``num_looks``: how often Redis was looked at."""

    num_looks = 0

    async def have_been_looked_up(self) -> None:
        """Whatever lies in Redis now was seen."""
        enough = self.num_looks + 2  # one may be under way
        await until(lambda: self.num_looks >= enough)


class CountingWatch(TenantWatch):
    async def _once(self) -> None:
        await super()._once()
        assert isinstance(self._live, Watched)
        self._live.num_looks += 1


@asynccontextmanager
async def watching(url: str, copy: Path | None = None, secret: bytes = SECRET) -> AsyncIterator[Watched]:
    live = Watched([ADA])
    watch = CountingWatch(live, a_store(url, secret), copy=copy, every_s=OFTEN_S)
    await watch.begin()
    try:
        yield live
    finally:
        await watch.stop()


def entry(version: int, after: int = 0, **fields: Any) -> Change:
    return Change(version=version, after=after, at_s=1.0, actor="me@here", action="set", tenant="ada", fields=fields)


async def change(store: TenantStore, version: int, of: Callable[[TenantRecords], TenantRecords]) -> bytes:
    before = await store.read()
    records = store.open(before) or TenantRecords()
    sealed = store.seal(msgspec.structs.replace(of(records), version=version))
    assert await store.write(before, sealed, entry(version, records.version))
    return sealed


def with_bob(records: TenantRecords) -> TenantRecords:
    return added(records, BASE, "bob", {"weight": 2}, KEY)


def without_bob(records: TenantRecords) -> TenantRecords:
    return removed(records, BASE, "bob")


def is_at(live: LiveTenants, version: int) -> bool:
    return live.now.version == version


async def test_every_gateway_and_replica_takes_a_change(store: TenantStore, url: str, tmp_path: Path) -> None:
    async with (
        watching(url, tmp_path / "a") as first,
        watching(url, tmp_path / "b") as second,
        watching(url) as replica,
    ):
        await change(store, 5, with_bob)
        for live in (first, second, replica):
            await until(partial(is_at, live, 5))
            assert live.weights["bob"] == 2.0
            assert KEY in [key.sha256 for key in live.now.keys]
        await change(store, 6, without_bob)
        for live in (first, second, replica):
            await until(partial(is_at, live, 6))
            assert "bob" not in live.weights


async def test_change_before_a_start_counts_from_its_first_moment(store: TenantStore, url: str) -> None:
    await change(store, 5, with_bob)
    async with watching(url) as live:
        assert "bob" in live.weights


async def test_of_two_changes_at_once_neither_is_lost(store: TenantStore) -> None:
    before = await store.read()
    sealed = [store.seal(TenantRecords(version=version)) for version in (1, 2)]
    assert sorted(await asyncio.gather(*(store.write(before, each) for each in sealed))) == [False, True]


async def test_what_was_not_sealed_with_the_secret_lets_nobody_in(
    store: TenantStore, admin: Any, url: str, tmp_path: Path
) -> None:
    records = changed(TenantRecords(version=9), BASE, "ada", {"admin": True})
    name = names()[0]
    forged = a_store(url, b"another secret of 32 characters!").seal(records)
    async with watching(url, tmp_path / "copy") as live:
        for value in (forged, msgspec.msgpack.encode(records), b"", b"\x01" * 200):
            await admin.set(name, value)
            await live.have_been_looked_up()
            assert (live.now.version, live.now.settings["ada"].admin) == (0, False)
        await change(store, 5, with_bob)  # over what somebody else left there
        await until(lambda: live.now.version == 5)


@pytest.mark.parametrize("spoil", ["older", "gone", "damaged", "list", "flushed"])
async def test_gateway_puts_back_what_somebody_undid(
    spoil: str, store: TenantStore, admin: Any, url: str, tmp_path: Path
) -> None:
    older = await change(store, 5, with_bob)
    newer = await change(store, 6, without_bob)
    name = names()[0]
    async with watching(url, tmp_path / "copy") as live:
        await until(lambda: live.now.version == 6)
        if spoil == "flushed":
            await admin.flushall()
        else:
            await admin.delete(name)
        if spoil in ("older", "damaged"):
            await admin.set(name, older if spoil == "older" else newer[:-1])
        elif spoil == "list":
            await admin.rpush(name, b"1")
        await until(lambda: is_back(store, newer))
        assert "bob" not in live.weights
        await change(store, 7, with_bob)
        await until(lambda: live.now.version == 7)


async def is_back(store: TenantStore, sealed: bytes) -> bool:
    return await store.read() == sealed


async def test_replica_keeps_what_it_has_and_puts_nothing_back(store: TenantStore, admin: Any, url: str) -> None:
    await change(store, 5, with_bob)
    async with watching(url) as live:
        await admin.flushall()
        await live.have_been_looked_up()
        assert await store.read() == b""
        assert "bob" in live.weights


async def test_removal_outlives_a_start_whose_redis_has_lost_or_undone_it(
    store: TenantStore, admin: Any, url: str, tmp_path: Path
) -> None:
    older = await change(store, 5, with_bob)
    newer = await change(store, 6, without_bob)
    async with watching(url, tmp_path / "copy"):
        pass
    assert (tmp_path / "copy").stat().st_mode & 0o077 == 0
    await admin.set(names()[0], older)
    async with watching(url, tmp_path / "copy") as live:
        assert (live.now.version, "bob" in live.weights) == (6, False)
        await until(lambda: is_back(store, newer))


async def test_copy_that_somebody_has_changed_is_none(url: str, store: TenantStore, tmp_path: Path) -> None:
    forged = a_store(url, b"another secret of 32 characters!").seal(with_bob(TenantRecords(version=9)))
    (tmp_path / "copy").write_bytes(forged)
    async with watching(url, tmp_path / "copy") as live:
        assert live.now.version == 0


async def test_deployments_with_other_secrets_do_not_meet(store: TenantStore, url: str, tmp_path: Path) -> None:
    async with watching(url, tmp_path / "copy", b"another secret of 32 characters!") as live:
        await change(store, 5, with_bob)
        await live.have_been_looked_up()
        assert live.now.version == 0
    assert await is_back(store, await store.read())


async def test_record_that_this_release_cannot_use_holds_no_other_change_back(
    store: TenantStore, url: str, tmp_path: Path
) -> None:
    broken = added(removed(TenantRecords(version=6), BASE, "ada"), BASE, "bob", {}, KEY)
    broken.by_name["bob"].fields["weight"] = -1
    async with watching(url, tmp_path / "copy") as live:
        await change(store, 5, with_bob)
        await until(lambda: live.now.version == 5)
        assert await store.write(await store.read(), store.seal(broken))
        await until(lambda: live.now.version == 6)
        assert (live.now.settings, live.now.keys) == ({}, ())
    async with watching(url, tmp_path / "copy") as live:
        assert (live.now.version, live.now.settings) == (6, {}), "nor does a start bring back who was removed"
        await change(store, 7, lambda records: changed(records, BASE, "bob", {"weight": 3}))
        await until(lambda: live.now.version == 7)
        assert [key.sha256 for key in live.now.keys] == [KEY]


async def test_while_redis_is_away_the_last_ones_count(tmp_path: Path) -> None:
    with embedded_redis() as server:
        store = a_store(server.url)
        await change(store, 5, with_bob)
        live = LiveTenants([ADA])
        impatient = TenantStore(RedisConfig(url=server.url, timeout_s=0.1), SECRET)
        watch = TenantWatch(live, impatient, copy=tmp_path / "copy", every_s=OFTEN_S)
        await watch.begin()
        with stopped(server):
            with pytest.raises(StoreUnavailable):
                await watch.look()
            assert "bob" in live.weights
        await until(lambda: changes(store, without_bob))
        await until(lambda: "bob" not in live.weights)
        await watch.stop()
        await store.stop()


async def changes(store: TenantStore, of: Callable[[TenantRecords], TenantRecords]) -> bool:
    """Whether the breaker lets it through already."""
    try:
        await change(store, 6, of)
    except StoreUnavailable:
        return False
    return True


# -- the audit log ---------------------------------------------------------------------------------------------------


async def test_audit_tells_the_newest_first_and_nothing_of_others(store: TenantStore, admin: Any) -> None:
    for version in (1, 2, 3):
        await change(store, version, lambda records: records)
    await admin.xadd(names()[1], {"version": "4", "entry": b"forged"})
    await admin.xadd(names()[1], {"nothing": "here"})
    found = await store.audit(10)
    assert [(each.version, each.after) for each in found] == [(3, 2), (2, 1), (1, 0)]
    assert [each.version for each in await store.audit(3)] == [3], "forged ones count among those asked for"


async def test_an_entry_moved_to_another_version_is_none_and_a_removed_one_leaves_a_gap(
    store: TenantStore, admin: Any
) -> None:
    for version in (1, 2, 3):
        await change(store, version, lambda records: records)
    (_, first), (second, _), _ = await admin.xrange(names()[1])
    await admin.xadd(names()[1], {"version": "9", "entry": first[b"entry"]})
    await admin.xdel(names()[1], second)
    newest, oldest = await store.audit(10)
    assert newest.after != oldest.version


async def test_change_is_logged_even_where_the_log_is_no_stream(store: TenantStore, admin: Any) -> None:
    await admin.set(names()[1], b"in the way")
    await change(store, 1, with_bob)
    assert [each.version for each in await store.audit(10)] == [1]


async def test_gateways_say_what_they_have_for_a_minute(
    store: TenantStore, admin: Any, url: str, tmp_path: Path
) -> None:
    assert await store.announced(time.time()) is None
    await change(store, 5, with_bob)
    async with watching(url, tmp_path / "copy"):
        said = await until(lambda: store.announced(time.time()))
        assert isinstance(said, Announcement)
        assert (said.version, said.base) == (5, [Known.of(ADA)])
        assert await admin.pttl(names()[2]) > 0
        assert await store.announced(time.time() + 3600.0) is None, "an old one that was put back"


def names() -> tuple[str, str, str]:
    store = a_store("redis://nowhere")
    found = (store._name, store._log_name, store._base_name)
    assert found == keys.tenants(found[0].split(":")[-2])
    return found
