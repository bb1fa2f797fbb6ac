"""Images over HTTP and gRPC, against a service that gives negatives, and grey pictures by their seed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2

from models.io import ImageIO, ImageRequest
from models.registry import find
from schedulers.plan import Cost, Load, Point
from serving.errors import DeadlineUnreachable, UnknownPath
from serving.operating_points import Points, row_work
from serving.stores.artefacts import ArtefactStore
from serving.tasks.images.files import ImageFiles
from serving.tasks.images.jobs import PicturePlanner
from tests.support.clients import BOUNDARY, GOOD_PNG, FakeContext, FrontDoor, HttpReply, asgi, context_outcome
from tests.support.fake_service import FakeService, make_card, make_image_card
from tests.support.fake_videos import CLIP
from tests.support.media_files import encode

PAINTER = make_image_card("painter", ImageIO(takes_prompt=True, is_seeded=True, size=(12, 8)))
MENDER = make_image_card("mender", ImageIO(takes_picture=True, max_side=256))
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
TEXT = base64.b64encode(GOOD_PNG).decode()
NEGATIVE = 255 - np.asarray(Image.open(io.BytesIO(GOOD_PNG)))


@pytest.fixture
def door() -> FrontDoor:
    return FrontDoor(FakeService((make_card(), PAINTER, MENDER)))


def read(file: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(file)))


async def edit_form(door: FrontDoor, *, file: str = "image", **fields: str) -> HttpReply:
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{file}"; filename="x.png"\r\n\r\n'.encode()
    body = b"".join(parts) + head + GOOD_PNG + f"\r\n--{BOUNDARY}--\r\n".encode()
    return await asgi(door.app, "POST", EDITS, body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"})


async def test_pictures_are_made_of_words_each_with_its_seed(door: FrontDoor) -> None:
    reply = await door.post_json({"model": "painter", "prompt": "a ball", "n": 2, "seed": 7}, GENERATIONS)
    assert reply.status == 200, reply.body
    answer = reply.json
    assert (answer["size"], answer["output_format"], answer["model"]) == ("12x8", "png", "painter")
    assert [each["seed"] for each in answer["data"]] == [7, 8]
    assert [int(read(base64.b64decode(each["b64_json"])).max()) for each in answer["data"]] == [7, 8]
    (request,) = door.service.requests
    assert (request.prompts, request.seeds, request.is_drawn) == (("a ball",) * 2, (7, 8), False)
    assert answer["vireo"]["operating_point"] == "fast"


async def test_seed_is_drawn_where_nobody_gives_one(door: FrontDoor) -> None:
    for _ in range(2):
        await door.post_json({"model": "painter", "prompt": "a ball"}, GENERATIONS)
    first, second = door.service.requests
    assert first.is_drawn
    assert first.seeds != second.seeds


@pytest.mark.parametrize("spelling", [{"image": TEXT}, {"images": [{"image_url": f"data:image/png;base64,{TEXT}"}]}])
async def test_picture_is_changed(spelling: Any, door: FrontDoor) -> None:
    reply = await door.post_json({"model": "mender", **spelling}, EDITS)
    assert reply.status == 200, reply.body
    assert np.array_equal(read(base64.b64decode(reply.json["data"][0]["b64_json"])), NEGATIVE)


@pytest.mark.parametrize("file", ["image", "image[]"])
async def test_picture_comes_as_a_form(file: str, door: FrontDoor) -> None:
    vireo = json.dumps({"energy_j": 2})
    reply = await edit_form(
        door, file=file, model="mender", n="1", output_format="jpeg", background="auto", vireo=vireo
    )
    assert reply.status == 200, reply.body
    assert base64.b64decode(reply.json["data"][0]["b64_json"]).startswith(b"\xff\xd8")
    assert door.service.requests[0].budget.energy_j == 2


async def test_url_leads_its_tenant_to_the_picture(door: FrontDoor) -> None:
    reply = await door.post_json(
        {"model": "mender", "image": TEXT, "response_format": "url"}, EDITS, host="x.localhost:8000"
    )
    (item,) = reply.json["data"]
    assert item["url"].startswith("http://x.localhost:8000/v1/images/files/")
    fetched = await asgi(door.app, "GET", item["url"].removeprefix("http://x.localhost:8000"))
    assert (fetched.status, fetched.headers["content-type"]) == (200, "image/png")
    assert np.array_equal(read(fetched.body), NEGATIVE)


async def test_names_of_files_are_of_one_tenant_and_expire() -> None:
    now_s = [1000.0]
    files = ImageFiles(ArtefactStore("memory://images-test"), b"0123456789abcdef", kept_s=60, clock=lambda: now_s[0])
    stored = await files.put("acme", b"data", "png")
    assert await files.read("acme", stored.name) == (b"data", "image/png")
    forged = stored.name.replace(f"-{stored.expires_at}-", f"-{stored.expires_at + 99}-")
    for tenant, name in (("rival", stored.name), ("acme", forged), ("acme", "x"), ("acme", stored.name + "g")):
        with pytest.raises(UnknownPath):
            await files.read(tenant, name)
    now_s[0] = float(stored.expires_at)
    with pytest.raises(UnknownPath):
        await files.read("acme", stored.name)


HARMLESS = {
    "background": "auto", "moderation": "low", "quality": "auto", "stream": False, "partial_images": 0, "mask": None,
    "style": None, "negative_prompt": "", "output_compression": 100, "size": "auto", "user": "u",
}  # fmt: skip


async def test_what_asks_for_nothing_passes(door: FrontDoor) -> None:
    reply = await door.post_json({"model": "mender", "image": TEXT, "prompt": "", **HARMLESS}, EDITS)
    assert reply.status == 200, reply.body


@pytest.mark.parametrize(
    ("path", "changes", "code", "param"),
    [
        (EDITS, {"mask": TEXT}, "unsupported_field", "mask"),
        (EDITS, {"background": "transparent"}, "unsupported_field", "background"),
        (EDITS, {"stream": True}, "unsupported_field", "stream"),
        (EDITS, {"prompt": "brighter"}, "unsupported_field", "prompt"),
        (EDITS, {"seed": 1}, "unsupported_field", "seed"),
        (EDITS, {"n": 2}, "invalid_request", "n"),
        (EDITS, {"size": "64x64"}, "invalid_request", "size"),
        (EDITS, {"output_compression": 50}, "invalid_request", "output_compression"),
        (EDITS, {"image": None}, "invalid_request", "image"),
        (EDITS, {"image": "!"}, "invalid_image", "image"),
        (EDITS, {"image": ""}, "invalid_image", "image"),
        (EDITS, {"image": "", "images": None}, "invalid_image", "image"),
        (EDITS, {"model": "painter", "prompt": "x"}, "invalid_request", "image"),
        (EDITS, {"model": "fake-nano"}, "model_not_found", "model"),
        (EDITS, {"model": None}, "invalid_request", "model"),
        (EDITS, {"sparkle": 1}, "unknown_field", "sparkle"),
        (GENERATIONS, {"model": "painter", "prompt": " "}, "invalid_request", "prompt"),
        (GENERATIONS, {"model": "mender"}, "invalid_request", "image"),
        (GENERATIONS, {"model": "painter", "prompt": "half \ud800"}, "invalid_request", "prompt"),
        (GENERATIONS, {"model": "painter", "prompt": "x", "n": 1000}, "too_many_images", "n"),
        (GENERATIONS, {"model": "painter", "prompt": "x", "size": "9x9"}, "invalid_request", "size"),
    ],
)
async def test_what_is_not_done_is_refused_by_name(
    path: str, changes: Any, code: str, param: str, door: FrontDoor
) -> None:
    body = {"model": "mender", "image": TEXT} if path == EDITS else {}
    reply = await door.post_json({**body, **changes}, path)
    assert (reply.error["code"], reply.error["param"]) == (code, param), reply.body


async def test_grpc_makes_and_changes_pictures(door: FrontDoor) -> None:
    asked = vireo_pb2.GenerateImageRequest(model="painter", prompt="a ball", n=2, seed=3)
    made = await door.grpc.GenerateImage(asked, FakeContext())
    assert (made.media_type, made.width, made.height, list(made.seeds)) == ("image/png", 12, 8, [3, 4])
    assert [int(read(file).max()) for file in made.images] == [3, 4]
    edit = vireo_pb2.EditImageRequest(model="mender", image=GOOD_PNG, output_format=vireo_pb2.IMAGE_FORMAT_WEBP)
    changed = await door.grpc.EditImage(edit, FakeContext())
    assert changed.media_type == "image/webp"
    assert read(changed.images[0]).shape == NEGATIVE.shape
    assert changed.vireo.operating_point == "fast"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (vireo_pb2.EditImageRequest(), "image"),
        (vireo_pb2.EditImageRequest(image=GOOD_PNG), "model"),
        (
            vireo_pb2.EditImageRequest(image=GOOD_PNG, model="mender", output_compression=101),
            "output_compression",
        ),
        (vireo_pb2.EditImageRequest(image=GOOD_PNG, model="mender", n=2), "n"),
    ],
)
async def test_grpc_refuses_by_name(message: vireo_pb2.EditImageRequest, param: str, door: FrontDoor) -> None:
    context = FakeContext()
    await door.grpc.EditImage(message, context)
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("invalid_request", param)


async def test_grpc_takes_no_seed_that_the_pictures_after_it_could_not_have(door: FrontDoor) -> None:
    context = FakeContext()
    asked = vireo_pb2.GenerateImageRequest(model="painter", prompt="a ball", n=2, seed=2**63 - 1)
    await door.grpc.GenerateImage(asked, context)
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("invalid_request", "seed")
    assert door.service.requests == []


async def test_settings_of_a_picture_come_by_grpc() -> None:
    card = replace(MENDER, knobs=find("tunable-restore-nano")[0].knobs)
    door = FrontDoor(FakeService((make_card(), card)))
    strengths = {"denoise": vireo_pb2.Setting(double_value=0.25), "sharpen": vireo_pb2.Setting(int_value=1)}
    budget = vireo_pb2.Budget(settings=strengths)
    made = await door.grpc.EditImage(
        vireo_pb2.EditImageRequest(model="mender", image=GOOD_PNG, vireo=budget), FakeContext()
    )
    assert len(made.images) == 1
    assert door.service.requests[0].budget.settings == {"denoise": 0.25, "sharpen": 1.0}


async def test_tensors_go_in_and_out_of_a_model_that_makes_pictures(door: FrontDoor) -> None:
    pixels = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    tensor = {"name": "PIXELS", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": pixels.ravel().tolist()}
    reply = await door.post_json({"inputs": [tensor]}, "/v2/models/mender/infer")
    outputs = {each["name"]: each for each in reply.json["outputs"]}
    assert outputs["image"]["shape"] == [1, 8, 8, 3]
    assert outputs["image"]["data"] == (255 - pixels).ravel().tolist()
    assert outputs["ERROR"]["data"] == [""]
    words = {"name": "PROMPT", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    seeds = {"name": "SEED", "datatype": "INT64", "shape": [2], "data": [5, 6]}
    reply = await door.post_json({"inputs": [words, seeds], "outputs": [{"name": "image"}]}, "/v2/models/painter/infer")
    (image,) = reply.json["outputs"]
    assert (image["shape"], image["data"][0], image["data"][-1]) == ([2, 8, 12, 3], 5, 6)


async def test_pictures_of_different_sizes_are_no_tensor(door: FrontDoor) -> None:
    other = encode(np.zeros((9, 9, 3), np.uint8))
    data = [TEXT, base64.b64encode(other).decode()]
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [2], "data": data}
    reply = await door.post_json({"inputs": [tensor]}, "/v2/models/mender/infer")
    assert (reply.error["code"], reply.error["param"]) == ("invalid_request", "inputs")


async def test_metadata_and_configuration_are_those_of_the_card(door: FrontDoor) -> None:
    metadata = (await asgi(door.app, "GET", "/v2/models/painter")).json
    assert [(each["name"], each["datatype"]) for each in metadata["inputs"]] == [("PROMPT", "BYTES"), ("SEED", "INT64")]
    assert metadata["outputs"][0] == {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 12, 3]}
    config = (await asgi(door.app, "GET", "/v2/models/painter/config")).json
    assert config["output"][0] == {"name": "image", "data_type": "TYPE_UINT8", "dims": [8, 12, 3]}


# -- jobs ------------------------------------------------------------------------------------------------------------

BALL = {"model": "painter", "prompt": "a ball", "seed": 7}


async def test_call_that_need_not_be_waited_for_becomes_a_job(door: FrontDoor) -> None:
    asked = {"n": 2, "output_format": "webp", "output_compression": 40, "vireo": {"background": True, "energy_j": 2}}
    reply = await door.post_json(BALL | asked, GENERATIONS, host="x.localhost")
    assert reply.status == 202, reply.body
    job, (request,) = reply.json, door.service.image_jobs.video_requests
    assert (job["object"], job["status"], job["seeds"], job["urls"]) == ("image", "queued", [7, 8], [])
    assert (job["vireo"]["operating_point"], job["vireo"]["degraded"]) == ("fast", [])
    assert (request.budget.energy_j, request.plan.output) == (2, {"format": "webp", "quality": 40})
    assert door.service.requests == []
    door.service.image_jobs.complete(job["id"])
    shown = (await asgi(door.app, "GET", f"/v1/images/jobs/{job['id']}", headers={"host": "x.localhost"})).json
    url = f"http://x.localhost/v1/images/jobs/{job['id']}/content"
    assert (shown["status"], shown["urls"]) == ("completed", [url, f"{url}?variant=image-2"])
    listed = (await asgi(door.app, "GET", "/v1/images/jobs")).json
    assert [one["id"] for one in listed["data"]] == [job["id"]]


@pytest.mark.parametrize(
    ("predicted_s", "vireo", "status"),
    [(9.9, {}, 200), (10.0, {}, 202), (10.0, {"background": False}, 200), (0.0, {"background": True}, 202)],
)
async def test_call_predicted_to_take_long_becomes_a_job_unless_its_caller_waits(
    predicted_s: float, vireo: Any, status: int, door: FrontDoor
) -> None:
    door.service.predicted_s = predicted_s
    reply = await door.post_json(BALL | {"vireo": vireo}, GENERATIONS)
    assert reply.status == status, reply.body
    assert ("background" in reply.json["vireo"]["degraded"]) == (status == 202 and not vireo)


async def test_form_begins_a_job(door: FrontDoor) -> None:
    reply = await edit_form(door, model="mender", vireo=json.dumps({"background": True}))
    assert reply.status == 202, reply.body
    assert reply.json["seeds"] == []


async def test_job_makes_so_many_pictures_and_no_more(door: FrontDoor) -> None:
    reply = await door.post_json(BALL | {"n": 11, "vireo": {"background": True}}, GENERATIONS)
    assert (reply.error["code"], reply.error["param"]) == ("too_many_images", "n")


async def test_grpc_waits_however_long_it_takes(door: FrontDoor) -> None:
    door.service.predicted_s = 60.0
    asked = vireo_pb2.GenerateImageRequest(model="painter", prompt="a ball")
    made = await door.grpc.GenerateImage(asked, FakeContext())
    assert len(made.images) == 1


async def test_jobs_of_images_say_what_is_missing_in_their_own_words(door: FrontDoor) -> None:
    reply = await asgi(door.app, "GET", "/v1/images/jobs/!/content")
    assert (reply.status, reply.error["code"]) == (404, "image_not_found")
    job = (await door.post_json(BALL | {"vireo": {"background": True}}, GENERATIONS)).json
    reply = await asgi(door.app, "GET", f"/v1/images/jobs/{job['id']}/content")
    assert (reply.status, reply.error["code"]) == (409, "image_not_ready")


# -- models that run as jobs -----------------------------------------------------------------------------------------

STEPWISE = "nitrofusion:realism"


@pytest.fixture
def stepwise() -> FrontDoor:
    """A model of shape ``job`` whose steps take a second each, beside one of rows. Its jobs are done at once."""
    family, variant = find(STEPWISE)
    model = SimpleNamespace(id=STEPWISE, family=family.name, variant=variant)
    cost = Cost(latency_s={"slices": 1.0}, busy_s={"slices": 1.0}, watts=2.0)
    points = Points(
        points=tuple(
            Point(
                name=f"num_inference_steps={steps}",
                settings={"num_inference_steps": steps},
                cost=cost,
                quality=steps / 8,
            )
            for steps in (1, 4)
        ),
        work=row_work(family, variant),
        watts=2.0,
        checkpoint_sha256="0" * 64,
    )
    card = replace(make_image_card(STEPWISE, variant.io), shape="job", tasks=("images",), knobs=family.knobs)
    door = FrontDoor(FakeService((make_card(), PAINTER), is_fast=True))
    door.service.image_jobs.video_cards = (card,)
    door.service.image_jobs.plans[STEPWISE] = PicturePlanner(model=cast(Any, model), points=points)
    return door


RED = {"model": STEPWISE, "prompt": "a red ball", "seed": 7}


async def test_whoever_waits_for_a_model_of_jobs_waits_for_a_job(stepwise: FrontDoor) -> None:
    reply = await stepwise.post_json(RED | {"size": "48x32"}, GENERATIONS)
    assert reply.status == 200, reply.body
    assert (reply.json["size"], [each["seed"] for each in reply.json["data"]]) == ("48x32", [7])
    assert base64.b64decode(reply.json["data"][0]["b64_json"]) == CLIP
    made = await stepwise.grpc.GenerateImage(
        vireo_pb2.GenerateImageRequest(model=STEPWISE, prompt="a red ball", n=1, seed=7), FakeContext()
    )
    assert (list(made.images), made.width, made.height) == ([CLIP], 32, 32)
    first, second = stepwise.service.image_jobs.video_requests
    assert first.plan.request == ImageRequest(width=48, height=32, prompt="a red ball", count=1)
    assert (second.plan.request.width, second.plan.seed, second.plan.num_steps) == (32, 7, 4)
    assert first.plan.held_bytes > second.plan.held_bytes > 0
    assert stepwise.service.requests == []


def let_take_negative_prompts(door: FrontDoor) -> None:
    jobs = door.service.image_jobs
    (card,) = jobs.video_cards
    jobs.video_cards = (replace(card, io=replace(card.io, takes_negative_prompt=True)),)


async def test_negative_prompt_reaches_a_model_that_takes_one(stepwise: FrontDoor) -> None:
    let_take_negative_prompts(stepwise)
    assert (await stepwise.post_json(RED | {"negative_prompt": "blur"}, GENERATIONS)).status == 200
    message = vireo_pb2.GenerateImageRequest(model=STEPWISE, prompt="a red ball", negative_prompt="blur", seed=7)
    await stepwise.grpc.GenerateImage(message, FakeContext())
    first, second = stepwise.service.image_jobs.video_requests
    assert first.plan.request == second.plan.request
    assert first.plan.request.negative_prompt == "blur"
    long = await stepwise.post_json(RED | {"negative_prompt": "a" * 1001}, GENERATIONS)
    assert (long.error["code"], long.error["param"]) == ("context_length_exceeded", "negative_prompt")


@pytest.mark.parametrize("model", [STEPWISE, PAINTER.id])
async def test_negative_prompt_is_refused_by_a_model_that_takes_none(model: str, stepwise: FrontDoor) -> None:
    asked = {"model": model, "prompt": "a red ball", "negative_prompt": "blur"}
    reply = await stepwise.post_json(asked, GENERATIONS)
    assert (reply.error["code"], reply.error["param"]) == ("unsupported_field", "negative_prompt")
    context = FakeContext()
    with suppress(Exception):
        await stepwise.grpc.GenerateImage(vireo_pb2.GenerateImageRequest(**asked), context)
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("unsupported_field", "negative_prompt")


async def test_stream_shows_progress_and_then_the_pictures(stepwise: FrontDoor) -> None:
    message = vireo_pb2.GenerateImageRequest(model=STEPWISE, prompt="a red ball", seed=7)
    *before, last = [event async for event in stepwise.grpc.GenerateImageStream(message, FakeContext())]
    assert [event.WhichOneof("event") for event in before] == ["progress"] * len(before)
    assert before[-1].progress.percent == 100
    assert (list(last.made.images), list(last.made.seeds), last.made.width) == ([CLIP], [7], 32)


async def test_stream_of_a_model_of_rows_is_the_pictures(stepwise: FrontDoor) -> None:
    message = vireo_pb2.GenerateImageRequest(model=PAINTER.id, prompt="a red ball", seed=7)
    (event,) = [event async for event in stepwise.grpc.GenerateImageStream(message, FakeContext())]
    assert len(event.made.images) == 1


async def test_stream_that_is_left_cancels_its_job(stepwise: FrontDoor) -> None:
    stepwise.service.image_jobs.is_fast = False
    message = vireo_pb2.GenerateImageRequest(model=STEPWISE, prompt="a red ball")
    events = stepwise.grpc.GenerateImageStream(message, FakeContext())
    assert (await anext(events)).WhichOneof("event") == "progress"
    await events.aclose()
    assert [job.status for job in stepwise.service.image_jobs.jobs.values()] == ["failed"]


@pytest.mark.parametrize(
    ("asked", "steps", "name"),
    [
        ({}, 4, "num_inference_steps=4"),
        ({"vireo": {"latency_ms": 1500}}, 1, "num_inference_steps=1"),
        ({"vireo": {"energy_j": 3}}, 1, "num_inference_steps=1"),
        ({"vireo": {"settings": {"num_inference_steps": 3}}}, 3, "num_inference_steps=3"),
    ],
)
async def test_job_gets_the_best_point_that_its_budget_allows(
    asked: Any, steps: int, name: str, stepwise: FrontDoor
) -> None:
    reply = await stepwise.post_json(RED | {"n": 1} | asked, GENERATIONS)
    assert reply.status == 200, reply.body
    (request,) = stepwise.service.image_jobs.video_requests
    assert (request.plan.num_steps, request.plan.name, request.plan.predicted_s) == (steps, name, steps)
    assert request.plan.point["num_inference_steps"] == steps
    planner = stepwise.service.image_jobs.plans[STEPWISE]
    if asked.get("vireo", {}).get("latency_ms"):
        with pytest.raises(DeadlineUnreachable, match="retry in"):
            planner(request, 0, Load(queued_s=1.0))
    else:
        assert planner(request, 0, Load(queued_s=1.0)) == request.plan


async def test_job_that_is_not_waited_for_is_begun(stepwise: FrontDoor) -> None:
    stepwise.service.image_jobs.is_fast = False
    reply = await stepwise.post_json(RED | {"n": 2, "vireo": {"background": True}}, GENERATIONS)
    assert (reply.status, reply.json["seeds"], reply.json["status"]) == (202, [7, 8], "queued"), reply.body


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"size": "50x33"}, "invalid_request", "size"),
        ({"size": "64x32"}, "invalid_request", "size"),
        ({"size": "large"}, "invalid_request", "size"),
        ({"prompt": "a" * 1001}, "context_length_exceeded", "prompt"),
        ({"n": 11}, "too_many_images", "n"),
        ({"vireo": {"quality_floor": 0.9}}, "budget_infeasible", "vireo"),
        ({"vireo": {"settings": {"num_inference_steps": 5}}}, "invalid_request", "vireo.settings.num_inference_steps"),
    ],
)
async def test_job_that_cannot_be_done_is_refused_before_it_is_queued(
    asked: Any, code: str, param: str, stepwise: FrontDoor
) -> None:
    reply = await stepwise.post_json(RED | asked, GENERATIONS)
    assert (reply.error["code"], reply.error["param"]) == (code, param), reply.body
    assert stepwise.service.image_jobs.video_requests == []


async def test_failure_of_a_job_is_that_of_the_call_that_waits(stepwise: FrontDoor) -> None:
    jobs = stepwise.service.image_jobs
    jobs.is_fast = False
    call = asyncio.create_task(stepwise.post_json(RED, GENERATIONS))
    await jobs.created.wait()
    jobs.fail(next(iter(jobs.jobs)), "context_length_exceeded", "prompt has 92 tokens", "prompt")
    reply = await call
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "prompt")


async def test_call_that_leaves_cancels_its_job(stepwise: FrontDoor) -> None:
    jobs = stepwise.service.image_jobs
    jobs.is_fast = False
    call = asyncio.create_task(stepwise.post_json(RED, GENERATIONS))
    await jobs.created.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert [job.status for job in jobs.jobs.values()] == ["failed"]
