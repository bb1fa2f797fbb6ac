"""What Redis is owed: whose it is, and who waits for it."""

from __future__ import annotations

import asyncio

import pytest

from schedulers.admission import BucketLimits
from serving.errors import StoreUnavailable
from serving.stores.outbox import Outbox, Owed

LIMITS = BucketLimits(joules_per_s=1.0, joules_burst=1.0, seconds_per_s=1.0, seconds_burst=1.0)


class World:
    """An outbox before a Redis that answers when it is told to."""

    def __init__(self) -> None:
        self.charged: list[str] = []
        self.go = asyncio.Event()
        self.outbox = Outbox(lambda: True, self.charge)

    async def charge(self, tenant: str, limits: BucketLimits, owed: Owed, mark: str) -> None:
        await self.go.wait()
        self.charged.append(tenant)

    async def lose(self) -> None:
        raise StoreUnavailable("still away")


async def test_who_owes_nothing_does_not_wait_for_what_others_owe() -> None:
    world = World()
    world.outbox.owe("greedy", LIMITS, Owed(1.0, 1.0))
    assert (world.outbox.has("greedy"), world.outbox.has("modest")) == (True, False)
    sending = asyncio.create_task(world.outbox.flush("greedy"))
    async with asyncio.timeout(1.0):
        await world.outbox.flush("modest")
    assert not sending.done()
    world.go.set()
    await sending
    assert world.charged == ["greedy"]
    assert not world.outbox.has("greedy")
    await world.outbox.stop()


async def test_many_that_wait_for_one_flush_send_once() -> None:
    world = World()
    world.outbox.owe("greedy", LIMITS, Owed(1.0, 1.0))
    flushes = [asyncio.create_task(world.outbox.flush("greedy")) for _ in range(50)]
    world.go.set()
    await asyncio.gather(*flushes)
    assert world.charged == ["greedy"]
    await world.outbox.stop()


async def test_what_one_tenant_cannot_be_charged_keeps_nobody_elses_back() -> None:
    world = World()
    world.go.set()
    world.outbox.add("greedy", world.lose, 60.0)
    world.outbox.owe("modest", LIMITS, Owed(1.0, 1.0))
    await world.outbox._flush()
    assert world.charged == ["modest"]
    assert (world.outbox.has("greedy"), world.outbox.has("modest")) == (True, False)
    await world.outbox.stop()


async def test_who_owes_most_loses_first_when_there_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.stores.outbox.MAX_ENTRIES", 3)
    world = World()
    for tenant in ("modest", "greedy", "greedy", "greedy"):
        world.outbox.add(tenant, world.lose, 60.0)
    assert (len(world.outbox), world.outbox.has("modest")) == (3, True)
    await world.outbox.stop()


async def test_what_could_not_be_sent_stays_its_tenants() -> None:
    world = World()
    world.outbox.add("greedy", world.lose, 60.0)
    await world.outbox.flush("greedy")
    assert world.outbox.has("greedy")
    world.outbox.add("gone", world.lose, -1.0)
    await world.outbox.stop()
    assert (world.outbox.has("greedy"), world.outbox.has("gone")) == (True, False), "too old: its estimate stands"
