"""``vireo video`` as a user types it, against the front door with a fake behind it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner, Result

from models.contract import Knob
from models.registry import find
from serving.client.exits import Exit
from serving.client.jobs import JobClient
from serving.client.told import Failed
from serving.errors import BudgetInfeasible, EngineFailed, QueueFull, StoreUnavailable
from serving.front.auth import Authenticator
from serving.tasks.videos.cli import register
from serving.tasks.videos.limits import ClipLimits
from tests.support import flipbook
from tests.support.clients import GOOD_PNG
from tests.support.fake_service import FakeService
from tests.support.fake_videos import CLIP, VIDEO_MODEL, make_video_card
from tests.support.ports import free_port
from tests.support.served_door import ServedDoor, served

KNOBS = (
    *(knob for knob in find("vdit-nano")[0].knobs if knob.name in ("num_inference_steps", "guidance_scale")),
    Knob(name="sampler", default="ddim", values=("consistency", "ddim"), summary="How."),
    Knob(name="attention", default="dense", values=("dense", "tile:2:6"), summary="Of whom."),
)


@pytest.fixture
def door() -> Iterator[ServedDoor]:
    """Jobs are done when they are created."""
    cards = (replace(make_video_card(), knobs=KNOBS),)
    with served(FakeService(video_cards=cards, is_fast=True)) as door:
        yield door


@pytest.fixture
def slow_door() -> Iterator[ServedDoor]:
    """Jobs wait for the test."""
    with served(FakeService(video_cards=(make_video_card(),))) as door:
        yield door


def vireo(*arguments: str, **env: str) -> Result:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "COLUMNS": "200", **env})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


class Instantly:
    """Waits of a client take no time."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


# -- the command -----------------------------------------------------------------------------------------------------


def test_clip_is_saved_and_one_line_says_what_it_is(door: ServedDoor, tmp_path: Path) -> None:
    path = tmp_path / "my clip.mp4"
    result = vireo("a red ball", "-o", str(path), "--url", door.url)
    assert (result.exit_code, result.stderr.strip()) == (0, "")
    assert path.read_bytes() == CLIP
    assert result.stdout == (f"{path}: 64x64, 29 frames, 3.625 s; 4 steps, seed 0, quick, 0.2 s, 1.5 J (estimate)\n")
    (request,) = door.service.video_requests
    assert (request.model, request.asked.prompt, request.asked.output_format) == (VIDEO_MODEL, "a red ball", "mp4")
    assert request.idempotency_key
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_options_reach_the_server(door: ServedDoor, tmp_path: Path) -> None:
    options = (
        "--negative blur --size 64x64 --frames 93 --seconds 11.625 --fps 8 --steps 20 --guidance 4.5 --seed 7 "
        "--sampler ddim --attention tile:2:6 --latency-ms 900 --energy-j 3 --quality-floor 0.5 --priority high "
        "--model fake-video"
    )
    path = tmp_path / "a.GIF"
    assert vireo("x", *options.split(), "--out", str(path), "--url", door.url).exit_code == 0
    (request,) = door.service.video_requests
    assert (request.asked.negative_prompt, request.asked.width, request.asked.height, request.asked.num_frames) == (
        "blur",
        64,
        64,
        93,
    )
    assert (request.asked.seconds, request.asked.fps, request.asked.num_inference_steps) == (11.625, 8, 20)
    assert (request.asked.guidance_scale, request.asked.seed, request.asked.sampler) == (4.5, 7, "ddim")
    assert (request.asked.attention, request.asked.output_format) == ("tile:2:6", "gif")
    budget = request.budget
    assert (budget.latency_ms, budget.energy_j, budget.quality_floor, budget.priority) == (900, 3, 0.5, "high")


@pytest.mark.parametrize(("options", "name"), [([], "video.mp4"), (["--gif"], "video.gif")])
def test_name_of_the_file_when_none_is_given(
    options: list[str], name: str, door: ServedDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vireo("x", *options, VIREO_URL=door.url).exit_code == 0
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_picture_goes_to_the_first_model_that_takes_one(tmp_path: Path) -> None:
    limits = ClipLimits(family=flipbook.FAMILY, variant=flipbook.FAMILY.variants[0])
    cards = (make_video_card(), make_video_card(flipbook.MODEL, limits))
    (tmp_path / "first.png").write_bytes(GOOD_PNG)
    with served(FakeService(video_cards=cards, is_fast=True)) as door:
        out = ("-o", str(tmp_path / "a.mp4"), "--url", door.url)
        result = vireo("--image", str(tmp_path / "first.png"), "--set", "motion=3", *out)
        assert result.exit_code == 0, result.output
        assert vireo("a red ball", *out).exit_code == 0
        pictured, told = door.service.video_requests
    assert (pictured.model, pictured.first_frame.encoded, pictured.asked.prompt) == (flipbook.MODEL, GOOD_PNG, "")
    assert pictured.budget.settings == {"motion": 3}
    assert (told.model, told.first_frame) == (VIDEO_MODEL, None)


@pytest.mark.parametrize("has_picture", [True, False])
def test_model_whose_picture_is_optional_is_asked_with_and_without(has_picture: bool, tmp_path: Path) -> None:
    cards = [
        make_video_card(variant.id, ClipLimits(family=flipbook.FAMILY, variant=variant))
        for variant in flipbook.FAMILY.variants[1 if not has_picture else 2 :]
    ]
    (tmp_path / "first.png").write_bytes(GOOD_PNG)
    with served(FakeService(video_cards=tuple(cards), is_fast=True)) as door:
        picture = ("--image", str(tmp_path / "first.png")) if has_picture else ()
        result = vireo("a ball", *picture, "-o", str(tmp_path / "a.mp4"), "--url", door.url)
        assert result.exit_code == 0, result.output
        (asked,) = door.service.video_requests
    assert (asked.model, asked.first_frame is not None) == (flipbook.EITHER, has_picture)


def test_json_is_the_job_as_it_came(door: ServedDoor, tmp_path: Path) -> None:
    result = vireo("x", "-o", str(tmp_path / "a.mp4"), "--json", "--url", door.url)
    document = json.loads(result.stdout)
    assert (document["object"], document["status"]) == ("video", "completed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "clip.avi"], ".mp4 or .gif"),
        (["-o", "clip"], ".mp4 or .gif"),
        (["--gif", "-o", "clip.mp4"], "differ"),
        (["-o", "no/such/folder/clip.mp4"], "cannot be written"),
    ],
)
def test_file_that_cannot_be_written_is_refused_before_anything_is_sent(
    arguments: list[str], says: str, door: ServedDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = vireo("x", *arguments, "--url", door.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert not door.service.video_requests
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetInfeasible("no operating point fits", param="vireo.energy_j"), Exit.REFUSED),
        (QueueFull("the queue is full", retry_after_s=3), Exit.BUSY),
        (StoreUnavailable("jobs cannot be reached now"), 1),
    ],
)
def test_refusal_is_one_line_and_an_exit_code(error: Any, code: int, door: ServedDoor, tmp_path: Path) -> None:
    door.service.video_error = error
    path = tmp_path / "a.mp4"
    result = vireo("x", "-o", str(path), "--url", door.url)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.strip().splitlines()[-1].startswith(f"vireo: {error.code}: {error.message}")
    shown = vireo("x", "-o", str(path), "--json", "--url", door.url)
    assert json.loads(shown.stdout)["error"]["code"] == error.code
    assert list(tmp_path.iterdir()) == []


def test_job_that_fails_for_its_request_ends_as_a_refusal_does(slow_door: ServedDoor, tmp_path: Path) -> None:
    service = slow_door.service
    refusal = ("context_length_exceeded", "prompt has 92 tokens", "prompt")
    fail = when_created(slow_door, lambda job_id: service.fail(job_id, *refusal))
    result = vireo("x", "-o", str(tmp_path / "a.mp4"), "--url", slow_door.url, "--json")
    fail.join()
    assert result.exit_code == Exit.REFUSED
    assert json.loads(result.stdout)["error"]["param"] == "prompt"


def test_job_that_fails_fails_the_command(slow_door: ServedDoor, tmp_path: Path) -> None:
    service = slow_door.service
    fail = when_created(slow_door, lambda job_id: service.fail(job_id, "engine_failed", "the \x1b[31mmodel failed"))
    result = vireo("x", "-o", str(tmp_path / "a.mp4"), "--url", slow_door.url)
    fail.join()
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1] == "vireo: engine_failed: the �[31mmodel failed"
    assert list(tmp_path.iterdir()) == []


def when_created(door: ServedDoor, act: Callable[[str], None]) -> threading.Thread:
    """Do something to the first job as soon as it is there."""
    service = door.service

    async def wait() -> None:
        await service.created.wait()
        act(next(iter(service.jobs)))

    def run() -> None:
        import asyncio

        asyncio.run_coroutine_threadsafe(wait(), door.loop).result(timeout=20)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_interrupt_cancels_the_job(slow_door: ServedDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = JobClient.watch

    def interrupted(self: JobClient, job_id: str) -> Iterator[dict[str, Any]]:
        yield next(watch(self, job_id))
        raise KeyboardInterrupt

    monkeypatch.setattr(JobClient, "watch", interrupted)
    result = vireo("x", "-o", str(tmp_path / "a.mp4"), "--url", slow_door.url)
    assert result.exit_code == 130
    assert "cancelled" in result.stderr
    assert slow_door.service.cancelled == list(slow_door.service.jobs)
    assert list(tmp_path.iterdir()) == []


def test_key_is_sent_and_needed(tmp_path: Path) -> None:
    keys = {"ada": hashlib.sha256(b"secret").hexdigest()}
    service = FakeService(video_cards=(make_video_card(),), is_fast=True)
    with served(service, Authenticator(keys, False)) as door:
        path = str(tmp_path / "a.mp4")
        assert vireo("x", "-o", path, "--url", door.url).exit_code == Exit.REFUSED
        assert vireo("x", "-o", path, "--url", door.url, "--api-key", "secret").exit_code == 0
        assert vireo("x", "-o", path, VIREO_URL=door.url, VIREO_API_KEY="secret").exit_code == 0
    assert {request.tenant for request in service.video_requests} == {"ada"}


def test_nobody_there_and_no_video_model(tmp_path: Path) -> None:
    path = str(tmp_path / "a.mp4")
    result = vireo("x", "-o", path, "--url", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == Exit.UNREACHABLE
    assert "vireo up" in result.stderr
    with served(FakeService()) as door:
        result = vireo("x", "-o", path, "--url", door.url)
    assert result.exit_code == Exit.REFUSED
    assert "no model for videos" in result.stderr


# -- the client ------------------------------------------------------------------------------------------------------


class Flaky(httpx.HTTPTransport):
    """The first answers to some requests break off: before they come, or after some bytes."""

    def __init__(self, path_ends: str, num_failures: int, num_bytes: int | None = None) -> None:
        super().__init__()
        self.path_ends = path_ends
        self.left = num_failures
        self.num_bytes = num_bytes
        self.ranges: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if not request.url.path.endswith(self.path_ends):
            return response
        self.ranges.append(request.headers.get("range"))
        if self.left == 0:
            return response
        self.left -= 1
        body = response.read()
        if self.num_bytes is None:
            raise httpx.RemoteProtocolError("the server went away", request=request)
        return httpx.Response(response.status_code, headers=response.headers, stream=Torn(body[: self.num_bytes]))


class Torn(httpx.SyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        raise httpx.RemoteProtocolError("the server went away")


def flaky(door: ServedDoor, transport: Flaky, sleep: Instantly) -> JobClient:
    client = JobClient(door.url, None, "/v1/videos", sleep)
    client._http = httpx.Client(transport=transport)
    return client


def test_request_whose_answer_is_lost_is_sent_again_with_the_same_key(door: ServedDoor) -> None:
    sleep = Instantly()
    with flaky(door, Flaky("/videos", 2), sleep) as client:
        job = client.create("/v1/videos", {"prompt": "x"})
    keys = {request.idempotency_key for request in door.service.video_requests}
    assert (len(door.service.video_requests), len(keys), list(door.service.jobs)) == (3, 1, [job["id"]])
    assert sleep.waits == [0.5, 1.0]


def test_server_that_stays_away_is_given_up(door: ServedDoor) -> None:
    with flaky(door, Flaky("/videos", 99), Instantly()) as client, pytest.raises(Failed) as caught:
        client.create("/v1/videos", {"prompt": "x"})
    assert caught.value.is_servers_fault


def test_refusal_is_not_asked_for_again(door: ServedDoor) -> None:
    door.service.video_error = EngineFailed("broken")
    sleep = Instantly()
    with JobClient(door.url, None, "/v1/videos", sleep) as client, pytest.raises(Failed):
        client.create("/v1/videos", {"prompt": "x"})
    assert sleep.waits == []


def test_events_that_break_off_are_opened_again(door: ServedDoor) -> None:
    with flaky(door, Flaky("/events", 2, 10), Instantly()) as client:
        job = client.create("/v1/videos", {"prompt": "x"})
        assert [one["status"] for one in client.watch(job["id"])] == ["completed"]


def test_download_goes_on_where_it_broke_off(door: ServedDoor, tmp_path: Path) -> None:
    transport, path = Flaky("/content", 2, 1000), tmp_path / "a.mp4"
    with flaky(door, transport, Instantly()) as client:
        job = client.create("/v1/videos", {"prompt": "x"})
        assert client.download(job["id"], path) == len(CLIP)
    assert path.read_bytes() == CLIP
    assert transport.ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_damaged_clip_is_not_kept(door: ServedDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"

    async def other(artefact: Any, start: int, end: int) -> bytes:
        return bytes(end - start)

    monkeypatch.setattr(door.service, "read", other)
    with JobClient(door.url, None, "/v1/videos", Instantly()) as client, pytest.raises(Failed, match="damaged"):
        client.download(client.create("/v1/videos", {"prompt": "x"})["id"], path)
    assert list(tmp_path.iterdir()) == []
