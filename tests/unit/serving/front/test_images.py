"""One parser of data: URLs behind every surface: what HTTP chat takes, gRPC chat, classify and OIP take."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from serving.domain import ImagePart
from serving.errors import InvalidImage
from serving.front.images import MAX_ESCAPES, is_data_url, parse_data_url
from tests.support.chat_clients import CHAT_SURFACES, Chat, Turn, Url
from tests.support.clients import GOOD_PNG, FrontDoor

BASE64 = base64.b64encode(GOOD_PNG).decode()
URLS = {
    "plain": f"data:image/png;base64,{BASE64}",
    "capitals": f"DATA:IMAGE/PNG;BASE64,{BASE64}",
    "another_type": f"data:image/gif;base64,{BASE64}",
    "no_type": f"data:;base64,{BASE64}",
    "parameters": f"data:image/png;charset=utf-8;name=a.png;base64,{BASE64}",
    "escaped_base64": f"data:image/png;base64,{quote(BASE64, safe='')}",
    "no_base64": f"data:image/png,{quote(GOOD_PNG)}",
}


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize("surface", sorted(CHAT_SURFACES))
async def test_chat_takes_every_form_on_every_surface(surface: str, name: str) -> None:
    door = FrontDoor()
    outcome = await CHAT_SURFACES[surface](door, Chat([Turn("user", [Url(URLS[name])])]))
    assert outcome.error is None, outcome.message
    (image,) = door.service.chats[0].messages[0].parts
    assert isinstance(image, ImagePart)
    assert image.encoded == GOOD_PNG


@pytest.mark.parametrize("name", URLS)
async def test_classify_and_oip_take_every_form(name: str) -> None:
    door = FrontDoor()
    assert (await door.post_json({"model": "fake-nano", "image": URLS[name]})).status == 200
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [URLS[name]]}
    assert (await door.post_json({"inputs": [tensor]}, "/v2/models/fake-nano/infer")).status == 200
    assert [request.images[0].encoded for request in door.service.requests] == [GOOD_PNG, GOOD_PNG]


@pytest.mark.parametrize(
    ("url", "data", "is_base64"),
    [
        ("data:image/png;base64,AAAA", "AAAA", True),
        ("data:base64,AAAA", "AAAA", False),
        ("data:;base64;x=1,AAAA", "AAAA", False),
        ("data:,a,b", "a,b", False),
    ],
)
def test_base64_is_the_last_parameter_or_none(url: str, data: str, is_base64: bool) -> None:
    parsed = parse_data_url(url)
    assert is_data_url(url)
    assert (parsed.text[parsed.start :], parsed.is_base64) == (data, is_base64)


def test_another_scheme_is_none() -> None:
    assert not is_data_url("date:,x")


@pytest.mark.parametrize("url", ["data:", "data:image/png;base64", "data:" + "x" * 300 + ",AAAA"])
def test_url_without_a_head_is_refused(url: str) -> None:
    with pytest.raises(InvalidImage, match="comma"):
        parse_data_url(url)


def test_number_of_percent_signs_is_bounded() -> None:
    assert parse_data_url("data:," + "%41" * MAX_ESCAPES).unescaped() == b"A" * MAX_ESCAPES
    with pytest.raises(InvalidImage, match="send base64"):
        parse_data_url("data:," + "%41" * (MAX_ESCAPES + 1)).unescaped()
