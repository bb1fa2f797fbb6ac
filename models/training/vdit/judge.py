"""Says what a clip shows: which coloured shapes move where, before which background. It reads pixels, no prompts.

A small convolutional network over eight frames side by side. Its output has one logit per colour x shape x direction,
so that one or two objects, each with its own words, are told from words that were mixed up.

Legend: B batch, K combinations (96).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.training.vdit.clips import SHORT_CLIP, Clip
from models.training.vdit.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SPEEDS, Scene

COMBINATIONS: tuple[tuple[str, str, str], ...] = tuple(product(COLOURS, SHAPES, DIRECTIONS))
EVERY = 4
"""Of so many frames it looks at one: 8 of 29."""
SEEN = len(range(0, SHORT_CLIP, EVERY))
_WORDS = (len(COLOURS), len(SHAPES), len(DIRECTIONS))
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


class Logits(NamedTuple):
    """``objects`` (B, K), each on its own; ``speeds`` (B, 2) and ``backgrounds`` (B, 3), one of each."""

    objects: Tensor
    speeds: Tensor
    backgrounds: Tensor


class JudgeNet(nn.Module):
    """Frames (B, 8, 3, 64, 64) in 0..1 to logits.

    Each of 8x8 places votes for a colour, a shape, a direction, and for there being something; a combination's vote is
    the sum, so that what is learnt of a word serves all combinations with it. The strongest places count.
    """

    def __init__(self, widths: Sequence[int] = (48, 96, 128, 192)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3 * SEEN
        for index, width in enumerate(widths):
            kernel, stride = (5, 2) if index == 0 else (3, 2 if index < 3 else 1)
            layers += [
                nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        self.widths = tuple(widths)
        self.body = nn.Sequential(*layers)
        self.objects = nn.Conv2d(before, sum(_WORDS) + 1, 1)
        nn.init.constant_(self.objects.bias[-1:], -8.0)  # type: ignore[index]
        self.rest = nn.Linear(2 * before, len(SPEEDS) + len(BACKGROUNDS))

    def forward(self, frames: Tensor) -> Logits:
        """See the class."""
        places = self.body(frames.flatten(1, 2) * 2 - 1)
        colours, shapes, directions, anything = self.objects(places).float().flatten(2).split((*_WORDS, 1), dim=1)
        votes = (
            colours[:, :, None, None] + shapes[:, None, :, None] + directions[:, None, None, :]
        )  # (B, c, s, d, place)
        objects = torch.logsumexp((votes + anything[:, :, None, None]).flatten(1, 3), dim=2)
        pooled = torch.cat([places.mean((2, 3)), places.amax((2, 3))], dim=1)
        speeds, backgrounds = self.rest(pooled).split((len(SPEEDS), len(BACKGROUNDS)), dim=1)
        return Logits(objects, speeds, backgrounds)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a clip shows of what was asked for, as shares of the objects asked for (0..1).

    ``is_right``: exactly these objects, each with its colour, shape and direction, and no other.
    """

    colour: float
    shape: float
    direction: float
    is_right: bool
    is_background_right: bool
    is_speed_right: bool | None
    seen: tuple[tuple[str, str, str], ...]


class Judge:
    """A trained network, frozen."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Read what ``save`` wrote. Raises: OSError: no such folder."""
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        net = JudgeNet(config["widths"])
        weights = load_file(folder / _WEIGHTS)
        net.load_state_dict({name: _float(tensor) for name, tensor in weights.items()})
        return cls(net)

    def save(self, folder: Path) -> None:
        """Write float16 weights and a config."""
        folder.mkdir(parents=True, exist_ok=True)
        state = self.net.state_dict()
        save_file(
            {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
            folder / _WEIGHTS,
        )
        (folder / _CONFIG).write_text(json.dumps({"widths": self.net.widths}) + "\n", encoding="utf-8")

    @torch.inference_mode()
    def logits(self, clips: Sequence[Clip]) -> Logits:
        """Of the first 29 frames of each clip. Raises: ValueError: a clip that is shorter."""
        short = [len(clip) for clip in clips if len(clip) < SHORT_CLIP]
        if short:
            raise ValueError(f"a clip has {short[0]} frames; the judge looks at {SHORT_CLIP}")
        return self.net(torch.stack([looked_at(clip) for clip in clips]))  # type: ignore[no-any-return]

    def verdicts(self, clips: Sequence[Clip], scenes: Sequence[Scene]) -> list[Verdict]:
        """Compare clips with what was asked for."""
        logits = self.logits(clips)
        rows = zip(scenes, logits.objects, logits.speeds, logits.backgrounds, strict=True)
        return [_verdict(*row) for row in rows]


def looked_at(clip: Clip) -> Tensor:
    """The frames that the judge sees, (8, 3, H, W) in 0..1."""
    return as_frames(clip[:SHORT_CLIP:EVERY])


def as_frames(clip: Clip) -> Tensor:
    """uint8 (T, H, W, 3) to float (T, 3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 255.0


def targets(scene: Scene) -> Tensor:
    """1 where a combination is in the scene, (K,)."""
    wanted = torch.zeros(len(COMBINATIONS))
    wanted[[COMBINATIONS.index(mover.combination) for mover in scene.movers]] = 1.0
    return wanted


def judge_loss(logits: Logits, wanted: Tensor, speeds: Tensor, backgrounds: Tensor) -> Tensor:
    """``speeds`` and ``backgrounds`` are class numbers (B,); -100 where there is none to learn."""
    objects = F.binary_cross_entropy_with_logits(logits.objects, wanted, reduction="none").sum(1).mean()
    rest = F.cross_entropy(logits.speeds, speeds) + F.cross_entropy(logits.backgrounds, backgrounds)
    return objects + 0.3 * rest


def _verdict(scene: Scene, objects: Tensor, speeds: Tensor, backgrounds: Tensor) -> Verdict:
    wanted = [mover.combination for mover in scene.movers]
    seen = tuple(COMBINATIONS[index] for index in (objects > 0).nonzero().flatten().tolist())
    likeliest = [COMBINATIONS[index] for index in objects.topk(len(wanted)).indices.tolist()]
    shares = [_share([one[part] for one in wanted], [one[part] for one in likeliest]) for part in range(3)]
    single = scene.movers[0].speed if len(scene.movers) == 1 else None
    return Verdict(
        colour=shares[0],
        shape=shares[1],
        direction=shares[2],
        is_right=sorted(seen) == sorted(wanted),
        is_background_right=BACKGROUNDS[int(backgrounds.argmax())] == scene.background,
        is_speed_right=None if single is None else SPEEDS[int(speeds.argmax())] == single,
        seen=seen,
    )


def _share(wanted: list[str], found: list[str]) -> float:
    """Of the words wanted, those that were found; each counts once."""
    left = list(found)
    hits = 0
    for word in wanted:
        if word in left:
            left.remove(word)
            hits += 1
    return hits / len(wanted)


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
