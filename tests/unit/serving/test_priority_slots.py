from __future__ import annotations

import asyncio

import pytest

from serving.engines.chat.slots import PrioritySlots


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_waiters_go_by_priority_then_by_arrival() -> None:
    slots, order = PrioritySlots(1), list[str]()

    async def use(name: str, priority: int) -> None:
        await slots.acquire(priority)
        order.append(name)
        await asyncio.sleep(0)
        slots.release()

    await slots.acquire(0)
    tasks = []
    for name, priority in (("late", 2), ("first", 0), ("second", 0), ("middle", 1)):
        tasks.append(asyncio.create_task(use(name, priority)))
        await settle()
    assert (slots.running, slots.waiting) == (1, 4)
    slots.release()
    await asyncio.gather(*tasks)
    assert order == ["first", "second", "middle", "late"]
    assert (slots.running, slots.waiting) == (0, 0)


async def test_cancelled_waiter_leaves_the_queue() -> None:
    slots = PrioritySlots(1)
    await slots.acquire(0)
    waiter = asyncio.create_task(slots.acquire(0))
    await settle()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert slots.waiting == 0
    slots.release()
    assert slots.running == 0
    await slots.acquire(0)


async def test_waiter_cancelled_while_it_gets_the_slot_hands_it_on() -> None:
    slots = PrioritySlots(1)
    await slots.acquire(0)
    first, second = (asyncio.create_task(slots.acquire(0)) for _ in range(2))
    await settle()
    slots.release()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 5)
    assert slots.running == 1
