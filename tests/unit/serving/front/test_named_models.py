"""The model of a request, on every surface: named, or the only one; and what is said where it is neither."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.chat_clients import CHAT_SURFACES, Chat
from tests.support.clients import GOOD_PNG, SURFACES, Ask, FrontDoor, asgi
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService, make_card, make_chat_card
from tests.support.fake_videos import VIDEO_MODEL, make_video_card

Asking = Callable[[FrontDoor, str | None], Awaitable[Any]]


def classifying(surface: Callable[[FrontDoor, Ask], Awaitable[Any]]) -> Asking:
    return lambda door, model: surface(door, Ask([GOOD_PNG], model=model))


def chatting(surface: Callable[[FrontDoor, Chat], Awaitable[Any]]) -> Asking:
    return lambda door, model: surface(door, Chat(model=model))


MAY_NAME_NONE: dict[str, tuple[str, Asking]] = {
    **{f"classify {name}": (MODEL, classifying(ask)) for name, ask in SURFACES.items() if "oip" not in name},
    **{f"chat {name}": (CHAT_MODEL, chatting(ask)) for name, ask in CHAT_SURFACES.items()},
}
"""What asks, and the model that it means."""


def door_of(num_each: int) -> FrontDoor:
    more = [f"other-{number}" for number in range(1, num_each)]
    if not num_each:
        return FrontDoor(FakeService((), chat_cards=(), video_cards=(make_video_card(),)))
    return FrontDoor(
        FakeService(
            (make_card(), *map(make_card, more)),
            chat_cards=(make_chat_card(), *(make_chat_card(f"chat-{name}") for name in more)),
            video_cards=(make_video_card(),),
        )
    )


@pytest.fixture(params=sorted(MAY_NAME_NONE))
def asking(request: pytest.FixtureRequest) -> tuple[str, Asking]:
    return MAY_NAME_NONE[request.param]


async def test_the_only_model_is_meant_where_none_is_named(asking: tuple[str, Asking]) -> None:
    model, ask = asking
    door = door_of(1)
    assert (await ask(door, None)).error is None
    requests = [*door.service.requests, *door.service.chats]
    assert {request.model for request in requests} == {model}
    assert {call.model for call in door.calls.finished} == {model}, "metrics name it"


async def test_several_models_are_listed_where_none_is_named(asking: tuple[str, Asking]) -> None:
    model, ask = asking
    outcome = await ask(door_of(3), None)
    assert (outcome.error, outcome.param) in {("invalid_request", "model"), ("invalid_request", None)}
    assert f"send one of {model}, " in outcome.message
    assert "other-2" in outcome.message


@pytest.mark.parametrize("name", sorted(set(MAY_NAME_NONE) - {"classify vireo_stream"}))  # that sends good ones, too
async def test_none_is_found_where_none_can_do_it(name: str) -> None:
    outcome = await MAY_NAME_NONE[name][1](door_of(0), None)
    assert outcome.error == "model_not_found"
    assert "no model that can do this" in outcome.message


async def test_model_for_something_else_is_told_from_one_that_is_not_there(asking: tuple[str, Asking]) -> None:
    model, ask = asking
    other = await ask(door_of(1), VIDEO_MODEL)
    absent = await ask(door_of(1), "absent")
    assert (other.error, absent.error) == ("model_not_found", "model_not_found")
    assert f"cannot do this; these can: {model}" in other.message
    assert f"is not served here; served: {model}" in absent.message


async def test_absent_model_is_answered_with_all_that_are_served() -> None:
    door = door_of(1)
    everything = ", ".join((MODEL, CHAT_MODEL, VIDEO_MODEL))
    reply = await asgi(door.app, "GET", "/v1/models/absent")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    assert reply.error["message"].endswith(f"served: {everything}")


async def test_empty_name_in_json_is_no_name() -> None:
    reply = await door_of(1).post_json({"model": "", "image": ""})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_request", "model")
