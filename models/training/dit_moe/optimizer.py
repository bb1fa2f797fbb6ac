"""Muon for matrices and for stacks of them, as experts are packed; AdamW for everything else.

torch's own Muon takes matrices only, one after another; here equal shapes are made orthogonal together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


class StackedMuon(torch.optim.Optimizer):
    """Updates parameters (out, in) and (experts, out, in): momentum, then about the nearest orthogonal matrix.

    It is scaled to the root mean square that AdamW would have (Liu et al., arXiv 2502.16982).
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update those that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[-2:]].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group["lr"], group["weight_decay"])

    def _update(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        wanted = []
        for parameter in parameters:
            assert parameter.grad is not None
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
            wanted.append(parameter.grad.lerp(momentum, _MOMENTUM).view(-1, *parameter.shape[-2:]))
        updates = torch.split(orthogonal(torch.cat(wanted)), [len(one) for one in wanted])
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update.view_as(parameter), alpha=-lr)


def orthogonal(stack: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrices of (N, out, in), by five Newton-Schulz steps in bfloat16, scaled."""
    matrices = stack.bfloat16()
    is_tall = matrices.shape[1] > matrices.shape[2]
    matrices = matrices.transpose(1, 2) if is_tall else matrices
    matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(5):
        squares = matrices @ matrices.transpose(1, 2)
        matrices = torch.baddbmm(matrices, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), matrices, beta=a)
    matrices = matrices.transpose(1, 2) if is_tall else matrices
    scale: float = 0.2 * max(stack.shape[1:]) ** 0.5
    return matrices.float() * scale


class Optimizers:
    """Both as one, with warm-up and cosine decay. Gates, embeddings and the last layer are AdamW's: their rows are no
    map between hidden spaces."""

    def __init__(self, model: nn.Module, lr: float, *, warmup: int = 50, final: float = 0.01) -> None:
        named = dict(model.named_parameters())
        hidden = [p for name, p in named.items() if _is_hidden(name, p)]
        others = [p for name, p in named.items() if not _is_hidden(name, p)]
        self._all: list[torch.optim.Optimizer] = [
            StackedMuon(hidden, lr),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._parameters, self._lr, self._warmup, self._final = [*hidden, *others], lr, warmup, final

    def step(self, progress: float, step: int) -> float:
        """Clip, step and clear the gradients. ``progress`` in 0..1 drives the decay. Returns the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        factor = min(1.0, (step + 1) / self._warmup) * (self._final + (1 - self._final) * decay)
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = self._lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict[str, Any]]:
        """To go on from."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on from there."""
        for optimizer, one in zip(self._all, state, strict=True):
            optimizer.load_state_dict(one)


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim in (2, 3) and not any(
        part in name for part in ("y_embedder", "gate.weight", "final_layer.linear")
    )
