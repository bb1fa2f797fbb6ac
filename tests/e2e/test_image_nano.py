"""The shipped model of pictures through the whole system: over HTTP, gRPC and in the terminal, and after a kill."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2

from loadtest.adversarial.requests import hostile
from models.identity import CHECKPOINTS
from models.training.dit_moe.judge import ClassJudge
from models.training.dit_moe.pictures import class_number
from tests.e2e.surfaces import Door, opened
from tests.support.system import cli_environment, run_cli, running_system
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MODEL = "dit-moe-nano"
GENERATIONS = "/v1/images/generations"
ASKED = (("green", "7"), ("red", "circle"), ("blue", "3"), ("purple", "star"), ("orange", "0"))
ENOUGH = 3
"""Of five; the model card has the share of a larger sample."""


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with running_system(models=({"id": MODEL, "replicas": 2},), check=True) as system, opened(system) as door:
        yield door


def picture_in(file: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def drawn(door: Door, **body: Any) -> list[NDArray[np.uint8]]:
    answer = door.http.post(GENERATIONS, json={"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return [picture_in(base64.b64decode(each["b64_json"])) for each in answer.json()["data"]]


def test_pictures_show_what_was_asked_for(door: Door) -> None:
    made = [drawn(door, prompt=f"a {colour} {thing}", seed=7)[0] for colour, thing in ASKED]
    right = [class_number(*words) for words in ASKED]
    labels = ClassJudge.load(CHECKPOINTS / MODEL / "judge").labels(made)
    assert sum(label == number for label, number in zip(labels, right, strict=True)) >= ENOUGH


def test_every_surface_draws_the_same_picture(door: Door, tmp_path: Path) -> None:
    over_http = drawn(door, prompt="a green 7", seed=7, n=2)
    request = vireo_pb2.GenerateImageRequest(model=MODEL, prompt="a green 7", seed=7, n=2)
    *before, last = door.vireo.GenerateImageStream(request, timeout=60, metadata=door.metadata)
    assert before[-1].progress.percent == 100
    assert list(last.made.seeds) == [7, 8]
    out = tmp_path / "seven.png"
    command = ("image", "a green 7", "--seed", "7", "-n", "2", "-o", str(out), "--url", door.system.http_url)
    result = run_cli(*command, environment=cli_environment(tmp_path, ""))
    assert result.returncode == 0, result.stderr
    typed = [picture_in((tmp_path / f"seven-{number}.png").read_bytes()) for number in (1, 2)]
    for one, other, third in zip(over_http, map(picture_in, last.made.images), typed, strict=True):
        assert one.shape == (64, 64, 3)
        assert np.array_equal(one, other)
        assert np.array_equal(one, third)


@pytest.mark.parametrize("body", [{"prompt": "a lighthouse"}, {"prompt": "a green 7", "size": "128x128"}])
def test_what_the_model_cannot_draw_is_refused_before_it_is_queued(body: dict[str, str], door: Door) -> None:
    answer = door.http.post(GENERATIONS, json={"model": MODEL, **body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), answer.text


def test_parameters_of_an_attacker_are_refused(door: Door) -> None:
    sent = [one for one in hostile(pictures=MODEL) if one.path == GENERATIONS]
    assert len(sent) > 60
    for one in sent:
        answer = door.http.post(one.path, content=one.body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, one.what
        assert answer.json()["error"]["code"], one.what


def test_killed_replica_loses_no_picture_and_changes_none(door: Door) -> None:
    settings = {"num_inference_steps": 150}
    bodies = [{"prompt": f"a red {digit}", "seed": digit, "vireo": {"settings": settings}} for digit in range(4)]
    undisturbed = [drawn(door, **body)[0] for body in bodies]
    for body in bodies:
        body["vireo"] = {"settings": settings, "background": True}
    begun = [door.http.post(GENERATIONS, json={"model": MODEL, **body}).raise_for_status().json() for body in bodies]

    def job(job_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = door.http.get(f"/v1/images/jobs/{job_id}").raise_for_status().json()
        return shown

    wait_until(lambda: all(20 <= job(each["id"])["progress"] < 100 for each in begun[:2]), "two are under way", 60.0)
    killed = door.system.replicas(MODEL)[0]
    killed.kill()
    for each in begun:
        wait_until(lambda each=each: job(each["id"])["status"] in ("completed", "failed"), "it is over", 90.0)
    jobs = [job(each["id"]) for each in begun]
    assert [each["status"] for each in jobs] == ["completed"] * 4
    for each, expected in zip(jobs, undisturbed, strict=True):
        made = picture_in(door.http.get(each["urls"][0]).raise_for_status().content)
        assert np.abs(made.astype(int) - expected).max() <= 1  # company in a batch may round otherwise


def test_experts_are_counted_and_shown(door: Door, tmp_path: Path) -> None:
    drawn(door, prompt="a green 7", seed=1, n=4)
    facts = door.http.get(f"/v1/models/{MODEL}").json()["vireo"]["experts"]
    assert facts["active_parameters"] < facts["parameters"]

    def counted() -> dict[str, Any] | None:
        shown: dict[str, Any] = door.http.get(f"/v1/models/{MODEL}/experts").raise_for_status().json()
        return shown if len(shown["phases"]) == 2 else None

    shown = wait_until(counted, "slices are counted", 20.0)
    for phase in shown["phases"]:
        loads = np.array(phase["loads"])
        assert loads.shape == (facts["layers"], facts["experts"])
        assert len(set(loads.sum(axis=1))) == 1
    assert 1 < shown["distinct_experts"] <= facts["experts"]
    path = tmp_path / "experts.png"
    command = ("moe", "status", "--json", "--png", str(path), "--url", door.system.http_url)
    result = run_cli(*command, environment=cli_environment(tmp_path, ""))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["id"] == MODEL
    assert path.stat().st_size > 1000
    metrics = door.system.metrics()
    assert 0 < metrics.total("vireo_moe_balancedness", model=MODEL, phase="early") <= 1
    assert metrics.total("vireo_moe_distinct_experts_count", model=MODEL) > 0
