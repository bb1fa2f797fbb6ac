from __future__ import annotations

import asyncio

import pytest

from serving.fair_slots import FairSlots, SlotTurn


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def use(slots: FairSlots, name: str, turn: SlotTurn, order: list[str]) -> None:
    assert await slots.acquire(turn)
    order.append(name)
    await asyncio.sleep(0)
    slots.release(turn, 1.0)


async def run_in_turn(slots: FairSlots, *turns: tuple[str, SlotTurn]) -> list[str]:
    """The order in which they get the only slot."""
    order, first = list[str](), SlotTurn()
    assert await slots.acquire(first)
    tasks = []
    for name, turn in turns:
        tasks.append(asyncio.create_task(use(slots, name, turn, order)))
        await settle()
    assert (slots.running, slots.waiting) == (1, len(turns))
    slots.release(first, 0.0)
    await asyncio.gather(*tasks)
    assert (slots.running, slots.waiting) == (0, 0)
    return order


async def test_waiters_of_a_tenant_go_by_rank_then_by_arrival() -> None:
    ranks = (("late", 2), ("first", 0), ("second", 0), ("middle", 1))
    order = await run_in_turn(FairSlots(1), *((name, SlotTurn("a", rank)) for name, rank in ranks))
    assert order == ["first", "second", "middle", "late"]


async def test_rank_is_worth_nothing_against_another_tenant() -> None:
    urgent = [(f"urgent {number}", SlotTurn("a", 0, 1.0)) for number in range(5)]
    order = await run_in_turn(FairSlots(1), *urgent, ("patient", SlotTurn("b", 2, 1.0)))
    assert order.index("patient") <= 1


async def test_who_is_one_too_many_is_refused_and_a_flood_refuses_itself() -> None:
    slots, first = FairSlots(1, max_waiting=2), SlotTurn("a")
    assert await slots.acquire(first)
    flood = [asyncio.create_task(slots.acquire(SlotTurn("a"))) for _ in range(2)]
    await settle()
    assert not await slots.acquire(SlotTurn("a"))
    other = asyncio.create_task(slots.acquire(SlotTurn("b")))
    await settle()
    assert [task.done() for task in (*flood, other)] == [False, True, False]
    assert flood[1].result() is False
    for task in (flood[0], other):
        task.cancel()
    await asyncio.gather(flood[0], other, return_exceptions=True)


async def test_cancelled_waiter_leaves_the_queue() -> None:
    slots, first = FairSlots(1), SlotTurn()
    await slots.acquire(first)
    waiter = asyncio.create_task(slots.acquire(SlotTurn()))
    await settle()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert slots.waiting == 0
    slots.release(first, 0.0)
    assert slots.running == 0
    assert await slots.acquire(SlotTurn())


async def test_waiter_cancelled_while_it_gets_the_slot_hands_it_on() -> None:
    slots, running = FairSlots(1), SlotTurn()
    await slots.acquire(running)
    first, second = (asyncio.create_task(slots.acquire(SlotTurn())) for _ in range(2))
    await settle()
    slots.release(running, 0.0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, 5)
    assert slots.running == 1


async def test_who_was_served_elsewhere_has_a_slot_after_those_who_were_not() -> None:
    others = [(f"other {number}", SlotTurn("b", predicted_s=1.0)) for number in range(3)]
    order = await run_in_turn(FairSlots(1), *others, ("served", SlotTurn("a", predicted_s=1.0, elsewhere_j=2.5)))
    assert order.index("served") == 3
