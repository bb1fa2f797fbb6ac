"""Chat in the self-check of ``vireo up``, over HTTP, events and gRPC."""

from __future__ import annotations

import io
from collections.abc import Sequence

import grpc
import httpx
import pytest
from PIL import Image
from rich.console import Console

from serving.cli import self_check_chat
from serving.cli.self_check import check_chat
from serving.domain import Surface
from serving.errors import ConfigError, EngineFailed
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.tasks.chat.domain import ImagePart
from tests.support.fake_service import CHAT_MODEL, FakeService, make_chat_card
from tests.support.served_door import served

SHOWN = 'Two squares and a "circle". 方块'


def answers(service: FakeService) -> Sequence[str]:
    with (
        served(service) as door,
        httpx.Client(base_url=door.url) as http,
        grpc.insecure_channel(f"127.0.0.1:{door.grpc_port}") as channel,
    ):
        model = self_check_chat.served_chat_model(http)
        assert model == CHAT_MODEL
        return [
            self_check_chat.chat_http(http, model),
            self_check_chat.chat_sse(http, model),
            self_check_chat.chat_grpc(channel, model),
        ]


def test_each_surface_answers_about_an_image() -> None:
    service = FakeService()
    assert answers(service) == [SHOWN] * 3
    assert [chat.surface for chat in service.chats] == [Surface.HTTP_CHAT, Surface.HTTP_CHAT, Surface.GRPC_CHAT]
    assert [chat.is_streamed for chat in service.chats] == [False, True, True]
    for chat in service.chats:
        (image,) = [part for part in chat.messages[0].parts if isinstance(part, ImagePart)]
        assert image.encoded is not None
        assert decode(image.encoded, MediaLimits()).rgb.size > 0


@pytest.mark.parametrize("service", [FakeService(words=[]), FakeService(chat_errors={0: EngineFailed("broken")})])
def test_no_answer_is_a_failure(service: FakeService) -> None:
    with pytest.raises((ValueError, httpx.HTTPError)):
        answers(service)


def test_stream_that_breaks_off_is_a_failure() -> None:
    with (
        served(FakeService(chat_errors={3: EngineFailed("broken")})) as door,
        httpx.Client(base_url=door.url) as http,
        grpc.insecure_channel(f"127.0.0.1:{door.grpc_port}") as channel,
    ):
        with pytest.raises((ValueError, httpx.HTTPError)):
            self_check_chat.chat_sse(http, CHAT_MODEL)
        with pytest.raises(grpc.RpcError):
            self_check_chat.chat_grpc(channel, CHAT_MODEL)


def test_server_without_a_chat_model_has_none() -> None:
    with served(FakeService(chat_cards=())) as door, httpx.Client(base_url=door.url) as http:
        assert self_check_chat.served_chat_model(http) is None
        http.base_url = httpx.URL(door.url + "/elsewhere")
        with pytest.raises(ConfigError, match="GET /v1/models"):
            self_check_chat.served_chat_model(http)


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("is_served", [True, False])
def test_self_check_shows_each_answer_or_says_what_it_skips(
    is_open: bool, is_served: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = (make_chat_card(),) if is_served else ()
    with (
        served(FakeService(chat_cards=cards)) as door,
        httpx.Client(base_url=door.url) as http,
        grpc.insecure_channel(f"127.0.0.1:{door.grpc_port}") as channel,
    ):
        check_chat(http, channel, is_open=is_open, console=Console(width=60))
    lines = capsys.readouterr().out.splitlines()
    if not is_open:
        assert lines == []
        return
    assert [line.split("  ")[1] for line in lines] == [
        "POST /v1/chat/completions",
        "POST /v1/chat/completions (events)",
        "vireo.v1.Vireo/Chat",
    ]
    wanted = SHOWN if is_served else "skipped: no chat model is served"
    assert all(wanted in line for line in lines)


def test_failed_chat_fails_the_self_check() -> None:
    with (
        served(FakeService(chat_errors={0: EngineFailed("broken")})) as door,
        httpx.Client(base_url=door.url) as http,
        grpc.insecure_channel(f"127.0.0.1:{door.grpc_port}") as channel,
        pytest.raises(ConfigError, match="self-check failed: POST /v1/chat/completions: HTTPStatusError"),
    ):
        check_chat(http, channel, is_open=True, console=Console(width=60))


@pytest.mark.parametrize(("name", "word"), [("nothing-like-it.png", "harbour"), ("nothing-like-it.png", None)])
def test_missing_example_is_drawn(name: str, word: str | None) -> None:
    image = Image.open(io.BytesIO(self_check_chat.example_png(name, word)))
    colours = {colour for _count, colour in image.getcolors(1 << 16) or []}
    assert ((255, 0, 0) in colours) == (word is None)


def test_long_answer_fits_a_line() -> None:
    assert self_check_chat.shown("a\n\x1b" + "b" * 100, 3) == "a " + "b" * 55 + "..."
