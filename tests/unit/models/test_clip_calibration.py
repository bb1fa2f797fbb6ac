"""Points of a family that makes clips and that nobody judges: how well they agree with the dearest."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.contract import Family, JobState, Knob, LazyRef, Point, SettingError, Source, Value, Variant, Work
from models.identity import WEIGHTS_FILE
from models.io import ClipIO, ClipRequest, SamplerRange
from models.operating_points import Table, point_name, read_table
from models.training import sweep
from models.training.agreement import METRIC
from models.training.calibration import calibrate
from models.training.requests import Asked, example_requests

_HERE = "tests.unit.models.test_clip_calibration"
IO = ClipIO(
    takes_picture=True,
    width=16,
    height=8,
    max_side=32,
    multiple=8,
    frame_counts=(5, 9),
    max_frames=9,
    fps=8,
    samplers={"euler": SamplerRange(weights="", min_steps=1, max_steps=4, default_steps=2)},
    default_guidance=1.0,
    vae_stride=(4, 4, 4),
)


def build(variant: Variant, device: str = "cpu") -> Variant:
    return variant


def work(variant: Variant, request: ClipRequest, point: Point) -> Work:
    pixels = request.num_frames * request.width * request.height
    return Work({"macs": float(pixels * int(point["steps"])), "slices": int(point["steps"]), "pixels": pixels}, 1)


def check_allowed(variant: Variant, request: ClipRequest, point: Point) -> None:
    if point["steps"] == 4 and point["turbo"] == "on":
        raise SettingError("turbo", "turbo takes fewer than 4 steps")


class Fading:
    """The first frame, darker from frame to frame; a step more leaves two bits of grey more, turbo one less."""

    def __init__(self, network: Variant, variant: Variant) -> None:
        pass

    def open(self, request: ClipRequest, point: Point, seed: int) -> JobState:
        return JobState(request=request, point=point, seed=seed, kept={"step": 0})

    def remaining(self, state: JobState) -> Mapping[str, int]:
        left = int(state.point["steps"]) - state.kept["step"]
        return {"denoise": left} if left else {}

    def step(self, states: Sequence[JobState]) -> list[Mapping[str, float]]:
        for state in states:
            state.kept = {"step": state.kept["step"] + 1}
        return [{} for _ in states]

    def close(self, state: JobState) -> Mapping[str, Any]:
        request, cut = state.request, 1 << (2 * (4 - int(state.point["steps"])) + (state.point["turbo"] == "on"))
        first = np.asarray(Image.open(io.BytesIO(request.picture)))
        assert first.shape == (request.height, request.width, 3)
        noise = np.random.default_rng(state.seed).integers(0, 3, first.shape)
        frames = [first // (1 + number) + noise for number in range(request.num_frames)]
        return {"frames": (np.stack(frames) // cut * cut).astype(np.uint8)}


FAMILY = Family(
    name="fading",
    summary="fades",
    tasks=("videos",),
    shape="job",
    variants=(Variant(id="fading-1", summary="one", io=IO, source=Source(licence="MIT")),),
    knobs=(
        Knob(name="steps", default=2, values=(1, 2, 3, 4), summary="Steps.", trades="grey levels"),
        Knob(name="turbo", default="off", values=("on", "off"), summary="Turbo.", trades="a bit"),
    ),
    build=LazyRef(f"{_HERE}:build"),
    runner=LazyRef(f"{_HERE}:Fading"),
    work=LazyRef(f"{_HERE}:work"),
    allowed=LazyRef(f"{_HERE}:check_allowed"),
)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"weights")
    return FAMILY.variants[0].with_weights(tmp_path)


def table_of(variant: Variant, **options: Any) -> Table:
    calibrate(FAMILY, variant, **options)
    return read_table(variant)


def test_points_are_as_good_as_all_their_frames_agree_with_those_of_the_dearest(variant: Variant) -> None:
    table = table_of(variant)
    assert table.metric == METRIC
    assert table.data["requests"] == 8
    best, *others = table.points.items()
    assert best[0] == "steps=4,turbo=off"
    assert best[1].quality is not None
    assert (best[1].quality.low, best[1].quality.n) == (1.0, 8)
    assert "steps=4,turbo=on" not in table.points, "what the model does not take is not measured"
    qualities = {name: point.quality for name, point in others}
    for name, quality in qualities.items():
        assert quality is not None, name
        assert 0.0 < quality.low < quality.value < quality.high <= 1.0, name
    alone = [qualities[f"steps={steps},turbo=off"] for steps in (1, 2, 3)]
    values = [quality.value for quality in alone if quality]
    assert values == sorted(values)


def test_each_point_is_made_once(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dearest, which all others are compared with, would take the longest to make again."""
    made: list[str] = []
    run = sweep.JobHost._made

    def counted(host: sweep.JobHost, settings: Mapping[str, Value]) -> list[Any]:
        made.append(point_name(settings))
        return run(host, settings)

    monkeypatch.setattr(sweep.JobHost, "_made", counted)
    assert sorted(table_of(variant).points) == sorted(made)


def test_requests_are_as_large_and_as_many_as_the_user_says(variant: Variant) -> None:
    table = table_of(variant, asked=Asked(size=(8, 24), num_frames=5, count=2), max_batch=2)
    assert table.data == {
        "requests": 2, "size": "8x24", "num_frames": 5, "source": "prompts and first frames of its own"
    }  # fmt: skip
    for point in table.points.values():
        assert point.quality is not None
        assert point.quality.n == 2
        assert {rows for times in point.seconds_per_unit.values() for rows in times} == {1, 2}


def test_all_lengths_that_a_model_lists_are_measured_unless_one_is_asked_for(variant: Variant) -> None:
    made = example_requests(FAMILY, variant, Asked(count=3))
    assert [request.num_frames for request in made] == [5, 9, 5]
    assert {(request.width, request.height, request.fps) for request in made} == {(16, 8, 8)}
    assert len({request.picture for request in made}) == 3
    again = example_requests(FAMILY, variant, Asked(count=3))
    assert made == again, "the same at each start, so that a run goes on where it was"
    without = replace(variant, io=replace(IO, takes_picture=False))
    assert {request.picture for request in example_requests(FAMILY, without, Asked(count=2))} == {b""}


def test_clips_may_begin_with_pictures_of_the_user(variant: Variant, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no pictures"):
        example_requests(FAMILY, variant, Asked(), tmp_path)
    Image.new("RGB", (64, 64), (9, 8, 7)).save(tmp_path / "a.png")
    (first, _) = example_requests(FAMILY, variant, Asked(count=2), tmp_path)
    assert np.asarray(Image.open(io.BytesIO(first.picture))).tolist() == [[[9, 8, 7]] * 16] * 8


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked(size=(12, 8)), "size is 12x8"),
        (Asked(num_frames=6), "num_frames is 6"),
        (Asked(num_frames=13), "num_frames is 13"),
    ],
)
def test_size_or_length_that_the_model_does_not_do_is_refused(variant: Variant, asked: Asked, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        table_of(variant, asked=asked)
