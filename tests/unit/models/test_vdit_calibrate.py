"""From an evaluation to the table that requests are served by, and the fit that every calibration shares."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.contract import Knob, Variant
from models.families.vdit.family import found
from models.io import ClipRequest
from models.operating_points import Point, Quality, read_table, share_quality
from models.registry import find
from models.training.agreement import METRIC
from models.training.calibration import Measured, calibrate, fit
from models.training.requests import Asked
from models.training.sweep import sweep

FAMILY, NANO = find("vdit-nano")


def setting(right: float, frames: int = 29, **more: Any) -> dict[str, Any]:
    return {
        "variant": "teacher", "sampler": "ddim", "num_steps": 4, "guidance": 1.0, "attention": "dense",
        "frames": frames, "one_object": {"right": right, "count": 50}, **more,
    }  # fmt: skip


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    assert NANO.weights is not None
    for name in ("teacher", "vae", "text_encoder"):
        shutil.copytree(NANO.weights / name, tmp_path / name)
    return found(replace(NANO, weights=tmp_path))


def write(variant: Variant, settings: dict[str, Any], **more: Any) -> None:
    assert variant.weights is not None
    (variant.weights / "evaluation.json").write_text(json.dumps({"settings": settings, **more}))


def seconds(point: Point, frames: int) -> float:
    assert FAMILY.work is not None
    units = FAMILY.work.load()(NANO, ClipRequest(prompt="", num_frames=frames), FAMILY.check_point(point.settings))
    return sum(units.units[unit] * times[1].seconds for unit, times in point.seconds_per_unit.items())


def test_what_was_evaluated_is_timed_here_and_a_point_is_as_good_as_the_worst_of_its_lengths(variant: Variant) -> None:
    write(variant, {
        "ddim": setting(0.95), "ddim, 61 frames": setting(0.9, 61),
        "ddim, tile:2:6": setting(0.85, attention="tile:2:6"),
    }, seed=7)  # fmt: skip
    assert calibrate(FAMILY, variant, repeats=1, max_batch=2, watts=9.0).parent == variant.weights
    table = read_table(variant)
    dense, tile = table.points.values()
    assert (dense.settings["attention"], tile.settings["attention"]) == ("dense", "tile:2:6")
    assert dense.quality == share_quality(0.9, 50)
    assert dense.seconds_per_unit["pixels"].keys() == {1, 2}
    assert 0.0 < seconds(dense, 29) < seconds(dense, 61)
    assert "slices" not in tile.seconds_per_unit, "its tiles are of one length alone"
    assert table.hardware.cpu != "not recorded"
    assert (table.energy.watts, table.data["seed"]) == (9.0, 7)
    assert table.prediction is not None
    assert table.prediction.runs == 2 * 2 + 2, "each length and number of rows once more, of each point"


def test_evaluation_that_cannot_be_used_is_refused_with_what_to_do(variant: Variant) -> None:
    write(variant, {"ddim 20": {"variant": "teacher"}})
    with pytest.raises(ValueError, match=r"no usable evaluation.json.*models\.training\.vdit\.evaluate"):
        calibrate(FAMILY, variant)
    with pytest.raises(ValueError, match="vdit-nano=FOLDER"):
        calibrate(FAMILY, replace(NANO, weights=None))


def test_folder_that_was_not_evaluated_gets_costs_alone_that_the_planner_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.training.sweep.BATCH_SIZES", (1, 2))
    assert NANO.weights is not None
    for name in ("teacher", "vae", "text_encoder"):
        shutil.copytree(NANO.weights / name, tmp_path / name)
    few = (
        replace(FAMILY.knob("num_inference_steps"), grid=(4, 5), default=5),
        replace(FAMILY.knob("guidance_scale"), grid=(1.0,)),
    )
    family = replace(FAMILY, knobs=(*few, FAMILY.knob("sampler"), replace(FAMILY.knob("attention"), grid=("dense",))))
    variant = found(replace(NANO, weights=tmp_path, io=replace(NANO.io, frame_counts=(29,))))
    phases: list[str] = []
    calibrate(
        family,
        variant,
        repeats=1,
        asked=Asked(count=2),
        max_batch=2,
        on_progress=lambda what, done, total: phases.append(what),
    )
    table = read_table(variant)
    assert {point.settings["num_inference_steps"] for point in table.points.values()} == {4, 5}
    assert set(phases) == {"one setting at a time"}
    for point in table.points.values():
        assert point.quality is not None
        assert point.quality.n == 2
        assert point.seconds_per_unit["macs"].keys() == {1, 2}
        assert seconds(point, 29) > 0.0
    assert table.metric == METRIC
    assert table.data == {
        "requests": 2,
        "size": "64x64",
        "num_frames": 29,
        "source": "prompts and first frames of its own",
    }


# -- the sweep -------------------------------------------------------------------------------------------------------

AXES = tuple(Knob(name=name, default=3, values=(1, 2, 3), summary="s", trades="t") for name in "abc")


def swept(quality_of: Callable[[dict[str, Any]], float | None]) -> list[Measured]:
    def measure(settings: Any) -> Measured:
        quality = quality_of(settings)
        judged = None if quality is None else Quality(value=quality, low=quality, high=1.0, n=9)
        return Measured(
            Point(settings=dict(settings), seconds_per_unit={}, quality=judged), float(sum(settings.values()))
        )

    return sweep(AXES, {"a": 3, "b": 3, "c": 3}, measure, lambda settings: settings["c"] != 1)


def test_settings_are_measured_one_at_a_time_and_then_in_pairs_never_all() -> None:
    found = [tuple(one.point.settings.values()) for one in swept(lambda settings: None)]
    assert found[0] == (3, 3, 3)
    assert found[1:6] == [(1, 3, 3), (2, 3, 3), (3, 1, 3), (3, 2, 3), (3, 3, 2)]  # c = 1 is not allowed
    assert len(found) == len(set(found)) == 1 + 5 + 8
    assert all(sum(value != 3 for value in settings) <= 2 for settings in found)


def test_only_pairs_of_settings_on_the_front_are_measured() -> None:
    def quality_of(settings: dict[str, Any]) -> float:
        return 0.9 - 0.01 * (3 - settings["a"]) - 0.02 * (3 - settings["b"]) - 0.5 * (3 - settings["c"])

    found = [tuple(one.point.settings.values()) for one in swept(quality_of)]
    assert found[6:] == []  # of the same cost, a alone is better than b or c
    level = [tuple(one.point.settings.values()) for one in swept(lambda s: 0.9 - 0.01 * (9 - sum(s.values())))]
    assert (1, 1, 3) in level
    assert (2, 2, 2) not in level


# -- the fit ---------------------------------------------------------------------------------------------------------


@given(
    st.floats(1e-9, 1e-3),
    st.floats(1e-6, 1.0),
    st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 100)), min_size=4, max_size=8, unique=True),
)
def test_fit_predicts_what_is_linear(mac_s: float, slice_s: float, works: list[tuple[float, float]]) -> None:
    samples = [({"macs": a, "slices": b}, mac_s * a + slice_s * b) for a, b in works]
    found = fit(samples, ("macs", "slices"))
    for units, expected in samples:
        assert sum(units[unit] * price.seconds for unit, price in found.items()) == pytest.approx(expected, rel=0.01)
    assert all(price.seconds >= 0.0 and price.error is not None for price in found.values())


def test_fit_never_prices_below_zero_and_takes_the_fewest_units_that_explain_the_times() -> None:
    falling = [({"macs": float(n), "slices": 1.0}, 2.0 - 0.1 * n) for n in range(1, 6)]
    assert all(price.seconds >= 0.0 for price in fit(falling, ("macs", "slices")).values())
    assert fit([({"macs": 2.0, "slices": 1.0}, 4.0)], ("macs", "slices")).keys() == {"macs"}
    assert fit([({"slices": 1.0}, 4.0)], ("macs",)) == {}


def test_error_of_the_fit_is_that_of_the_scatter() -> None:
    (price,) = fit([({"macs": 1.0}, 0.9), ({"macs": 1.0}, 1.1)], ("macs",)).values()
    assert price.error is not None
    assert 0.05 < price.error < 0.15
