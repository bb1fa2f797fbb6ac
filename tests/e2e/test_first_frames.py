"""Clips that begin with a picture, of a family from another distribution: by every surface of a served system."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import grpc
import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.client.checks import Target
from serving.tasks.videos.checks import CHECKS
from tests.support.flipbook import MODEL
from tests.support.system import ROOT, System, cli_environment, run_cli, running_system

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning"),
]
RED = (200, 30, 30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``PYTHONPATH`` with a distribution that brings the family."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "flipbook-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flipbook\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vireo.families]\nflipbook = tests.support.flipbook:FAMILY\n")
    return folder


@pytest.fixture(scope="module")
def system(site: Path) -> Iterator[System]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}:{ROOT}")
        with running_system(models=[{"id": MODEL, "options": {"engine": "fake"}}]) as running:
            yield running


@pytest.fixture
def http(system: System) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=system.http_url, timeout=60.0) as client:
        yield client


def picture(width: int, height: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), RED).save(file, format)
    return file.getvalue()


def check(clip: bytes, size: tuple[int, int]) -> None:
    """A clip of that size whose first frame is the picture."""
    opened: Any = av.open(io.BytesIO(clip))
    with opened as container:
        frame = next(container.decode(container.streams.video[0])).to_ndarray(format="rgb24")
    assert (frame.shape[1], frame.shape[0]) == size
    np.testing.assert_allclose(frame.mean((0, 1)), RED, atol=45)  # under a faint gradient


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_form(http: httpx.Client, format: str) -> None:
    files = {"input_reference": ("x", picture(90, 160, format))}
    answer = http.post("/v1/videos/sync", data={"model": MODEL, "seed": "1"}, files=files)
    assert answer.status_code == 200, answer.text
    check(answer.content, (36, 64))


def test_large_picture_as_data_url_and_what_is_said_of_the_job(http: httpx.Client) -> None:
    noise = np.random.default_rng(0).integers(0, 60, (576, 1024, 3), np.uint8) + np.array(RED, np.uint8)[None, None]
    file = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(file, "PNG")
    assert file.tell() > 1 << 20
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    body = {"model": MODEL, "input_reference": {"image_url": url}, "vireo": {"settings": {"motion": 9}}, "seconds": 3}
    answer = http.post("/v1/videos/sync", json=body)
    assert answer.status_code == 200, answer.text
    video_id = answer.headers["x-vireo-video-id"]
    job = http.get(f"/v1/videos/{video_id}").raise_for_status().json()
    settings = job["vireo"]["settings"]
    assert (job["size"], job["prompt"], settings["motion"], settings["num_frames"]) == ("64x36", "", 9, 21)
    assert http.delete(f"/v1/videos/{video_id}").raise_for_status().json()["deleted"]


def test_grpc(system: System) -> None:
    with grpc.insecure_channel(system.grpc_address) as channel:
        stub = vireo_pb2_grpc.VireoStub(channel)
        request = vireo_pb2.GenerateVideoRequest(model=MODEL, image=picture(70, 71), num_frames=3)
        clip = b"".join(one.content.data for one in stub.GenerateVideo(request, timeout=60))
        check(clip, (48, 48))
        request.image = picture(70, 71)[:-30]
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.GenerateVideo(request, timeout=60))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_command_line(system: System, tmp_path: Path) -> None:
    (tmp_path / "first.png").write_bytes(picture(64, 36))
    clip = tmp_path / "clip.mp4"
    words = ("--image", str(tmp_path / "first.png"), "-o", str(clip), "--set", "motion=3", "--url", system.http_url)
    done = run_cli("video", *words, environment=system.environment)
    assert done.returncode == 0, done.stderr
    check(clip.read_bytes(), (64, 36))


def test_official_client(system: System) -> None:
    with openai.OpenAI(base_url=f"{system.http_url}/v1", api_key="none") as client:
        video = client.videos.create_and_poll(model=MODEL, prompt="", input_reference=("x.png", picture(64, 36)))
        check(client.videos.download_content(video.id).content, (64, 36))
        url = f"data:image/png;base64,{base64.b64encode(picture(64, 36)).decode()}"
        frame = {"input_reference": {"image_url": url}}  # which the client's own argument does not let pass
        assert client.videos.create(model=MODEL, prompt="", extra_body=frame).size == "64x36"


def test_self_check_sends_a_picture(system: System, http: httpx.Client) -> None:
    with grpc.insecure_channel(system.grpc_address) as channel:
        for ask in CHECKS.values():
            assert ask(Target(http=http, channel=channel, model=MODEL)).startswith("MP4 of")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_image"),
        (b"GIF89a" + bytes(50), "unsupported_media_type"),
        (picture(64, 36)[:-20], "invalid_image"),
        (picture(20_000, 4), "image_too_large"),
    ],
)
def test_bad_picture_is_refused_and_nothing_is_queued(http: httpx.Client, content: bytes, code: str) -> None:
    before = http.get("/v1/videos").json()["data"]
    answer = http.post("/v1/videos", data={"model": MODEL}, files={"input_reference": ("x.png", content)})
    assert (answer.status_code // 100, answer.json()["error"]["code"]) == (4, code), answer.text
    assert answer.json()["error"]["param"] == "input_reference"
    assert http.get("/v1/videos").json()["data"] == before


def test_command_line_says_what_goes_in(site: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}:{ROOT}")
        shown = run_cli("models", "show", MODEL, environment=cli_environment(tmp_path, ""))
    assert "first frame: a picture" in shown.stdout, shown.stderr
    assert "setting motion" in shown.stdout
