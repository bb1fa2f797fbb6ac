"""Who says whether a clip shows what its prompt asked for: a small classifier of rendered clips, trained here.

It sees eight frames of a 29-frame clip at 32x32 and names colour, shape and direction of the one object. Its accuracy
on rendered clips that it never saw is in the model card; a figure that it gives is only as good as that.

Legend: B batch, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.vdit.scenes import COLOURS, DIRECTIONS, SHAPES, Mover

FRAMES = 8
SIDE = 32
HEADS = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS}


class Judge(nn.Module):
    """3-D convolutions, and a linear head for each question."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 3 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv3d(a, b, 3, stride=(1, 2, 2) if k else (1, 1, 1), padding=1)
            for k, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, b) for b in widths[1:])
        self.last = nn.Conv3d(widths[-1], 4 * width, 3, stride=2, padding=1)
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, len(words)) for name, words in HEADS.items()})

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Clips (B, 3, 8, 32, 32) in -1..1 to logits of each question."""
        x = clips
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        x = F.silu(self.last(x)).flatten(2)
        pooled = torch.cat([x.mean(2), x.amax(2)], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}


def prepare(clips: Tensor) -> Tensor:
    """uint8 clips (B, T, 64, 64, 3) to what the judge sees: eight frames over the first 29, half the size."""
    picks = torch.linspace(0, min(clips.shape[1], 29) - 1, FRAMES).round().long()
    frames = clips[:, picks].permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
    return F.avg_pool3d(frames, (1, 2, 2))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge sees in a clip."""

    colour: str
    shape: str
    direction: str

    def agrees(self, mover: Mover) -> dict[str, bool]:
        """Which parts of the object's description it confirms, and whether all."""
        parts = {name: getattr(self, name) == getattr(mover, name) for name in HEADS}
        return {**parts, "all": all(parts.values())}


def load_judge(folder: Path) -> Judge:
    """Read the committed weights."""
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "judge.safetensors").items()})
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def look(judge: Judge, clips: Tensor) -> list[Verdict]:
    """Judge uint8 clips (B, T, 64, 64, 3)."""
    logits = judge(prepare(clips))
    answers = [[words[i] for i in logits[name].argmax(1).tolist()] for name, words in HEADS.items()]
    return [Verdict(*answer) for answer in zip(*answers, strict=True)]
