"""What is behind the front door: ready or not, and what stands where no video model is served."""

from __future__ import annotations

import base64
from collections.abc import Awaitable
from typing import Any

import pytest
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Budget, Priority, Surface
from serving.errors import InvalidRequest, ServingError, UnknownModel, UnknownVideo
from serving.front.auth import LOCAL_TENANT
from serving.front.http.app import build_http_app
from serving.service import NoVideo, Service
from serving.tasks.videos.domain import Artefact, VideoRequest
from tests.support.clients import GOOD_PNG, Ask, FakeContext, FrontDoor, asgi, oip_message, vireo_message
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService
from tests.support.fake_videos import VIDEO_MODEL, make_video_card

REQUEST = VideoRequest(request_id="r", surface=Surface.HTTP_VIDEO, tenant="ada", model=VIDEO_MODEL, prompt="a ball")


@pytest.mark.parametrize("highest", [Priority.NORMAL, Priority.HIGH])
async def test_priority_is_lowered_to_the_tenants_highest_whatever_is_asked_and_how(highest: Priority) -> None:
    service = FakeService(video_cards=(make_video_card(),), is_fast=True)
    door = FrontDoor(service=service, max_priorities={LOCAL_TENANT: highest})
    vireo, budget = {"priority": "high"}, vireo_pb2.Budget(priority=vireo_pb2.PRIORITY_HIGH)
    messages = [{"role": "user", "content": "hi"}]
    await door.post_json({"model": MODEL, "image": base64.b64encode(GOOD_PNG).decode(), "vireo": vireo})
    await door.post_json({"model": CHAT_MODEL, "messages": messages, "vireo": vireo}, "/v1/chat/completions")
    await door.post_json({"prompt": "a ball", "vireo": vireo}, "/v1/videos")
    classify, infer = vireo_message(Ask([GOOD_PNG])), oip_message(Ask([GOOD_PNG]))
    classify.vireo.CopyFrom(budget)
    infer.parameters["vireo_priority"].CopyFrom(oip.InferParameter(string_param="high"))
    await door.grpc.Classify(classify, FakeContext())
    await door.grpc.ModelInfer(infer, FakeContext())
    turn = vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=[vireo_pb2.ChatPart(text="hi")])
    chat = vireo_pb2.ChatRequest(model=CHAT_MODEL, messages=[turn], vireo=budget)
    video = vireo_pb2.GenerateVideoRequest(prompt="a ball", vireo=budget)
    for streamed in (door.grpc.Chat(chat, FakeContext()), door.grpc.GenerateVideo(video, FakeContext())):
        assert [one async for one in streamed]
    seen = [request.budget for request in (*service.requests, *service.chats, *service.video_requests)]
    degraded = ("priority",) if highest is Priority.NORMAL else ()
    assert seen == [Budget(priority=highest, degraded=degraded)] * 7


async def test_without_a_video_model_nothing_is_made_and_nothing_is_there() -> None:
    none = Service(FakeService(), FakeService()).videos
    assert isinstance(none, NoVideo)
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
    app = build_http_app(Service(FakeService(), FakeService()), door.authenticator, door.limits, lambda: b"")
    created = await asgi(
        app, "POST", "/v1/videos", b'{"model": "m", "prompt": "x"}', {"content-type": "application/json"}
    )
    assert (created.status, created.error["code"]) == (404, "model_not_found")
    assert (await asgi(app, "GET", "/v1/videos")).json["data"] == []
    assert (await asgi(app, "GET", "/v1/videos/video_1")).error["code"] == "video_not_found"


def test_ready_with_one_model_that_lives_once_the_start_is_over() -> None:
    live, started = set[str](), False
    service = Service(FakeService(), FakeService(), lambda: started, lambda model: model in live)
    classifier, chat = (card.id for card in service.cards())
    assert not service.is_ready()
    live = {chat}
    assert (service.is_ready(), service.is_model_ready(chat)) == (False, True)
    started = True
    assert service.is_ready()
    assert [service.is_model_ready(model) for model in (classifier, chat, "nobody")] == [False, True, False]
    live = {"nobody"}
    assert not service.is_ready()
    assert not service.is_model_ready("nobody")
