"""The service behind the front door: video through the joint, and what stands where no video model is served."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from serving.domain import Budget, ClassifyRequest, ImageInput, Priority, Surface
from serving.errors import InvalidRequest, ServingError, UnknownModel, UnknownVideo
from serving.front.http.app import build_http_app
from serving.service import JoinedService, NoVideo
from serving.tasks.chat.domain import ChatRequest
from serving.tasks.videos.domain import Artefact, VideoRequest
from tests.support.clients import FrontDoor, asgi
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService
from tests.support.fake_videos import CLIP, VIDEO_MODEL, make_video_card

REQUEST = VideoRequest(request_id="r", surface=Surface.HTTP_VIDEO, tenant="ada", model=VIDEO_MODEL, prompt="a ball")


async def test_every_call_about_videos_reaches_the_service_that_makes_them() -> None:
    videos = FakeService(video_cards=(make_video_card(),))
    joined = JoinedService(FakeService(), FakeService(), videos=videos)
    assert [card.id for card in joined.video_models()] == [VIDEO_MODEL]
    job = await joined.create_video(REQUEST)
    assert await joined.get_video("ada", job.id) == job
    assert (await joined.list_videos("ada", after=None, limit=5, newest_first=True)).jobs == (job,)
    videos.complete(job.id)
    done = await joined.get_video("ada", job.id)
    assert await joined.read_artefact(done.artefacts["video"], 4, 8) == CLIP[4:8]
    assert [update.job async for update in joined.watch_video("ada", job.id)] == [done]
    assert await joined.cancel_video("ada", job.id) == done
    await joined.delete_video("ada", job.id)
    assert videos.jobs == {}


async def test_priority_is_lowered_to_the_tenants_highest_for_whatever_is_asked() -> None:
    service = FakeService(video_cards=(make_video_card(),))
    joined = JoinedService(service, service, videos=service, max_priorities={"ada": Priority.NORMAL})
    lowered = Budget(priority=Priority.NORMAL, degraded=("priority",))
    for tenant, expected in (("ada", lowered), ("bob", Budget(priority=Priority.HIGH))):
        asked: dict[str, Any] = {"tenant": tenant, "budget": Budget(priority=Priority.HIGH), "request_id": "r"}
        image = ImageInput(encoded=b"x")
        classify = ClassifyRequest(surface=Surface.HTTP_CLASSIFY, model=MODEL, images=(image,), **asked)
        chat = ChatRequest(surface=Surface.HTTP_CHAT, model=CHAT_MODEL, messages=(), **asked)
        video = VideoRequest(surface=Surface.HTTP_VIDEO, model=VIDEO_MODEL, prompt="a ball", **asked)
        await joined.classify(classify)
        async for _ in joined.chat(chat):
            pass
        await joined.create_video(video)
        seen = (service.requests[-1], service.chats[-1], service.video_requests[-1])
        assert [request.budget for request in seen] == [expected] * 3


async def test_without_a_video_model_nothing_is_made_and_nothing_is_there() -> None:
    none = JoinedService(FakeService(), FakeService())
    assert isinstance(none.videos, NoVideo)
    assert none.video_models() == ()
    assert (await none.list_videos("ada", after=None, limit=5, newest_first=True)).jobs == ()
    artefact = Artefact(key="k", media_type="video/mp4", num_bytes=1, sha256="0" * 64)
    calls: list[tuple[Awaitable[Any], type[ServingError]]] = [
        (none.create_video(REQUEST), UnknownModel),
        (none.get_video("ada", "x"), UnknownVideo),
        (none.list_videos("ada", after="x", limit=5, newest_first=True), InvalidRequest),
        (none.cancel_video("ada", "x"), UnknownVideo),
        (none.delete_video("ada", "x"), UnknownVideo),
        (none.read_artefact(artefact, 0, 1), UnknownVideo),
        (anext(none.watch_video("ada", "x")), UnknownVideo),
    ]
    for call, error in calls:
        with pytest.raises(error):
            await call


async def test_paths_of_videos_answer_where_none_are_served() -> None:
    door = FrontDoor()
    app = build_http_app(JoinedService(FakeService(), FakeService()), door.authenticator, door.limits, lambda: b"")
    created = await asgi(
        app, "POST", "/v1/videos", b'{"model": "m", "prompt": "x"}', {"content-type": "application/json"}
    )
    assert (created.status, created.error["code"]) == (404, "model_not_found")
    assert (await asgi(app, "GET", "/v1/videos")).json["data"] == []
    assert (await asgi(app, "GET", "/v1/videos/video_1")).error["code"] == "video_not_found"


def test_ready_with_one_model_that_lives_once_the_start_is_over() -> None:
    live, started = set[str](), False
    joined = JoinedService(FakeService(), FakeService(), lambda: started, lambda model: model in live)
    classifier, chat = joined.models()[0].id, joined.chat_models()[0].id
    assert not joined.is_ready()
    live = {chat}
    assert (joined.is_ready(), joined.is_model_ready(chat)) == (False, True)
    started = True
    assert joined.is_ready()
    assert [joined.is_model_ready(model) for model in (classifier, chat, "nobody")] == [False, True, False]
    live = {"nobody"}
    assert not joined.is_ready()
    assert not joined.is_model_ready("nobody")
