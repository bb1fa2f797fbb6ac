"""The dispatcher: sharing calls, slicing what comes back, surviving lost replicas and callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.retry_budget import RetryBudget
from serving.delivery.unary import dispatch
from serving.delivery.unary.dispatch import MAX_ATTEMPTS, MAX_SAMPLES_PER_CALL, Dispatcher
from serving.delivery.unary.wire import SampleAnswer, SampleCall, SampleFailure, SampleOutcome
from serving.errors import Cancelled, EngineFailed, ReplicaLost, RetriesSpent, ServingError
from serving.telemetry.events import CallRetried, Event, SamplesSent
from tests.support.engines import WAIT_S
from tests.support.replica_calls import FakeCall, ReplicaGone, number_of, sample
from tests.support.waiting import until


class Way:
    """A dispatcher, the calls it made and what it reported."""

    def __init__(self, max_calls: int = 1, num_replicas: int = 1, max_retries: int = 1000) -> None:
        self.retries = RetryBudget(max_retries)
        self.calls: list[FakeCall] = []
        self.sent: list[int] = []
        self.num_retries = 0
        self.now_s = 100.0
        self.on_send: Callable[[], None] = lambda: None
        self.left: list[dict[str, list[int]]] = []
        self.finds_calls = False
        """Whether calls are at a replica, so that callers can be taken out of them."""
        self.bills: list[list[float] | None] = []
        """What each request was settled with."""
        self.dispatcher = Dispatcher(
            send=self._send,
            leave=self._leave,
            is_replica_lost=lambda error: isinstance(error, ReplicaGone),
            max_calls_in_flight=max_calls,
            num_replicas=num_replicas,
            retries=self.retries,
            model="m",
            tell=self._hear,
            clock=lambda: self.now_s,
        )

    def _send(self, call_id: str, samples: list[SampleCall], predicted_s: float) -> FakeCall:
        self.on_send()
        self.calls.append(FakeCall(call_id, samples, predicted_s))
        return self.calls[-1]

    async def _leave(self, places: Mapping[str, Sequence[int]]) -> list[str]:
        await asyncio.sleep(0)
        self.left.append({call_id: list(which) for call_id, which in places.items()})
        return list(places) if self.finds_calls else []

    def _hear(self, event: Event) -> None:
        if isinstance(event, SamplesSent):
            self.sent.append(event.num_samples)
        self.num_retries += isinstance(event, CallRetried)

    def run(
        self, *numbers: int, remaining_s: float = 10.0, tenant: str = "t", elsewhere_j: float = 0.0
    ) -> asyncio.Task[list[SampleOutcome]]:
        samples = [sample(number, remaining_s)._replace(tenant=tenant, elsewhere_j=elsewhere_j) for number in numbers]
        place = len(self.bills)
        self.bills.append(None)

        def settle(outcomes: Sequence[SampleOutcome]) -> None:
            assert self.bills[place] is None, "settled twice"
            self.bills[place] = [outcome.compute_s for outcome in outcomes]

        return asyncio.create_task(self.dispatcher.run(samples, 0.5 * len(numbers), settle))

    @property
    def open_calls(self) -> list[FakeCall]:
        return [call for call in self.calls if call.is_open]


@asynccontextmanager
async def quiet_end(way: Way) -> AsyncIterator[Way]:
    """Whatever the test did, nothing may be left outstanding."""
    yield way
    await until(lambda: not way.dispatcher._calls)
    # Sums and differences of halves are exact.
    assert way.dispatcher.predicted_wait_s() == 0.0
    assert not way.dispatcher._waiting
    assert not way.dispatcher._open
    assert None not in way.bills, "every request is settled, whatever became of it"


@pytest.fixture
async def way() -> AsyncIterator[Way]:
    async with quiet_end(Way()) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_BACKOFF_S", 0.0)


def numbers(outcomes: list[SampleOutcome]) -> list[int]:
    assert all(isinstance(outcome, SampleAnswer) for outcome in outcomes)
    return [outcome.exit_index for outcome in outcomes if isinstance(outcome, SampleAnswer)]


async def ended(task: asyncio.Task[list[SampleOutcome]]) -> list[SampleOutcome]:
    return await asyncio.wait_for(task, WAIT_S)


# -- sharing ---------------------------------------------------------------------------------------------------------


async def test_idle_dispatcher_sends_at_once(way: Way) -> None:
    task = way.run(1)
    for _ in range(3):  # the caller's task, the call's task, the call
        await asyncio.sleep(0)
    assert len(way.calls) == 1
    way.calls[0].answer()
    assert numbers(await ended(task)) == [1]


async def test_busy_dispatcher_sends_what_came_meanwhile_in_one_call(way: Way) -> None:
    first = way.run(1)
    await until(lambda: len(way.calls) == 1)
    others = [way.run(2, 3), way.run(4), way.run(5, 6, 7)]
    await until(lambda: len(way.dispatcher._waiting) == 3)
    assert len(way.calls) == 1
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    assert [number_of(each) for each in way.calls[1].samples] == [2, 3, 4, 5, 6, 7]
    assert way.calls[1].predicted_s == 3.0
    way.calls[1].answer()
    assert [numbers(await ended(task)) for task in (first, *others)] == [[1], [2, 3], [4], [5, 6, 7]]
    assert way.sent == [1, 6]


async def test_as_many_calls_are_on_the_way_as_allowed_and_no_more() -> None:
    async with quiet_end(Way(max_calls=3)) as way:
        tasks = [way.run(number) for number in range(8)]
        await until(lambda: len(way.dispatcher._waiting) == 5)
        assert len(way.calls) == 3
        while not all(task.done() for task in tasks):
            assert len(way.open_calls) <= 3
            for call in way.open_calls:
                call.answer()
            await asyncio.sleep(0)
        assert [numbers(task.result()) for task in tasks] == [[number] for number in range(8)]
        assert len(way.calls) == 4


async def test_full_call_leaves_the_next_request_whole_for_the_next_one(way: Way) -> None:
    first = way.run(0)
    await until(lambda: len(way.calls) == 1)
    big = [way.run(*range(40), remaining_s=60.0), way.run(*range(40), remaining_s=60.0), way.run(1, remaining_s=60.0)]
    await until(lambda: len(way.dispatcher._waiting) == 3)
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    assert len(way.calls[1].samples) == 40
    way.calls[1].answer()
    await until(lambda: len(way.calls) == 3)
    assert len(way.calls[2].samples) == 41
    way.calls[2].answer()
    assert [len(await ended(task)) for task in (first, *big)] == [1, 40, 40, 1]


async def test_flood_of_one_tenant_does_not_keep_another_from_the_next_call(way: Way) -> None:
    size = MAX_SAMPLES_PER_CALL
    flood = [way.run(number) for number in range(3 * size + 1)]
    await until(lambda: len(way.dispatcher._waiting) == 3 * size)
    late = way.run(*range(300, 310), tenant="other")
    await until(lambda: len(way.dispatcher._waiting) == 3 * size + 1)
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    assert [call.tenant for call in way.calls[1].samples].count("other") == 10
    way.calls[1].answer()
    assert len(await ended(late)) == 10
    for number in (2, 3, 4):
        await until(lambda number=number: len(way.calls) > number)
        way.calls[number].answer()
    assert [len(await ended(task)) for task in flood] == [1] * len(flood)


async def test_who_was_served_elsewhere_leaves_after_those_who_were_not(way: Way) -> None:
    first = way.run(0)
    await until(lambda: len(way.calls) == 1)
    others = [way.run(*range(40)) for _ in range(3)]
    await until(lambda: len(way.dispatcher._waiting) == 3)
    greedy = way.run(*range(40), tenant="greedy", elsewhere_j=40.0)
    await until(lambda: len(way.dispatcher._waiting) == 4)
    for number in range(5):
        await until(lambda number=number: len(way.calls) > number)
        way.calls[number].answer()
    tenants = [{one.tenant for one in call.samples} for call in way.calls[1:]]
    assert tenants == [{"t"}, {"t"}, {"t"}, {"greedy"}]  # whose turn would have come second
    await asyncio.gather(first, greedy, *others)


async def test_request_larger_than_a_call_travels_alone(way: Way) -> None:
    size = MAX_SAMPLES_PER_CALL + 1
    task = way.run(*range(size))
    await until(lambda: len(way.calls) == 1)
    way.calls[0].answer()
    assert numbers(await ended(task)) == list(range(size))


async def test_time_spent_waiting_is_taken_off_what_remains(way: Way) -> None:
    first = way.run(1)
    await until(lambda: len(way.calls) == 1)
    assert way.calls[0].samples[0].remaining_s == 10.0
    second = way.run(2)
    await until(lambda: len(way.dispatcher._waiting) == 1)
    way.now_s += 3.0
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    assert way.calls[1].samples[0].remaining_s == 7.0
    way.now_s += 1.0
    way.calls[1].fail(ReplicaGone())
    await until(lambda: len(way.calls) == 3)
    assert way.calls[2].samples[0].remaining_s == 6.0
    way.calls[2].answer()
    await asyncio.gather(ended(first), ended(second))


async def test_a_flood_lets_its_own_tenant_wait_and_hardly_another() -> None:
    async with quiet_end(Way(num_replicas=2)) as way:
        tasks = [way.run(number, tenant="greedy") for number in range(40)]
        await until(lambda: len(way.calls) == 1)
        waits = {tenant: way.dispatcher.predicted_turn_s(tenant, 1) for tenant in ("greedy", "other")}
        assert waits["greedy"] == way.dispatcher.predicted_wait_s() == 20.0 / 2
        assert 0.0 < waits["other"] <= 0.5 / 2  # as much of the flood as it has itself
        while not all(task.done() for task in tasks):
            for call in way.open_calls:
                call.answer()
            await asyncio.sleep(0)
        await asyncio.gather(*map(ended, tasks))


async def test_predicted_wait_counts_what_is_out_and_divides_by_replicas() -> None:
    async with quiet_end(Way(num_replicas=4)) as way:
        assert way.dispatcher.predicted_wait_s() == 0.0
        tasks = [way.run(1, 2), way.run(3, 4)]
        await until(lambda: len(way.calls) == 1)
        assert way.dispatcher.predicted_wait_s() == 2.0 / 4
        way.calls[0].answer()
        await until(lambda: len(way.calls) == 2)
        assert way.dispatcher.predicted_wait_s() == 1.0 / 4
        way.calls[1].answer()
        await asyncio.gather(*map(ended, tasks))


async def test_errors_of_single_samples_come_back_in_their_places(way: Way) -> None:
    task = way.run(1, 2)
    await until(lambda: len(way.calls) == 1)
    error = SampleFailure(EngineFailed("no"), 0.25)
    way.calls[0].answer_with([error, SampleAnswer({}, 2, False, 0.0, 0.0)])
    outcomes = await ended(task)
    assert outcomes[0] is error
    assert numbers(outcomes[1:]) == [2]


# -- callers that go away --------------------------------------------------------------------------------------------


async def test_cancelled_alone_cancels_the_call(way: Way) -> None:
    task = way.run(1)
    await until(lambda: len(way.calls) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: way.calls[0].is_cancelled)


async def test_cancelled_while_waiting_is_not_sent(way: Way) -> None:
    first, second, third = way.run(1), way.run(2), way.run(3)
    await until(lambda: len(way.dispatcher._waiting) == 2)
    second.cancel()
    await asyncio.wait([second])
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    assert [number_of(each) for each in way.calls[1].samples] == [3]
    way.calls[1].answer()
    await asyncio.gather(ended(first), ended(third))


async def test_cancelled_in_a_shared_call_leaves_the_others_unhurt(way: Way) -> None:
    first, second, third, fourth = way.run(1), way.run(2), way.run(3, 4), way.run(5)
    await until(lambda: len(way.dispatcher._waiting) == 3)
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    second.cancel()
    await asyncio.wait([second])
    assert not way.calls[1].is_cancelled
    way.calls[1].answer()
    assert numbers(await ended(third)) == [3, 4]
    assert numbers(await ended(fourth)) == [5]
    assert numbers(await ended(first)) == [1]


async def test_shared_call_is_cancelled_when_its_last_caller_goes(way: Way) -> None:
    first, second, third = way.run(1), way.run(2), way.run(3)
    await until(lambda: len(way.dispatcher._waiting) == 2)
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    second.cancel()
    await asyncio.wait([second])
    assert not way.calls[1].is_cancelled
    third.cancel()
    await asyncio.wait([third])
    await until(lambda: way.calls[1].is_cancelled)
    await ended(first)


# -- what callers that go away leave behind ------------------------------------------------------------------------


def taken(seconds: float) -> SampleFailure:
    return SampleFailure(Cancelled("gone"), seconds)


async def test_who_leaves_alone_pays_for_the_stages_that_ran(way: Way) -> None:
    way.finds_calls = True
    task = way.run(1, 2)
    await until(lambda: len(way.calls) == 1)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: way.left == [{way.calls[0].call_id: [0, 1]}])
    assert not way.calls[0].is_cancelled
    assert way.bills == [None]
    way.calls[0].answer_with([taken(0.25), taken(0.5)])
    await until(lambda: way.bills == [[0.25, 0.5]])


async def test_who_leaves_a_shared_call_is_taken_out_and_pays_its_own(way: Way) -> None:
    way.finds_calls = True
    first, second, third = way.run(1), way.run(2), way.run(3, 4)
    await until(lambda: len(way.dispatcher._waiting) == 2)
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    second.cancel()
    await until(lambda: way.left == [{way.calls[1].call_id: [0]}])
    answers = [SampleAnswer({}, number, False, 0.0, 1.0 * number) for number in (3, 4)]
    way.calls[1].answer_with([taken(0.5), *answers])
    assert numbers(await ended(third)) == [3, 4]
    assert way.bills == [[0.0], [0.5], [3.0, 4.0]]
    await ended(first)


async def test_who_leaves_before_it_was_sent_or_while_it_waits_for_a_replica_pays_nothing(way: Way) -> None:
    first, second = way.run(1), way.run(2)
    await until(lambda: len(way.dispatcher._waiting) == 1)
    second.cancel()
    first.cancel()
    await until(lambda: way.bills == [[], []])
    assert way.calls[0].is_cancelled


async def test_replicas_are_told_of_all_who_left_meanwhile_at_once() -> None:
    async with quiet_end(Way(max_calls=8)) as way:
        way.finds_calls = True
        tasks = [way.run(number) for number in range(8)]
        await until(lambda: len(way.calls) == 8)
        for task in tasks:
            task.cancel()
        await until(lambda: sum(map(len, way.left)) == 8)
        assert len(way.left) <= 2
        for call in way.calls:
            call.answer_with([taken(1.0)])
        await until(lambda: all(bill == [1.0] for bill in way.bills))


async def test_what_a_lost_replica_did_costs_nothing(way: Way) -> None:
    way.finds_calls = True
    task = way.run(1)
    await until(lambda: len(way.calls) == 1)
    task.cancel()
    await until(lambda: bool(way.left))
    way.calls[0].fail(ReplicaGone())
    await until(lambda: way.bills == [[]])


async def test_shared_call_does_not_run_in_the_context_of_one_of_its_requests() -> None:
    """Regression: Ray cancels the calls that carry the context of a request whose client disconnects."""
    request_id = ContextVar("request_id", default="none")
    seen: list[str] = []
    async with quiet_end(Way()) as way:
        way.on_send = lambda: seen.append(request_id.get())
        tasks = []
        for number in range(3):
            request_id.set(f"request {number}")
            tasks.append(way.run(number))
        await until(lambda: len(way.dispatcher._waiting) == 2)
        way.calls[0].answer()
        await until(lambda: len(way.calls) == 2)
        way.calls[1].fail(ReplicaGone())
        await until(lambda: len(way.calls) == 3)
        way.calls[2].answer()
        await asyncio.gather(*map(ended, tasks))
    assert seen == ["none"] * 3


async def test_call_cancelled_from_outside_is_sent_again(way: Way) -> None:
    task = way.run(1)
    await until(lambda: len(way.calls) == 1)
    way.calls[0].cancel()
    await until(lambda: len(way.calls) == 2)
    way.calls[1].answer()
    assert numbers(await ended(task)) == [1]


# -- replicas that go away -------------------------------------------------------------------------------------------


async def test_lost_replica_is_retried_and_only_then_given_up(way: Way) -> None:
    task = way.run(1)
    for attempt in range(MAX_ATTEMPTS):
        await until(lambda: len(way.calls) == attempt + 1)  # noqa: B023 - awaited before the next round
        assert not task.done()
        way.calls[attempt].fail(ReplicaGone())
    with pytest.raises(ReplicaLost, match=str(MAX_ATTEMPTS)):
        await ended(task)
    assert len(way.calls) == MAX_ATTEMPTS
    assert way.num_retries == MAX_ATTEMPTS - 1


async def test_a_fault_of_all_replicas_is_not_multiplied_by_retries() -> None:
    async with quiet_end(Way(max_calls=8, max_retries=5)) as way:
        tasks = [way.run(number) for number in range(8)]
        await until(lambda: len(way.calls) == 8)
        for call in way.open_calls:
            call.fail(ReplicaGone())
        await until(lambda: len(way.calls) == 13)
        for call in way.open_calls:
            call.answer()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, RetriesSpent) for outcome in outcomes) == 3
        assert sum(isinstance(outcome, list) for outcome in outcomes) == 5


@pytest.mark.parametrize("attempt", range(1, MAX_ATTEMPTS))
async def test_answer_after_lost_replicas_is_an_answer(way: Way, attempt: int) -> None:
    task = way.run(1, 2)
    for done in range(attempt):
        await until(lambda: len(way.calls) == done + 1)  # noqa: B023
        way.calls[done].fail(ReplicaGone())
    await until(lambda: len(way.calls) == attempt + 1)
    way.calls[attempt].answer()
    assert numbers(await ended(task)) == [1, 2]


async def test_request_that_kills_replicas_does_not_take_its_neighbours_along(way: Way) -> None:
    first = way.run(0)
    await until(lambda: len(way.calls) == 1)
    good, poison = way.run(1, 2), way.run(666)
    await until(lambda: len(way.dispatcher._waiting) == 2)
    way.calls[0].answer()
    while not (good.done() and poison.done()):
        for call in way.open_calls:
            if any(number_of(each) == 666 for each in call.samples):
                call.fail(ReplicaGone())
            else:
                call.answer()
        await asyncio.sleep(0)
    assert numbers(good.result()) == [1, 2]
    with pytest.raises(ReplicaLost):
        poison.result()
    assert sum(number_of(each) == 666 for call in way.calls for each in call.samples) == MAX_ATTEMPTS
    await ended(first)


async def test_request_cancelled_between_attempts_is_not_sent_again(way: Way) -> None:
    first, second, third = way.run(1), way.run(2), way.run(3)
    await until(lambda: len(way.dispatcher._waiting) == 2)
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    second.cancel()
    await asyncio.wait([second])
    way.calls[1].fail(ReplicaGone())
    await until(lambda: len(way.calls) == 3)
    assert [number_of(each) for each in way.calls[2].samples] == [3]
    way.calls[2].answer()
    assert numbers(await ended(third)) == [3]
    await ended(first)


async def test_lost_replica_whose_callers_have_all_gone_is_not_retried(way: Way) -> None:
    task = way.run(1)
    await until(lambda: len(way.calls) == 1)
    call = way.calls[0]
    call.cancel = lambda: call.fail(ReplicaGone())  # type: ignore[method-assign]
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: not way.dispatcher._calls)
    assert len(way.calls) == 1
    assert way.num_retries == 0


@pytest.mark.parametrize("error", [ValueError("bug"), EngineFailed("model"), RuntimeError("x")])
async def test_error_that_is_no_lost_replica_reaches_every_request_of_the_call(way: Way, error: Exception) -> None:
    first, *others = way.run(1), way.run(2), way.run(3, 4)
    await until(lambda: len(way.dispatcher._waiting) == 2)
    way.calls[0].answer()
    await until(lambda: len(way.calls) == 2)
    way.calls[1].fail(error)
    for task in others:
        with pytest.raises(type(error)):
            await ended(task)
    assert len(way.calls) == 2
    await ended(first)


async def test_send_that_raises_is_an_answer_like_any_other(way: Way) -> None:
    def refuse() -> None:
        raise ReplicaGone

    way.on_send = refuse
    with pytest.raises(ReplicaLost):
        await ended(way.run(1))
    way.on_send = lambda: None
    task = way.run(2)
    await until(lambda: len(way.calls) == 1)
    way.calls[0].answer()
    assert numbers(await ended(task)) == [2]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_wrong_number_of_outcomes_is_never_sliced(way: Way, count: int) -> None:
    task = way.run(1, 2)
    await until(lambda: len(way.calls) == 1)
    way.calls[0].answer_with([SampleAnswer({}, 0, False, 0.0, 0.0)] * count)
    with pytest.raises(RuntimeError, match=f"{count} outcomes for 2"):
        await ended(task)


async def test_call_that_is_torn_down_leaves_nobody_waiting(way: Way) -> None:
    tasks = [way.run(1), way.run(2)]
    await until(lambda: len(way.calls) == 1)
    for call in tuple(way.dispatcher._calls):
        call.cancel()
    with pytest.raises(ReplicaLost):
        await ended(tasks[0])
    await until(lambda: len(way.calls) == 2)
    way.calls[1].answer()
    assert numbers(await ended(tasks[1])) == [2]


# -- any order of things ---------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    max_calls=st.integers(1, 3),
    actions=st.lists(
        st.tuples(st.sampled_from(["run", "cancel", "answer", "lose", "break", "yield"]), st.integers(0, 9)),
        max_size=40,
    ),
)
def test_any_interleaving_ends_every_request_once(max_calls: int, actions: list[tuple[str, int]]) -> None:
    async def play() -> None:
        async with quiet_end(Way(max_calls=max_calls)) as way:
            tasks: list[tuple[list[int], asyncio.Task[list[SampleOutcome]]]] = []
            for number, (action, choice) in enumerate(actions):
                if action == "run":
                    wanted = [number * 10 + index for index in range(1 + choice % 4)]
                    tasks.append((wanted, way.run(*wanted)))
                elif action == "cancel" and tasks:
                    tasks[choice % len(tasks)][1].cancel()
                elif action in ("answer", "lose", "break") and way.open_calls:
                    _end(way.open_calls[choice % len(way.open_calls)], action)
                await asyncio.sleep(0)
                assert len(way.dispatcher._calls) <= max_calls
            while not all(task.done() for _, task in tasks):
                for call in way.open_calls:
                    call.answer()
                await asyncio.sleep(0)
            for wanted, task in tasks:
                if task.cancelled():
                    continue
                error = task.exception()
                assert error is None or isinstance(error, ServingError | ValueError)
                assert error is not None or numbers(task.result()) == wanted

    asyncio.run(play())


def _end(call: FakeCall, action: str) -> None:
    if action == "answer":
        call.answer()
    else:
        call.fail(ReplicaGone() if action == "lose" else ValueError("bug"))
