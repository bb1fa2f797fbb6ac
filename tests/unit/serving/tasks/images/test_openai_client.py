"""``client.images`` of the official ``openai`` client against the front door on a real socket."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import openai
import pytest
from PIL import Image

from models.io import ImageIO
from tests.support.clients import GOOD_PNG
from tests.support.fake_service import FakeService, make_image_card
from tests.support.served_door import served

PAINTER = make_image_card("painter", ImageIO(takes_prompt=True, is_seeded=True, size=(12, 8)))
MENDER = make_image_card("mender", ImageIO(takes_picture=True, max_side=256))


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        served(FakeService((PAINTER, MENDER))) as door,
        openai.OpenAI(base_url=f"{door.url}/v1", api_key="any", max_retries=0) as opened,
    ):
        yield opened


def size_of(text: str | None) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(text or ""))).size


def test_pictures_are_made_and_changed(client: openai.OpenAI) -> None:
    made = client.images.generate(model="painter", prompt="a ball", n=2, extra_body={"seed": 7})
    assert [size_of(image.b64_json) for image in made.data or []] == [(12, 8)] * 2
    edited = client.images.edit(model="mender", image=("x.png", GOOD_PNG), prompt="")
    assert size_of((edited.data or [])[0].b64_json) == Image.open(io.BytesIO(GOOD_PNG)).size


def test_model_must_be_named_where_there_are_several(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send one of painter, mender"):
        client.images.generate(prompt="a ball")


def test_the_only_model_need_not_be_named() -> None:
    with (
        served(FakeService((MENDER,))) as door,
        openai.OpenAI(base_url=f"{door.url}/v1", api_key="any", max_retries=0) as client,
    ):
        assert (client.images.edit(image=("x.png", GOOD_PNG), prompt="").data or [])[0].b64_json
