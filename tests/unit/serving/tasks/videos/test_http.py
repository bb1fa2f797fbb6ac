"""``/v1/videos``: jobs from JSON and forms, their objects, lists, files in ranges, events, clips while one waits."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import jsonschema
import pytest

from serving.delivery.job.base import JobRequest, JobUpdate
from serving.domain import Priority, Surface
from serving.errors import BudgetInfeasible, QueueFull, StoreUnavailable, UnsupportedVideo
from serving.gateway.http import document as openapi_document
from serving.limits import IngressLimits
from serving.tasks.videos.schemas import VideoBody
from tests.support import flipbook
from tests.support.clients import GOOD_PNG, CallRecorder, FrontDoor, asgi
from tests.support.fake_videos import CLIP, CREATED_S, THUMBNAIL, VIDEO_MODEL, make_video_card
from tests.support.video_clients import (
    ADA,
    BOB,
    BODY,
    PROMPT,
    Presence,
    events_of,
    flipbook_door,
    get,
    keyed_door,
    post,
    post_form,
    video_door,
)
from tests.support.waiting import lapse, turns, until


def check(schema: str, document: Any) -> None:
    components = openapi_document()["components"]
    jsonschema.validate(document, {"$ref": f"#/components/schemas/{schema}", "components": components})


async def made(door: FrontDoor, **fields: Any) -> str:
    """Id of a new job."""
    reply = await post(door, BODY | fields)
    assert reply.status == 200, reply.body
    return str(reply.json["id"])


async def finished(door: FrontDoor, **fields: Any) -> str:
    """Id of a job that has its clip."""
    video_id = await made(door, **fields)
    door.service.complete(video_id)
    return video_id


# -- create ----------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "negative_prompt": "blur", "num_frames": 29, "seconds": "3.625", "fps": 8, "size": "64x32",
    "num_inference_steps": 20, "guidance_scale": 4.5, "seed": 7, "sampler": "ddim", "attention": "tile:2:6",
    "output_format": "gif", "user": "me",
    "vireo": {"latency_ms": 9000, "energy_j": 5, "priority": "high", "quality_floor": 0.5},
}  # fmt: skip


def check_everything(request: JobRequest[VideoBody]) -> None:
    assert (request.model, request.asked.prompt, request.asked.negative_prompt) == (VIDEO_MODEL, PROMPT, "blur")
    assert (
        request.asked.width,
        request.asked.height,
        request.asked.num_frames,
        request.asked.fps,
        request.asked.seconds,
    ) == (64, 32, 29, 8, 3.625)
    assert (request.asked.num_inference_steps, request.asked.guidance_scale, request.asked.seed) == (20, 4.5, 7)
    assert (request.asked.sampler, request.asked.attention, request.asked.output_format) == ("ddim", "tile:2:6", "gif")
    assert request.asked.user == "me"
    budget = request.budget
    assert (budget.latency_ms, budget.energy_j, budget.quality_floor) == (9000, 5, 0.5)
    assert budget.priority is Priority.HIGH
    assert request.surface is Surface.HTTP_VIDEO


async def test_every_field_of_json_reaches_the_service() -> None:
    door = video_door()
    reply = await post(door, BODY | EVERYTHING)
    assert reply.status == 200
    check("VideoAnswer", reply.json)
    (request,) = door.service.video_requests
    check_everything(request)


async def test_every_field_of_a_form_reaches_the_service() -> None:
    door = video_door()
    texts = {name: json.dumps(v) if isinstance(v, dict) else str(v) for name, v in (BODY | EVERYTHING).items()}
    reply = await post_form(door, texts)
    assert reply.status == 200, reply.body
    (request,) = door.service.video_requests
    check_everything(request)


async def test_plain_request_leaves_the_choice_to_the_operating_point() -> None:
    door = video_door()
    await made(door)
    (request,) = door.service.video_requests
    open_fields = ("width", "height", "num_frames", "seconds", "fps", "num_inference_steps", "guidance_scale", "seed")
    assert {getattr(request.asked, name) for name in (*open_fields, "sampler", "attention")} == {None}
    assert request.idempotency_key == ""


@pytest.mark.parametrize("seconds", [4, 4.0, "4", "4.0"])
async def test_seconds_are_a_number_or_its_text(seconds: Any) -> None:
    door = video_door()
    await made(door, seconds=seconds)
    assert door.service.video_requests[0].asked.seconds == 4.0


async def test_size_is_one_field_or_two() -> None:
    door = video_door()
    await made(door, size="64x32")
    await made(door, width=64, height=32)
    await made(door, width=64, height=32, size="64x32")
    assert {(request.asked.width, request.asked.height) for request in door.service.video_requests} == {(64, 32)}


async def test_extra_params_say_the_same_as_the_fields() -> None:
    door = video_door()
    extra = {"sampler": "ddim", "attention": "dense", "output_format": "gif"}
    await made(door, extra_params=extra)
    await post_form(door, {**BODY, "extra_params": json.dumps(extra)})
    for request in door.service.video_requests:
        assert (request.asked.sampler, request.asked.attention, request.asked.output_format) == ("ddim", "dense", "gif")


PICTURED = BODY | {"model": flipbook.WORDS, "input_reference": base64.b64encode(GOOD_PNG).decode()}


async def test_settings_that_are_no_fields_of_a_body_reach_the_service_and_are_shown() -> None:
    door = flipbook_door()
    settings = {"motion": 3, "is_looped": True, "num_inference_steps": 9}
    reply = await post(door, PICTURED | {"vireo": {"settings": settings}})
    assert reply.status == 200, reply.body
    check("VideoAnswer", reply.json)
    (request,) = door.service.video_requests
    assert (request.asked.num_inference_steps, request.budget.settings) == (9, {"is_looped": True, "motion": 3})
    assert reply.json["vireo"]["settings"].items() >= settings.items()


@pytest.mark.parametrize("name", ["guidance_scale", "sampler", "attention"])
async def test_field_that_is_no_setting_of_the_model_is_refused_by_name(name: str) -> None:
    door = flipbook_door()
    reply = await post(door, PICTURED | {name: 2.0 if name == "guidance_scale" else "x"})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unsupported_field", name)
    assert "motion, is_looped" in reply.error["message"]
    assert not door.service.video_requests


async def test_model_may_be_absent_where_there_is_but_one() -> None:
    door = video_door()
    reply = await post(door, {"prompt": PROMPT})
    assert reply.json["model"] == VIDEO_MODEL
    door.service.video_cards = (make_video_card(), make_video_card("other-video"))
    reply = await post(door, {"prompt": PROMPT})
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert f"{VIDEO_MODEL}, other-video" in reply.error["message"]
    door.service.video_cards = ()
    for body in ({"prompt": PROMPT}, BODY):
        assert (await post(door, body)).error["code"] == "model_not_found"


async def test_budget_of_the_headers_holds_where_the_body_has_none() -> None:
    door = video_door()
    headers = {"x-vireo-latency-ms": "700", "x-vireo-energy-j": "3"}
    await post(door, BODY | {"vireo": {"energy_j": 1}}, headers=headers)
    budget = door.service.video_requests[0].budget
    assert (budget.latency_ms, budget.energy_j) == (700, 1)


async def test_idempotency_key_is_handed_on() -> None:
    door = video_door()
    first = await post(door, BODY, headers={"idempotency-key": "k-1"})
    again = await post(door, BODY, headers={"idempotency-key": "k-1"})
    assert first.json["id"] == again.json["id"]
    assert [request.idempotency_key for request in door.service.video_requests] == ["k-1", "k-1"]


@pytest.mark.parametrize("key", ["x" * 256, "tab\there", "ä"])
async def test_idempotency_key_that_is_none_is_refused(key: str) -> None:
    door = video_door()
    reply = await post(door, BODY, headers={"idempotency-key": key})
    assert (reply.status, reply.error["param"]) == (400, "idempotency-key")
    assert not door.service.video_requests


REFUSALS = [
    UnsupportedVideo("num_frames is 5; this model does 29", param="num_frames"),
    BudgetInfeasible("no operating point fits", param="vireo.latency_ms"),
    QueueFull("the queue is full", retry_after_s=3),
    StoreUnavailable("jobs cannot be reached now", retry_after_s=2),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.code)
async def test_refusal_of_the_service_is_told_and_counted(error: Exception) -> None:
    calls = CallRecorder()
    door = video_door(calls=calls)
    door.service.video_error = error
    for path, surface in (("/v1/videos", Surface.HTTP_VIDEO), ("/v1/videos/sync", Surface.HTTP_VIDEO_SYNC)):
        reply = await post(door, BODY, path)
        assert reply.error["code"] == error.code  # type: ignore[attr-defined]
        assert ("retry-after" in reply.headers) == (reply.status in (429, 503))
        call = calls.finished.pop()
        assert (call.surface, call.model, call.outcome) == (surface, VIDEO_MODEL, reply.error["code"])
    assert calls.in_flight == 0


# -- objects ---------------------------------------------------------------------------------------------------------


async def test_object_of_each_state_has_the_agreed_shape() -> None:
    door = video_door()
    video_id = await made(door, user="me")
    queued = (await get(door, f"/v1/videos/{video_id}")).json
    check("VideoAnswer", queued)
    assert (queued["object"], queued["status"], queued["progress"], queued["url"]) == ("video", "queued", 0, None)
    assert (queued["seconds"], queued["size"], queued["user"]) == ("3.625", "64x64", "me")
    door.service.run_steps(video_id, 2)
    running = (await get(door, f"/v1/videos/{video_id}")).json
    check("VideoAnswer", running)
    assert (running["status"], running["progress"]) == ("in_progress", 49)
    assert (running["vireo"]["stage"], running["vireo"]["step"], running["vireo"]["num_steps"]) == ("denoise", 2, 4)
    door.service.complete(video_id)
    done = (await get(door, f"/v1/videos/{video_id}")).json
    check("VideoAnswer", done)
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["url"] == f"http://vireo.localhost:8000/v1/videos/{video_id}/content"
    assert (done["media_type"], done["file_name"]) == ("video/mp4", f"{video_id}.mp4")
    assert (done["completed_at"], done["expires_at"]) == (CREATED_S + 12, CREATED_S + 3600)
    assert (done["inference_time_s"], done["vireo"]["energy_j"], done["vireo"]["sparsity"]) == (0.25, 1.5, 0.5)


async def test_failed_job_says_why() -> None:
    door = video_door()
    video_id = await made(door)
    door.service.fail(video_id, "attempts_exhausted", "three replicas were lost")
    failed = (await get(door, f"/v1/videos/{video_id}")).json
    check("VideoAnswer", failed)
    assert failed["status"] == "failed"
    error = {"code": "attempts_exhausted", "message": "three replicas were lost", "type": "server_error", "param": None}
    assert failed["error"] == error
    assert (failed["url"], failed["vireo"]["remaining_s"]) == (None, None)


@pytest.mark.parametrize(
    ("headers", "start"),
    [
        ({"host": "a.b:1"}, "http://a.b:1/v1"),
        ({"host": "[::1]:8000"}, "http://[::1]:8000/v1"),
        ({"host": "a.b", "x_forwarded_proto": "https"}, "https://a.b/v1"),
        ({"host": "a.b", "x_forwarded_proto": "javascript"}, "http://a.b/v1"),
        ({"host": "a.b/evil?"}, "/v1"),
        ({"host": "user@evil"}, "/v1"),
        ({"host": ""}, "/v1"),
    ],
)
async def test_url_is_that_of_the_caller_and_nothing_else(headers: dict[str, str], start: str) -> None:
    door = keyed_door()
    video_id = (await post(door, BODY, headers=ADA)).json["id"]
    door.service.complete(video_id)
    url = (await get(door, f"/v1/videos/{video_id}", **ADA, **headers)).json["url"]
    assert url == f"{start}/videos/{video_id}/content"


async def test_models_are_listed_and_shown() -> None:
    door = video_door()
    listing = (await get(door, "/v1/models")).json
    check("ModelListAnswer", listing)
    assert listing["data"][-1]["id"] == VIDEO_MODEL
    shown = (await get(door, f"/v1/models/{VIDEO_MODEL}")).json
    check("ModelAnswer", shown)
    io = shown["vireo"]["io"]
    assert (io["outputs"], io["sizes"], io["num_frames"]) == (["video"], ["64x64"], [29, 93])


# -- lists -----------------------------------------------------------------------------------------------------------


async def test_list_goes_page_by_page_both_ways() -> None:
    door = video_door()
    ids = [await made(door) for _ in range(5)]
    page = (await get(door, "/v1/videos?limit=2")).json
    check("VideoListAnswer", page)
    assert [video["id"] for video in page["data"]] == [ids[4], ids[3]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[4], ids[3], True)
    page = (await get(door, f"/v1/videos?limit=2&after={ids[1]}")).json
    assert ([video["id"] for video in page["data"]], page["has_more"]) == ([ids[0]], False)
    page = (await get(door, f"/v1/videos?order=asc&after={ids[1]}")).json
    assert [video["id"] for video in page["data"]] == ids[2:]
    page = (await get(video_door(), "/v1/videos")).json
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "invalid_request", "limit"),
        ("limit=101", "invalid_request", "limit"),
        ("limit=x", "invalid_request", "limit"),
        ("limit=1&limit=2", "invalid_request", "limit"),
        ("order=up", "invalid_request", "order"),
        ("after=", "invalid_request", "after"),
        ("after=video_none", "invalid_request", "after"),
        ("after=..%2F..", "invalid_request", "after"),
        ("page=2", "unknown_field", "page"),
        ("&".join(f"a{n}=1" for n in range(40)), "invalid_request", "query"),
    ],
)
async def test_wrong_query_is_refused(query: str, code: str, param: str) -> None:
    reply = await get(video_door(), f"/v1/videos?{query}")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)


# -- delete, and whose is what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [False, True])
async def test_delete_cancels_what_is_not_over_and_its_record_stays(is_running: bool) -> None:
    door = video_door()
    video_id = await made(door)
    if is_running:
        door.service.run_steps(video_id, 1)
    reply = await asgi(door.app, "DELETE", f"/v1/videos/{video_id}")
    check("VideoDeletedAnswer", reply.json)
    assert reply.json == {"id": video_id, "object": "video.deleted", "deleted": True}
    job = (await get(door, f"/v1/videos/{video_id}")).json
    assert (job["status"], job["error"]["code"]) == ("failed", "cancelled")


async def test_delete_removes_what_is_over() -> None:
    door = video_door()
    video_id = await finished(door)
    assert (await asgi(door.app, "DELETE", f"/v1/videos/{video_id}")).json["deleted"]
    assert (await get(door, f"/v1/videos/{video_id}")).status == 404


async def test_job_of_another_tenant_looks_like_none() -> None:
    door = keyed_door()
    video_id = (await post(door, BODY, headers=ADA)).json["id"]
    door.service.complete(video_id)
    other_id = video_id[:-1] + "x"
    for path in ("", "/content", "/events"):
        theirs, nobodys, mine = [
            await asgi(door.app, "GET", f"/v1/videos/{name}{path}", b"", headers, receive=Presence().receive)
            for name, headers in ((video_id, BOB), (other_id, BOB), (video_id, ADA))
        ]
        assert (theirs.status, theirs.error["code"], mine.status) == (404, "video_not_found", 200)
        assert theirs.error["message"].replace(video_id, "") == nobodys.error["message"].replace(other_id, "")
    assert (await asgi(door.app, "DELETE", f"/v1/videos/{video_id}", b"", BOB)).status == 404
    assert (await asgi(door.app, "GET", "/v1/videos", b"", BOB)).json["data"] == []
    assert (await asgi(door.app, "GET", f"/v1/videos?after={video_id}", b"", BOB)).status == 400
    assert door.service.cancelled == []
    assert video_id in door.service.jobs


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/videos"),
        ("POST", "/v1/videos/sync"),
        ("GET", "/v1/videos"),
        ("GET", "/v1/videos/x"),
        ("DELETE", "/v1/videos/x"),
        ("GET", "/v1/videos/x/content"),
        ("GET", "/v1/videos/x/events"),
    ],
)
async def test_nothing_is_told_without_a_key(method: str, path: str) -> None:
    assert (await asgi(keyed_door().app, method, path, b"{}")).status == 401


@pytest.mark.parametrize("video_id", ["..", "a%2Fb", "x" * 129, "vidéo", "a:b", "*"])
@pytest.mark.parametrize("rest", ["", "/content", "/events"])
async def test_id_that_no_job_can_have_is_not_looked_up(video_id: str, rest: str) -> None:
    door = video_door()
    door.service.video_error = AssertionError("looked up")
    reply = await get(door, f"/v1/videos/{video_id}{rest}")
    assert (reply.status, reply.error["code"]) == (404, "video_not_found")


async def test_paths_that_do_not_exist_say_so() -> None:
    door = video_door()
    assert (await post(door, BODY, "/v1/videos/video_1/remix")).error["code"] == "not_found"
    assert (await asgi(door.app, "PUT", "/v1/videos/video_1")).error["code"] == "method_not_allowed"


# -- content ---------------------------------------------------------------------------------------------------------

SIZE = len(CLIP)


async def test_whole_file_with_everything_a_player_needs() -> None:
    door = video_door()
    video_id = await finished(door)
    reply = await get(door, f"/v1/videos/{video_id}/content")
    assert (reply.status, reply.body) == (200, CLIP)
    headers = reply.headers
    assert headers["content-type"] == "video/mp4"
    assert headers["content-length"] == str(SIZE)
    assert headers["etag"] == f'"{hashlib.sha256(CLIP).hexdigest()}"'
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-disposition"] == f'inline; filename="{video_id}.mp4"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"].startswith("private")
    assert "x-request-id" in headers


@pytest.mark.parametrize(
    ("span", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        (f"bytes=5-{SIZE * 9}", 5, SIZE),
        ("bytes=262140-262150", 262_140, 262_151),
        ("Bytes = 3 - 4", 3, 5),
    ],
)
async def test_range_is_that_part_of_the_file(span: str, start: int, end: int) -> None:
    door = video_door()
    reply = await get(door, f"/v1/videos/{await finished(door)}/content", range=span)
    assert (reply.status, reply.body) == (206, CLIP[start:end])
    assert reply.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert reply.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("span", ["bytes=1-2,4-5", "items=0-1", "bytes=-", "bytes=9-3", "bytes=a-b", "bytes=0x1-2"])
async def test_what_is_no_single_range_gets_the_whole_file(span: str) -> None:
    door = video_door()
    reply = await get(door, f"/v1/videos/{await finished(door)}/content", range=span)
    assert (reply.status, reply.body) == (200, CLIP)


@pytest.mark.parametrize("span", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE}", "bytes=-0", "bytes=999999999999999999-"])
async def test_range_beyond_the_file_is_416_with_its_size(span: str) -> None:
    door = video_door()
    reply = await get(door, f"/v1/videos/{await finished(door)}/content", range=span)
    assert (reply.status, reply.error["code"]) == (416, "range_not_satisfiable")
    assert reply.headers["content-range"] == f"bytes */{SIZE}"


async def test_conditions_of_a_download() -> None:
    door = video_door()
    path = f"/v1/videos/{await finished(door)}/content"
    etag = (await get(door, path)).headers["etag"]
    for known in (etag, f'"x", {etag}', f"W/{etag}"):
        reply = await get(door, path, if_none_match=known)
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag)
        assert reply.headers["cache-control"] == "private, no-cache"
        assert reply.headers.keys().isdisjoint({"content-length", "content-type"})
    assert (await get(door, path, if_none_match='"other"')).status == 200
    assert (await get(door, path, range="bytes=0-1", if_range=etag)).status == 206
    assert (await get(door, path, range="bytes=0-1", if_range='"other"')).body == CLIP


async def test_head_is_the_answer_without_its_body() -> None:
    door = video_door()
    reply = await asgi(door.app, "HEAD", f"/v1/videos/{await finished(door)}/content", b"", {"range": "bytes=5-8"})
    assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", str(SIZE))
    assert "content-range" not in reply.headers


async def test_thumbnail_and_gif_have_their_own_types() -> None:
    door = video_door()
    video_id = await finished(door, output_format="gif")
    thumbnail = await get(door, f"/v1/videos/{video_id}/content?variant=thumbnail")
    assert (thumbnail.body, thumbnail.headers["content-type"]) == (THUMBNAIL, "image/jpeg")
    clip = await get(door, f"/v1/videos/{video_id}/content?variant=video")
    assert (clip.headers["content-type"], clip.headers["content-disposition"][-5:]) == ("image/gif", '.gif"')


@pytest.mark.parametrize("query", ["variant=spritesheet", "variant=", "variant=..%2Fvideo"])
async def test_variant_that_is_not_made_is_not_found(query: str) -> None:
    door = video_door()
    reply = await get(door, f"/v1/videos/{await finished(door)}/content?{query}")
    assert (reply.status, reply.error["param"]) == (404, "variant")


async def test_content_before_its_time_and_of_a_failed_job() -> None:
    door = video_door()
    video_id = await made(door)
    reply = await get(door, f"/v1/videos/{video_id}/content")
    assert (reply.status, reply.error["code"]) == (409, "video_not_ready")
    door.service.fail(video_id)
    reply = await get(door, f"/v1/videos/{video_id}/content")
    assert (reply.status, reply.error["code"]) == (409, "video_failed")
    assert "engine_failed" in reply.error["message"]


async def test_file_that_is_gone_is_an_error_before_and_a_torn_connection_after_its_beginning() -> None:
    door = video_door()
    path = f"/v1/videos/{await finished(door)}/content"
    door.service.read_error_at = 0
    assert (await get(door, path)).error["code"] == "video_not_found"
    door.service.read_error_at = 1 << 18
    reply = await get(door, path)
    assert (reply.status, reply.body) == (200, CLIP[: 1 << 18])
    assert reply.headers["content-length"] == str(SIZE)  # more than came: the server breaks the connection off


# -- events ----------------------------------------------------------------------------------------------------------


async def watch(door: FrontDoor, video_id: str, presence: Presence) -> Any:
    return await asgi(door.app, "GET", f"/v1/videos/{video_id}/events", receive=presence.receive)


async def test_head_of_events_ends_though_the_job_does_not() -> None:
    door = video_door()
    path = f"/v1/videos/{await made(door)}/events"
    reply = await asyncio.wait_for(asgi(door.app, "HEAD", path, receive=Presence().receive), 20)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-type"].startswith("text/event-stream")
    await until(lambda: door.service.watchers == 0)


async def test_events_tell_every_step_and_end_with_the_job() -> None:
    door = video_door()
    video_id = await made(door)
    watching = asyncio.create_task(watch(door, video_id, Presence()))
    await until(lambda: door.service.watchers == 1)
    for step in (1, 2):
        door.service.previews[video_id] = b"jpeg%d" % step
        door.service.run_steps(video_id, step)
        await turns()
    door.service.previews.clear()
    door.service.complete(video_id)
    reply = await watching
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.body)
    assert [name for name, _ in events] == ["progress", "progress", "progress", "completed"]
    for _, data in events:
        check("VideoEventAnswer", data)
    assert [data["vireo"]["step"] for _, data in events] == [0, 1, 2, 4]
    assert [data["preview"] for _, data in events] == [
        None,
        "data:image/jpeg;base64,anBlZzE=",
        "data:image/jpeg;base64,anBlZzI=",
        None,
    ]
    assert [data["vireo"]["predicted_finish_at"] for _, data in events] == [None, CREATED_S + 9, CREATED_S + 8, None]
    assert events[-1][1]["url"] is None or video_id in events[-1][1]["url"]
    assert door.service.watchers == 0


async def test_events_of_a_job_that_is_over_are_one() -> None:
    door = video_door()
    video_id = await made(door)
    door.service.fail(video_id)
    events = events_of((await watch(door, video_id, Presence())).body)
    assert [(name, data["error"]["code"]) for name, data in events] == [("failed", "engine_failed")]


async def test_silence_is_filled_with_signs_of_life() -> None:
    door = video_door(limits=IngressLimits(keep_alive_s=0.01))
    video_id = await made(door)
    watching = asyncio.create_task(watch(door, video_id, Presence()))
    await lapse(0.05)
    door.service.complete(video_id)
    names = [name for name, _ in events_of((await watching).body)]
    assert (names[0], names[1], names[-1]) == ("progress", ":", "completed")


async def test_watcher_that_leaves_does_nothing_to_the_job() -> None:
    door = video_door()
    video_id, presence = await made(door), Presence()
    watching = asyncio.create_task(watch(door, video_id, presence))
    await until(lambda: door.service.watchers == 1)
    presence.left.set()
    await watching
    assert door.service.watchers == 0
    assert door.service.cancelled == []
    assert (await get(door, f"/v1/videos/{video_id}")).json["status"] == "queued"


async def test_error_after_the_first_event_is_the_last_event() -> None:
    door = video_door()
    video_id = await made(door)
    watching = asyncio.create_task(watch(door, video_id, Presence()))
    await until(lambda: door.service.watchers == 1)
    await turns()
    door.service.video_error = StoreUnavailable("jobs cannot be reached now")
    door.service.change(video_id)
    events = events_of((await watching).body)
    assert [name for name, _ in events] == ["progress", "error"]
    assert events[-1][1]["error"]["code"] == "store_unavailable"


# -- sync ------------------------------------------------------------------------------------------------------------


async def sync(door: FrontDoor, presence: Presence) -> Any:
    headers = {"content-type": "application/json"}
    return await asgi(door.app, "POST", "/v1/videos/sync", b"", headers, receive=presence.receive)


def waiting(document: Any) -> Presence:
    return Presence(json.dumps(document).encode())


async def test_sync_answers_with_the_file() -> None:
    calls = CallRecorder()
    door = video_door(calls=calls)
    asking = asyncio.create_task(sync(door, waiting(BODY)))
    await until(lambda: door.service.watchers == 1)
    (video_id,) = door.service.jobs
    door.service.run_steps(video_id, 3)
    door.service.complete(video_id)
    reply = await asking
    assert (reply.status, reply.body, reply.headers["content-type"]) == (200, CLIP, "video/mp4")
    assert reply.headers["x-vireo-video-id"] == video_id
    (call,) = calls.finished
    assert (call.surface, call.outcome) == (Surface.HTTP_VIDEO_SYNC, "ok")
    assert door.service.cancelled == []


async def test_request_that_only_the_replica_could_refuse_fails_as_if_the_gateway_had() -> None:
    door = video_door()
    refusal = ("context_length_exceeded", "prompt has 92 tokens; limit is 77; shorten it", "prompt")
    video_id = await made(door)
    door.service.fail(video_id, *refusal)
    failed = (await get(door, f"/v1/videos/{video_id}")).json
    asking = asyncio.create_task(sync(door, waiting(BODY)))
    await until(lambda: door.service.watchers == 1)
    door.service.fail(next(one for one in door.service.jobs if one != video_id), *refusal)
    reply = await asking
    assert (reply.status, reply.error) == (400, failed["error"])
    assert reply.error == dict(zip(("code", "message", "param"), refusal, strict=True), type="invalid_request_error")


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("engine_failed", 500, "engine_failed"),
        ("attempts_exhausted", 503, "replica_lost"),
        ("deadline_exceeded", 504, "deadline_exceeded"),
        ("context_length_exceeded", 400, "context_length_exceeded"),
        ("cancelled", 499, "cancelled"),
        ("what_a_newer_replica_says", 500, "engine_failed"),
    ],
)
async def test_sync_fails_as_its_job_does(code: str, status: int, told: str) -> None:
    door = video_door()
    asking = asyncio.create_task(sync(door, waiting(BODY)))
    await until(lambda: door.service.watchers == 1)
    door.service.fail(next(iter(door.service.jobs)), code, "because")
    reply = await asking
    assert (reply.status, reply.error["code"], reply.error["message"]) == (status, told, "because")
    assert door.service.cancelled == []


@pytest.mark.parametrize("is_task_cancelled", [False, True])
async def test_client_that_leaves_sync_takes_its_job_with_it(is_task_cancelled: bool) -> None:
    door, presence = video_door(), waiting(BODY)
    asking = asyncio.create_task(sync(door, presence))
    await until(lambda: door.service.watchers == 1)
    if is_task_cancelled:
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    else:
        presence.left.set()
        assert (await asking).status == 499
    assert door.service.cancelled == list(door.service.jobs)
    assert door.service.watchers == 0


async def test_job_that_nobody_can_wait_for_any_more_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    door = video_door()

    async def broken(owner: str, video_id: str) -> AsyncGenerator[JobUpdate, None]:
        if owner:
            raise StoreUnavailable("jobs cannot be reached now")
        yield

    monkeypatch.setattr(door.service, "watch", broken)
    assert (await sync(door, waiting(BODY))).error["code"] == "store_unavailable"
    assert door.service.cancelled == list(door.service.jobs)
