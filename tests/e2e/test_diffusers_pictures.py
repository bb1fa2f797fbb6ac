"""Folders of diffusers that make pictures, under names of their own: over HTTP and gRPC, as jobs, and what they
refuse."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2

from models.families.diffusers.family import resolve
from models.families.diffusers.networks import build, save
from tests.e2e.surfaces import Door, opened
from tests.support.clients import error_in
from tests.support.system import running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FOLDERS = {"my-sd3": "sd3", "my-schnell": "flux-schnell"}
GUIDED, UNGUIDED = FOLDERS
GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    models = []
    for model, name in FOLDERS.items():
        folder, variant = tmp_path_factory.mktemp("folders") / name, resolve(name)
        save(build(variant, random_weights=True), variant, folder)
        models.append({"id": model, "checkpoint_dir": str(folder), "accept_licence": True})
    with running_system(models=tuple(models), start_timeout_s=300) as system, opened(system) as door:
        yield door


def _pixels(file: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture).astype(np.int64)


def _body(model: str, settings: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "a red ball", "seed": 7, "vireo": {"settings": settings}, **fields}


def test_folder_draws_the_same_picture_over_every_surface(door: Door) -> None:
    body = _body(GUIDED, {"num_inference_steps": 3, "guidance_scale": 2.5})
    waited = door.http.post(GENERATIONS, json=body | {"n": 2}).raise_for_status().json()
    assert (waited["size"], [each["seed"] for each in waited["data"]]) == ("32x32", [7, 8])
    request = vireo_pb2.GenerateImageRequest(model=GUIDED, prompt="a red ball", seed=7)
    request.vireo.settings["num_inference_steps"].int_value = 3
    request.vireo.settings["guidance_scale"].double_value = 2.5
    over_grpc = door.vireo.GenerateImage(request, timeout=60, metadata=door.metadata)
    begun = door.http.post(GENERATIONS, json=body | {"vireo": {**body["vireo"], "background": True}})
    path = f"/v1/images/jobs/{begun.raise_for_status().json()['id']}"
    assert "event: completed" in door.http.get(f"{path}/events").raise_for_status().text
    fetched = door.http.get(door.http.get(path).json()["urls"][0]).raise_for_status()
    first = _pixels(base64.b64decode(waited["data"][0]["b64_json"]))
    for file in (over_grpc.images[0], fetched.content):  # a batch of two may round otherwise
        assert np.abs(_pixels(file) - first).max() <= 1


def test_other_sizes_are_drawn(door: Door) -> None:
    body = _body(UNGUIDED, {"num_inference_steps": 1}, size="192x128")
    answer = door.http.post(GENERATIONS, json=body).raise_for_status().json()
    assert _pixels(base64.b64decode(answer["data"][0]["b64_json"])).shape == (128, 192, 3)


@pytest.mark.parametrize(
    ("model", "settings", "fields", "param"),
    [
        (GUIDED, {"guidance_scale": 0.5}, {}, "guidance_scale"),
        (GUIDED, {"num_inference_steps": 101}, {}, "num_inference_steps"),
        (UNGUIDED, {"guidance_scale": 3.5}, {}, "guidance_scale"),
        (GUIDED, {}, {"size": "33x32"}, "size"),
        (UNGUIDED, {}, {"size": "64x64"}, "size"),
        (GUIDED, {}, {"prompt": "ab " * 200}, "prompt"),
    ],
)
def test_what_a_folder_cannot_do_is_refused_by_name(
    model: str, settings: dict[str, Any], fields: dict[str, Any], param: str, door: Door
) -> None:
    answer = door.http.post(GENERATIONS, json=_body(model, settings, **fields))
    assert answer.status_code == 400, answer.text
    assert error_in(answer.json())["param"].endswith(param), answer.text
