"""``vireo image`` as a user types it, against the front door with a fake behind it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from models.io import ImageIO
from models.registry import find
from schedulers.plan import Cost, Point
from serving.client.exits import Exit
from serving.client.jobs import JobClient
from serving.errors import EngineFailed
from serving.operating_points import Points, row_work
from serving.tasks.images.cli import register
from serving.tasks.images.jobs import PicturePlanner
from tests.support.fake_service import FakeService, make_image_card
from tests.support.served_door import ServedDoor, served

STEPWISE = "nitrofusion:realism"
PAINTER = make_image_card("painter", ImageIO(takes_prompt=True, is_seeded=True, size=(12, 8)))


def _service(*, is_fast: bool) -> FakeService:
    family, variant = find(STEPWISE)
    cost = Cost(latency_s={"slices": 1.0}, busy_s={"slices": 1.0}, watts=2.0)
    points = Points(
        points=(Point(name="one", settings={"num_inference_steps": 1}, cost=cost, quality=0.5),),
        work=row_work(family, variant),
        watts=2.0,
        checkpoint_sha256="0" * 64,
    )
    service = FakeService((PAINTER,), is_fast=is_fast)
    card = replace(make_image_card(STEPWISE, variant.io), shape="job", tasks=("images",), knobs=family.knobs)
    service.image_jobs.video_cards = (card,)
    model = SimpleNamespace(id=STEPWISE, family=family.name, variant=variant)
    service.image_jobs.plans[STEPWISE] = PicturePlanner(model=cast(Any, model), points=points)
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    service.image_jobs.clip = file.getvalue()
    return service


@pytest.fixture
def door() -> Iterator[ServedDoor]:
    """Jobs are done when they are created."""
    with served(_service(is_fast=True)) as door:
        yield door


def vireo(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_negative_prompt_is_sent(door: ServedDoor, tmp_path: Path) -> None:
    asked = ("a red ball", "-o", str(tmp_path / "a.png"), "-m", STEPWISE, "--negative", "blur", "--url", door.url)
    refused = vireo(*asked)
    assert refused.exit_code == Exit.REFUSED
    assert "negative_prompt is not offered" in refused.stderr
    jobs = door.service.image_jobs
    (card,) = jobs.video_cards
    jobs.video_cards = (replace(card, io=replace(card.io, takes_negative_prompt=True)),)
    assert vireo(*asked).exit_code == 0
    assert jobs.video_requests[-1].plan.request.negative_prompt == "blur"


def test_pictures_of_a_model_of_jobs_are_made_by_one_job(door: ServedDoor, tmp_path: Path) -> None:
    out = str(tmp_path / "ball.png")
    asked = ("a red ball", "-o", out, "-n", "3", "--size", "32x32", "--seed", "7", "-m", STEPWISE, "--url", door.url)
    result = vireo(*asked)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ball-1.png", "ball-2.png", "ball-3.png"]
    assert result.stdout.startswith(
        f"{tmp_path / 'ball-1.png'} to ball-3.png: 32x32, seeds 7 to 9, operating point one"
    )
    (request,) = door.service.image_jobs.video_requests
    assert (request.plan.request.count, request.plan.seed) == (3, 7)
    assert request.idempotency_key


def test_picture_of_a_model_of_rows_is_waited_for(door: ServedDoor, tmp_path: Path) -> None:
    out = tmp_path / "ball.webp"
    result = vireo("a red ball", "-o", str(out), "--seed", "7", "-m", "painter", "--url", door.url)
    assert result.exit_code == 0, result.stderr
    with Image.open(out) as picture:
        assert picture.format == "WEBP"
    assert f"{out}: 12x8, seed 7, operating point" in result.stdout
    assert door.service.image_jobs.video_requests == []


def test_finished_job_is_printed_as_json(door: ServedDoor, tmp_path: Path) -> None:
    result = vireo("x", "-o", str(tmp_path / "a.png"), "-m", STEPWISE, "--json", "--url", door.url)
    assert json.loads(result.stdout)["status"] == "completed"


@pytest.mark.parametrize("out", ["a.bmp", "nowhere/a.png", "."])
def test_file_that_cannot_be_written_is_told_before_anything_is_sent(
    out: str, door: ServedDoor, tmp_path: Path
) -> None:
    result = vireo("x", "-o", str(tmp_path / out), "--url", door.url)
    assert result.exit_code == Exit.USAGE
    assert door.service.requests == []


def test_refusals_and_failures_have_exit_codes_of_their_own(door: ServedDoor, tmp_path: Path) -> None:
    ask = ("-o", str(tmp_path / "a.png"), "-m", STEPWISE, "--url", door.url)
    assert vireo("x", "--size", "50x33", *ask).exit_code == Exit.REFUSED
    door.service.image_jobs.video_error = EngineFailed("broken")
    assert vireo("x", *ask).exit_code == Exit.FAILED
    assert list(tmp_path.iterdir()) == []


def test_interrupt_cancels_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = JobClient.watch

    def interrupted(self: JobClient, job_id: str) -> Iterator[dict[str, Any]]:
        yield next(watch(self, job_id))
        raise KeyboardInterrupt

    monkeypatch.setattr(JobClient, "watch", interrupted)
    with served(_service(is_fast=False)) as door:
        result = vireo("x", "-o", str(tmp_path / "a.png"), "-m", STEPWISE, "--url", door.url)
        assert door.service.image_jobs.cancelled == list(door.service.image_jobs.jobs)
    assert result.exit_code == Exit.INTERRUPTED
    assert "cancelled" in result.stderr
