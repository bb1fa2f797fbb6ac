"""Muon for convolutions: torch's own takes matrices only.

Source: Jordan et al., Muon (2024): momentum, then the nearest orthogonal matrix by five Newton-Schulz steps; the update
is scaled to the root mean square that AdamW would have (Liu et al., arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class ConvMuon:
    """Updates kernels (out, in, ...) as matrices (out, in * ...)."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        self._parameters = list(parameters)
        self._buffers = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._lr, self._momentum = lr, momentum

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update at ``factor`` times the learning rate, and clear the gradients."""
        for parameter, buffer in zip(self._parameters, self._buffers, strict=True):
            if parameter.grad is None:
                continue
            buffer.mul_(self._momentum).add_(parameter.grad)
            update = orthogonal(parameter.grad + self._momentum * buffer)
            parameter.add_(update, alpha=-self._lr * factor)
            parameter.grad = None


def orthogonal(gradient: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix of a kernel's shape, scaled."""
    matrix = gradient.flatten(1).float()
    is_tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if is_tall else matrix
    matrix = matrix / (matrix.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(5):
        square = matrix @ matrix.T
        matrix = a * matrix + (b * square + c * square @ square) @ matrix
    scale: float = 0.2 * max(matrix.shape) ** 0.5
    found: Tensor = (matrix.T if is_tall else matrix).reshape(gradient.shape) * scale
    return found
