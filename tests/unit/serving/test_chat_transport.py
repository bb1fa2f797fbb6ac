"""Hub and links together, on virtual time: what is said arrives once, in order; who leaves frees what ran for him."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from serving.delivery.stream.links import ChatLinks, Route
from serving.delivery.stream.wire import ChoiceStart, Delta, EngineRequest, Failure, FinishReason, Item
from serving.energy.estimate import EstimateMeter
from serving.energy.spent import Spent
from serving.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    QueueFull,
    ReplicaLost,
    TooManyBytes,
)
from serving.replica.chat.base import Say
from serving.replica.chat.fake_engine import FakeChatEngine
from tests.support.chat_replicas import WATTS, LocalCalls, Mailbox, Replica, engine_request
from tests.support.virtual_loop import run_virtual

LONG = "a long answer that takes its time. " * 8


def forget(_seconds: float) -> None:
    pass


def engine(answer: str = LONG, step_s: float = 0.01, **options: Any) -> FakeChatEngine:
    return FakeChatEngine(answer=lambda request: answer, step_s=step_s, **options)


def start(links: ChatLinks, count: int = 1, *, is_streamed: bool = True, remaining_s: float = 60.0) -> Mailbox:
    choices = [choice(engine_request(max_tokens=500), is_streamed, remaining_s) for _ in range(count)]
    return Mailbox(links, choices, Route())


def choice(
    request: EngineRequest, is_streamed: bool = True, remaining_s: float = 60.0, tenant: str = "", rank: int = 0
) -> ChoiceStart:
    return ChoiceStart(0, request, remaining_s, 1.0, is_streamed, tenant, rank)


async def read(mailbox: Mailbox) -> dict[int, list[Delta]]:
    """Everything until the last choice is complete."""
    deltas: dict[int, list[Delta]] = {}
    while mailbox.open_ids:
        for item in await mailbox.next():
            assert isinstance(item, Delta), item
            deltas.setdefault(mailbox.index(item), []).append(item)
    mailbox.close(forget)
    return deltas


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def settled(replica: Replica) -> None:
    """Let everything that was cancelled end; far less than an answer takes."""
    await asyncio.sleep(0.05)
    assert replica.hub.num_choices == 0
    stats = replica.engine.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__ = test.__name__
    return run


@virtual
async def test_an_answer_arrives_whole_in_order_and_with_its_cost() -> None:
    replica = Replica("r", engine(prefill_s=0.1))
    mailbox = start(ChatLinks(LocalCalls(replica), "g"))
    deltas = (await read(mailbox))[0]
    assert text(deltas) == LONG
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert sum(delta.num_tokens for delta in deltas) == len(LONG) // 4
    assert deltas[-1].prefill_s == pytest.approx(0.11)
    assert deltas[-1].decode_s == pytest.approx(0.01 * (len(LONG) // 4 - 1), rel=0.01)
    assert mailbox.replica_id == "r"
    await settled(replica)


@virtual
async def test_choices_that_run_hold_no_more_than_the_cache_and_one_that_is_cancelled_gives_its_part_back() -> None:
    """Each may hold 507 tokens, in blocks of 16; the cache has room for two."""
    replica = Replica("r", engine(num_blocks=80))
    links = ChatLinks(LocalCalls(replica), "g")
    first, second, third = start(links), start(links), start(links)
    await first.next()
    await asyncio.sleep(0.05)
    assert (replica.engine.stats().running, replica.hub.num_choices) == (2, 3)
    assert replica.engine.stats().kv_blocks_used <= 80
    first.close(forget)
    others = await asyncio.gather(read(second), read(third))
    assert [text(deltas[0]) for deltas in others] == [LONG, LONG]
    await settled(replica)


@virtual
async def test_choice_that_holds_more_than_its_replica_has_room_for_beside_others_is_not_overtaken() -> None:
    replica = Replica("r", engine(num_blocks=80))
    links = ChatLinks(LocalCalls(replica), "g")
    small = start(links)
    await small.next()
    large = Mailbox(links, [choice(engine_request(max_tokens=1200))], Route())
    late = Mailbox(links, [choice(engine_request(max_tokens=8))], Route())
    assert replica.engine.stats().running == 1, "the late one would fit, and waits all the same"
    deltas = await asyncio.gather(read(small), read(large), read(late))
    assert deltas[2][0][0].queue_s >= deltas[1][0][0].queue_s > 0.0


@virtual
async def test_between_first_token_and_end_messages_keep_their_interval() -> None:
    replica = Replica("r", engine(step_s=0.003, prefill_s=0.1), interval_s=0.02)
    loop, mailbox = asyncio.get_running_loop(), start(ChatLinks(LocalCalls(replica), "g"))
    arrivals: list[tuple[float, Delta]] = []
    while mailbox.open_ids:
        arrivals += [(loop.time(), item) for item in await mailbox.next() if isinstance(item, Delta)]
    deltas = [delta for _, delta in arrivals]
    assert text(deltas) == LONG
    assert sum(delta.num_tokens for delta in deltas) == len(LONG) // 4
    assert deltas[0].num_tokens == 1, "the first token does not wait for others"
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(arrivals)]
    assert len(gaps) > 5
    assert all(gap == pytest.approx(0.02, abs=1e-3) for gap in gaps[:-1])
    assert gaps[-1] < 0.021, "nor does the end"


@virtual
async def test_a_first_token_takes_along_what_others_have_to_say() -> None:
    replica = Replica("r", engine(step_s=0.003), interval_s=1.0)
    links = ChatLinks(LocalCalls(replica), "g")
    early = start(links)
    assert len(await early.next()) == 1
    await asyncio.sleep(0.06)
    late = start(links)
    (first,), (more,) = await late.next(), await early.next()
    assert isinstance(first, Delta)
    assert isinstance(more, Delta)
    assert first.num_tokens == 1
    assert more.num_tokens > 10
    for mailbox in (early, late):
        mailbox.close(forget)
    await settled(replica)


@virtual
async def test_what_was_said_before_a_failure_arrives_before_it() -> None:
    replica = Replica("r", engine(step_s=0.003), interval_s=1.0)
    mailbox = start(ChatLinks(LocalCalls(replica), "g"), remaining_s=0.1)
    assert len(await mailbox.next()) == 1
    said, failed = await mailbox.next()
    assert isinstance(said, Delta)
    assert said.num_tokens > 10
    assert isinstance(failed, Failure)
    assert isinstance(failed.error, DeadlineExceeded)


@virtual
async def test_many_requests_share_one_stream() -> None:
    replica = Replica("r", engine())
    calls = LocalCalls(replica)
    links = ChatLinks(calls, "g")
    answers = await asyncio.gather(*(read(start(links, 2)) for _ in range(8)))
    assert [text(deltas) for answer in answers for deltas in answer.values()] == [LONG] * 16
    assert replica.num_opens == 8
    assert links.num_open == 0
    charged_s = sum(deltas[-1].prefill_s + deltas[-1].decode_s for answer in answers for deltas in answer.values())
    assert charged_s == pytest.approx(replica.hub.busy_s())
    await settled(replica)


@virtual
async def test_the_stream_ends_by_itself_and_the_next_request_opens_another() -> None:
    replica = Replica("r", engine("short"))
    calls = LocalCalls(replica)
    links = ChatLinks(calls, "g")
    for _ in range(3):
        assert text((await read(start(links)))[0]) == "short"
        await asyncio.sleep(2.5)
        assert all(call._task.done() for call in calls.open_calls)


@virtual
async def test_a_request_that_arrives_as_the_stream_ends_is_not_lost() -> None:
    replica = Replica("r", engine("short", step_s=0.0))
    links = ChatLinks(LocalCalls(replica), "g")
    await read(start(links))
    for number in range(40):  # around the moment at which the stream ends
        await asyncio.sleep(0.99 + number * 0.0005)
        assert text((await read(start(links)))[0]) == "short"


@virtual
async def test_unary_requests_get_one_delta() -> None:
    replica = Replica("r", engine())
    deltas = (await read(start(ChatLinks(LocalCalls(replica), "g"), is_streamed=False)))[0]
    assert [delta.text for delta in deltas] == [LONG]
    assert deltas[0].num_tokens == len(LONG) // 4
    assert deltas[0].answer_s > 0.5


@pytest.mark.parametrize("wait_s", [0.0, 0.0005, 0.0015, 0.0025, 0.05, 0.2])
def test_closing_frees_the_engine_at_once(wait_s: float) -> None:
    async def run() -> None:
        replica = Replica("r", engine(prefill_s=0.1))
        links = ChatLinks(LocalCalls(replica), "g")
        other = start(links)
        mailbox = start(links, 3)
        await asyncio.sleep(wait_s)
        mailbox.close(forget)
        await asyncio.sleep(0.05)
        assert replica.hub.num_choices == 1
        assert text((await read(other))[0]) == LONG
        await settled(replica)
        assert replica.told.num_finished == 1

    run_virtual(run())


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(("wait_s", "steps"), [(0.0, 0), (0.0005, 0), (0.075, 7), (0.2, 20)])
def test_who_closes_is_told_what_the_replica_has_done(wait_s: float, steps: int, is_streamed: bool) -> None:
    """Before, a unary request that was given up was charged the time since it was sent, one that waited too."""

    async def run() -> None:
        replica = Replica("r", engine(), max_running=2)
        links = ChatLinks(LocalCalls(replica), "g")
        mailbox, bills = start(links, 3, is_streamed=is_streamed), list[Spent]()
        await asyncio.sleep(wait_s)
        mailbox.close(bills.append)
        assert links.num_open == 0
        await settled(replica)
        # Two ran together and shared the time; the third waited.
        assert [bill.seconds for bill in bills] == [pytest.approx(0.01 * steps, abs=0.01)]
        assert bills[0].joules == pytest.approx(WATTS * bills[0].seconds)

    run_virtual(run())


@virtual
async def test_a_choice_that_ends_while_it_is_cancelled_tells_its_whole_cost() -> None:
    replica = Replica("r", engine())
    whole_s = 0.01 * (len(LONG) // 4)
    for early_s in (0.003, 0.002, 0.001, 0.0005, 0.0):
        links, bills = ChatLinks(LocalCalls(replica), f"g{early_s}"), list[Spent]()
        mailbox = start(links, is_streamed=False)
        await asyncio.sleep(whole_s + 0.001 - early_s)
        mailbox.close(bills.append)
        await settled(replica)
        assert [bill.seconds for bill in bills] == [pytest.approx(whole_s, abs=0.01)]
        assert bills[0].joules == pytest.approx(WATTS * bills[0].seconds)


@virtual
async def test_a_choice_whose_deadline_passes_tells_its_cost() -> None:
    replica, bills = Replica("r", engine()), list[Spent]()
    mailbox = start(ChatLinks(LocalCalls(replica), "g"), is_streamed=False, remaining_s=0.1)
    assert isinstance(await last(mailbox), DeadlineExceeded)
    mailbox.close(bills.append)
    assert [bill.seconds for bill in bills] == [pytest.approx(0.1, abs=0.01)]
    assert bills[0].joules == pytest.approx(WATTS * bills[0].seconds)


@virtual
async def test_a_replica_that_is_gone_costs_nothing_more() -> None:
    replica, bills = Replica("r", engine()), list[Spent]()
    mailbox = start(ChatLinks(LocalCalls(replica), "g"), is_streamed=False)
    await asyncio.sleep(0.1)
    await replica.kill()
    mailbox.close(bills.append)
    await asyncio.sleep(0.1)
    assert bills == [Spent()]


@virtual
async def test_tenants_share_the_slots_whatever_priority_they_ask_for() -> None:
    replica = Replica("r", engine(), max_running=1)
    links, order = ChatLinks(LocalCalls(replica), "g"), list[str]()

    async def ask(tenant: str, rank: int) -> None:
        mailbox = Mailbox(links, [choice(engine_request(), True, 600.0, tenant, rank)], Route())
        await read(mailbox)
        order.append(tenant)

    tasks = [asyncio.create_task(ask("urgent", 0)) for _ in range(6)]
    await asyncio.sleep(0.05)
    tasks.append(asyncio.create_task(ask("patient", 2)))
    await asyncio.gather(*tasks)
    assert order.index("patient") == 1


@virtual
async def test_a_choice_in_the_queue_is_cancelled_like_one_that_runs() -> None:
    replica = Replica("r", engine(), max_running=1)
    links = ChatLinks(LocalCalls(replica), "g")
    first, second, third = start(links), start(links), start(links)
    await asyncio.sleep(0.05)
    second.close(forget)
    assert text((await read(first))[0]) == LONG
    deltas = (await read(third))[0]
    assert deltas[-1].queue_s == pytest.approx(0.01 * (len(LONG) // 4), rel=0.1)
    await settled(replica)


@virtual
async def test_a_gateway_that_dies_takes_its_choices_with_it_and_no_others() -> None:
    replica = Replica("r", engine())
    dying, living = LocalCalls(replica), LocalCalls(replica)
    links = ChatLinks(dying, "dying")
    for _ in range(4):
        start(links)
    other = start(ChatLinks(living, "living"))
    await asyncio.sleep(0.1)
    assert replica.hub.num_choices == 5
    dying.die()
    await asyncio.sleep(0.01)
    assert replica.hub.num_choices == 1
    assert text((await read(other))[0]) == LONG
    await settled(replica)


@virtual
async def test_a_replica_that_dies_is_told_to_every_listener_once() -> None:
    replica = Replica("r", engine())
    links = ChatLinks(LocalCalls(replica), "g")
    mailboxes = [start(links, 2) for _ in range(3)]
    await asyncio.sleep(0.1)
    await replica.kill()
    for mailbox in mailboxes:
        assert isinstance(await last(mailbox), ReplicaLost)
    assert links.num_open == 0


@virtual
async def test_a_dead_engine_is_a_lost_replica_and_takes_no_more() -> None:
    replica = Replica("r", engine())
    links = ChatLinks(LocalCalls(replica), "g")
    running = start(links)
    await asyncio.sleep(0.1)
    replica.engine.die()
    assert isinstance(await last(running), ReplicaLost)
    assert isinstance(await last(start(links)), Draining)


@virtual
async def test_an_engine_that_fails_on_one_request_harms_no_other() -> None:
    failing = FakeChatEngine(answer=lambda request: LONG, step_s=0.01, fails=lambda request: request.max_tokens == 7)
    replica = Replica("r", failing)
    links = ChatLinks(LocalCalls(replica), "g")
    good = start(links)
    bad = Mailbox(links, [choice(engine_request(max_tokens=7))], Route())
    assert isinstance(await last(bad), EngineFailed)
    assert text((await read(good))[0]) == LONG
    await settled(replica)


@virtual
async def test_bounds_of_the_replica_are_typed_errors() -> None:
    replica = Replica("r", engine(), max_running=1, max_waiting=1)
    links = ChatLinks(LocalCalls(replica), "g")
    mailbox = start(links, 3)
    assert isinstance(await last(mailbox), QueueFull)
    late = start(links, remaining_s=0.05)
    assert isinstance(await last(late), DeadlineExceeded | QueueFull)
    mailbox.close(forget)
    await settled(replica)


@virtual
async def test_tenant_holds_no_more_keys_and_values_than_it_may_and_others_do_not_feel_it() -> None:
    """Each may hold 507 tokens, in blocks of 16: the fake counts a byte for each."""
    replica = Replica("r", engine(), max_running=1, max_kv_bytes={"small": 1100, "usual": None})
    links = ChatLinks(LocalCalls(replica), "g")

    def ask(tenant: str, max_tokens: int = 500) -> Mailbox:
        return Mailbox(links, [choice(engine_request(max_tokens=max_tokens), tenant=tenant)], Route())

    small, usual = [ask("small"), ask("small")], [ask("usual") for _ in range(4)]
    await asyncio.sleep(0.01)
    (refused,) = await ask("small").next()
    assert isinstance(refused, Failure)
    assert isinstance(refused.error, TooManyBytes)
    assert "limit of tenant 'small' is 1100 (max_kv_bytes), of which 1024 are taken" in refused.error.message
    (never,) = await ask("small", 1100).next()
    assert isinstance(never, Failure)
    assert isinstance(never.error, InvalidRequest)
    assert (never.error.param, never.error.retry_after_s) == ("max_tokens", None)
    small[1].close(forget)  # it waits still
    await asyncio.sleep(0.05)
    again = ask("small")
    heard = await asyncio.gather(*map(read, (small[0], *usual, again)))
    assert [text(deltas[0]) for deltas in heard] == 6 * [LONG]
    await settled(replica)


@virtual
async def test_a_deadline_ends_the_choice_in_the_replica_too() -> None:
    replica = Replica("r", engine())
    mailbox = start(ChatLinks(LocalCalls(replica), "g"), remaining_s=0.1)
    assert isinstance(await last(mailbox), DeadlineExceeded)
    await settled(replica)
    assert replica.told.early == ["deadline_exceeded"]


@virtual
async def test_a_call_that_finds_no_replica_is_given_up_when_nobody_waits() -> None:
    calls = LocalCalls()
    links = ChatLinks(calls, "g")
    mailbox = start(links)
    await asyncio.sleep(0.5)
    mailbox.close(forget)
    await asyncio.sleep(1.5)
    assert all(call._task.done() for call in calls.open_calls)


@virtual
async def test_stopping_links_breaks_everything_off() -> None:
    replica = Replica("r", engine())
    links = ChatLinks(LocalCalls(replica), "g")
    mailbox = start(links)
    await asyncio.sleep(0.1)
    await links.stop()
    assert isinstance(await last(mailbox), ReplicaLost)


@virtual
async def test_every_busy_second_is_told_once_or_forgone_however_choices_end() -> None:
    replica = Replica("r", engine(), max_running=3, meter=EstimateMeter(lambda: 0.0, WATTS))
    account = replica.hub._energy._account  # type: ignore[union-attr]
    links, dying = ChatLinks(LocalCalls(replica), "g"), LocalCalls(replica)
    lost, bills = ChatLinks(dying, "dying"), list[Spent]()
    for number in range(12):
        mailbox = start(lost if number == 3 else links, remaining_s=0.2 if number == 4 else 60.0)
        await asyncio.sleep(0.05)
        if number % 3 == 0:
            mailbox.close(bills.append)
    dying.die()
    await asyncio.sleep(30.0)
    assert set(replica.told.early) == {"cancelled", "deadline_exceeded"}
    assert replica.told.num_finished > 3
    assert account._told_s == pytest.approx(replica.hub.busy_s())
    assert all(bill.joules == pytest.approx(WATTS * bill.seconds) for bill in bills)


@virtual
async def test_every_choice_that_came_has_ended_in_one_way() -> None:
    replica = Replica("r", engine(), max_running=4, max_waiting=6)
    links = ChatLinks(LocalCalls(replica), "g")
    mailboxes = []
    for number in range(30):
        mailboxes.append(start(links, remaining_s=0.3 if number % 5 == 0 else 60.0))
        await asyncio.sleep(0.02)
        if number % 3 == 0:
            mailboxes[number // 2].close(forget)
    await asyncio.sleep(30.0)
    ended = replica.told.num_finished + len(replica.told.early)
    assert ended == 30
    assert replica.told.num_finished > 3
    assert set(replica.told.early) == {"cancelled", "deadline_exceeded", "queue_full"}
    await settled(replica)
    assert replica.hub.queued_s() == 0.0


async def last(mailbox: Mailbox) -> Exception | Item:
    """How a mailbox ends: an error item, or what ``next`` raises."""
    try:
        while True:
            for item in await mailbox.next():
                if isinstance(item, Failure):
                    return item.error
    except (ReplicaLost, Draining) as error:
        return error


class Leaving(FakeChatEngine):
    """Its choices have said all, and stay until they may go, as in vLLM while it aborts one that was ended."""

    may_go: asyncio.Event

    async def run(self, request: EngineRequest, say: Say) -> None:
        await super().run(request, say)
        await self.may_go.wait()


@pytest.mark.parametrize("what", ["cancel", "deadline", "gateway dies", "replica stops"])
def test_choice_whose_end_was_said_is_settled_whatever_comes_before_it_has_left(what: str) -> None:
    async def run() -> None:
        slow = Leaving(answer=lambda request: "short", step_s=0.01)
        slow.may_go = asyncio.Event()
        replica = Replica("r", slow, meter=EstimateMeter(lambda: 0.0, WATTS))
        calls = LocalCalls(replica)
        await read(start(ChatLinks(calls, "g"), remaining_s=0.2 if what == "deadline" else 60.0))
        (number,) = replica.hub._boxes["g"].choices
        assert replica.hub.queued_s() == 0.0
        if what == "cancel":
            assert replica.hub.cancel("g", [number]) == {}
        elif what == "gateway dies":
            calls.die()
        elif what == "replica stops":
            await replica.hub.stop()
        await asyncio.sleep(0.5)
        slow.may_go.set()
        await settled(replica)
        assert (replica.told.num_finished, replica.told.early) == (1, [])
        account = replica.hub._energy._account  # type: ignore[union-attr]
        assert account._told_s == pytest.approx(replica.hub.busy_s())

    run_virtual(run())
