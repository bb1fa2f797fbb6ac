"""Coordinates as points on a line: near ones start alike, and a near miss costs less than a far one.

Left as a thousand unrelated words, coordinates took most of the training time and were still not learned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.families.texthawk2.tokens import NUM_COORDINATES

SPREAD = 5.0
"""Standard deviation of the expected answer around the true coordinate, in thousandths of the image."""
_LOWEST, _HIGHEST = 1.0, 120.0  # half waves across the image


@torch.no_grad()
def start_alike(embedding: nn.Embedding, first_id: int) -> None:
    """Set the coordinates' rows to random waves over the image, as long as the other rows are on average."""
    width = embedding.weight.shape[1]
    scale = embedding.weight[:first_id].square().mean().sqrt() * math.sqrt(2)
    waves = _LOWEST * (_HIGHEST / _LOWEST) ** torch.linspace(0, 1, width)
    phases = torch.rand(width) * 2 * math.pi
    places = torch.linspace(0, 1, NUM_COORDINATES)
    rows = scale * torch.cos(math.pi * waves * places[:, None] + phases)
    embedding.weight[first_id : first_id + NUM_COORDINATES] = rows


def answer_loss(logits: Tensor, targets: Tensor, first_id: int) -> Tensor:
    """Mean cross-entropy. ``logits`` (N, vocabulary), ``targets`` (N,); a coordinate's target is spread over its
    neighbours."""
    ids = torch.arange(first_id, first_id + NUM_COORDINATES, device=targets.device)
    is_coordinate = (targets >= first_id) & (targets < first_id + NUM_COORDINATES)
    scores = nn.functional.log_softmax(logits, -1)
    picked = scores.gather(1, targets[:, None])[:, 0]
    distance = (ids - targets[is_coordinate, None]) / SPREAD
    expected = torch.softmax(-0.5 * distance.square(), -1)
    spread = (expected * scores[is_coordinate][:, ids]).sum(-1)
    return -(picked[~is_coordinate].sum() + spread.sum()) / len(targets)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes (..., 4) row by row: left, top, right, bottom in any unit. A box inside out has no area."""
    first, second = first.float(), second.float()
    ends = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (ends - torch.maximum(first[..., :2], second[..., :2])).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)
