"""Folders as diffusers writes them, under names of the operator's own: clips of words, pictures, and clips that go on
from a first frame, all of one system. One folder is served twice, the second time by two ranks."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2

from models.contract import Family, Variant
from models.registry import families, find
from tests.e2e.surfaces import Door, opened
from tests.support.clients import error_in
from tests.support.media_files import encode
from tests.support.system import running_system
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAN, FLUX, SVD = "my-wan", "my-flux", "my-svd"
ROOTS = {FLUX: "diffusers:flux-dev", SVD: "exvideo:svd", WAN: "diffusers:wan-t2v"}
TWO_RANKS = "my-wan-on-two"
PICTURES, CLIPS = "/v1/images/generations", "/v1/videos/sync"
FIRST_FRAME = f"data:image/png;base64,{base64.b64encode(encode(np.full((16, 16, 3), 90, np.uint8))).decode()}"
ASKED: Mapping[str, Mapping[str, Any]] = {
    WAN: {"prompt": "a red ball", "num_frames": 5, "size": "128x144"},
    FLUX: {"prompt": "a red ball", "size": "128x144"},
    SVD: {"input_reference": {"image_url": FIRST_FRAME}},
}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    models: list[dict[str, Any]] = []
    for name in ROOTS:
        folder, (family, variant) = tmp_path_factory.mktemp("folders") / name, _tiny(name)
        assert family.build is not None
        family.part("save")(family.build.load()(variant, random_weights=True), variant, folder)
        models.append({"id": name, "checkpoint_dir": str(folder), "accept_licence": True})
        if name == WAN:
            models.append({**models[-1], "id": TWO_RANKS, "options": {"ranks": 2, "min_tokens_per_rank": 1}})
    with running_system(models=models, start_timeout_s=300) as system, opened(system) as door:
        yield door


def _tiny(name: str) -> tuple[Family, Variant]:
    """Named by its architecture where the family has one of each."""
    if name != SVD:
        return find(ROOTS[name])
    family = families()["exvideo"]
    return family, family.miniatures[0]


def _ask(door: Door, model: str, **fields: Any) -> httpx.Response:
    settings = {"settings": {"num_inference_steps": 2, **fields.pop("settings", {})}}
    path, asked = PICTURES if model == FLUX else CLIPS, ASKED[WAN if model == TWO_RANKS else model]
    return door.http.post(path, json={"model": model, "seed": 7, "vireo": settings, **asked, **fields})


def _file(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "video/mp4":
        return answer.content
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def _frames(clip: bytes) -> list[Any]:
    """Decoded, (height, width, 3)."""
    opened: Any = av.open(io.BytesIO(clip))
    with opened as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]


def _sizes(clip: bytes) -> list[tuple[int, int]]:
    """Width and height of each frame."""
    return [(frame.shape[1], frame.shape[0]) for frame in _frames(clip)]


def test_each_is_listed_under_its_name_with_what_it_is_and_its_settings(door: Door) -> None:
    cards = {card["id"]: card for card in door.http.get("/v1/models").raise_for_status().json()["data"]}
    assert {name: card["root"] for name, card in cards.items()} == {**ROOTS, TWO_RANKS: ROOTS[WAN]}
    settings = {name: {setting["name"] for setting in card["vireo"]["settings"]} for name, card in cards.items()}
    assert settings[WAN] == settings[FLUX] == {"num_inference_steps", "guidance_scale", "attention", "cache"}
    assert {"num_inference_steps", "motion_bucket_id", "window"} <= settings[SVD]
    assert "my-svd is exvideo:svd: SVD in a folder" in door.system.output


@pytest.mark.parametrize("model", ROOTS)
def test_a_seed_gives_one_answer(model: str, door: Door) -> None:
    first, again, other = (_file(_ask(door, model, seed=seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_clip_of_words(door: Door) -> None:
    assert _sizes(_file(_ask(door, WAN))) == [(128, 144)] * 5


def test_two_ranks_make_the_clip_of_one(door: Door) -> None:
    """In floats they differ by orders of sums; in a file, by far less than another seed does."""
    one, two, other = (
        np.stack(_frames(_file(_ask(door, model, seed=seed)))).astype(int)
        for model, seed in ((WAN, 7), (TWO_RANKS, 7), (TWO_RANKS, 8))
    )
    assert np.abs(two - one).mean() < 0.1 * np.abs(other - one).mean()


def test_clip_that_goes_on_from_a_first_frame(door: Door) -> None:
    assert _sizes(_file(_ask(door, SVD))) == [(16, 16)] * 5


def test_picture_over_http_and_grpc(door: Door) -> None:
    file = _file(_ask(door, FLUX, settings={"guidance_scale": 2.5}))
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.size == (128, 144)
    request = vireo_pb2.GenerateImageRequest(model=FLUX, prompt="a red ball", size="128x144", seed=7)
    request.vireo.settings["num_inference_steps"].int_value = 2
    request.vireo.settings["guidance_scale"].double_value = 2.5
    assert door.vireo.GenerateImage(request, timeout=60, metadata=door.metadata).images[0] == file


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (WAN, {"size": "130x128"}, "size"),
        (WAN, {"num_frames": 6}, "num_frames"),
        (WAN, {"settings": {"num_inference_steps": 101}}, "num_inference_steps"),
        (FLUX, {"size": "130x128"}, "size"),
        (FLUX, {"settings": {"guidance_scale": 21}}, "guidance_scale"),
        (SVD, {"size": "18x16"}, "size"),
        (SVD, {"settings": {"start_sigma": 100}}, "start_sigma"),
        (SVD, {"input_reference": None}, "input_reference"),
    ],
)
def test_what_a_folder_cannot_do_is_refused_by_name(model: str, fields: dict[str, Any], param: str, door: Door) -> None:
    answer = _ask(door, model, **fields)
    assert answer.status_code in (400, 422), answer.text
    assert error_in(answer.json())["param"].endswith(param), answer.text


def test_cancelled_clip_ends_within_steps(door: Door) -> None:
    body = {"model": WAN, **ASKED[WAN], "num_frames": 33, "size": "256x256"}
    body["vireo"] = {"settings": {"num_inference_steps": 100}}
    path = f"/v1/videos/{door.http.post('/v1/videos', json=body).raise_for_status().json()['id']}"

    def read() -> dict[str, Any]:
        video: dict[str, Any] = door.http.get(path).raise_for_status().json()
        return video

    wait_until(lambda: read()["vireo"]["step"] >= 1, "it has taken a step", 60.0)
    door.http.delete(path).raise_for_status()
    wait_until(lambda: read()["status"] == "failed", "it has ended", 60.0)
    video = read()
    assert video["error"]["code"] == "cancelled"
    assert video["vireo"]["step"] < 100
