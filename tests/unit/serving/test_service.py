"""What is behind the front door: ready or not, and what a tenant may ask for."""

from __future__ import annotations

import base64

import pytest
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Budget, Priority
from serving.front.auth import LOCAL_TENANT
from serving.service import Service
from tests.support.clients import GOOD_PNG, Ask, FakeContext, FrontDoor, oip_message, vireo_message
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService
from tests.support.fake_videos import make_video_card


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


def test_ready_with_one_model_that_lives_once_the_start_is_over() -> None:
    live, started = set[str](), False
    fake = FakeService()
    service = Service(
        fake, fake, fake, fake, fake.files, is_started=lambda: started, is_live=lambda model: model in live
    )
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
