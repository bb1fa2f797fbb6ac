"""Requests for clips that cannot be served as they are: each a typed error that names the field, on every surface."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from grpc import StatusCode
from vireo_pb.vireo.v1 import vireo_pb2

from serving.limits import IngressLimits
from serving.tasks.videos.body import REFUSED
from serving.tasks.videos.rules import MAX_SEED
from serving.tasks.videos.schemas import VideoBody
from tests.support.clients import BOUNDARY, FakeContext, FrontDoor, asgi, context_outcome
from tests.support.fake_videos import VIDEO_MODEL
from tests.support.video_clients import BODY, PROMPT, post, post_form, video_door

BAD, UNKNOWN, UNSUPPORTED, NO_MODEL = "invalid_request", "unknown_field", "unsupported_field", "model_not_found"

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("prompt_missing", {"prompt": None}, BAD, "prompt"),
    ("prompt_empty", {"prompt": ""}, BAD, "prompt"),
    ("prompt_blank", {"prompt": " \n\t"}, BAD, "prompt"),
    ("prompt_number", {"prompt": 5}, BAD, "prompt"),
    ("prompt_list", {"prompt": ["a"]}, BAD, "prompt"),
    ("prompt_half_pair", {"prompt": "a\ud800b"}, BAD, "prompt"),
    ("prompt_nul", {"prompt": "a\0b"}, BAD, "prompt"),
    ("prompt_long", {"prompt": "x" * 1001}, BAD, "prompt"),
    ("negative_long", {"negative_prompt": "x" * 1001}, BAD, "negative_prompt"),
    ("negative_half_pair", {"negative_prompt": "\udfff"}, BAD, "negative_prompt"),
    ("model_number", {"model": 1}, BAD, "model"),
    ("model_empty", {"model": ""}, BAD, "model"),
    ("model_long", {"model": "m" * 257}, BAD, "model"),
    ("model_unknown", {"model": "sora-2"}, NO_MODEL, "model"),
    ("model_of_a_classifier", {"model": "fake-nano"}, NO_MODEL, "model"),
    ("model_of_a_chat", {"model": "texthawk2-nano"}, NO_MODEL, "model"),
    ("seconds_zero", {"seconds": 0}, BAD, "seconds"),
    ("seconds_zero_text", {"seconds": "0"}, BAD, "seconds"),
    ("seconds_negative", {"seconds": -1}, BAD, "seconds"),
    ("seconds_words", {"seconds": "four"}, BAD, "seconds"),
    ("seconds_nan", {"seconds": math.nan}, BAD, "seconds"),
    ("seconds_infinite", {"seconds": math.inf}, BAD, "seconds"),
    ("seconds_nan_text", {"seconds": "nan"}, BAD, "seconds"),
    ("seconds_exponent", {"seconds": "1e9"}, BAD, "seconds"),
    ("seconds_week", {"seconds": 604_800}, BAD, "seconds"),
    ("seconds_arabic", {"seconds": "٤"}, BAD, "seconds"),
    ("seconds_bool", {"seconds": True}, BAD, "seconds"),
    ("size_words", {"size": "large"}, BAD, "size"),
    ("size_zero", {"size": "0x64"}, BAD, "size"),
    ("size_negative", {"size": "-64x64"}, BAD, "size"),
    ("size_three", {"size": "64x64x3"}, BAD, "size"),
    ("size_huge", {"size": "999999x1"}, BAD, "size"),
    ("size_newline", {"size": "64x64\n"}, BAD, "size"),
    ("size_number", {"size": 64}, BAD, "size"),
    ("size_over_limit", {"size": "99999x64"}, BAD, "width"),
    ("width_alone", {"width": 64}, BAD, "height"),
    ("height_alone", {"height": 64}, BAD, "width"),
    ("size_and_sides_differ", {"size": "64x64", "width": 64, "height": 32}, BAD, "size"),
    ("width_text", {"width": "64", "height": 64}, BAD, "width"),
    ("width_zero", {"width": 0, "height": 64}, BAD, "width"),
    ("width_float", {"width": 64.5, "height": 64}, BAD, "width"),
    ("width_huge", {"width": 10**30, "height": 64}, BAD, "width"),
    ("frames_zero", {"num_frames": 0}, BAD, "num_frames"),
    ("frames_negative", {"num_frames": -29}, BAD, "num_frames"),
    ("frames_huge", {"num_frames": 10**9}, BAD, "num_frames"),
    ("frames_bool", {"num_frames": True}, BAD, "num_frames"),
    ("fps_zero", {"fps": 0}, BAD, "fps"),
    ("fps_huge", {"fps": 10**6}, BAD, "fps"),
    ("steps_zero", {"num_inference_steps": 0}, BAD, "num_inference_steps"),
    ("steps_huge", {"num_inference_steps": 10**6}, BAD, "num_inference_steps"),
    ("steps_text", {"num_inference_steps": "many"}, BAD, "num_inference_steps"),
    ("guidance_nan", {"guidance_scale": math.nan}, BAD, "guidance_scale"),
    ("guidance_infinite", {"guidance_scale": math.inf}, BAD, "guidance_scale"),
    ("guidance_negative", {"guidance_scale": -0.5}, BAD, "guidance_scale"),
    ("guidance_huge", {"guidance_scale": 1e300}, BAD, "guidance_scale"),
    ("guidance_text", {"guidance_scale": "strong"}, BAD, "guidance_scale"),
    ("seed_negative", {"seed": -1}, BAD, "seed"),
    ("seed_huge", {"seed": MAX_SEED + 1}, BAD, "seed"),
    ("seed_float", {"seed": 1.5}, BAD, "seed"),
    ("sampler_number", {"sampler": 1}, BAD, "sampler"),
    ("sampler_long", {"sampler": "x" * 65}, BAD, "sampler"),
    ("sampler_twice", {"sampler": "ddim", "extra_params": {"sampler": "consistency"}}, BAD, "sampler"),
    ("attention_long", {"attention": "x" * 65}, BAD, "attention"),
    ("attention_object", {"attention": {"kind": "dense"}}, BAD, "attention"),
    ("format_unknown", {"output_format": "webm"}, BAD, "output_format"),
    ("format_upper", {"output_format": "MP4"}, BAD, "output_format"),
    ("user_long", {"user": "u" * 513}, BAD, "user"),
    ("user_number", {"user": 1}, BAD, "user"),
    ("extra_text", {"extra_params": "ddim"}, BAD, "extra_params"),
    ("extra_unknown", {"extra_params": {"cache": True}}, UNKNOWN, "extra_params.cache"),
    ("extra_wrong", {"extra_params": {"output_format": "avi"}}, BAD, "extra_params.output_format"),
    ("vireo_text", {"vireo": "fast"}, BAD, "vireo"),
    ("vireo_unknown", {"vireo": {"latency": 5}}, UNKNOWN, "vireo.latency"),
    ("vireo_nan", {"vireo": {"latency_ms": math.nan}}, BAD, "vireo.latency_ms"),
    ("vireo_zero", {"vireo": {"energy_j": 0}}, BAD, "vireo.energy_j"),
    ("vireo_priority", {"vireo": {"priority": "urgent"}}, BAD, "vireo.priority"),
    ("vireo_floor", {"vireo": {"quality_floor": 1.5}}, BAD, "vireo.quality_floor"),
    ("unknown", {"num_steps": 4}, UNKNOWN, "num_steps"),
    ("unknown_null", {"num_steps": None}, UNKNOWN, "num_steps"),
    ("unknown_long", {"x" * 5000: 1}, UNKNOWN, "x" * 64),
    ("tenant", {"tenant": "bob"}, UNKNOWN, "tenant"),
    ("owner", {"owner": "bob"}, UNKNOWN, "owner"),
    ("id", {"id": "video_0001"}, UNKNOWN, "id"),
    ("key_in_body", {"idempotency_key": "k"}, UNKNOWN, "idempotency_key"),
]


def small_door() -> FrontDoor:
    return video_door(limits=IngressLimits(max_text_chars=1000))


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/sync"])
@pytest.mark.parametrize(("changes", "code", "param"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
async def test_wrong_field_of_json_is_named(changes: dict[str, Any], code: str, param: str, path: str) -> None:
    door = small_door()
    reply = await post(door, BODY | changes, path)
    assert (reply.error["code"], reply.error["param"]) == (code, param), reply.body
    assert reply.status == (404 if code == NO_MODEL else 400)
    assert len(reply.body) < 1200
    assert not door.service.video_requests


@pytest.mark.parametrize("name", REFUSED)
async def test_field_of_another_server_is_refused_with_the_reason(name: str) -> None:
    door = video_door()
    for value in (1, "x", {"file_id": "f"}, False):
        reply = await post(door, BODY | {name: value})
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, UNSUPPORTED, name)
        assert REFUSED[name] in reply.error["message"]
    assert not door.service.video_requests
    assert (await post(door, BODY | {name: None})).status == 200


@pytest.mark.parametrize("name", REFUSED)
async def test_part_of_another_server_is_refused_before_it_is_read(name: str) -> None:
    door = video_door()
    reply = await post_form(door, {**BODY, name: b"\xff" * 100_000})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, UNSUPPORTED, name)


def test_no_field_is_both_taken_and_refused() -> None:
    assert not set(VideoBody.model_fields) & set(REFUSED)


FORM_WRONG: list[tuple[str, dict[str, str | bytes], str, str]] = [
    ("unknown", {"steps": "4"}, UNKNOWN, "steps"),
    ("file", {"file": b"GIF89a"}, UNKNOWN, "file"),
    ("width_float", {"width": "64.0", "height": "64"}, BAD, "width"),
    ("width_empty", {"width": "", "height": "64"}, BAD, "width"),
    ("seed_hex", {"seed": "0x10"}, BAD, "seed"),
    ("seed_underscore", {"seed": "1_000"}, BAD, "seed"),
    ("seed_long", {"seed": "9" * 5000}, BAD, "seed"),
    ("seed_arabic", {"seed": "٤"}, BAD, "seed"),
    ("guidance_nan", {"guidance_scale": "nan"}, BAD, "guidance_scale"),
    ("guidance_inf", {"guidance_scale": "inf"}, BAD, "guidance_scale"),
    ("guidance_exponent", {"guidance_scale": "1e999"}, BAD, "guidance_scale"),
    ("vireo_text", {"vireo": "fast"}, BAD, "vireo"),
    ("vireo_list", {"vireo": "[]"}, BAD, "vireo"),
    ("vireo_twice", {"vireo": '{"energy_j": 1, "energy_j": 2}'}, BAD, "energy_j"),
    ("vireo_deep", {"vireo": "[" * 5000}, BAD, "vireo"),
    ("member_unknown", {"vireo[joules]": "1"}, UNKNOWN, "vireo[joules]"),
    ("member_text", {"vireo[energy_j]": "much"}, BAD, "vireo.energy_j"),
    ("member_twice", {"vireo[energy_j]": "1", "vireo": "{}"}, BAD, "vireo"),
    ("extra_unknown", {"extra_params": '{"x": 1}'}, UNKNOWN, "extra_params.x"),
    ("prompt_latin", {"prompt": b"\xff\xfe"}, BAD, "prompt"),
    ("prompt_huge", {"prompt": b"x" * 5000}, BAD, "prompt"),
]


@pytest.mark.parametrize(
    ("changes", "code", "param"), [row[1:] for row in FORM_WRONG], ids=[row[0] for row in FORM_WRONG]
)
async def test_wrong_field_of_a_form_is_named(changes: dict[str, str | bytes], code: str, param: str) -> None:
    door = small_door()
    reply = await post_form(door, {**BODY, **changes})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param), reply.body
    assert not door.service.video_requests


BODIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "body"),
    ("blank", b"  ", "body"),
    ("no_json", b"{", "body"),
    ("list", b"[]", "body"),
    ("text", b'"x"', "body"),
    ("latin", b'{"prompt": "\xff"}', "body"),
    ("twice", b'{"prompt": "a", "prompt": "b"}', "prompt"),
    ("deep", b'{"prompt": ' + b"[" * 20_000, "body"),
    ("wide", b'{"prompt": [' + b"1," * 5000 + b"1]}", "body"),
    ("digits", b'{"seed": ' + b"9" * 5000 + b"}", "body"),
]


@pytest.mark.parametrize(("body", "param"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
async def test_body_that_is_no_object_is_refused(body: bytes, param: str) -> None:
    door = video_door()
    reply = await post(door, body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, BAD, param)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed"])
async def test_other_content_types_are_refused(content_type: str) -> None:
    reply = await asgi(video_door().app, "POST", "/v1/videos", b"{}", {"content-type": content_type})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


async def test_form_that_is_broken_off_or_repeats_a_field_is_refused() -> None:
    door, kind = video_door(), {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    part = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nx\r\n'.encode()
    end = f"--{BOUNDARY}--\r\n".encode()
    for body, param in (
        (part, "body"),
        (b"", "body"),
        (b"garbage" + part + end, "body"),
        (part + part + end, "prompt"),
    ):
        reply = await asgi(door.app, "POST", "/v1/videos", body, kind)
        assert (reply.status, reply.error["param"]) == (400, param)
    no_boundary = await asgi(door.app, "POST", "/v1/videos", part + end, {"content-type": "multipart/form-data"})
    assert no_boundary.status == 415
    assert not door.service.video_requests


async def test_body_over_the_limit_is_refused_while_it_arrives() -> None:
    door = video_door(limits=IngressLimits(max_body_bytes=100))
    for headers in ({}, {"content-length": ""}):
        reply = await post(door, {"prompt": "x" * 200}, headers=headers)
        assert (reply.status, reply.error["code"]) == (413, "payload_too_large")


# -- gRPC ------------------------------------------------------------------------------------------------------------

MESSAGES: list[tuple[str, dict[str, Any], str, str]] = [
    ("prompt", {"prompt": ""}, BAD, "prompt"),
    ("prompt_long", {"prompt": "x" * 1001}, BAD, "prompt"),
    ("prompt_nul", {"prompt": "a\0"}, BAD, "prompt"),
    ("negative", {"negative_prompt": "x" * 1001}, BAD, "negative_prompt"),
    ("model", {"model": "m" * 257}, BAD, "model"),
    ("model_unknown", {"model": "sora-2"}, NO_MODEL, "model"),
    ("width_alone", {"width": 64}, BAD, "height"),
    ("width_zero", {"width": 0, "height": 64}, BAD, "width"),
    ("width_huge", {"width": 2**32 - 1, "height": 64}, BAD, "width"),
    ("frames", {"num_frames": 0}, BAD, "num_frames"),
    ("seconds_nan", {"seconds": math.nan}, BAD, "seconds"),
    ("seconds_zero", {"seconds": 0.0}, BAD, "seconds"),
    ("fps", {"fps": 0}, BAD, "fps"),
    ("steps", {"num_inference_steps": 0}, BAD, "num_inference_steps"),
    ("guidance_nan", {"guidance_scale": math.nan}, BAD, "guidance_scale"),
    ("guidance_negative", {"guidance_scale": -1.0}, BAD, "guidance_scale"),
    ("seed", {"seed": -1}, BAD, "seed"),
    ("sampler", {"sampler": "x" * 65}, BAD, "sampler"),
    ("format", {"output_format": 9}, BAD, "output_format"),
    ("priority", {"vireo": vireo_pb2.Budget(priority=9)}, BAD, "vireo.priority"),  # type: ignore[arg-type]
    ("latency", {"vireo": vireo_pb2.Budget(latency_ms=math.inf)}, BAD, "vireo.latency_ms"),
    ("user", {"user": "u" * 513}, BAD, "user"),
    ("key", {"idempotency_key": "k" * 256}, BAD, "idempotency-key"),
]


@pytest.mark.parametrize(("changes", "code", "param"), [row[1:] for row in MESSAGES], ids=[row[0] for row in MESSAGES])
async def test_wrong_field_of_a_message_is_named(changes: dict[str, Any], code: str, param: str) -> None:
    door, context = small_door(), FakeContext()
    message = vireo_pb2.GenerateVideoRequest(**({"model": VIDEO_MODEL, "prompt": PROMPT} | changes))
    assert [response async for response in door.grpc.GenerateVideo(message, context)] == []
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.error, outcome.param) == (code, param)
    assert outcome.status == (StatusCode.NOT_FOUND if code == NO_MODEL else StatusCode.INVALID_ARGUMENT)
    assert not door.service.video_requests


async def test_message_with_a_field_of_a_newer_protocol_or_too_large_is_refused() -> None:
    for data, code in ((b"\x98\x06\x01", UNKNOWN), (b"\x7a\x03\x98\x06\x01", UNKNOWN)):
        context = FakeContext()
        message = vireo_pb2.GenerateVideoRequest(prompt=PROMPT)
        message.MergeFromString(data)
        assert [one async for one in video_door().grpc.GenerateVideo(message, context)] == []
        outcome = context_outcome(context)
        assert outcome is not None
        assert outcome.error == code
    door, context = video_door(limits=IngressLimits(max_body_bytes=100)), FakeContext()
    message = vireo_pb2.GenerateVideoRequest(prompt="x" * 200)
    assert [one async for one in door.grpc.GenerateVideo(message, context)] == []
    assert json.loads(context.trailers["vireo-error-bin"])["code"] == "payload_too_large"
