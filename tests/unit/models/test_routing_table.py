"""The table of where tokens go: counted by a runner, written, read back, refused when it is not what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.contract import JobState, Variant
from models.routing_table import ROUTING_FILE, read_routing, write_routing
from models.training.routing import calibrate_routing


class Runner:
    """Ten steps and a decode; each step all tokens of layer l go to expert (step + l) % 4."""

    expert_shape = (2, 4)

    def remaining(self, state: JobState) -> dict[str, int]:
        step = state.kept["step"]
        return {name: left for name, left in (("denoise", 10 - step), ("decode", 11 - step)) if left > 0}

    def step(self, states: list[JobState]) -> list[None]:
        self._loads = []
        for state in states:
            step = state.kept["step"]
            loads = np.zeros((2, 4), np.int64)
            for layer in range(2):
                loads[layer, (step + layer) % 4] = 8
            self._loads.append(loads)
            state.kept = {"step": step + 1}
        return [None] * len(states)

    def take_loads(self) -> Any:
        return self._loads


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return Variant(id="gates", summary="", io=None, weights=tmp_path)


def test_what_is_counted_is_read_back(variant: Variant) -> None:
    states = [JobState(request=None, point={}, seed=seed, kept={"step": 0}) for seed in range(9)]
    runner: Any = Runner()
    assert calibrate_routing(runner, variant, states, num_buckets=5).name == ROUTING_FILE
    table = read_routing(variant)
    assert table is not None
    assert (table.rows, table.tokens) == (9, 8)
    assert table.shares[0] == ((0.5, 0.5, 0.0, 0.0), (0.0, 0.5, 0.5, 0.0))
    assert len(table.shares) == 5


def test_too_few_steps_fill_no_table(variant: Variant) -> None:
    runner: Any = Runner()
    with pytest.raises(ValueError, match="do not fill"):
        calibrate_routing(runner, variant, [JobState(request=None, point={}, seed=0, kept={"step": 0})], num_buckets=11)


def test_no_table_is_none_and_a_bad_one_is_refused_by_name(variant: Variant) -> None:
    assert read_routing(variant) is None
    assert read_routing(replace(variant, weights=None)) is None
    path = write_routing(variant, [[[3, 1], [0, 4]]], rows=1, tokens=4)
    with pytest.raises(ValueError, match="is of model gates"):
        read_routing(replace(variant, id="other"))
    written = json.loads(path.read_text())
    for change, words in (
        ({"shares": [[[0.5, 0.4]]]}, "add up"),
        ({"shares": [[[0.5, 0.5], [1.0]]]}, "same experts"),
        ({"extra": 1}, "extra"),
        ({"checkpoint_sha256": "0" * 64}, "other weights"),
    ):
        path.write_text(json.dumps({**written, **change}))
        with pytest.raises(ValueError, match=f"{words}.*vireo calibrate gates"):
            read_routing(variant)
    with pytest.raises(ValueError, match="no tokens"):
        write_routing(variant, [[[0, 0]]], rows=1, tokens=4)
