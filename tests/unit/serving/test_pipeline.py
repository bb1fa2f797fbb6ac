"""Who comes into a gateway: nobody fills it for others."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, cast

import pytest

from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.domain import Priority
from serving.errors import DeadlineExceeded, QueueFull
from tests.support.waiting import until


class Results:
    async def admit(self, tenant: str, *_: object) -> None:
        pass


class Gate:
    """Requests of many tenants at a gateway with four places, each of which stays until it is told to go."""

    def __init__(self) -> None:
        limits = PipelineLimits(max_in_flight=4, default_deadline_s=30.0)
        self.pipeline = Pipeline(cast(Any, Results()), limits, models=("chat", "video"))
        self.inside: list[str] = []
        self.go: dict[str, asyncio.Event] = {}

    def ask(
        self, name: str, *, deadline_s: float = math.inf, priority: Priority = Priority.NORMAL
    ) -> asyncio.Task[None]:
        """The first letter of a name is the tenant's."""
        self.go[name] = asyncio.Event()
        return asyncio.create_task(self._ask(name, deadline_s, priority))

    async def _ask(self, name: str, deadline_s: float, priority: Priority) -> None:
        async with self.pipeline.admitted(name[0], "chat", lambda: 2.0, deadline_s=deadline_s, priority=priority):
            self.inside.append(name)
            await self.go[name].wait()
        self.inside.remove(name)

    async def fill(self) -> list[asyncio.Task[None]]:
        tasks = [self.ask(f"g{number}") for number in range(4)]
        await until(lambda: len(self.inside) == 4)
        return tasks

    async def end(self, *tasks: asyncio.Task[None]) -> None:
        for event in self.go.values():
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (self.pipeline.in_flight, self.pipeline._room.num_waiting, self.pipeline._given) == (0, 0, {})


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def test_who_fills_the_gateway_is_refused_at_once_and_a_newcomer_waits_for_the_next_place(gate: Gate) -> None:
    tasks = await gate.fill()
    newcomer = gate.ask("n")
    await until(lambda: gate.pipeline._room.num_waiting == 1)
    with pytest.raises(QueueFull, match=r"serves 4 requests; limit is 4, 2 of them for you while .* retry in 2\.00 s"):
        await gate.ask("g9")
    gate.go["g2"].set()
    await until(lambda: "n" in gate.inside)
    assert sorted(gate.inside) == ["g0", "g1", "g3", "n"]
    await gate.end(newcomer, *tasks)


async def test_gateway_asks_for_some_more_than_a_tenants_bound() -> None:
    bounds = {"few": 1, "many": 1000}
    pipeline = Pipeline(cast(Any, None), PipelineLimits(max_in_flight=512, default_deadline_s=1.0), bounds)
    assert [pipeline.places(tenant) for tenant in ("few", "many", "other")] == [65, 512, 512]


async def test_who_waits_is_late_at_its_deadline_and_leaves_nothing(gate: Gate) -> None:
    tasks = await gate.fill()
    with pytest.raises(DeadlineExceeded, match="before this gateway had room"):
        await gate.ask("n", deadline_s=time.monotonic() + 0.05)
    assert not gate.pipeline._given
    await gate.end(*tasks)


async def test_who_leaves_while_it_waits_leaves_nothing(gate: Gate) -> None:
    tasks = await gate.fill()
    waiting = gate.ask("n")
    await until(lambda: gate.pipeline._room.num_waiting == 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert gate.pipeline._room.num_waiting == 0
    gate.go["g0"].set()
    await until(lambda: len(gate.inside) == 3)
    await gate.end(*tasks)


async def test_place_given_to_one_who_leaves_at_that_moment_goes_to_the_next(gate: Gate) -> None:
    """Its waiter is cancelled before the place is given, or after, and has not run since."""
    tasks = await gate.fill()
    before, after, stays = gate.ask("a"), gate.ask("b"), gate.ask("c")
    await until(lambda: gate.pipeline._room.num_waiting == 3)
    places = list(gate.pipeline._given)
    before.cancel()
    gate.go["g0"].set()
    gate.go["g1"].set()
    after_given = gate.pipeline._given[places[1]]
    after_given.add_done_callback(lambda _: after.cancel())
    await until(lambda: "c" in gate.inside)
    await asyncio.wait([before, after])
    assert (before.cancelled(), after.cancelled()) == (True, True)
    assert gate.pipeline.in_flight == 3
    await gate.end(stays, *tasks)


async def test_more_urgent_one_of_a_tenant_comes_in_first(gate: Gate) -> None:
    tasks = await gate.fill()
    low, high = gate.ask("n0", priority=Priority.LOW), gate.ask("n1", priority=Priority.HIGH)
    await until(lambda: gate.pipeline._room.num_waiting == 2)
    gate.go["g0"].set()
    await until(lambda: "n1" in gate.inside)
    assert "n0" not in gate.inside
    await gate.end(low, high, *tasks)


async def test_work_is_told_to_the_queues_of_the_other_models_once(gate: Gate) -> None:
    gate.pipeline.served("n", "video", 8.0)
    assert gate.pipeline.elsewhere_j("n", "video") == 0.0
    assert gate.pipeline.elsewhere_j("n", "chat") == pytest.approx(8.0, rel=0.01)
    assert gate.pipeline.elsewhere_j("n", "chat") == 0.0
