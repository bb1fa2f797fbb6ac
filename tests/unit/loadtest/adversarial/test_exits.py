"""Early exits, delayed on the nano classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loadtest.adversarial.exits import ExitVictim, delay, uniformity, unsettle
from loadtest.adversarial.perturbation import as_pixels
from models.operating_points import read_table
from models.registry import find
from models.training.dyn_perceiver.evaluation import held_out_sets


@pytest.fixture(scope="module")
def victim() -> ExitVictim:
    family, variant = find("dyn-perceiver-nano")
    points = read_table(variant).points.values()
    early = max(points, key=lambda point: point.figures["exit_shares"][1])  # some leave at each exit
    return ExitVictim(family, variant, early.settings)


def test_logits_of_raw_pixels_are_those_of_the_runner(victim: ExitVictim) -> None:
    pictures = held_out_sets("test")["clean"].images[:4]
    exits, classes = victim.serve(pictures)
    logits = victim.logits(as_pixels(pictures))
    assert len(logits) == victim.num_exits
    for row, (exit_, label) in enumerate(zip(exits, classes, strict=True)):
        assert int(logits[exit_][row].argmax()) == label


def test_a_delay_costs_more_and_changes_little(victim: ExitVictim) -> None:
    clean = held_out_sets("test")["clean"]
    images, labels = clean.images[:12], clean.labels[:12]
    attacked = unsettle(victim, images, iterations=8)
    assert attacked.losses[-1] < attacked.losses[0]
    assert 0 < np.abs(attacked.pictures.astype(int) - images).max() <= 8
    done = delay(victim, images, attacked.pictures, labels)
    assert done.exits_after.sum() > done.exits_before.sum()
    assert done.macs_after.mean() > done.macs_before.mean()
    assert done.macs_after.max() <= victim.macs[-1]


def test_uniformity_is_lowest_where_no_class_is_preferred() -> None:
    even, sure = torch.zeros(1, 4), torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    assert float(uniformity([even])) == pytest.approx(np.log(4))
    assert float(uniformity([even])) < float(uniformity([sure]))
