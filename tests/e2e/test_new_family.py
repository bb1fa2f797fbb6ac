"""A family that `vireo families new` wrote, in a distribution of its own: built, installed beside Vireo, and served."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2

from models.families.nitrofusion.family import resolve
from models.families.nitrofusion.networks import build, save
from serving.client.checks import Target
from serving.tasks.images.checks import CHECKS
from tests.e2e.surfaces import SURFACES, Door, opened
from tests.support.clients import Ask, oip_message
from tests.support.media_files import encode
from tests.support.system import cli_environment, run_cli, running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MODEL, PAINTER, STEPWISE = "night-owl-nano", "day-owl-nano", "nitrofusion:realism"
CLASSES = 10


def _run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the family is installed: a folder for ``PYTHONPATH``. Nothing is fetched for it."""
    base = tmp_path_factory.mktemp("new-family")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    for name, task in (("night-owl", "classify"), ("day-owl", "images")):
        options = ("--task", task, "--out", str(base / name))
        written = run_cli("families", "new", name, *options, environment=cli_environment(base, ""))
        assert written.returncode == 0, written.stderr
        _run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", f"./{name}", folder=base)
    wheels = [str(wheel) for wheel in (base / "wheels").glob("*_owl-*.whl")]
    _run(*pip, "install", "-q", "--no-deps", "--no-index", "--target", "site", *wheels, folder=base)
    return base / "site"


@pytest.fixture(scope="module")
def door(site: Path) -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        models = [{"id": model, "options": {"random_weights": True}} for model in (MODEL, PAINTER)]
        folder = site.parent / "tiny-sdxl"
        variant = resolve(STEPWISE.rpartition(":")[2])
        save(build(variant, random_weights=True), variant, folder)
        models += [{"id": STEPWISE, "checkpoint_dir": str(folder), "accept_licence": True}]
        with running_system(models=tuple(models)) as system, opened(system) as door:
            yield door


def test_command_line_lists_it_beside_ours(site: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        listed = run_cli("families", "--json", environment=cli_environment(site, ""))
    families = {family["name"]: family for family in json.loads(listed.stdout)}
    assert {"night-owl", "day-owl", "timm"} <= set(families)
    assert [setting["name"] for setting in families["night-owl"]["settings"]] == ["depth"]


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_every_surface_answers_for_it(name: str, door: Door) -> None:
    picture = encode(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    answer = SURFACES[name](door, Ask([picture], model=MODEL, top_k=CLASSES))
    assert answer.error is None, answer
    (item,) = answer.items
    assert {label for label, _ in item.top_k} == {f"class-{index}" for index in range(CLASSES)}
    assert sum(score for _, score in item.top_k) == pytest.approx(1.0, abs=1e-5)


def test_all_surfaces_give_the_same_probabilities(door: Door) -> None:
    picture = encode(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    ask = Ask([picture], model=MODEL, top_k=CLASSES)
    (first,) = SURFACES["http_json"](door, ask).items
    for name, surface in SURFACES.items():
        (item,) = surface(door, ask).items
        assert [score for _, score in item.top_k] == pytest.approx([score for _, score in first.top_k], rel=1e-7), name


def decode_file(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def _changed(door: Door) -> dict[str, np.ndarray]:
    """The same picture by every surface."""
    picture = encode(np.random.default_rng(2).integers(0, 256, (40, 56, 3), np.uint8))
    text, edits = base64.b64encode(picture).decode(), "/v1/images/edits"
    as_json = door.http.post(edits, json={"model": PAINTER, "image": text}).raise_for_status().json()
    files, fields = {"image": ("x.png", picture)}, {"model": PAINTER, "prompt": "", "response_format": "url"}
    as_url = door.http.post(edits, data=fields, files=files).raise_for_status().json()
    fetched = door.http.get(as_url["data"][0]["url"]).raise_for_status()
    request = vireo_pb2.EditImageRequest(model=PAINTER, image=picture)
    over_grpc = door.vireo.EditImage(request, timeout=60, metadata=door.metadata)
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [text]}
    infer = door.http.post(f"/v2/models/{PAINTER}/infer", json={"inputs": [tensor]}).raise_for_status().json()
    output = next(each for each in infer["outputs"] if each["name"] == "image")
    message = oip_message(Ask([picture], model=PAINTER))
    raw = door.oip.ModelInfer(message, timeout=60, metadata=door.metadata)
    place = [each.name for each in raw.outputs].index("image")
    return {
        "json": decode_file(base64.b64decode(as_json["data"][0]["b64_json"])),
        "form": decode_file(fetched.content),
        "grpc": decode_file(over_grpc.images[0]),
        "oip http": np.array(output["data"], np.uint8).reshape(output["shape"][1:]),
        "oip grpc": np.frombuffer(raw.raw_output_contents[place], np.uint8).reshape(raw.outputs[place].shape[1:]),
    }


def test_pictures_are_changed_over_every_surface_alike(door: Door) -> None:
    made = _changed(door)
    assert made["json"].shape == (40, 56, 3)
    for name, picture in made.items():
        assert np.array_equal(picture, made["json"]), name
    report = door.http.post("/v1/images/edits", json=_too_large()).json()
    assert report["error"]["code"] == "invalid_image", report


def test_picture_is_made_as_a_job_like_the_one_that_is_waited_for(door: Door) -> None:
    picture = encode(np.random.default_rng(4).integers(0, 256, (40, 56, 3), np.uint8))
    body = {"model": PAINTER, "image": base64.b64encode(picture).decode()}
    waited = door.http.post("/v1/images/edits", json=body).raise_for_status().json()
    begun = door.http.post("/v1/images/edits", json={**body, "vireo": {"background": True}})
    assert begun.status_code == 202, begun.text
    path = f"/v1/images/jobs/{begun.json()['id']}"
    events = door.http.get(f"{path}/events").raise_for_status().text  # ends with the job
    assert "event: completed" in events, events
    job = door.http.get(path).raise_for_status().json()
    fetched = door.http.get(job["urls"][0]).raise_for_status()
    made, expected = decode_file(fetched.content), decode_file(base64.b64decode(waited["data"][0]["b64_json"]))
    assert np.array_equal(made, expected)
    unwanted = door.http.post("/v1/images/edits", json={**body, "vireo": {"background": True}}).json()["id"]
    assert door.http.delete(f"/v1/images/jobs/{unwanted}").status_code == 200
    if door.http.get(f"/v1/images/jobs/{unwanted}/events").status_code == 200:  # it was not over then, and is now
        assert door.http.delete(f"/v1/images/jobs/{unwanted}").status_code == 200
    assert door.http.get(f"/v1/images/jobs/{unwanted}").json()["error"]["code"] == "image_not_found"


def test_pictures_are_drawn_step_by_step_over_every_surface_alike(door: Door) -> None:
    """By a family whose shape is ``job``, here or elsewhere."""
    body = {"model": STEPWISE, "prompt": "a red ball", "seed": 7, "vireo": {"settings": {"num_inference_steps": 3}}}
    waited = door.http.post("/v1/images/generations", json=body | {"n": 2}).raise_for_status().json()
    assert (waited["size"], [each["seed"] for each in waited["data"]]) == ("32x32", [7, 8])
    request = vireo_pb2.GenerateImageRequest(model=STEPWISE, prompt="a red ball", seed=7)
    request.vireo.settings["num_inference_steps"].int_value = 3
    over_grpc = door.vireo.GenerateImage(request, timeout=60, metadata=door.metadata)
    begun = door.http.post("/v1/images/generations", json=body | {"vireo": {**body["vireo"], "background": True}})
    path = f"/v1/images/jobs/{begun.raise_for_status().json()['id']}"
    assert "event: completed" in door.http.get(f"{path}/events").raise_for_status().text
    fetched = door.http.get(door.http.get(path).json()["urls"][0]).raise_for_status()
    made = [base64.b64decode(waited["data"][0]["b64_json"]), over_grpc.images[0], fetched.content]
    for file in made[1:]:  # a batch of two may round otherwise
        assert np.abs(decode_file(file).astype(int) - decode_file(made[0])).max() <= 1
    assert over_grpc.vireo.operating_point == waited["vireo"]["operating_point"] == "num_inference_steps=3"
    refused = door.http.post("/v1/images/generations", json=body | {"prompt": "a" * 90}).json()
    assert refused["error"]["code"] == "context_length_exceeded", refused


def _too_large() -> dict[str, str]:
    picture = encode(np.zeros((300, 8, 3), np.uint8))
    return {"model": PAINTER, "image": base64.b64encode(picture).decode()}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_vireo_up_asks_it_too(name: str, door: Door) -> None:
    assert CHECKS[name](Target(door.http, door.channel, PAINTER)).startswith("64x64")


def test_command_line_changes_a_picture(door: Door, tmp_path: Path) -> None:
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    source.write_bytes(encode(np.random.default_rng(3).integers(0, 256, (24, 32, 3), np.uint8)))
    options = (
        "--image",
        str(source),
        "--out",
        str(out),
        "--model",
        PAINTER,
        "--depth",
        "1",
        "--url",
        door.system.http_url,
    )
    done = run_cli("image", *options, environment=cli_environment(tmp_path, ""))
    assert done.returncode == 0, done.stderr
    assert decode_file(out.read_bytes()).shape == (24, 32, 3)
