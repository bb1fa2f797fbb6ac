"""The runner on a virtual clock: every time is known exactly, none is waited for."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.arrivals import uniform
from loadtest.clients.base import Payload, Prepared, Reply
from loadtest.clients.fake import FakeClient
from loadtest.clock import LoopClock
from loadtest.records import Outcome, Record
from loadtest.runner import Planned, RunControl, RunLimits, run_closed_loop, run_open_loop, run_plan
from tests.support.virtual_loop import run_virtual
from tests.unit.loadtest.builders import make_payload


def control(**fields: Any) -> RunControl:
    return RunControl(clock=LoopClock(), **fields)


def open_loop(client: Callable[[], FakeClient], *, rate: float = 10.0, num: int = 20, **options: Any) -> list[Record]:
    async def work() -> list[Record]:
        return await run_open_loop(
            client(), [make_payload()], uniform(rate), num_requests=num, control=control(), **options
        )

    return run_virtual(work())


def test_requests_are_sent_when_they_are_due_however_slow_the_answers() -> None:
    records = open_loop(lambda: FakeClient(lambda _: 100.0), limits=RunLimits(timeout_s=1000))
    assert [record.sent_at_s for record in records] == pytest.approx([index / 10 for index in range(20)])
    assert [record.latency_from_scheduled_s for record in records] == pytest.approx([100.0] * 20)


def test_a_request_beyond_the_bound_in_flight_is_recorded_as_dropped_and_never_sent() -> None:
    records = open_loop(lambda: FakeClient(lambda _: 0.25), limits=RunLimits(max_in_flight=2))
    outcomes = [record.outcome for record in records]
    # Two are sent, the third finds both in flight; at 0.3 s the first has ended (0.25 s), and so on.
    assert outcomes[:6] == [Outcome.OK, Outcome.OK, Outcome.GENERATOR_DROPPED] * 2
    dropped = records[2]
    assert (dropped.scheduled_at_s, dropped.sent_at_s, dropped.done_at_s) == (0.2, None, None)


def test_an_answer_that_takes_too_long_is_a_timeout_at_exactly_the_limit() -> None:
    records = open_loop(lambda: FakeClient(lambda k: 5.0 if k == 3 else 0.01), limits=RunLimits(timeout_s=1.0))
    assert [record.index for record in records if record.outcome is Outcome.TIMEOUT] == [3]
    assert records[3].latency_from_sent_s == pytest.approx(1.0)
    assert "limits.timeout_s" in str(records[3].error_message)


def test_records_come_in_the_order_of_the_plan_whatever_the_order_of_the_answers() -> None:
    records = open_loop(lambda: FakeClient(lambda k: 3.0 - k * 0.1))
    assert [record.index for record in records] == list(range(20))


def test_warm_up_is_marked_by_the_time_a_request_was_due() -> None:
    records = open_loop(lambda: FakeClient(lambda _: 0.0), warm_up_s=0.5)
    assert [record.is_warm_up for record in records] == [True] * 5 + [False] * 15


def test_payloads_are_sent_in_turn_and_each_is_encoded_once() -> None:
    class CountingClient(FakeClient):
        num_prepared = 0

        def prepare(self, payload: Payload) -> Prepared:
            self.num_prepared += 1
            return super().prepare(payload)

    a, b = make_payload(kind="a"), make_payload(kind="b")

    async def work() -> tuple[CountingClient, list[Record]]:
        client = CountingClient(lambda _: 0.0)
        return client, await run_open_loop(client, [a, b, a], uniform(1.0), num_requests=7, control=control())

    client, records = run_virtual(work())
    assert [record.kind for record in records] == ["a", "b", "a", "a", "b", "a", "a"]
    assert client.num_prepared == 2


def test_a_client_that_raises_is_a_fault_of_the_generator_and_the_run_goes_on() -> None:
    class BrokenClient(FakeClient):
        async def send(self, prepared: Prepared) -> Reply:
            if len(self.sent) == 1:
                self.sent.append(prepared.payload)
                raise KeyError("a bug")
            return await super().send(prepared)

    records = open_loop(lambda: BrokenClient(lambda _: 0.0), num=3)
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.GENERATOR_ERROR, Outcome.OK]
    assert records[1].error_message == "KeyError: 'a bug'"


def test_an_observer_sees_every_record_once_and_its_failure_ends_the_run() -> None:
    seen: list[int] = []

    async def run(observer: Callable[[Record], None]) -> list[Record]:
        client = FakeClient(lambda _: 0.1)
        return await run_open_loop(
            client, [make_payload()], uniform(10.0), num_requests=5, control=control(observer=observer)
        )

    def fail(record: Record) -> None:
        raise RuntimeError("observer failed")

    run_virtual(run(lambda record: seen.append(record.index)))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="observer failed"):
        run_virtual(run(fail))


def test_a_stop_sends_no_more_lets_answers_in_for_the_grace_time_and_cancels_the_rest() -> None:
    async def work() -> list[Record]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.95, stop.set)
        client = FakeClient(lambda k: 1.0 if k < 5 else 50.0)
        return await run_open_loop(
            client,
            [make_payload()],
            uniform(10.0),
            num_requests=1000,
            limits=RunLimits(timeout_s=100, stop_grace_s=1.0),
            control=control(stop=stop),
        )

    outcomes = [record.outcome for record in run_virtual(work())]
    assert outcomes == [Outcome.OK] * 5 + [Outcome.CANCELLED] * 5


def test_cancelling_the_run_leaves_no_task_behind() -> None:
    async def work() -> set[asyncio.Task[Any]]:
        run = asyncio.create_task(
            run_open_loop(
                FakeClient(lambda _: 50.0), [make_payload()], uniform(10.0), num_requests=9, control=control()
            )
        )
        await asyncio.sleep(0.5)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert run_virtual(work()) == set()


def test_a_plan_can_be_placed_anywhere_in_time_with_indices_that_go_on() -> None:
    async def work() -> list[Record]:
        await asyncio.sleep(7.0)
        client = FakeClient(lambda _: 0.5)
        item = client.prepare(make_payload())
        plan = [Planned(scheduled_at_s=8.0, prepared=item, phase="late"), Planned(scheduled_at_s=9.0, prepared=item)]
        return await run_plan(client, plan, control=control(epoch_s=0.0, first_index=40))

    records = run_virtual(work())
    assert [(r.index, r.phase, r.sent_at_s, r.done_at_s) for r in records] == [
        (40, "late", 8.0, 8.5),
        (41, "main", 9.0, 9.5),
    ]


def test_requests_that_are_due_before_the_run_starts_are_sent_late_and_say_so() -> None:
    async def work() -> list[Record]:
        await asyncio.sleep(3.0)
        client = FakeClient(lambda _: 0.5)
        plan = [Planned(scheduled_at_s=1.0, prepared=client.prepare(make_payload()))]
        return await run_plan(client, plan, control=control(epoch_s=0.0))

    (record,) = run_virtual(work())
    assert (record.generator_lag_s, record.latency_from_scheduled_s, record.latency_from_sent_s) == (2.0, 2.5, 0.5)


def test_a_generator_that_is_late_still_lets_answers_in_between_its_requests() -> None:
    class InstantClient(FakeClient):
        async def send(self, prepared: Prepared) -> Reply:
            return Reply(outcome=Outcome.OK, done_at_s=asyncio.get_running_loop().time())

    async def work() -> list[Record]:
        await asyncio.sleep(10.0)
        client = InstantClient(lambda _: 0.0)
        plan = [Planned(scheduled_at_s=0.0, prepared=client.prepare(make_payload()))] * 100
        return await run_plan(client, plan, limits=RunLimits(max_in_flight=5), control=control(epoch_s=0.0))

    assert {record.outcome for record in run_virtual(work())} == {Outcome.OK}


def closed(client: FakeClient, concurrency: int, **options: Any) -> list[Record]:
    return run_virtual(run_closed_loop(client, [make_payload()], concurrency, control=control(), **options))


def test_a_closed_loop_keeps_exactly_that_many_callers_busy() -> None:
    records = closed(FakeClient(lambda _: 0.5), 3, num_requests=12)
    assert sorted(record.sent_at_s or 0.0 for record in records) == [0.0] * 3 + [0.5] * 3 + [1.0] * 3 + [1.5] * 3
    assert {record.scheduled_at_s for record in records} == {None}
    assert [record.index for record in records] == list(range(12))


def test_a_closed_loop_starts_nothing_after_its_duration_and_waits_for_what_it_started() -> None:
    records = closed(FakeClient(lambda _: 0.4), 1, duration_s=1.0, warm_up_s=0.5)
    assert [record.done_at_s for record in records] == pytest.approx([0.4, 0.8, 1.2])
    assert [record.is_warm_up for record in records] == [True, True, False]


def test_a_closed_loop_stops_on_the_signal() -> None:
    async def work() -> list[Record]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(1.1, stop.set)
        return await run_closed_loop(
            FakeClient(lambda _: 0.5), [make_payload()], 2, duration_s=100.0, control=control(stop=stop)
        )

    assert len(run_virtual(work())) == 6


def test_bounds_that_make_no_sense_are_refused_by_name() -> None:
    client = FakeClient(lambda _: 0.0)
    with pytest.raises(ValueError, match="concurrency is 0"):
        closed(client, 0, num_requests=1)
    with pytest.raises(ValueError, match="num_requests or duration_s"):
        closed(client, 1)
    with pytest.raises(ValueError, match="no payloads"):
        run_virtual(run_open_loop(client, [], uniform(1.0), num_requests=1))
    with pytest.raises(ValueError, match="max_in_flight is 0"):
        RunLimits(max_in_flight=0)
    with pytest.raises(ValueError, match="stop_grace_s is -1"):
        RunLimits(stop_grace_s=-1)


def test_correct_labels_are_counted_only_where_a_label_was_expected_and_an_answer_came() -> None:
    known, unknown = make_payload(expected_labels=("7",)), make_payload()

    async def work() -> list[Record]:
        client = FakeClient(lambda _: 0.0, outcome=lambda k: Outcome.OK)
        return await run_open_loop(client, [known, unknown], uniform(1.0), num_requests=2, control=control())

    assert [record.num_correct for record in run_virtual(work())] == [1, None]
