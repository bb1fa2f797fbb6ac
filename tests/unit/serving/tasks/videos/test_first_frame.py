"""The picture that a clip begins with: every way to send one, what is wrong with it, and what becomes of it."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2

from serving.cli.model_facts import in_words
from serving.delivery.job.service import asked_by
from serving.domain import Surface
from serving.errors import ClientError, ImageTooLarge, ImageUrlRefused, InvalidImage, UnsupportedVideo
from serving.limits import IngressLimits
from serving.media.fetch import FetchLimits, ImageFetcher
from serving.media.image_cache import ProcessedImages
from serving.media.limits import MediaLimits
from serving.media.pool import MediaPool
from serving.media.processors import Processors
from serving.media.request_images import RequestImages
from serving.tasks.videos.first_frame import FirstFrames, fitted, size_like, with_first_frame
from serving.tasks.videos.rules import VideoRequest
from serving.tasks.videos.schemas import VideoBody
from tests.support import flipbook
from tests.support.clients import BOUNDARY, FakeContext, FrontDoor, HttpReply, asgi, context_outcome
from tests.support.clip_limits import clip_limits
from tests.support.media_files import encode, gradient
from tests.support.video_clients import flipbook_door, post, video_door

PNG = encode(gradient(40, 80))
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
BODY = {"model": flipbook.MODEL}
FIELD = "input_reference"


async def post_parts(door: FrontDoor, *parts: tuple[str, str | bytes]) -> HttpReply:
    """Send a form; bytes are files."""
    body = b"".join(
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"'.encode()
        + (b'; filename="x.png"\r\n\r\n' + value if isinstance(value, bytes) else b"\r\n\r\n" + value.encode())
        + b"\r\n"
        for name, value in parts
    )
    kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return await asgi(door.app, "POST", "/v1/videos", body + f"--{BOUNDARY}--\r\n".encode(), kind)


def sent(door: FrontDoor) -> VideoRequest:
    (request,) = door.service.video_requests
    assert isinstance(request, VideoRequest)
    return request


@pytest.mark.parametrize("value", [URL, base64.b64encode(PNG).decode(), {"image_url": URL}])
async def test_picture_comes_as_text_in_json(value: Any) -> None:
    door = flipbook_door()
    reply = await post(door, BODY | {FIELD: value})
    assert reply.status == 200, reply.body
    part = sent(door).first_frame
    assert part is not None
    assert (part.encoded, part.param) == (PNG, FIELD)
    assert sent(door).asked.input_reference is None


async def test_picture_comes_in_a_form_as_a_file_or_as_the_member_of_an_object() -> None:
    for field in ((FIELD, PNG), (f"{FIELD}[image_url]", URL)):
        door = flipbook_door()
        reply = await post_parts(door, ("model", flipbook.MODEL), field)
        assert reply.status == 200, reply.body
        part = sent(door).first_frame
        assert part is not None
        assert part.encoded == PNG


@pytest.mark.parametrize("fields", [{"image": PNG}, {"image_url": URL}])
async def test_picture_comes_over_grpc(fields: dict[str, Any]) -> None:
    door = flipbook_door()
    door.service.is_fast = True
    message = vireo_pb2.GenerateVideoRequest(model=flipbook.MODEL, **fields)
    assert [one async for one in door.grpc.GenerateVideo(message, FakeContext())]
    part = sent(door).first_frame
    assert part is not None
    assert part.encoded == PNG


@pytest.mark.parametrize("has_picture", [True, False])
async def test_optional_picture_may_be_left_out_on_every_surface(has_picture: bool) -> None:
    fields, picture = {"model": flipbook.EITHER, "prompt": "a ball"}, PNG if has_picture else b""
    door = flipbook_door()
    assert (await post(door, fields | ({FIELD: URL} if has_picture else {}))).status == 200
    assert (await post_parts(door, *fields.items(), *([(FIELD, PNG)] if has_picture else []))).status == 200
    door.service.is_fast = True
    message = vireo_pb2.GenerateVideoRequest(**fields, image=PNG) if has_picture else None
    message = message or vireo_pb2.GenerateVideoRequest(**fields)
    assert [one async for one in door.grpc.GenerateVideo(message, FakeContext())]
    parts = [request.first_frame for request in door.service.video_requests]
    assert [part.encoded if part else b"" for part in parts] == [picture] * 3


async def test_models_say_whether_the_picture_is_optional() -> None:
    listed = (await asgi(flipbook_door().app, "GET", "/v1/models")).json["data"]
    found = {model["id"]: model["vireo"]["io"] for model in listed}
    assert found[flipbook.WORDS]["inputs"] == found[flipbook.EITHER]["inputs"] == ["text", "image"]
    assert found[flipbook.EITHER]["optional_inputs"] == ["image"]
    assert "optional_inputs" not in found[flipbook.WORDS]


async def test_https_url_is_left_to_the_fetcher() -> None:
    door = flipbook_door()
    assert (await post(door, BODY | {FIELD: {"image_url": "https://example.org/x.png"}})).status == 200
    part = sent(door).first_frame
    assert part is not None
    assert (part.url, part.encoded) == ("https://example.org/x.png", None)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({}, "invalid_request", FIELD),
        ({FIELD: URL, "prompt": "a ball"}, "unsupported_field", "prompt"),
        ({FIELD: URL, "negative_prompt": "blur"}, "unsupported_field", "negative_prompt"),
        ({FIELD: URL, "model": flipbook.WORDS}, "invalid_request", "prompt"),
        ({"prompt": "a ball", "model": flipbook.WORDS}, "invalid_request", FIELD),
        ({FIELD: URL, "model": flipbook.EITHER}, "invalid_request", "prompt"),
        ({FIELD: "http://example.org/x.png"}, "image_url_refused", FIELD),
        ({FIELD: "file:///etc/passwd"}, "image_url_refused", FIELD),
        ({FIELD: "https://example.org/" + "x" * 9000}, "image_url_refused", FIELD),
        ({FIELD: "not base64!"}, "invalid_image", FIELD),
        ({FIELD: "data:image/png;base64,AAA"}, "invalid_image", FIELD),
        ({FIELD: "data:image/png"}, "invalid_image", FIELD),
        ({FIELD: ""}, "invalid_image", FIELD),
        ({FIELD: 5}, "invalid_request", FIELD),
        ({FIELD: {"url": URL}}, "invalid_request", FIELD),
        ({FIELD: {"file_id": "file-1"}}, "unsupported_field", f"{FIELD}.file_id"),
        ({FIELD: "A" * 4000}, "image_too_large", FIELD),
        ({FIELD: f"data:;base64,{'A' * 4000}"}, "image_too_large", FIELD),
    ],
)
async def test_what_cannot_begin_a_clip_is_refused_by_name(changes: dict[str, Any], code: str, param: str) -> None:
    door = flipbook_door(limits=IngressLimits(max_bytes_per_image=2000))
    reply = await post(door, BODY | changes)
    assert (reply.error["code"], reply.error["param"]) == (code, param), reply.body
    assert 400 <= reply.status < 500
    assert not door.service.video_requests


async def test_model_of_words_alone_refuses_a_picture() -> None:
    door = video_door()
    for reply in (
        await post(door, {"prompt": "x", FIELD: URL}),
        await post_parts(door, ("prompt", "x"), (FIELD, PNG)),
    ):
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unsupported_field", FIELD)
    context = FakeContext()
    message = vireo_pb2.GenerateVideoRequest(prompt="x", image=PNG)
    assert [one async for one in door.grpc.GenerateVideo(message, context)] == []
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("unsupported_field", FIELD)


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        ([(FIELD, PNG), (FIELD, PNG)], "invalid_request", FIELD),
        ([(FIELD, PNG), (f"{FIELD}[image_url]", URL)], "invalid_request", FIELD),
        ([(FIELD, bytes(5000))], "image_too_large", FIELD),
        ([(f"{FIELD}[image_url]", "x" * 9000)], "invalid_request", f"{FIELD}[image_url]"),
        ([(f"{FIELD}[file_id]", "file-1")], "unsupported_field", f"{FIELD}[file_id]"),
    ],
)
async def test_form_with_what_cannot_begin_a_clip_is_refused(
    parts: list[tuple[str, str | bytes]], code: str, param: str
) -> None:
    door = flipbook_door(limits=IngressLimits(max_bytes_per_image=2000))
    reply = await post_parts(door, ("model", flipbook.MODEL), *parts)
    assert (reply.error["code"], reply.error["param"]) == (code, param), reply.body
    assert not door.service.video_requests


# -- what becomes of it ----------------------------------------------------------------------------------------------


def request_of(**fields: Any) -> VideoRequest:
    return VideoRequest(
        request_id="r", surface=Surface.HTTP_VIDEO, tenant="ada", model=flipbook.MODEL,
        asked=VideoBody.model_construct(prompt="", **fields), idempotency_key="k",
    )  # fmt: skip


async def test_key_stands_for_a_picture_however_it_came() -> None:
    limits = IngressLimits()
    file = asked_by(await with_first_frame(request_of(), limits, file=PNG))
    text = asked_by(await with_first_frame(request_of(), limits, text=URL))
    other = asked_by(await with_first_frame(request_of(), limits, file=encode(gradient(41, 80))))
    assert file == text
    assert {name for name in file if file[name] != other[name]} == {FIELD}


@pytest.fixture
async def frames() -> AsyncIterator[FirstFrames]:
    variant = flipbook.FAMILY.variants[0]
    processors = Processors({variant.id: (flipbook.FAMILY.name, variant)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.media.processors.family_for", lambda name, variant: flipbook.FAMILY.of(variant))
        pool = MediaPool(
            MediaLimits(max_pixels=1 << 16, tiny_pixels=1 << 20, tiny_bytes=1 << 20),
            1,
            processors,
            tile_counter=processors.count_tiles,
        )
        yield FirstFrames(RequestImages(pool, ImageFetcher((), FetchLimits()), ProcessedImages(0)), variant.io)


def shape_of(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return image.size


@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 80, (64, 36)), (90, 30, (36, 64)), (50, 51, (48, 48)), (48, 48, (48, 48))]
)
async def test_clip_has_the_size_that_is_most_like_its_picture(
    frames: FirstFrames, height: int, width: int, size: tuple[int, int]
) -> None:
    request = await with_first_frame(request_of(), IngressLimits(), file=encode(gradient(height, width)))
    ready = await frames(request)
    assert ready.size == shape_of(ready.picture) == size
    assert asked_by(ready) == asked_by(request)


async def test_picture_is_brought_to_the_size_that_is_asked_for(frames: FirstFrames) -> None:
    request = await with_first_frame(request_of(width=48, height=48), IngressLimits(), file=PNG)
    assert shape_of((await frames(request)).picture) == (48, 48)
    with pytest.raises(UnsupportedVideo, match="size is 65536x65536"):
        await frames(replace(request, asked=VideoBody.model_construct(prompt="", width=65536, height=65536)))


@pytest.mark.parametrize(
    ("file", "error"),
    [
        (b"GIF89a", InvalidImage),
        (PNG[:-40], InvalidImage),
        (b"", InvalidImage),
        (encode(np.zeros((400, 400, 3), np.uint8)), ImageTooLarge),
    ],
)
async def test_bad_picture_is_refused_by_name(frames: FirstFrames, file: bytes, error: type[ClientError]) -> None:
    request = await with_first_frame(request_of(), IngressLimits(), file=file)
    with pytest.raises(error) as caught:
        await frames(request)
    assert caught.value.param == FIELD


async def test_url_of_a_host_that_is_not_allowed_is_refused(frames: FirstFrames) -> None:
    request = await with_first_frame(request_of(), IngressLimits(), text="https://example.org/x.png")
    with pytest.raises(ImageUrlRefused) as caught:
        await frames(request)
    assert caught.value.param == FIELD


def test_picture_covers_the_size_and_keeps_its_middle() -> None:
    picture = np.zeros((30, 90, 3), np.uint8)
    picture[:, 30:60] = 255
    with Image.open(io.BytesIO(fitted(picture, (15, 15)))) as image:
        assert np.asarray(image).min() > 200


@pytest.mark.parametrize(
    ("width", "height", "size"), [(300, 300, (64, 64)), (400, 100, (128, 32)), (10, 4000, (32, 128))]
)
def test_free_sides_follow_the_picture_within_their_bounds(width: int, height: int, size: tuple[int, int]) -> None:
    made = clip_limits(max_side=128, min_side=32, multiple=16).io
    assert size_like(made, width, height) == size


def test_models_in_words_say_whether_the_picture_may_be_left_out() -> None:
    words, either = (variant.io for variant in flipbook.FAMILY.variants[1:])
    assert in_words(words).endswith("from a picture and words, pages")
    assert in_words(either).endswith("from words, or from a picture and words, pages")
    for name in ("takes_prompt", "takes_picture"):
        with pytest.raises(ValueError, match="picture"):
            replace(either, **{name: False})
