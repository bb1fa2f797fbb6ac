"""``client.videos`` of the official ``openai`` client against the front door on a real socket."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import uvicorn

from serving.errors import BudgetInfeasible, QueueFull, StoreUnavailable
from serving.front.auth import Authenticator
from tests.support.clients import FrontDoor
from tests.support.fake_videos import CLIP, THUMBNAIL, VIDEO_MODEL
from tests.support.video_clients import KEYS, PROMPT, video_door
from tests.support.waiting import until

EXTRA = {"seed": 7, "vireo": {"energy_j": 50, "priority": "high"}, "extra_params": {"sampler": "ddim"}}
Served = tuple[FrontDoor, openai.AsyncOpenAI]
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
"""The client warns that the service which it was made for ends; the interface stays."""


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    door = video_door(authenticator=Authenticator(KEYS, False))
    config = uvicorn.Config(door.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="key-of-ada", max_retries=0
    ) as client:
        yield door, client
    server.should_exit = True
    await running


async def create(client: openai.AsyncOpenAI, **fields: Any) -> Any:
    return await client.videos.create(prompt=PROMPT, **({"model": VIDEO_MODEL} | fields))


async def test_life_of_a_video(served: Served) -> None:
    door, client = served
    video = await create(client, seconds="4", size="64x64", extra_body=EXTRA)
    assert (video.object, video.status, video.progress, video.model) == ("video", "queued", 0, VIDEO_MODEL)
    (request,) = door.service.video_requests
    assert (request.asked.seconds, request.asked.width, request.asked.seed, request.budget.energy_j) == (4.0, 64, 7, 50)
    assert (request.tenant, request.budget.priority, request.asked.sampler) == ("ada", "high", "ddim")
    door.service.run_steps(video.id, 2)
    assert (await client.videos.retrieve(video.id)).progress == 49
    door.service.complete(video.id)
    done = await client.videos.retrieve(video.id)
    assert (done.status, done.error, done.size, done.seconds) == ("completed", None, "64x64", "3.625")
    content = await client.videos.download_content(video.id)
    assert content.content == CLIP
    thumbnail = await client.videos.download_content(video.id, variant="thumbnail")
    assert thumbnail.content == THUMBNAIL
    deleted = await client.videos.delete(video.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (video.id, "video.deleted", True)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.videos.retrieve(video.id)
    assert caught.value.code == "video_not_found"


async def test_create_and_poll_waits_for_the_clip(served: Served) -> None:
    door, client = served

    async def finish() -> None:
        await door.service.created.wait()
        door.service.complete(next(iter(door.service.jobs)))

    finishing = asyncio.create_task(finish())
    video = await client.videos.create_and_poll(
        model=VIDEO_MODEL,
        prompt=PROMPT,
        poll_interval_ms=10,
    )
    await finishing
    assert video.status == "completed"


async def test_list_goes_on_by_itself(served: Served) -> None:
    _door, client = served
    made = [(await create(client)).id for _ in range(5)]
    assert [video.id async for video in client.videos.list(limit=2)] == made[::-1]
    assert [video.id async for video in client.videos.list(limit=3, order="asc")] == made


async def test_failed_video_has_its_error(served: Served) -> None:
    door, client = served
    video = await create(client)
    door.service.fail(video.id, "engine_failed", "the model failed")
    failed = await client.videos.retrieve(video.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "engine_failed", "the model failed")
    with pytest.raises(openai.ConflictError):
        await client.videos.download_content(video.id)


FAILURES: list[tuple[Exception, type[openai.APIStatusError]]] = [
    (BudgetInfeasible("no operating point fits"), openai.UnprocessableEntityError),
    (QueueFull("full"), openai.RateLimitError),
    (StoreUnavailable("jobs cannot be reached now"), openai.InternalServerError),
]


@pytest.mark.parametrize(("error", "cls"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES])
async def test_error_is_of_the_class_that_clients_catch(
    error: Exception, cls: type[openai.APIStatusError], served: Served
) -> None:
    door, client = served
    door.service.video_error = error
    with pytest.raises(cls):
        await create(client)


async def test_reference_image_and_remix_are_refused(served: Served) -> None:
    door, client = served
    with pytest.raises(openai.BadRequestError, match="words alone") as caught:
        await create(client, input_reference=("a.png", b"\x89PNG", "image/png"))
    assert caught.value.param == "input_reference"
    assert not door.service.video_requests


async def test_picture_is_sent_as_the_client_wraps_it(served: Served) -> None:
    """``videos.create`` itself takes files alone, whatever its types say."""
    door, client = served
    url = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    with pytest.raises(openai.BadRequestError, match="clips of words alone") as caught:  # so it was read
        await create(client, extra_body={"input_reference": {"image_url": url}})
    assert caught.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError, match="files are not kept here"):
        await create(client, extra_body={"input_reference": {"file_id": "file-1"}})
    assert not door.service.video_requests
