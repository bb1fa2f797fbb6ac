"""Bending at a gateway: which models bend, for whom, and what metrics and callers are told of it."""

from __future__ import annotations

import asyncio
from collections import deque
from heapq import heappop, heappush
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from vireo_pb.vireo.v1 import vireo_pb2

from models.contract import Shape
from schedulers.bending import limits_of
from schedulers.plan import Budget as PointBudget
from schedulers.plan import Cost, Load, Plan, Point, plan
from serving.bending import Bending, bends_after_s, degradation_of, queue_limit_s
from serving.client.told import reduced
from serving.config.sections import BendingSettings
from serving.domain import Degradation, Priority, Report
from serving.front.grpc.messages import message_from_report
from serving.tasks.infer.parameters import report_parameters
from serving.tasks.models import shown_model
from serving.telemetry.events import BendingChanged, Event, PointsLowered
from tests.support.fake_service import make_card
from tests.support.virtual_loop import run_virtual

MADE = Degradation(
    from_point="steps=50",
    to_point="steps=4",
    reasons=("energy", "load"),
    quality_before=0.9,
    quality_after=None,
    energy_j_before=12.0,
    energy_j_after=3.0,
)


def report(degradation: Degradation | None) -> Report:
    return Report(
        operating_point="steps=4",
        energy_j=3.0,
        energy_source="estimate",
        queue_ms=0.0,
        compute_ms=1.0,
        cache="miss",
        degraded=() if degradation is None else degradation.reasons,
        degradation=degradation,
    )


def test_model_that_does_not_bend_is_left_alone() -> None:
    bending = Bending({})
    assert (bending.depth("m", "ada", Priority.LOW, 1e6), bending.level("m"), bending.bends("m")) == (0.0, 0, False)


@pytest.mark.parametrize(
    ("after_s", "usual_s", "more", "limit_s"),
    [
        (0.5, 0.0, {}, 0.5),  # nobody measured
        (0.5, 0.01, {"gateways": 2}, 0.25),  # each sees half of the queue
        (0.5, 4.0, {"gateways": 2}, 8.0),  # one that waits is no queue
        (0.5, 0.001, {"room": 512}, 0.256),  # else the gateway would be full before
        (0.5, 0.001, {"room": 4}, 0.05),
    ],
)
def test_queue_that_bends_a_model(after_s: float, usual_s: float, more: Any, limit_s: float) -> None:
    assert queue_limit_s(after_s, usual_s, **more) == pytest.approx(limit_s)


@pytest.mark.parametrize(
    ("shape", "usual_s", "room", "limit_s"),
    [
        ("job", 1.0, 256, 30.0),
        ("job", 0.02, 256, 2.56),  # short jobs: else the queue would be full before
        ("stream", 9.0, 1, 1.0),
        ("staged", 0.001, 512, 0.256),
    ],
)
def test_quality_bends_before_what_holds_the_requests_of_a_model_is_full(
    shape: Shape, usual_s: float, room: int, limit_s: float
) -> None:
    assert bends_after_s(BendingSettings(), shape, usual_s, gateways=1, room=room) == pytest.approx(limit_s)


def test_depth_is_the_callers_own() -> None:
    now = [0.0]
    bending = Bending({"m": limits_of(1.0)}, {"paid": 9.0}, clock=lambda: now[0])
    for tenant in ("paid", "greedy", "modest"):
        bending.planned("m", tenant, {"paid": 5.0, "greedy": 5.0, "modest": 0.1}[tenant], None)
    for _ in range(3):
        now[0] += 1.0
        bending.depth("m", "paid", Priority.NORMAL, 5.0)
    depths: dict[tuple[str, Priority], float] = {
        (tenant, priority): bending.depth("m", tenant, priority, 0.7)
        for tenant in ("paid", "greedy", "modest")
        for priority in Priority
    }
    assert bending.level("m") == 3
    assert [depths["paid", one] for one in (Priority.LOW, Priority.NORMAL, Priority.HIGH)] == [0.75, 0.5, 0.0]
    assert depths["greedy", Priority.NORMAL] == 1.0
    assert depths["greedy", Priority.HIGH] > depths["modest", Priority.HIGH]
    bending.stop()


def test_level_is_told_and_falls_by_itself_when_nobody_comes() -> None:
    told: list[Event] = []

    async def run() -> None:
        bending = Bending({"m": limits_of(1.0)}, clock=asyncio.get_running_loop().time, tell=told.append)
        for _ in range(2):
            bending.depth("m", "ada", Priority.NORMAL, 3.0)
            await asyncio.sleep(1.0)
        assert bending.level("m") == 2
        await asyncio.sleep(60.0)
        assert bending.level("m") == 0
        bending.stop()

    run_virtual(run())
    assert [event.level for event in told if isinstance(event, BendingChanged)] == [1, 2, 1, 0]


def test_lowered_points_are_counted_whatever_lowered_them() -> None:
    told: list[Event] = []
    bending = Bending({}, tell=told.append)
    bending.planned("m", "ada", 1.0, None)
    bending.planned("m", "ada", 1.0, MADE)
    assert told == [PointsLowered("m", "ada", ("energy", "load"))]


def test_degradation_is_of_the_whole_request() -> None:
    points = [
        Point(
            name=str(seconds),
            settings={"s": seconds},
            cost=Cost(latency_s={"rows": seconds}, busy_s={"rows": seconds}, watts=2.0),
            quality=seconds / 10,
        )
        for seconds in (4.0, 1.0)
    ]
    for bend, budget, reasons in ((1.0, None, ("load",)), (0.0, 5.0, ("energy",)), (1.0, 5.0, ("energy",))):
        made = plan(points, lambda _: {"rows": 1.0}, PointBudget(energy_j=budget), Load(rows=3, bend=bend))
        assert isinstance(made, Plan)
        assert degradation_of(made, 3) == Degradation(
            from_point="4.0",
            to_point="1.0",
            reasons=reasons,
            quality_before=0.4,
            quality_after=0.1,
            energy_j_before=24.0,
            energy_j_after=6.0,
        )
    best = plan(points, lambda _: {"rows": 1.0}, PointBudget(), Load())
    assert isinstance(best, Plan)
    assert degradation_of(best) is None


# -- every surface says the same ---------------------------------------------------------------------------------------


def test_grpc_says_what_http_says() -> None:
    sent = vireo_pb2.Report.FromString(message_from_report(report(MADE)).SerializeToString()).degradation
    assert (sent.from_point, sent.to_point, list(sent.reasons)) == ("steps=50", "steps=4", ["energy", "load"])
    assert (sent.quality_before, sent.HasField("quality_after")) == (0.9, False)
    assert (sent.energy_j_before, sent.energy_j_after) == (12.0, 3.0)
    assert not message_from_report(report(None)).HasField("degradation")


def test_oip_says_it_as_json() -> None:
    assert report_parameters(report(MADE))["vireo_degradation"] == (
        '{"from_point":"steps=50","to_point":"steps=4","reasons":["energy","load"],"quality_before":0.9,'
        '"quality_after":null,"energy_j_before":12.0,"energy_j_after":3.0}'
    )
    assert "vireo_degradation" not in report_parameters(report(None))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"degraded": []}, ""),
        ({"degraded": ["priority"], "degradation": None}, "degraded: priority"),
        (
            {
                "degraded": ["load"],
                "degradation": {
                    "from_point": "steps=50",
                    "to_point": "steps=4",
                    "reasons": ["energy", "load"],
                    "quality_before": 0.9,
                    "quality_after": 0.75,
                    "energy_j_before": 12.0,
                    "energy_j_after": 3.0,
                },
            },
            "degraded: load (quality 0.900 to 0.750, 12 to 3 J as predicted, because of energy and load; best point "
            "steps=50)",
        ),
    ],
)
def test_command_line_says_it_in_words(block: dict[str, Any], words: str) -> None:
    assert reduced(block) == words


def test_model_shows_its_level_if_it_may_bend() -> None:
    card = make_card()
    assert shown_model(card, is_ready=True, bending=2)["vireo"]["bending"] == 2
    assert "bending" not in shown_model(card, is_ready=True)["vireo"]


# -- chats -------------------------------------------------------------------------------------------------------------


def test_chat_gives_way_once_it_waits_as_long_as_it_takes_by_itself() -> None:
    now = [0.0]

    def level(waiting_s: float, alone_s: float, gateways: int = 1) -> int:
        bending = Bending({"m": limits_of(1.0)}, clock=lambda: now[0], gateways=gateways)
        bending.depth("m", "ada", Priority.NORMAL, waiting_s, alone_s)
        return bending.level("m")

    assert [level(waiting_s, 4.0) for waiting_s in (1.5, 3.9, 4.1)] == [0, 0, 1]
    assert [level(waiting_s, 0.1) for waiting_s in (0.9, 1.1)] == [0, 1], "short ones, as configured"
    assert [level(waiting_s, 4.0, gateways=2) for waiting_s in (1.9, 2.1)] == [0, 1]


class Chats:
    """Eight slots; what a chat takes by itself is learnt from those that came."""

    SLOTS = 8
    FRONT = tuple(
        Point(
            name=str(seconds),
            settings={"s": seconds},
            cost=Cost(latency_s={"rows": seconds}, busy_s={"rows": seconds}, watts=2.0),
            quality=quality,
        )
        for seconds, quality in ((2.4, 0.9), (1.2, 0.8), (0.6, 0.7))
    )

    def __init__(self) -> None:
        self.now_s, self.alone_s = 0.0, 2.4
        self.bending = Bending({"m": limits_of(BendingSettings().chat_after_s)}, clock=lambda: self.now_s)
        self.ends_s: list[float] = []
        self.waiting: deque[float] = deque()
        self.levels: list[tuple[float, int]] = []

    def arrive(self, now_s: float) -> None:
        self.now_s = now_s
        while self.ends_s and self.ends_s[0] <= now_s:
            ended_s = heappop(self.ends_s)
            if self.waiting:
                heappush(self.ends_s, ended_s + self.waiting.popleft())
        num_waiting = max(0, len(self.ends_s) + len(self.waiting) + 1 - self.SLOTS)
        waiting_s = num_waiting * self.alone_s / self.SLOTS
        bend = self.bending.depth("m", "ada", Priority.NORMAL, waiting_s, self.alone_s)
        self.levels.append((now_s, self.bending.level("m")))
        made = plan(self.FRONT, lambda _: {"rows": 1.0}, PointBudget(), Load(bend=bend))
        assert isinstance(made, Plan)
        self.alone_s += 0.1 * (made.busy_s - self.alone_s)
        if len(self.ends_s) < self.SLOTS:
            heappush(self.ends_s, now_s + made.busy_s)
        else:
            self.waiting.append(made.busy_s)


@pytest.mark.parametrize("seed", range(3))
def test_chats_at_less_than_capacity_hardly_give_way_and_a_step_of_load_does_not_swing_them(seed: int) -> None:
    """Slots are enough for 3.3 a second at the best point: 0.8 times that, then twice, then half."""
    chats, random, end_s = Chats(), Random(seed), 0.0
    for rate, seconds in ((2.67, 600.0), (6.67, 1200.0), (1.67, 1200.0)):
        now_s, end_s = end_s + random.expovariate(rate), end_s + seconds
        while now_s < end_s:
            chats.arrive(now_s)
            now_s += random.expovariate(rate)
    before, during, after = (
        [level for at_s, level in chats.levels if start_s <= at_s < end_s]
        for start_s, end_s in ((0.0, 600.0), (700.0, 1800.0), (2400.0, 3000.0))
    )
    assert sum(level > 0 for level in before) <= 0.25 * len(before)
    assert min(during) >= 1
    assert sum(level > 0 for level in after) <= 0.1 * len(after)
    changes = sum(one != other for (_, one), (_, other) in pairwise(chats.levels))
    assert changes <= 45, "about one in a minute"
