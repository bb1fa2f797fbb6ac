"""The quarantine in a real Redis: who is known again, by whom, for how long, and what nobody can forge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import redis.asyncio as aioredis

from serving.errors import StoreUnavailable
from serving.guard.fingerprints import Fingerprints
from serving.guard.store import MAX_CAUGHT, MAX_QUERIES, STREAM_AT, Quarantine, Seen
from serving.stores import keys
from serving.stores.connection import RedisConfig
from tests.support.ports import free_port
from tests.support.redis_server import embedded_redis, stopped
from tests.support.waiting import until

SECRET = b"s" * 32
FINGERPRINTS = Fingerprints(SECRET)
NANO, MICRO = "a" * 64, "b" * 64
CAUGHT: dict[str, Any] = {
    "model": "nano",
    "checkpoint": NANO,
    "score": 0.99,
    "reasons": ("eos", "confirmed"),
    "num_tokens": 40,
}


def fingerprint(seed: int, noise: int = 0) -> bytes:
    """Of a picture of blocks; ``noise``: of another one that is nearly the same."""
    blocks = np.random.default_rng(seed).integers(16, 240, (14, 14, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    change = np.random.default_rng(noise).integers(-2, 3, blocks.shape) if noise else 0
    return FINGERPRINTS.of((blocks + change).astype(np.uint8))


PICTURE, NEARLY, OTHER = fingerprint(1), fingerprint(1, noise=1), fingerprint(2)


@pytest.fixture
async def quarantine(admin: aioredis.Redis, url: str) -> AsyncIterator[Quarantine]:
    quarantine = Quarantine(RedisConfig(url=url, timeout_s=2.0), SECRET)
    yield quarantine
    await quarantine.stop()


async def test_the_same_pixels_are_known_whoever_sends_them(quarantine: Quarantine) -> None:
    assert await quarantine.look("mallory", b"1", PICTURE, NANO) == Seen()
    assert await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    for tenant in ("mallory", "ada"):
        seen = await quarantine.look(tenant, b"1", PICTURE, NANO)
        assert (seen.is_replay, seen.is_exact) == (True, True)


async def test_what_only_looks_like_it_counts_for_who_was_caught(quarantine: Quarantine) -> None:
    """Else whoever changes a popular picture and is caught makes everybody's original suspect."""
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    assert await quarantine.look("ada", b"2", NEARLY, NANO) == Seen()
    seen = await quarantine.look("mallory", b"2", NEARLY, NANO)
    assert (seen.is_replay, seen.is_exact) == (True, False)
    assert not (await quarantine.look("mallory", b"3", OTHER, NANO)).is_replay


async def test_what_was_caught_on_one_model_is_nothing_on_another(quarantine: Quarantine) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    for digest, its in ((b"1", PICTURE), (b"2", NEARLY)):
        assert not (await quarantine.look("mallory", digest, its, MICRO)).is_replay
        assert (await quarantine.look("mallory", digest, its, NANO)).is_replay
    assert (await quarantine.look("mallory", b"1", PICTURE, MICRO)).num_near == 1, "the same picture is not near itself"
    await quarantine.put("mallory", b"1", PICTURE, **(CAUGHT | {"model": "micro", "checkpoint": MICRO}))
    assert {(entry.model, entry.checkpoint) for entry in await quarantine.entries()} == {
        ("nano", NANO),
        ("micro", MICRO),
    }


async def test_released_it_is_known_no_more_and_who_did_is(quarantine: Quarantine) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    (entry,) = await quarantine.entries()
    assert (entry.tenant, entry.reasons, entry.num_tokens) == ("mallory", ("eos", "confirmed"), 40)
    assert await quarantine.release(entry, "root@here")
    assert not await quarantine.release(entry, "root@here"), "it is gone"
    assert await quarantine.entries() == []
    assert not (await quarantine.look("mallory", b"1", PICTURE, NANO)).is_replay
    assert not (await quarantine.look("mallory", b"2", NEARLY, NANO)).is_replay
    log = await quarantine.audit(10)
    assert [(event.action, event.actor, event.entry_id) for event in log] == [
        ("released", "root@here", entry.id),
        ("caught", "guard", entry.id),
    ]


async def test_it_expires_alone(url: str, admin: aioredis.Redis) -> None:
    quarantine = Quarantine(RedisConfig(url=url, timeout_s=2.0), SECRET, ttl_s=1.0)
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    assert (await quarantine.look("mallory", b"1", PICTURE, NANO)).is_replay
    await until(lambda: _is_gone(quarantine))
    assert await quarantine.entries() == []
    await quarantine.stop()


async def _is_gone(quarantine: Quarantine) -> bool:
    return not (await quarantine.look("mallory", b"1", PICTURE, NANO)).is_replay


async def test_everything_but_the_log_has_an_end(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    await quarantine.look("mallory", b"1", PICTURE, NANO)
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    endless = {key async for key in admin.scan_iter() if await admin.ttl(key) < 0}
    assert {key.rsplit(b":", 1)[-1] for key in endless} == {b"index", b"log"}


async def test_many_versions_of_one_picture_are_a_stream(quarantine: Quarantine) -> None:
    for query in range(STREAM_AT):
        seen = await quarantine.look("mallory", bytes([query]), fingerprint(1, noise=1 + query), NANO)
        assert (seen.num_near, seen.is_stream) == (query, False)
    assert (await quarantine.look("mallory", b"last", PICTURE, NANO)).is_stream
    assert (await quarantine.look("ada", b"first", PICTURE, NANO)).num_near == 0, (
        "others' pictures are no concern of hers"
    )


async def test_one_picture_again_and_again_is_none(quarantine: Quarantine) -> None:
    """As in a chat of many turns, and between many others."""
    for query in range(2 * STREAM_AT):
        assert (await quarantine.look("ada", b"mine", PICTURE, NANO)).num_near == 0
        assert (await quarantine.look("ada", b"%d" % query, fingerprint(100 + query), NANO)).num_near == 0


async def test_what_a_tenant_can_fill_has_a_bound(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    for place in range(MAX_CAUGHT + 5):
        await quarantine.put("mallory", b"%d" % place, fingerprint(place), **CAUGHT)
    for place in range(MAX_QUERIES + 5):
        await quarantine.look("mallory", b"%d" % place, fingerprint(place), NANO)
    assert await admin.llen(keys.guard_caught("mallory")) == MAX_CAUGHT
    assert await admin.llen(keys.guard_queries("mallory")) == MAX_QUERIES
    assert len(await quarantine.entries()) == MAX_CAUGHT
    assert not (await quarantine.look("ada", b"0", fingerprint(0), NANO)).is_replay, "the first fell out"
    assert (await quarantine.look("ada", b"5", fingerprint(5), NANO)).is_replay


async def test_what_falls_out_of_a_list_stays_if_another_tenant_was_caught_with_it(quarantine: Quarantine) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    await quarantine.put("eve", b"1", PICTURE, **CAUGHT)
    for place in range(MAX_CAUGHT):
        await quarantine.put("mallory", b"of mallory %d" % place, fingerprint(place), **CAUGHT)
    assert (await quarantine.look("ada", b"1", PICTURE, NANO)).is_exact


async def test_nothing_is_released_that_no_line_tells_of(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    (entry,) = await quarantine.entries()
    calls, call = [], quarantine._connection.call

    async def first(*words: Any) -> Any:
        calls.append(words[0])
        if len(calls) > 1:
            raise StoreUnavailable("gone")
        return await call(*words)

    quarantine._connection.call = first  # type: ignore[assignment,method-assign]
    with pytest.raises(StoreUnavailable):
        await quarantine.release(entry, "root@here")
    quarantine._connection.call = call  # type: ignore[method-assign]
    assert await quarantine.entries() == []
    assert [event.action for event in await quarantine.audit(10)] == ["released", "caught"]


async def test_caught_twice_it_is_there_once(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    for _ in range(2):
        await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    assert len(await quarantine.entries()) == 1
    assert await admin.llen(keys.guard_caught("mallory")) == 1


# -- who can write to Redis, and does not know the secret ------------------------------------------------------------


async def test_nobody_makes_another_tenants_pictures_suspect(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    rows = await admin.lrange(keys.guard_caught("mallory"), 0, -1)
    await admin.rpush(keys.guard_caught("ada"), *rows, b"\x01" * 113, b"")
    assert not (await quarantine.look("ada", b"2", NEARLY, NANO)).is_replay


async def test_an_entry_under_another_name_is_none(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    await quarantine.put("mallory", b"2", OTHER, **CAUGHT)
    one, two = [key async for key in admin.scan_iter(match="*:entry:*")]
    await admin.copy(one, two, replace=True)
    assert len(await quarantine.entries()) == 1


async def test_lines_of_others_in_the_log_are_passed_over(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    (log,) = [key async for key in admin.scan_iter(match="*:log")]
    await admin.xadd(log, {"event": b"forged"})
    await admin.xadd(log, {"something": b"else"})
    assert [event.action for event in await quarantine.audit(10)] == ["caught"]


async def test_another_kind_of_value_in_its_place_harms_nobody(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    await admin.set(keys.guard_queries("ada"), "a text")
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    assert (await quarantine.look("ada", b"1", PICTURE, NANO)).is_replay


async def test_a_deployment_with_another_secret_knows_nothing(
    quarantine: Quarantine, url: str, admin: aioredis.Redis
) -> None:
    await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
    other = Quarantine(RedisConfig(url=url, timeout_s=2.0), b"t" * 32)
    assert await other.look("mallory", b"1", PICTURE, NANO) == Seen()
    assert (await other.entries(), await other.audit(10)) == ([], [])
    await other.stop()


async def test_pixels_and_fingerprints_are_not_to_be_read(quarantine: Quarantine, admin: aioredis.Redis) -> None:
    digest = b"content of a picture"
    await quarantine.put("mallory", digest, PICTURE, **CAUGHT)
    names = [key async for key in admin.scan_iter()]
    assert not any(digest in name or digest.hex().encode() in name for name in names)


# -- without Redis ---------------------------------------------------------------------------------------------------


async def test_without_redis_nothing_is_known_and_nobody_is_stopped() -> None:
    quarantine = Quarantine(RedisConfig(url=f"redis://127.0.0.1:{free_port()}", timeout_s=0.2), SECRET)
    assert await quarantine.look("ada", b"1", PICTURE, NANO) == Seen()
    assert await quarantine.put("ada", b"1", PICTURE, **CAUGHT) is False
    with pytest.raises(StoreUnavailable):
        await quarantine.entries()
    await quarantine.stop()


async def test_a_redis_that_says_nothing_is_waited_for_no_longer_than_a_call() -> None:
    with embedded_redis() as server:
        quarantine = Quarantine(RedisConfig(url=server.url, timeout_s=0.2), SECRET)
        await quarantine.put("mallory", b"1", PICTURE, **CAUGHT)
        with stopped(server):
            assert await quarantine.look("mallory", b"1", PICTURE, NANO) == Seen()
        await until(lambda: _is_known(quarantine))
        assert (await quarantine.look("mallory", b"1", PICTURE, NANO)).is_exact
        await quarantine.stop()


async def _is_known(quarantine: Quarantine) -> bool:
    return (await quarantine.look("mallory", b"1", PICTURE, NANO)).is_replay
