"""A replica under guard: what an attack picture keeps going is ended, paid for, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from schedulers.guard.calibration import Group, GuardCalibration
from schedulers.guard.detectors import ALL
from schedulers.guard.text import TextModel
from serving.delivery.stream.links import ChatLinks, Route
from serving.delivery.stream.wire import (
    ChoiceStart,
    Delta,
    EngineImage,
    EngineRequest,
    FinishReason,
    GuardOrder,
    GuardSaid,
)
from serving.errors import EngineFailed
from serving.fair_slots import SlotTurn
from serving.replica.chat.fake_engine import FakeChatEngine
from tests.support.chat_replicas import WATTS, LocalCalls, Mailbox, Replica, engine_request
from tests.support.waiting import until

CAP, BOUND = 20, 30
LONG, SHORT = "and so on it goes, for ever and ever. " * 60, "This is a short answer."
NUM_SHORT = -(-len(SHORT) // 4)
ATTACK = EngineImage("a77ac4", np.zeros((1, 16, 16, 3), np.uint8), (1, 1))
CALIBRATION = GuardCalibration(
    model="m",
    checkpoint_sha256="",
    num_benign=1000,
    text=TextModel(weights=(0.0,) * 16),
    groups={"all": Group(num=1000, p95_tokens=CAP, residuals=tuple(i / 1000 for i in range(1000)))},
)
ORDER = GuardOrder("enforce", "all", BOUND, CAP, {}, 0.05, 0.01, ALL)
_NUMBERS = count()
pytestmark = pytest.mark.asyncio


def crafted(request: EngineRequest) -> str:
    """Long about the picture as it came, and about no picture; short about a purified copy."""
    return LONG if request.images in ((), (ATTACK,)) else SHORT


def replica_of(answer: Callable[[EngineRequest], str] = crafted, **options: Any) -> Replica:
    engine = {key: options.pop(key) for key in ("fails", "encode_s", "num_blocks") if key in options}
    fake = FakeChatEngine(answer=answer, step_s=0.001, **engine)
    return Replica("r", fake, calibration=CALIBRATION, linger_s=0.01, **options)


def start(
    order: GuardOrder | None = ORDER,
    images: tuple[EngineImage, ...] = (ATTACK,),
    *,
    is_streamed: bool = True,
    **fields: Any,
) -> ChoiceStart:
    request = engine_request(max_tokens=fields.pop("max_tokens", 300), images=images, **fields)
    return ChoiceStart(0, request, 60.0, 1.0, is_streamed, "t", 0, guard=order)


@asynccontextmanager
async def sent(replica: Replica, *starts: ChoiceStart) -> AsyncIterator[Mailbox]:
    """A gateway of its own for one request."""
    links = ChatLinks(LocalCalls(replica), f"gateway {next(_NUMBERS)}")
    try:
        yield Mailbox(links, list(starts), Route())
    finally:
        await links.stop()


async def run(replica: Replica, *starts: ChoiceStart) -> list[list[Delta]]:
    """All that is said of each choice."""
    said: list[list[Delta]] = [[] for _ in starts]
    async with sent(replica, *starts) as mailbox:
        while mailbox.open_ids:
            for item in await mailbox.next():
                assert isinstance(item, Delta), item
                said[mailbox.index(item)].append(item)
        mailbox.close(lambda _: None)
    return said


async def assert_nothing_is_left(replica: Replica) -> None:
    def is_free() -> bool:
        stats = replica.engine.stats()
        held = (stats.running, stats.waiting, stats.kv_blocks_used, replica.hub.num_choices, len(replica.hub._looks))
        return held == (0, 0, 0, 0, 0)

    await until(is_free)


def guard_of(deltas: list[Delta]) -> GuardSaid:
    assert all(delta.guard is None for delta in deltas[:-1])
    found = deltas[-1].guard
    assert found is not None
    return found


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_answer_that_a_picture_keeps_going_ends_as_length_with_its_usage_and_reason(is_streamed: bool) -> None:
    replica = replica_of()
    (deltas,) = await run(replica, start(is_streamed=is_streamed))
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    num_tokens = sum(delta.num_tokens for delta in deltas)
    assert BOUND < num_tokens < 200
    text = "".join(delta.text for delta in deltas)
    assert text == LONG[: 4 * num_tokens], "all that was paid for was said"
    said = guard_of(deltas)
    assert (said.action, said.is_confirmed, said.probe_tokens) == ("capped", True, NUM_SHORT)
    assert said.reasons == ("length", "confirmed")
    assert said.p_values["length"] <= 0.01
    await assert_nothing_is_left(replica)
    assert replica.engine.stats().aborts == 0
    assert (replica.told.num_finished, replica.told.early) == (1, [])


async def test_second_look_is_paid_by_its_choice_and_every_busy_second_once() -> None:
    replica = replica_of()
    (deltas,) = await run(replica, start())
    last = deltas[-1]
    probe_s = guard_of(deltas).probe_s
    assert 0.0 < probe_s < last.decode_s
    assert last.prefill_s + last.decode_s == pytest.approx(replica.hub.busy_s(), rel=0.1)
    assert last.joules == pytest.approx(WATTS * (last.prefill_s + last.decode_s))


async def test_answer_that_is_ended_has_all_its_text_though_stop_strings_held_some_of_it_back() -> None:
    (deltas,) = await run(replica_of(), start(stop=("a stop string that never comes",)))
    assert guard_of(deltas).action == "capped"
    num_tokens = sum(delta.num_tokens for delta in deltas)
    assert "".join(delta.text for delta in deltas) == LONG[: 4 * num_tokens]


async def test_ordinary_answer_is_as_if_nobody_watched() -> None:
    answers = [await run(replica_of(lambda _: SHORT), start(order)) for order in (ORDER, None)]
    watched, alone = ["".join(delta.text for delta in deltas) for ((*deltas,),) in answers]
    assert watched == alone == SHORT
    said = guard_of(answers[0][0])
    assert (said.action, said.is_confirmed, said.probe_tokens, said.probe_s) == ("normal", None, 0, 0.0)
    assert answers[1][0][-1].guard is None


async def test_answer_that_is_long_about_a_purified_copy_too_runs_to_its_end() -> None:
    replica = replica_of(lambda _: LONG)
    (deltas,) = await run(replica, start())
    assert sum(delta.num_tokens for delta in deltas) == 300
    said = guard_of(deltas)
    assert (said.action, said.is_confirmed, said.probe_tokens) == ("deprioritised", False, CAP)


@pytest.mark.parametrize(
    ("order", "action"), [(ORDER, "deprioritised"), (ORDER._replace(is_capped=True, p_values={}), "capped")]
)
async def test_observing_says_and_does_nothing(order: GuardOrder, action: str) -> None:
    replica = replica_of()
    (deltas,) = await run(replica, start(order._replace(mode="observe")))
    assert "".join(delta.text for delta in deltas) == LONG[:1200]
    assert replica.engine.stats().decode_tokens == 300, "nobody asked twice"
    assert guard_of(deltas).action == action


async def test_text_alone_is_never_ended_for_being_long() -> None:
    (deltas,) = await run(replica_of(), start(images=()))
    assert sum(delta.num_tokens for delta in deltas) == 300
    assert guard_of(deltas).action == "deprioritised"


async def test_each_choice_of_a_request_is_followed_by_itself() -> None:
    replica = replica_of()
    answers = await run(replica, start(request_id="a"), start(request_id="b"), start(None, request_id="c"))
    assert [deltas[-1].finish_reason for deltas in answers] == [FinishReason.LENGTH] * 3
    assert [sum(delta.num_tokens for delta in deltas) < 200 for deltas in answers] == [True, True, False]
    assert [guard_of(deltas).action for deltas in answers[:2]] == ["capped", "capped"]
    await assert_nothing_is_left(replica)
    assert replica.engine.stats().aborts == 0


@pytest.mark.parametrize("json_schema", [None, '{"enum": ["a long word that is longer than its cap by far, is it"]}'])
async def test_replay_ends_at_its_cap_exactly_and_holds_no_more_than_that(json_schema: str | None) -> None:
    order = ORDER._replace(is_capped=True, cap_tokens=5)
    replica = replica_of(num_blocks=2)  # 32 tokens: too few for all that was asked for
    fields = {"json_schema": json_schema, "prompt_token_ids": (1,), "max_tokens": 300}
    (deltas,) = await run(replica, start(order, **fields))
    assert sum(delta.num_tokens for delta in deltas) == 5
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert guard_of(deltas).reasons == ("replay",)
    assert guard_of(deltas).action == "capped"


async def test_structured_answer_is_not_looked_at_twice_as_its_schema_decides_when_it_ends() -> None:
    schema = '{"enum": ["%s"]}' % ("far too long a word. " * 30)
    (deltas,) = await run(replica_of(), start(ORDER._replace(p_values={"screen": 1e-4}), json_schema=schema))
    said = guard_of(deltas)
    assert (said.is_confirmed, said.probe_tokens) == (None, 0)
    assert sum(delta.num_tokens for delta in deltas) > CAP


async def test_stop_string_that_only_the_copy_meets_is_no_end_of_its_answer() -> None:
    """Else whoever finds such a word puts an innocent picture into quarantine."""
    replica = replica_of(lambda request: LONG if request.images == (ATTACK,) else "A word. " * 60)
    (deltas,) = await run(replica, start(stop=("word",)))
    assert sum(delta.num_tokens for delta in deltas) == 300
    said = guard_of(deltas)
    assert (said.action, said.is_confirmed, said.probe_tokens) == ("deprioritised", False, CAP)


async def test_who_sends_min_tokens_gets_them_and_no_picture_is_blamed_for_it() -> None:
    (deltas,) = await run(replica_of(), start(min_tokens=CAP - 1))
    assert sum(delta.num_tokens for delta in deltas) == 300
    said = guard_of(deltas)
    assert (said.action, said.is_confirmed, said.probe_tokens) == ("deprioritised", None, 0)


async def test_without_room_for_a_second_look_the_choice_goes_on_and_nothing_fails() -> None:
    replica = replica_of(max_running=1, max_waiting=0)
    (deltas,) = await run(replica, start())
    assert sum(delta.num_tokens for delta in deltas) == 300
    said = guard_of(deltas)
    assert (said.action, said.is_confirmed, said.probe_s) == ("deprioritised", None, 0.0)
    await assert_nothing_is_left(replica)
    assert replica.told.early == []


async def test_second_look_stays_within_what_its_tenant_may_hold() -> None:
    request = start().request
    needed = replica_of().engine.held_bytes(request)
    replica = replica_of(max_kv_bytes={"t": needed})
    (deltas,) = await run(replica, start())
    assert guard_of(deltas).is_confirmed is None
    replica = replica_of(max_kv_bytes={"t": 2 * needed})
    (deltas,) = await run(replica, start())
    assert guard_of(deltas).is_confirmed is True
    assert not replica.hub._kv_bytes


async def test_engine_that_fails_on_the_copy_harms_nobody() -> None:
    replica = replica_of(fails=lambda request: request.images != (ATTACK,))
    (deltas,) = await run(replica, start())
    assert sum(delta.num_tokens for delta in deltas) == 300
    assert guard_of(deltas).is_confirmed is None
    await assert_nothing_is_left(replica)


async def test_client_that_leaves_takes_the_second_look_with_it() -> None:
    replica = replica_of(encode_s=0.5)  # an attack picture that is known; a copy that is slow to see
    replica.engine._images[ATTACK.key] = None
    told: list[object] = []
    async with sent(replica, start(max_tokens=2000)) as mailbox:
        await until(lambda: replica.engine.stats().running == 2)
        mailbox.close(told.append)
        await assert_nothing_is_left(replica)
        await until(lambda: told)
    assert len(told) == 1


async def test_replica_that_stops_waits_for_its_second_looks() -> None:
    replica = replica_of(encode_s=0.5)
    replica.engine._images[ATTACK.key] = None
    async with sent(replica, start(max_tokens=2000)) as mailbox:
        await until(lambda: replica.engine.stats().running == 2)
        await replica.hub.stop()
        assert (replica.engine.stats().running, len(replica.hub._looks)) == (0, 0)
        mailbox.close(lambda _: None)


async def test_choice_without_a_calibration_is_watched_for_what_the_gateway_saw_alone() -> None:
    replica = replica_of()
    replica.hub._calibration = None
    (deltas,) = await run(replica, start())
    assert (guard_of(deltas).action, guard_of(deltas).p_values) == ("normal", {})
    (deltas,) = await run(replica, start(ORDER._replace(p_values={"screen": 0.001})))
    assert guard_of(deltas).action == "capped"


async def test_second_look_goes_before_what_its_tenant_has_waiting_and_tells_no_joules_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: list[tuple[int, float]] = []

    class Recorded(SlotTurn):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            turns.append((self.arrival.work.rank, self.arrival.elsewhere_j))

    monkeypatch.setattr("serving.replica.chat.hub.SlotTurn", Recorded)
    await run(replica_of(), start()._replace(rank=2, elsewhere_j=5.0))
    assert turns == [(2, 5.0), (-1, 0.0)]


class Seeing(FakeChatEngine):
    """With a tower, which sees every coarsened picture so far away."""

    distance: float | None = None
    sees_apart = True

    async def image_distance(self, one: EngineImage, other: EngineImage) -> float | None:
        """Raises: EngineFailed: it is set to none."""
        if self.distance is None:
            raise EngineFailed("the tower fell")
        return self.distance


def seeing(distance: float | None) -> Replica:
    """A replica whose calibration has distances."""
    group = replace(CALIBRATION.groups["all"], squeeze=tuple(i / 100_000 for i in range(1000)))
    engine = Seeing(answer=crafted, step_s=0.001)
    engine.distance = distance
    return Replica("r", engine, calibration=replace(CALIBRATION, groups={"all": group}), linger_s=0.01)


RARE = ORDER._replace(p_values={"screen": 0.009})


async def test_embedding_that_moves_has_an_attack_ended_before_it_is_over_its_bound() -> None:
    replica = seeing(0.9)
    (deltas,) = await run(replica, start(RARE))
    said = guard_of(deltas)
    assert (said.action, said.is_confirmed) == ("capped", True)
    assert said.reasons[0] == "squeeze"
    assert sum(delta.num_tokens for delta in deltas) <= BOUND
    await assert_nothing_is_left(replica)


async def test_glance_that_finds_nothing_is_paid_for_and_leaves_the_second_look_for_later() -> None:
    replica = seeing(0.0)
    (deltas,) = await run(replica, start(RARE))
    said = guard_of(deltas)
    assert (said.action, said.is_confirmed, said.probe_tokens) == ("capped", True, NUM_SHORT)
    assert sum(delta.num_tokens for delta in deltas) > BOUND
    assert deltas[-1].prefill_s + deltas[-1].decode_s == pytest.approx(replica.hub.busy_s(), rel=0.1)
    await assert_nothing_is_left(replica)


async def test_engine_without_a_tower_is_not_asked_and_its_silence_does_not_count_as_a_detector() -> None:
    replica = seeing(0.9)
    replica.engine.sees_apart = False
    (deltas,) = await run(replica, start(RARE))
    assert "squeeze" not in guard_of(deltas).p_values


async def test_tower_that_fails_harms_nobody() -> None:
    replica = seeing(None)
    (deltas,) = await run(replica, start(RARE))
    assert sum(delta.num_tokens for delta in deltas) == 300
    assert guard_of(deltas).probe_tokens == 0
    await assert_nothing_is_left(replica)
