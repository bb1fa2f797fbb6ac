"""Points of a folder of diffusers, as ``vireo calibrate my-wan=FOLDER`` measures them: its methods are among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.contract import Knob, Variant
from models.operating_points import read_table
from models.registry import families
from models.training.agreement import METRIC
from models.training.calibration import calibrate
from models.training.requests import Asked

pytestmark = pytest.mark.timeout(300)


def _fixed(knob: Knob) -> Knob:
    """Steps and guidance at one value, so that the methods alone are swept."""
    value = {"num_inference_steps": 8, "guidance_scale": 1.0}.get(knob.name)
    return knob if value is None else replace(knob, default=value, grid=(value,), trades="")


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    family = families()["diffusers"]
    assert family.resolve is not None
    assert family.build is not None
    miniature = family.resolve.load()("wan-t2v")
    family.part("save")(family.build.load()(miniature, random_weights=True), miniature, tmp_path / "my-wan")
    found: Variant = family.resolve.load()("my-wan", tmp_path / "my-wan")
    io = replace(found.io, min_side=16, frame_counts=(9,), max_frames=9)
    return replace(found, io=io, knobs=tuple(map(_fixed, found.knobs)))


def test_methods_are_swept_and_judged_by_their_agreement(variant: Variant) -> None:
    family = families()["diffusers"].of(variant)
    asked = Asked(size=(32, 32), num_frames=9, count=2)
    calibrate(family, variant, asked=asked, repeats=1, max_batch=1)
    table = read_table(variant)
    assert table is not None
    assert table.metric == METRIC
    single = {
        "attention=dense,cache=off", "attention=ras:0.5,cache=off", "attention=adaspa:0.8,cache=off",
        "attention=dense,cache=taylorseer:3:1", "attention=dense,cache=first_block:0.1",
    }  # fmt: skip
    assert single <= set(table.points)
    qualities = {name: point.quality for name, point in table.points.items()}
    best, regions = qualities["attention=dense,cache=off"], qualities["attention=ras:0.5,cache=off"]
    assert best is not None
    assert regions is not None
    assert 0 < regions.value < best.value == 1
    together = [name for name in table.points if "ras" in name and "cache=off" not in name]
    assert together == [], "what is refused is not measured"
