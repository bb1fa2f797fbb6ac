"""Folders served under names of the operator's own: two of one family, and what clients see of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vireo_pb.vireo.v1 import vireo_pb2

from models.checkpoint import save_weights
from models.families.nitrofusion.family import resolve, unet_file
from models.families.nitrofusion.networks import build, save
from models.families.timm.describe import create
from tests.e2e.surfaces import SURFACES, Door, opened
from tests.support.clients import Ask
from tests.support.media_files import encode
from tests.support.system import running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NAMES = ("day", "night")
CLASSIFIER = "flowers"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Two folders that differ in the weights of one network alone, and one that says itself what it is."""
    base, variant = tmp_path_factory.mktemp("own-names"), resolve("realism")
    for name in NAMES:
        save(build(variant, random_weights=True), variant, base / name)
    unet = base / "night" / unet_file("realism")
    save_file({name: tensor + 0.1 * torch.ones_like(tensor) for name, tensor in load_file(unet).items()}, unet)
    _write_classifier(base / CLASSIFIER)
    models = [{"id": name, "checkpoint_dir": str(base / name), "accept_licence": True} for name in (*NAMES, CLASSIFIER)]
    for model in models[: len(NAMES)]:
        model["model"] = "nitrofusion:realism"
    with running_system(models=models, start_timeout_s=300) as system, opened(system) as door:
        yield door


def _write_classifier(folder: Path) -> None:
    folder.mkdir()
    settings = {"input_size": [3, 64, 64], "num_classes": 3}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_weights(create("test_resnet", {}, settings).state_dict(), folder)


def test_each_is_listed_under_its_name_with_what_it_was_made_of(door: Door) -> None:
    listed = door.http.get("/v1/models").raise_for_status().json()["data"]
    assert [(card["id"], card["root"], card["vireo"]["family"]) for card in listed] == [
        (CLASSIFIER, "timm:test_resnet", "timm"),
        *((name, "nitrofusion:realism", "nitrofusion") for name in NAMES),
    ]
    assert len({card["vireo"]["checkpoint_sha256"] for card in listed}) == len(listed)
    assert "day is nitrofusion:realism: NitroSD-Realism" in door.system.output
    assert "flowers is timm:test_resnet: test_resnet" in door.system.output


def test_recognised_folder_answers_under_its_name(door: Door) -> None:
    picture = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    answer = SURFACES["http_json"](door, Ask([picture], model=CLASSIFIER, top_k=3))
    assert answer.error is None, answer
    assert len(answer.items[0].top_k) == 3
    assert door.system.metrics().total("vireo_requests_total", model=CLASSIFIER) == 1


def test_each_answers_under_its_name_with_its_own_weights(door: Door) -> None:
    made = {}
    for name in NAMES:
        body = {"model": name, "prompt": "a red ball", "seed": 7}
        answer = door.http.post("/v1/images/generations", json=body).raise_for_status().json()
        request = vireo_pb2.GenerateImageRequest(model=name, prompt="a red ball", seed=7)
        over_grpc = door.vireo.GenerateImage(request, timeout=60, metadata=door.metadata)
        made[name] = base64.b64decode(answer["data"][0]["b64_json"])
        assert over_grpc.images[0] == made[name]
        assert door.system.metrics().total("vireo_requests_total", model=name) == 2
    assert made["day"] != made["night"]
    refused = door.http.post("/v1/images/generations", json={"model": "nitrofusion:realism", "prompt": "x"}).json()
    assert refused["error"]["code"] == "model_not_found", refused


def test_job_says_whose_it_is(door: Door) -> None:
    body = {"model": "night", "prompt": "a red ball", "vireo": {"background": True}}
    begun = door.http.post("/v1/images/generations", json=body).raise_for_status().json()
    path = f"/v1/images/jobs/{begun['id']}"
    assert "event: completed" in door.http.get(f"{path}/events").raise_for_status().text
    assert door.http.get(path).json()["model"] == "night"
