"""The self-check of ``vireo up``: one question of each kind that is served, over each surface."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import psutil
import pytest
from PIL import Image
from rich.console import Console

from serving.cli.run_state import RunState
from serving.cli.self_check import check_every_surface
from serving.client.checks import Target, example_png
from serving.client.told import Failed
from serving.domain import ImagePart, Surface
from serving.errors import EngineFailed
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.tasks.chat.checks import shown
from serving.tasks.table import TASKS
from serving.tasks.videos.checks import checked
from tests.support.fake_service import CHAT_MODEL, FakeService
from tests.support.fake_videos import CLIP, VIDEO_MODEL, make_video_card
from tests.support.served_door import served

CHECKS = {task.name: task.checks.load() for task in TASKS if task.checks is not None}
SHOWN = 'Two squares and a "circle". 方块'


@contextmanager
def target(service: FakeService, model: str) -> Iterator[Target]:
    with (
        served(service) as door,
        httpx.Client(base_url=door.url) as http,
        grpc.insecure_channel(f"127.0.0.1:{door.grpc_port}") as channel,
    ):
        yield Target(http, channel, model)


def answers(service: FakeService, task: str, model: str) -> Sequence[str]:
    with target(service, model) as asked:
        return [check(asked) for check in CHECKS[task].values()]


def video_service() -> FakeService:
    return FakeService(video_cards=(make_video_card(),), is_fast=True)


# -- all together ----------------------------------------------------------------------------------------------------


def printed(service: FakeService, tasks: dict[str, tuple[str, ...]], *, is_open: bool = True) -> list[str]:
    out = io.StringIO()
    with served(service) as door:
        state = RunState(
            pid=1,
            created_s=psutil.Process().create_time(),
            run_dir="",
            http_url=door.url,
            grpc_address=f"127.0.0.1:{door.grpc_port}",
            profile="local",
            models=(),
            tasks=tasks,
        )
        check_every_surface(state, Console(file=out, width=60), is_open=is_open)
    return [line.strip().split("  ")[0] for line in out.getvalue().splitlines()]


HEALTH = ["GET /v2/health/ready", "grpc.health.v1.Health/Check"]


@pytest.mark.parametrize(
    "tasks",
    [{"chat": (CHAT_MODEL,)}, {"videos": (VIDEO_MODEL,)}, {"chat": (CHAT_MODEL, "other"), "videos": (VIDEO_MODEL,)}],
)
def test_each_task_that_is_served_is_asked_for_on_each_surface(tasks: dict[str, tuple[str, ...]]) -> None:
    asked = [name for task in tasks for name in CHECKS[task]]
    assert printed(video_service(), tasks) == [*HEALTH, *asked]


def test_where_keys_are_needed_only_health_is_asked_for() -> None:
    assert printed(FakeService(), {"chat": (CHAT_MODEL,)}, is_open=False) == HEALTH


def test_task_without_a_question_of_its_own_is_passed_over() -> None:
    assert printed(FakeService(), {"a-task-of-another-distribution": ("m",)}) == HEALTH


def test_answer_that_does_not_come_fails_the_self_check() -> None:
    service = FakeService(chat_errors={0: EngineFailed("broken")})
    with pytest.raises(Failed, match="self-check failed: POST /v1/chat/completions: HTTPStatusError"):
        printed(service, {"chat": (CHAT_MODEL,)})


# -- chat ------------------------------------------------------------------------------------------------------------


def test_each_surface_answers_about_an_image() -> None:
    service = FakeService()
    assert answers(service, "chat", CHAT_MODEL) == [SHOWN] * 3
    assert [chat.surface for chat in service.chats] == [Surface.HTTP_CHAT, Surface.HTTP_CHAT, Surface.GRPC_CHAT]
    assert [chat.is_streamed for chat in service.chats] == [False, True, True]
    for chat in service.chats:
        (image,) = [part for part in chat.messages[0].parts if isinstance(part, ImagePart)]
        assert image.encoded is not None
        assert decode(image.encoded, MediaLimits()).rgb.size > 0


def failures(service: FakeService, task: str, model: str) -> int:
    failed = 0
    with target(service, model) as asked:
        for check in CHECKS[task].values():
            try:
                check(asked)
            except (ValueError, httpx.HTTPError, grpc.RpcError):
                failed += 1
    return failed


@pytest.mark.parametrize(
    "changes",
    [{"words": []}, {"chat_errors": {0: EngineFailed("broken")}}, {"chat_errors": {3: EngineFailed("broken")}}],
)
def test_no_answer_or_half_of_one_is_a_failure_on_each_surface(changes: dict[str, Any]) -> None:
    assert failures(FakeService(**changes), "chat", CHAT_MODEL) == len(CHECKS["chat"])


@pytest.mark.parametrize(("name", "word"), [("nothing-like-it.png", "harbour"), ("nothing-like-it.png", None)])
def test_missing_example_is_drawn(name: str, word: str | None) -> None:
    image = Image.open(io.BytesIO(example_png(name, word)))
    colours = {colour for _count, colour in image.getcolors(1 << 16) or []}
    assert ((255, 0, 0) in colours) == (word is None)


def test_long_answer_fits_a_line() -> None:
    assert shown("a\n\x1b" + "b" * 100, 3) == "a " + "b" * 55 + "..."


# -- videos ----------------------------------------------------------------------------------------------------------


def test_each_surface_makes_a_clip_and_removes_it() -> None:
    service = video_service()
    over_http, over_grpc = answers(service, "videos", VIDEO_MODEL)
    assert over_http == f"MP4 of {len(CLIP)} bytes"
    assert over_grpc.startswith(over_http)
    assert [request.surface for request in service.video_requests] == [Surface.HTTP_VIDEO_SYNC, Surface.GRPC_VIDEO]
    assert [request.asked.num_inference_steps for request in service.video_requests] == [1, 1]
    assert service.jobs == {}


def test_clip_that_does_not_come_is_a_failure_on_each_surface() -> None:
    service = video_service()
    service.video_error = EngineFailed("broken")
    assert failures(service, "videos", VIDEO_MODEL) == len(CHECKS["videos"])


@pytest.mark.parametrize(("data", "sha256"), [(b"<html>not a clip</html>", "0" * 64), (CLIP, "0" * 64)])
def test_file_that_is_not_the_announced_mp4_is_a_failure(data: bytes, sha256: str) -> None:
    with pytest.raises(ValueError, match=r"no MP4|not the one"):
        checked(data, sha256)
