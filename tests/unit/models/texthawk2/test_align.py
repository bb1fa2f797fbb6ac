"""A connector that went on learning speaks to its language model as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.training.texthawk2.align import compose, explained, linear_map


def test_a_linear_function_is_found_and_folded_into_the_layer_before() -> None:
    torch.manual_seed(0)
    layer, after = nn.Linear(6, 5), nn.Linear(5, 5)
    inputs = torch.randn(400, 6)
    tokens, expected = layer(inputs).detach(), after(layer(inputs)).detach()
    matrix, offset = linear_map(tokens, expected, ridge=1e-9)
    compose(layer, matrix, offset)
    assert torch.allclose(layer(inputs), expected, atol=1e-4)


def test_what_is_explained() -> None:
    torch.manual_seed(0)
    expected = torch.randn(500, 4)
    assert explained(expected, expected) == 1.0
    assert explained(expected.mean(0).expand(500, 4), expected) == pytest.approx(0.0, abs=1e-6)
    assert explained(-expected, expected) < -2.5
