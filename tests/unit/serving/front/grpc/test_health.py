"""grpc.health.v1 watches."""

from __future__ import annotations

import asyncio

import pytest
from grpc_health.v1 import health_pb2

from serving.errors import QueueFull
from serving.front.grpc import health as grpc_health
from serving.front.grpc.health import MAX_WATCHES, Health
from tests.support.fake_service import FakeService, joined, make_card
from tests.support.waiting import turns

STATUS = health_pb2.HealthCheckResponse


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_health, "POLL_S", 0.005)


async def test_watch_tells_the_state_now_and_each_change_once() -> None:
    service = FakeService()
    watch = Health(service).watch("")
    assert (await anext(watch)).status == STATUS.SERVING
    pending = asyncio.ensure_future(anext(watch))
    await turns()
    assert not pending.done(), "nothing has changed"
    service.ready = False
    assert (await pending).status == STATUS.NOT_SERVING
    service.ready = True
    assert (await anext(watch)).status == STATUS.SERVING
    await watch.aclose()


async def test_watch_of_an_unknown_service_says_so_and_stays_open() -> None:
    watch = Health(joined(FakeService())).watch("nope")
    assert (await anext(watch)).status == STATUS.SERVICE_UNKNOWN
    pending = asyncio.ensure_future(anext(watch))
    await turns()
    assert not pending.done()
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)


async def test_stopping_tells_watchers_and_ends_their_streams() -> None:
    health = Health(joined(FakeService()))
    watch = health.watch("vireo.v1.Vireo")
    await anext(watch)
    health.stop()
    assert [response.status async for response in watch] == [STATUS.NOT_SERVING]
    assert health.check("").status == STATUS.NOT_SERVING


async def test_number_of_watches_is_bounded_and_a_closed_one_makes_room() -> None:
    health = Health(joined(FakeService()))
    watches = [health.watch("") for _ in range(MAX_WATCHES)]
    for watch in watches:
        await anext(watch)
    with pytest.raises(QueueFull, match="poll with Check"):
        await anext(health.watch(""))
    await watches[0].aclose()
    assert (await anext(health.watch(""))).status == STATUS.SERVING
    for watch in watches:
        await watch.aclose()


def test_only_the_protocol_of_classifiers_suffers_when_all_of_them_are_sick() -> None:
    service = FakeService((make_card("a"), make_card("b")))
    health = Health(joined(service))
    service.sick = {"a"}
    assert {health.check(name).status for name in grpc_health.SERVICES} == {STATUS.SERVING}
    service.sick = {"a", "b"}
    found = {name: health.check(name).status for name in grpc_health.SERVICES}
    assert found == {"": STATUS.SERVING, "vireo.v1.Vireo": STATUS.SERVING, grpc_health.OIP: STATUS.NOT_SERVING}
