"""From an evaluation to the table that requests are served by, and the fit that every calibration shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.contract import Variant
from models.io import ClipRequest
from models.operating_points import Point, read_table, share_quality
from models.registry import find
from models.training.calibration import fit
from models.training.vdit.calibrate import calibrate

FAMILY, NANO = find("vdit-nano")


def setting(right: float, frames: int = 29, **more: Any) -> dict[str, Any]:
    return {
        "variant": "teacher", "sampler": "ddim", "num_steps": 20, "guidance": 4.0, "attention": "dense",
        "frames": frames, "one_object": {"right": right, "count": 50}, "step_s": frames / 1000, "fixed_s": frames / 100,
        **more,
    }  # fmt: skip


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return NANO.with_weights(tmp_path)


def write(variant: Variant, settings: dict[str, Any], **more: Any) -> None:
    assert variant.weights is not None
    (variant.weights / "evaluation.json").write_text(json.dumps({"settings": settings, **more}))


def seconds(point: Point, frames: int) -> float:
    assert FAMILY.work is not None
    units = FAMILY.work.load()(NANO, ClipRequest(prompt="", num_frames=frames), point.settings).units
    return sum(units[unit] * times[1].seconds for unit, times in point.seconds_per_unit.items())


def test_lengths_of_one_setting_are_one_point_as_good_as_the_worst_of_them(variant: Variant) -> None:
    write(variant, {
        "ddim 20": setting(0.95), "ddim 20, 61 frames": setting(0.9, 61),
        "ddim 20, tile:2:6": setting(0.85, attention="tile:2:6"),
    })  # fmt: skip
    assert calibrate(FAMILY, variant).parent == variant.weights
    table = read_table(variant)
    dense, tile = table.points.values()
    assert (dense.settings["attention"], tile.settings["attention"]) == ("dense", "tile:2:6")
    assert dense.quality == share_quality(0.9, 50)
    for frames in (29, 61):
        assert seconds(dense, frames) == pytest.approx(20 * frames / 1000 + frames / 100, rel=0.01)
    assert seconds(tile, 29) == pytest.approx(20 * 0.029 + 0.29, rel=1e-4)
    assert tile.seconds_per_unit["macs"][1].error is None  # of one measurement
    assert (table.hardware.cpu, table.energy.watts) == ("not recorded", 6.0)


def test_hardware_is_that_of_the_evaluation(variant: Variant) -> None:
    write(variant, {"ddim 20": setting(0.95)}, hardware={"cpu": "x", "device": "cpu", "threads": 2, "torch": "2"})
    calibrate(FAMILY, variant, watts=9.0)
    table = read_table(variant)
    assert (table.hardware.cpu, table.hardware.threads, table.energy.watts) == ("x", 2, 9.0)


def test_folder_that_was_not_evaluated_is_refused_with_what_to_do(variant: Variant) -> None:
    with pytest.raises(ValueError, match=r"models\.training\.vdit\.evaluate"):
        calibrate(FAMILY, variant)
    write(variant, {"ddim 20": {"variant": "teacher"}})
    with pytest.raises(ValueError, match=r"no usable evaluation.json.*models\.training\.vdit\.evaluate"):
        calibrate(FAMILY, variant)


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
