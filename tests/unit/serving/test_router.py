"""The request routers, asked as Serve asks them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from serving.delivery.router import AffinityRouter, LeastWorkRouter, PlainRouter, WorkRouter
from serving.delivery.stream.wire import HeldImages
from serving.system import process
from tests.support.waiting import turns

Router = TypeVar("Router", bound=WorkRouter)
KEY = "0badcafe" + 56 * "0"


def router_of(kind: type[Router]) -> Router:
    """Without the parts that talk to replicas, which choosing does not touch."""
    router = kind.__new__(kind)
    router.initialize_state()
    return router


def replica(name: str, queued_s: float = 0.0, report: int = 1, keys: tuple[str, ...] = ()) -> Any:
    held = HeldImages()
    held.add(keys)
    stats = {"queued_s": queued_s, "report": report, "held": held.marks()}
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats=stats)


def chosen(router: WorkRouter, replicas: list[Any], **kwargs: Any) -> list[str]:
    """Names in the order in which Serve is to try them, once these are all that there are."""
    router.take_reports(replicas)
    ranks = asyncio.run(router.choose_replicas(replicas, SimpleNamespace(kwargs=kwargs)))  # type: ignore[arg-type]
    return [one.replica_id.unique_id for rank in ranks for one in rank]


@pytest.mark.parametrize("kind", [LeastWorkRouter, AffinityRouter])
def test_least_work_first(kind: type[Router]) -> None:
    replicas = [replica("a", 3.0), replica("b", 1.0), replica("c", 2.0)]
    assert chosen(router_of(kind), replicas, predicted_s=0.1) == ["b", "c", "a"]


@pytest.mark.parametrize("kind", [LeastWorkRouter, AffinityRouter])
def test_a_report_counts_once(kind: type[Router]) -> None:
    router = router_of(kind)
    assert chosen(router, [replica("a", 1.0), replica("b", 2.0)])[0] == "a"
    assert chosen(router, [replica("a", 9.0), replica("b", 2.0)])[0] == "a", "the same number: the same report"
    assert chosen(router, [replica("a", 9.0, report=2), replica("b", 2.0)])[0] == "b"


@pytest.mark.parametrize("kind", [LeastWorkRouter, AffinityRouter])
def test_a_replica_without_a_report_is_idle(kind: type[Router]) -> None:
    new = replica("new")
    new.routing_stats = {}
    assert chosen(router_of(kind), [replica("a", 1.0), new])[0] == "new"


def test_the_only_replica_is_chosen_unseen() -> None:
    assert chosen(router_of(AffinityRouter), [replica("a")], key=KEY) == ["a"]


def test_who_holds_the_image_comes_first_unless_it_is_busy() -> None:
    router = router_of(AffinityRouter)
    idle, holder = replica("idle"), replica("holder", 0.3, keys=(KEY,))
    assert chosen(router, [idle, holder], key=KEY, predicted_s=0.1)[0] == "holder"
    assert chosen(router, [idle, holder], key="1" + KEY[1:], predicted_s=0.01)[0] == "idle"
    busy = replica("holder", 60.0, report=2, keys=(KEY,))
    assert chosen(router, [idle, busy], key=KEY, predicted_s=0.1)[0] == "idle"


def test_replicas_to_avoid_come_last_though_they_hold_the_image() -> None:
    replicas = [replica("a", keys=(KEY,)), replica("b", 1.0)]
    assert chosen(router_of(AffinityRouter), replicas, key=KEY, predicted_s=0.1, avoid=("a",)) == ["b", "a"]


def test_a_call_for_one_replica_goes_there_and_nowhere_else() -> None:
    replicas = [replica("a"), replica("b", 60.0)]
    assert chosen(router_of(AffinityRouter), replicas, replica="b") == ["b"]
    assert sorted(chosen(router_of(AffinityRouter), replicas, replica="gone")) == ["a", "b"]


def test_live_replicas_are_those_of_the_router_less_those_found_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_COUNTS", {})
    assert process.num_live("m") == 0, "nobody has called it yet"
    router = LeastWorkRouter(DeploymentID("m", "vireo"), DeploymentHandleSource.REPLICA)
    router.initialize_state()
    assert process.num_live("m") == 0
    router._replicas = {ReplicaID(name, DeploymentID("m", "vireo")): replica(name) for name in "ab"}
    assert process.num_live("m") == 2
    router.on_replica_actor_died(ReplicaID("a", DeploymentID("m", "vireo")))
    assert (process.num_live("m"), process.num_live("other")) == (1, 0)


async def test_reports_come_with_updates_of_serve_and_who_died_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_COUNTS", {})
    deployment, pending = DeploymentID("m", "vireo"), SimpleNamespace(kwargs={})
    router = LeastWorkRouter(deployment, DeploymentHandleSource.REPLICA)
    router.initialize_state()

    async def no_queue(deadline_s: float) -> int:
        return 0

    def live(name: str, queued_s: float, report: int) -> Any:
        stats = {"queued_s": queued_s, "report": report}
        return SimpleNamespace(replica_id=ReplicaID(name, deployment), routing_stats=stats, get_queue_len=no_queue)

    async def first() -> str:
        ranks: Any = await router.choose_replicas(router._replicas_list, pending)  # type: ignore[arg-type]
        return str(next(iter(ranks))[0].replica_id.unique_id)

    router.update_replicas([live("a", 3.0, 1), live("b", 1.0, 1), live("c", 2.0, 1)])
    assert await first() == "b"
    router.update_replicas([live("a", 3.0, 1), live("b", 9.0, 2), live("c", 2.0, 1)])
    assert await first() == "c"
    router.on_replica_actor_died(ReplicaID("c", deployment))
    assert await first() == "a"
    await turns()


def test_first_choice_is_found_without_ranking_all(monkeypatch: pytest.MonkeyPatch) -> None:
    router, replicas = (
        router_of(LeastWorkRouter),
        [replica(str(number), float(number % 7) + 1.0) for number in range(99)],
    )
    router.take_reports([*replicas, replica("idle")])
    monkeypatch.setattr(router, "_ranked", lambda *_: pytest.fail("all of them were ranked"))
    ranks = asyncio.run(router.choose_replicas(replicas, SimpleNamespace(kwargs={"predicted_s": 0.1})))  # type: ignore[arg-type]
    assert [one.replica_id.unique_id for one in next(iter(ranks))] == ["idle"]


def test_plain_router_takes_whichever_has_room() -> None:
    replicas = [replica("a"), replica("b")]
    assert asyncio.run(PlainRouter.choose_replicas(router_of(AffinityRouter), replicas)) == [replicas]  # type: ignore[arg-type]
