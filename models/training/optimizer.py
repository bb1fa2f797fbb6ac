"""Muon for the matrices between layers, AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


class Optimizers:
    """Both optimisers as one, with warm-up and cosine decay to ``final`` of the first rate.

    ``heads`` are trained by AdamW alone: rows of a classifier are not a map between hidden spaces.
    """

    def __init__(
        self,
        body: Iterable[nn.Module],
        heads: Iterable[nn.Module] = (),
        *,
        muon_lr: float,
        adam_lr: float,
        warmup: int = 100,
        final: float = 0.05,
    ) -> None:
        matrices, others = _split(body)
        others += [parameter for head in heads for parameter in head.parameters()]
        self._rated: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01), adam_lr)
        ]
        if matrices:  # none where only heads are trained
            muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self._rated.append((muon, muon_lr))
        self._warmup, self._final = warmup, final
        self._parameters = [*matrices, *others]

    def step(self, progress: float, step: int) -> float:
        """Clip, step and clear the gradients. ``progress`` in 0..1 drives the decay. Returns the gradient norm."""
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        factor = min(1.0, (step + 1) / self._warmup) * (self._final + (1 - self._final) * decay)
        for optimizer, base in self._rated:
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)


def _split(modules: Iterable[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of hidden linear layers, and the rest: embeddings, heads, convolutions, norms, biases."""
    matrices: dict[int, nn.Parameter] = {}
    others: dict[int, nn.Parameter] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            hidden = parameter.ndim == 2 and not any(part in name for part in ("embed", "head"))
            (matrices if hidden else others)[id(parameter)] = parameter
    return list(matrices.values()), list(others.values())
