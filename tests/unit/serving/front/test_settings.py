"""``vireo.settings``: the same names, limits and refusals on every surface, and what ``/v1/models`` says of them."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from models.contract import Knob
from serving.front.budget import MAX_SETTINGS
from tests.support.chat_clients import CHAT_PATH, HELLO, Chat, message_of, post_chat
from tests.support.clients import (
    GOOD_PNG,
    Ask,
    FakeContext,
    FrontDoor,
    Outcome,
    asgi,
    context_outcome,
    multipart,
    oip_message,
    vireo_message,
)
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService, make_card, make_chat_card
from tests.support.fake_videos import VIDEO_MODEL, make_video_card

IMAGE = base64.b64encode(GOOD_PNG).decode()
STEPS = Knob(name="num_inference_steps", default=20, low=1, high=50, is_integer=True, summary="Steps.", trades="detail")
SAMPLER = Knob(name="sampler", default="ddim", values=("ddim", "euler"), summary="Sampler.")
TILES = Knob(name="tiles", default=4, values=(1, 4), summary="Tiles.", scope="deployment")
KNOBS = (STEPS, SAMPLER, TILES)
Settings = Mapping[str, Any]


def make_door(knobs: tuple[Knob, ...] = KNOBS) -> FrontDoor:
    return FrontDoor(
        FakeService(
            (replace(make_card(), knobs=knobs),),
            chat_cards=(replace(make_chat_card(), knobs=knobs),),
            video_cards=(replace(make_video_card(), knobs=knobs),),
        )
    )


async def post(door: FrontDoor, document: Any, path: str = "/v1/classify") -> Outcome | None:
    reply = await (post_chat(door, document) if path == CHAT_PATH else door.post_json(document, path))
    return None if reply.status == 200 else Outcome(**_error(reply.status, reply.error))


def _error(status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": error["code"], "status": status, "message": error["message"], "param": error["param"]}


async def classify(door: FrontDoor, settings: Settings) -> Outcome | None:
    return await post(door, {"model": MODEL, "image": IMAGE, "vireo": {"settings": settings}})


async def classify_form(door: FrontDoor, settings: Settings) -> Outcome | None:
    fields = {"model": MODEL, "vireo": json.dumps({"settings": settings})}
    body, content_type = multipart(fields, [GOOD_PNG])
    reply = await asgi(door.app, "POST", "/v1/classify", body, {"content-type": content_type})
    return None if reply.status == 200 else Outcome(**_error(reply.status, reply.error))


async def chat(door: FrontDoor, settings: Settings) -> Outcome | None:
    messages = [{"role": "user", "content": "hi"}]
    return await post(door, {"model": CHAT_MODEL, "messages": messages, "vireo": {"settings": settings}}, CHAT_PATH)


async def video(door: FrontDoor, settings: Settings) -> Outcome | None:
    return await post(door, {"prompt": "a ball", "vireo": {"settings": settings}}, "/v1/videos")


async def infer(door: FrontDoor, settings: Settings) -> Outcome | None:
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}
    parameters = {f"vireo_settings.{name}": value for name, value in settings.items()}
    return await post(door, {"inputs": [tensor], "parameters": parameters}, f"/v2/models/{MODEL}/infer")


def spelt(settings: Settings) -> vireo_pb2.Budget:
    kinds = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
    values = {name: vireo_pb2.Setting(**{kinds[type(value)]: value}) for name, value in settings.items()}  # type: ignore[arg-type]
    return vireo_pb2.Budget(settings=values)


async def grpc_classify(door: FrontDoor, settings: Settings) -> Outcome | None:
    message, context = vireo_message(Ask([GOOD_PNG])), FakeContext()
    message.vireo.CopyFrom(spelt(settings))
    await door.grpc.Classify(message, context)
    return context_outcome(context)


async def grpc_infer(door: FrontDoor, settings: Settings) -> Outcome | None:
    message, context = oip_message(Ask([GOOD_PNG])), FakeContext()
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in settings.items():
        parameter = oip.InferParameter(**{kinds[type(value)]: value})  # type: ignore[arg-type]
        message.parameters[f"vireo_settings.{name}"].CopyFrom(parameter)
    await door.grpc.ModelInfer(message, context)
    return context_outcome(context)


async def grpc_chat(door: FrontDoor, settings: Settings) -> Outcome | None:
    message, context = message_of(Chat(HELLO)), FakeContext()
    message.vireo.CopyFrom(spelt(settings))
    assert [one async for one in door.grpc.Chat(message, context)] or context_outcome(context)
    return context_outcome(context)


async def grpc_video(door: FrontDoor, settings: Settings) -> Outcome | None:
    message, context = vireo_pb2.GenerateVideoRequest(prompt="a ball", vireo=spelt(settings)), FakeContext()
    door.service.is_fast = True
    assert [one async for one in door.grpc.GenerateVideo(message, context)] or context_outcome(context)
    return context_outcome(context)


Surface = Callable[[FrontDoor, Settings], Awaitable[Outcome | None]]
SURFACES: dict[str, Surface] = {
    function.__name__: function
    for function in (
        classify,
        classify_form,
        chat,
        video,
        infer,
        grpc_classify,
        grpc_infer,
        grpc_chat,
        grpc_video,
    )
}
surface = pytest.mark.parametrize("ask", SURFACES.values(), ids=SURFACES)


@surface
async def test_settings_reach_the_service_as_their_knobs_take_them(ask: Surface) -> None:
    door = make_door()
    assert await ask(door, {"sampler": "euler", "num_inference_steps": 4.0}) is None
    service = door.service
    if service.video_requests:
        (request,) = service.video_requests
        found = {"sampler": request.asked.sampler, "num_inference_steps": request.asked.num_inference_steps}
        assert request.budget.settings == {}, "they are the request's own fields, however they were sent"
    else:
        (budget,) = [request.budget for request in (*service.requests, *service.chats)]
        found = dict(budget.settings)
    assert found == {"num_inference_steps": 4, "sampler": "euler"}
    assert type(found["num_inference_steps"]) is int


REFUSED: list[tuple[Settings, str, str]] = [
    ({"heat": 1}, "heat", "settings are: num_inference_steps, sampler, tiles"),
    ({"sampler": "none"}, "sampler", "choose one of 'ddim', 'euler'"),
    ({"sampler": True}, "sampler", "choose one of"),
    ({"num_inference_steps": 51}, "num_inference_steps", "give a number from 1 to 50"),
    ({"num_inference_steps": 1.5}, "num_inference_steps", "give a whole number"),
    ({"tiles": 1}, "tiles", "set for a whole deployment"),
    ({"sampler": "x" * 257}, "sampler", "has 257 characters; the limit is 256"),
]


@surface
@pytest.mark.parametrize(("settings", "name", "message"), REFUSED, ids=str)
async def test_what_a_model_does_not_take_is_refused_by_name(
    settings: Settings, name: str, message: str, ask: Surface
) -> None:
    door = make_door()
    outcome = await ask(door, settings)
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("invalid_request", f"vireo.settings.{name}")
    assert message in outcome.message
    assert [*door.service.requests, *door.service.chats, *door.service.video_requests] == []


@surface
async def test_model_without_settings_refuses_any(ask: Surface) -> None:
    outcome = await ask(make_door(()), {"sampler": "ddim"})
    assert outcome is not None
    assert "has no setting 'sampler'; settings are: none" in outcome.message


@pytest.mark.parametrize("ask", [classify, classify_form, chat, video, grpc_classify, grpc_chat, grpc_video])
async def test_there_are_only_so_many(ask: Surface) -> None:
    outcome = await ask(make_door(), {f"setting{index}": 1 for index in range(MAX_SETTINGS + 1)})
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("invalid_request", "vireo.settings")


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, 1 << 64], ids=str)
@pytest.mark.parametrize("ask", [classify, classify_form, chat, video])
async def test_what_is_no_plain_value_is_refused(value: Any, ask: Surface) -> None:
    outcome = await ask(make_door(), {"sampler": value})
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("invalid_request", "vireo.settings.sampler")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ask", [grpc_classify, grpc_infer, grpc_chat, grpc_video])
async def test_numbers_are_finite(value: float, ask: Surface) -> None:
    outcome = await ask(make_door(), {"num_inference_steps": value})
    assert outcome is not None
    assert outcome.param == "vireo.settings.num_inference_steps"


async def test_setting_of_a_message_has_a_value() -> None:
    message, context = vireo_message(Ask([GOOD_PNG])), FakeContext()
    message.vireo.settings["sampler"].CopyFrom(vireo_pb2.Setting())
    await make_door().grpc.Classify(message, context)
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.param, "has no value" in outcome.message) == ("vireo.settings.sampler", True)


async def test_clip_is_asked_for_in_one_way() -> None:
    door, sent = make_door(), {"prompt": "a ball", "sampler": "ddim"}
    outcome = await post(door, {**sent, "vireo": {"settings": {"sampler": "euler"}}}, "/v1/videos")
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("invalid_request", "sampler")
    assert await post(door, {**sent, "vireo": {"settings": {"sampler": "ddim"}}}, "/v1/videos") is None
    odd = make_door((Knob(name="heat", default=1, values=(1,), summary="Heat."),))
    assert await post(odd, {"prompt": "a ball", "vireo": {"settings": {"heat": 1}}}, "/v1/videos") is None
    outcome = await post(odd, sent, "/v1/videos")
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("unsupported_field", "sampler")


@pytest.mark.parametrize("model", [MODEL, CHAT_MODEL, VIDEO_MODEL])
async def test_models_show_their_settings(model: str) -> None:
    shown = (await asgi(make_door().app, "GET", f"/v1/models/{model}")).json["vireo"]["settings"]
    assert [setting["name"] for setting in shown] == ["num_inference_steps", "sampler", "tiles"]
    assert shown[0] == {
        "name": "num_inference_steps",
        "default": 20,
        "trades": "detail",
        "is_lossless": False,
        "scope": "request",
        "schema": STEPS.json_schema(),
    }
