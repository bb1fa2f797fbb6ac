"""``vireo.v1.Vireo/GenerateVideo``: the job, its progress, its file in pieces; calls that are cancelled."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from grpc import StatusCode
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Priority, Surface
from serving.errors import QueueFull
from serving.tasks.videos.grpc import MAX_PIECE_BYTES
from tests.support import fake_videos, flipbook
from tests.support.clients import GOOD_PNG, CallRecorder, FakeContext, FrontDoor, context_outcome
from tests.support.fake_videos import CLIP, VIDEO_MODEL
from tests.support.video_clients import ADA, PROMPT, flipbook_door, keyed_door, video_door
from tests.support.waiting import until

Response = vireo_pb2.GenerateVideoResponse


def asked(**fields: Any) -> vireo_pb2.GenerateVideoRequest:
    return vireo_pb2.GenerateVideoRequest(**({"model": VIDEO_MODEL, "prompt": PROMPT} | fields))


class Call:
    """One call, read in a task of its own as a gRPC server does."""

    def __init__(self, door: FrontDoor, request: vireo_pb2.GenerateVideoRequest, **headers: str) -> None:
        self.context = FakeContext(list(headers.items()))
        self.responses: list[Response] = []
        self.task = asyncio.create_task(self._read(door, request))

    async def _read(self, door: FrontDoor, request: vireo_pb2.GenerateVideoRequest) -> None:
        async for response in door.grpc.GenerateVideo(request, self.context):
            self.responses.append(response)

    @property
    def kinds(self) -> list[str | None]:
        return [response.WhichOneof("event") for response in self.responses]


async def test_stream_is_the_job_then_its_progress_then_its_file() -> None:
    calls = CallRecorder()
    door = video_door(calls=calls)
    call = Call(door, asked())
    await until(lambda: len(call.responses) == 2)
    (video_id,) = door.service.jobs
    door.service.previews[video_id] = b"jpeg"
    door.service.run_steps(video_id, 2)
    await until(lambda: len(call.responses) == 3)
    door.service.previews.clear()
    door.service.complete(video_id)
    await call.task
    assert call.context.code == StatusCode.OK
    assert call.kinds == ["accepted", "progress", "progress", "progress", "content", "end"]
    accepted, queued, running = call.responses[0].accepted, call.responses[1].progress, call.responses[2].progress
    assert (accepted.id, accepted.model, accepted.operating_point) == (video_id, VIDEO_MODEL, "quick")
    assert (accepted.settings.num_frames, accepted.settings.sampler) == (29, "euler_ancestral")
    assert accepted.settings.output_format == vireo_pb2.VIDEO_FORMAT_MP4
    assert (accepted.predicted_s, accepted.predicted_j) == (10.0, 60.0)
    assert (queued.stage, queued.percent, queued.HasField("remaining_s")) == ("queued", 0, False)
    assert (running.stage, running.step, running.num_steps, running.percent) == ("denoise", 2, 4, 49)
    assert running.HasField("remaining_s")
    assert running.preview == b"jpeg"
    assert b"".join(response.content.data for response in call.responses) == CLIP
    end = call.responses[-1].end
    assert (end.id, end.media_type, end.num_bytes) == (video_id, "video/mp4", len(CLIP))
    assert end.sha256 == hashlib.sha256(CLIP).hexdigest()
    assert (end.vireo.operating_point, end.vireo.energy_j, end.vireo.compute_ms) == ("quick", 1.5, 250.0)
    (record,) = calls.finished
    assert (record.surface, record.model, record.outcome) == (Surface.GRPC_VIDEO, VIDEO_MODEL, "ok")
    assert door.service.cancelled == []


async def test_every_field_reaches_the_service() -> None:
    door = video_door()
    door.service.is_fast = True
    budget = vireo_pb2.Budget(latency_ms=9000, energy_j=5, priority=vireo_pb2.PRIORITY_HIGH, quality_floor=0.5)
    message = asked(
        negative_prompt="blur", width=64, height=32, num_frames=29, seconds=3.625, fps=8, num_inference_steps=20,
        guidance_scale=4.5, seed=7, sampler="ddim", attention="tile:2:6", output_format=vireo_pb2.VIDEO_FORMAT_GIF,
        vireo=budget, user="me", idempotency_key="k-1",
    )  # fmt: skip
    await Call(door, message).task
    (request,) = door.service.video_requests
    got = request.asked
    assert (request.model, got.prompt, got.negative_prompt) == (VIDEO_MODEL, PROMPT, "blur")
    assert (got.width, got.height, got.num_frames, got.seconds, got.fps) == (64, 32, 29, 3.625, 8)
    assert (got.num_inference_steps, got.guidance_scale, got.seed) == (20, 4.5, 7)
    assert (got.sampler, got.attention, got.output_format) == ("ddim", "tile:2:6", "gif")
    assert (request.budget.latency_ms, request.budget.energy_j, request.budget.quality_floor) == (9000, 5, 0.5)
    assert (request.budget.priority, got.user, request.idempotency_key) == (Priority.HIGH, "me", "k-1")


async def test_settings_of_any_model_come_and_go_by_name() -> None:
    door = flipbook_door()
    door.service.is_fast = True
    settings = {"motion": vireo_pb2.Setting(int_value=3), "is_looped": vireo_pb2.Setting(bool_value=True)}
    call = Call(door, asked(model=flipbook.WORDS, image=GOOD_PNG, vireo=vireo_pb2.Budget(settings=settings)))
    await call.task
    (request,) = door.service.video_requests
    assert request.budget.settings == {"is_looped": True, "motion": 3}
    assert dict(call.responses[0].accepted.settings.settings) == settings


async def test_absent_fields_stay_absent_and_the_only_model_is_meant() -> None:
    door = video_door()
    door.service.is_fast = True
    await Call(door, vireo_pb2.GenerateVideoRequest(prompt=PROMPT)).task
    (got,) = door.service.video_requests
    assert got.model == VIDEO_MODEL
    names = ("width", "height", "num_frames", "seconds", "fps", "num_inference_steps", "guidance_scale", "seed")
    assert {getattr(got.asked, name) for name in (*names, "sampler", "attention")} == {None}
    assert got.budget.latency_ms is None


async def test_large_file_comes_in_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = bytes(2 * MAX_PIECE_BYTES + 5)
    monkeypatch.setattr(fake_videos, "CLIP", clip)
    door = video_door()
    call = Call(door, asked())
    await until(lambda: len(call.responses) == 2)
    door.service.complete(next(iter(door.service.jobs)))
    await call.task
    sizes = [len(one.content.data) for one in call.responses if one.HasField("content")]
    assert sizes == [MAX_PIECE_BYTES, MAX_PIECE_BYTES, 5]


@pytest.mark.parametrize("is_detached", [False, True])
@pytest.mark.parametrize("is_closed", [False, True])
async def test_cancelled_call_cancels_its_job_unless_it_is_detached(is_closed: bool, is_detached: bool) -> None:
    door = video_door()
    if is_closed:
        stream = door.grpc.GenerateVideo(asked(detach=is_detached), FakeContext())
        assert (await anext(stream)).HasField("accepted")
        await stream.aclose()
    else:
        call = Call(door, asked(detach=is_detached))
        await until(lambda: len(call.responses) == 2)
        call.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.task
    (video_id,) = door.service.jobs
    assert door.service.cancelled == ([] if is_detached else [video_id])
    assert door.service.watchers == 0


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("engine_failed", StatusCode.INTERNAL, "engine_failed"),
        ("attempts_exhausted", StatusCode.UNAVAILABLE, "replica_lost"),
        ("cancelled", StatusCode.CANCELLED, "cancelled"),
        ("unsupported_video_setting", StatusCode.INVALID_ARGUMENT, "unsupported_video_setting"),
    ],
)
async def test_job_that_fails_ends_the_call_with_its_error(code: str, status: StatusCode, told: str) -> None:
    calls = CallRecorder()
    door = video_door(calls=calls)
    call = Call(door, asked())
    await until(lambda: len(call.responses) == 2)
    door.service.fail(next(iter(door.service.jobs)), code, "because", "window")
    await call.task
    outcome = context_outcome(call.context)
    assert outcome is not None
    assert (outcome.error, outcome.status, outcome.message) == (told, status, "because")
    assert outcome.param == (None if told == "replica_lost" else "window")
    assert call.kinds[-1] == "progress"
    assert door.service.cancelled == []
    assert calls.finished[0].outcome == told


async def test_refusal_and_missing_file_are_statuses() -> None:
    door = video_door()
    door.service.video_error = QueueFull("full", retry_after_s=2)
    call = Call(door, asked())
    await call.task
    assert (call.context.code, call.context.trailers["retry-after-ms"]) == (StatusCode.RESOURCE_EXHAUSTED, "2000")
    door = video_door()
    door.service.is_fast, door.service.read_error_at = True, 0
    call = Call(door, asked())
    await call.task
    assert call.context.code == StatusCode.NOT_FOUND
    assert call.kinds[-1] == "progress"


async def test_key_is_needed_and_names_the_owner() -> None:
    door = keyed_door()
    door.service.is_fast = True
    nobody = Call(door, asked())
    await nobody.task
    assert nobody.context.code == StatusCode.UNAUTHENTICATED
    await Call(door, asked(), **ADA).task
    assert [job.owner for job in door.service.jobs.values()] == ["ada"]
