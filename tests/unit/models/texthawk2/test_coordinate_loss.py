"""Coordinates as points on a line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.families.texthawk2.coordinates import Box, iou
from models.families.texthawk2.tokens import NUM_COORDINATES
from models.training.texthawk2.coordinate_loss import answer_loss, overlaps, start_alike

FIRST = 10


def logits_at(tokens: list[int]) -> torch.Tensor:
    """Logits that are nearly sure of these tokens."""
    return 20.0 * nn.functional.one_hot(torch.tensor(tokens), FIRST + NUM_COORDINATES + 5).float()


def test_near_coordinates_start_alike_and_others_keep_their_rows() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(FIRST + NUM_COORDINATES + 5, 64)
    before = embedding.weight.detach().clone()
    start_alike(embedding, FIRST)
    rows = nn.functional.normalize(embedding.weight[FIRST : FIRST + NUM_COORDINATES])
    alike = rows @ rows[500]
    assert alike[503] > 0.9 > alike[530] > alike[900]
    assert torch.equal(embedding.weight[:FIRST], before[:FIRST])
    assert torch.equal(embedding.weight[-5:], before[-5:])


def test_words_cost_what_cross_entropy_says() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, FIRST + NUM_COORDINATES + 5), torch.tensor([0, 3, 9, 1011, 1013, 5])
    assert torch.allclose(answer_loss(logits, targets, FIRST), nn.functional.cross_entropy(logits, targets))


def test_a_near_miss_costs_less_than_a_far_one() -> None:
    target = torch.tensor([FIRST + 500])
    losses = [float(answer_loss(logits_at([FIRST + said]), target, FIRST)) for said in (500, 505, 540)]
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("edge", [0, NUM_COORDINATES - 1])
def test_edges_of_the_image_have_targets_of_full_weight(edge: int) -> None:
    logits = torch.zeros(1, FIRST + NUM_COORDINATES + 5)
    even = torch.log(torch.tensor(float(logits.shape[1])))
    assert torch.allclose(answer_loss(logits, torch.tensor([FIRST + edge]), FIRST), even)


def test_overlaps_are_those_of_the_boxes() -> None:
    boxes = [Box(0.1, 0.1, 0.5, 0.5), Box(0.2, 0.0, 0.6, 0.4), Box(0.7, 0.7, 0.9, 0.9)]
    pairs = [(first, second) for first in boxes for second in boxes]
    found = overlaps(torch.tensor([first for first, _ in pairs]), torch.tensor([second for _, second in pairs]))
    assert found.tolist() == pytest.approx([iou(first, second) for first, second in pairs], abs=1e-5)
    assert float(overlaps(torch.tensor([0.5, 0.5, 0.1, 0.1]), torch.tensor(boxes[0]))) == 0.0, "inside out"
