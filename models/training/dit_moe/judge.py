"""Says which colour and which thing a picture shows: a small convolutional network that reads pixels, no prompts.

It learns from drawn pictures that were made as bad as generated ones may be, and is measured on digits in fonts that it
never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import read_weights, save_weights
from models.training.dit_moe import pictures
from models.training.dit_moe.pictures import COLOURS, SIDE, THINGS
from models.training.stages import log_of

_WIDTHS = (24, 48, 96, 128)


class JudgeNet(nn.Module):
    """Pixels (N, 3, 64, 64) in -1..1 to logits of colours (N, 6) and of things (N, 15)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers += [nn.Conv2d(before, before, 3, 1, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * before, len(COLOURS) + len(THINGS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        places = self.body(pixels)
        colours, things = self.head(torch.cat([places.mean((2, 3)), places.amax((2, 3))], 1)).split(
            (len(COLOURS), len(THINGS)), dim=1
        )
        return colours, things


class ClassJudge:
    """A trained network, frozen."""

    def __init__(self, net: JudgeNet) -> None:
        self._net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> ClassJudge:
        """Read what ``save`` wrote. Raises: ValueError: missing or damaged."""
        net = JudgeNet()
        state = read_weights(folder)
        net.load_state_dict({name: one.float() if one.is_floating_point() else one for name, one in state.items()})
        return cls(net)

    def save(self, folder: Path) -> None:
        """Write float16 weights."""
        state = self._net.state_dict()
        save_weights({name: one.half() if one.is_floating_point() else one for name, one in state.items()}, folder)

    @torch.inference_mode()
    def labels(self, images: Sequence[NDArray[np.uint8]]) -> list[int]:
        """Numbers of the classes that uint8 pictures (64, 64, 3) show."""
        found: list[int] = []
        for first in range(0, len(images), 128):
            part = torch.from_numpy(np.stack(images[first : first + 128])).permute(0, 3, 1, 2).float() / 127.5 - 1
            colours, things = self._net(part)
            found += (colours.argmax(1) * len(THINGS) + things.argmax(1)).tolist()
        return found


def train(
    out: Path,
    *,
    steps: int = 1200,
    batch: int = 64,
    lr: float = 4e-3,
    seed: int = 1,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> ClassJudge:
    """Train; the log goes into ``out``."""
    torch.manual_seed(seed)
    net = JudgeNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    log, recent = log_of(out, "judge"), list[float]()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        drawn = pictures.draw(batch, 20_000_000 * seed + step)
        colours, things = net(worsen(drawn.pixels).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(colours, drawn.labels // len(THINGS)) + F.cross_entropy(
            things, drawn.labels % len(THINGS)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            log.write(step=step + 1, loss=sum(recent) / len(recent))
            recent.clear()
            on_step(step + 1, steps)
    judge = ClassJudge(net)
    log.write(step=steps, right=accuracy(judge), right_of_training_fonts=accuracy(judge, held_out=False))
    return judge


def worsen(pixels: Tensor) -> Tensor:
    """What an autoencoder or a denoiser may do to pictures: blur, faded or tinted colours, coarse and fine noise, and a
    ghost of the picture elsewhere. Each row gets its own share of each."""
    count = len(pixels)

    def share(high: float, often: float = 0.5) -> Tensor:
        return high * torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < often)

    soft = F.avg_pool2d(F.pad(pixels, (2, 2, 2, 2), mode="replicate"), 5, 1)
    pixels = pixels + share(0.9) * (soft - pixels)
    pixels = pixels + share(0.12) * (pixels.roll((5, -4), (2, 3)) - pixels)
    gain, shift = 1 + 0.15 * (2 * torch.rand(count, 3, 1, 1) - 1), 0.08 * (2 * torch.rand(count, 3, 1, 1) - 1)
    mean = pixels.mean((2, 3), keepdim=True)
    pixels = (pixels - mean) * gain + mean + shift
    for side in (8, 16, SIDE):
        noise = torch.randn(count, 3, side, side)
        pixels = pixels + share(0.15) * F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    return pixels.clamp(-1, 1)


def accuracy(judge: ClassJudge, *, count: int = 2_000, held_out: bool = True) -> float:
    """Share of clean pictures, of a seed that training never uses, whose colour and thing are both right."""
    drawn = pictures.draw(count, 77, held_out=held_out)
    found = judge.labels(list(pictures.as_bytes(drawn.pixels)))
    return sum(map(int.__eq__, found, drawn.labels.tolist())) / count
