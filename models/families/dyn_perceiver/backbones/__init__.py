"""Feature branches: each builds a stem and four stages and says how many channels enter each stage."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Backbone:
    """``channels``: those entering stages 1 to 4, then those leaving 4. ``head_width``: hidden layer of the heads."""

    stem: nn.Module
    stages: tuple[nn.Module, nn.Module, nn.Module, nn.Module]
    channels: tuple[int, int, int, int, int]
    head_width: int | None = None
