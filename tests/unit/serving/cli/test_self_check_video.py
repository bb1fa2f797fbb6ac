"""A clip in the self-check of ``vireo up``, over HTTP and gRPC."""

from __future__ import annotations

import grpc
import httpx
import pytest

from serving.cli import self_check_video
from serving.domain import Surface
from serving.errors import ConfigError, EngineFailed
from tests.support.fake_service import FakeService
from tests.support.fake_videos import CLIP, VIDEO_MODEL, make_video_card
from tests.support.served_door import served


def video_service() -> FakeService:
    return FakeService(video_cards=(make_video_card(),), is_fast=True)


def test_each_surface_makes_a_clip_and_removes_it() -> None:
    service = video_service()
    with (
        served(service) as door,
        httpx.Client(base_url=door.url) as http,
        grpc.insecure_channel(f"127.0.0.1:{door.grpc_port}") as channel,
    ):
        assert self_check_video.served_video_model(http) == VIDEO_MODEL
        assert self_check_video.video_http(http, VIDEO_MODEL) == f"MP4 of {len(CLIP)} bytes"
        assert self_check_video.video_grpc(channel, http, VIDEO_MODEL).startswith(f"MP4 of {len(CLIP)} bytes")
    assert [request.surface for request in service.video_requests] == [Surface.HTTP_VIDEO_SYNC, Surface.GRPC_VIDEO]
    assert [request.num_inference_steps for request in service.video_requests] == [4, 4]
    assert service.jobs == {}


def test_clip_that_does_not_come_is_a_failure() -> None:
    service = video_service()
    service.video_error = EngineFailed("broken")
    with (
        served(service) as door,
        httpx.Client(base_url=door.url) as http,
        grpc.insecure_channel(f"127.0.0.1:{door.grpc_port}") as channel,
    ):
        with pytest.raises(httpx.HTTPStatusError):
            self_check_video.video_http(http, VIDEO_MODEL)
        with pytest.raises(grpc.RpcError):
            self_check_video.video_grpc(channel, http, VIDEO_MODEL)


def test_server_without_a_video_model_has_none() -> None:
    with served(FakeService()) as door, httpx.Client(base_url=door.url) as http:
        assert self_check_video.served_video_model(http) is None
        http.base_url = httpx.URL(door.url + "/elsewhere")
        with pytest.raises(ConfigError, match="GET /v1/models"):
            self_check_video.served_video_model(http)


@pytest.mark.parametrize(("data", "sha256"), [(b"<html>not a clip</html>", "0" * 64), (CLIP, "0" * 64)])
def test_file_that_is_not_the_announced_mp4_is_a_failure(data: bytes, sha256: str) -> None:
    with pytest.raises(ValueError, match=r"no MP4|not the one"):
        self_check_video.checked(data, sha256)
