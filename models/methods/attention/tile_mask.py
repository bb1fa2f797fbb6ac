"""Tile masks "k : F-k": each latent frame sees itself and k reference frames, which see and are seen by all.

Source: Efficient-vDiT, arXiv:2502.06155 (no official code found). The published sparsities are reproduced to
about a point by (F-k)(F-k-1)/F^2, so rows and columns of the reference frames are both kept.

Legend: F latent frames, k reference frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TileMask:
    """``references`` of ``num_frames`` latent frames see everything; the others see those and themselves.

    Raises: ValueError: fewer than 0 or more than ``num_frames`` references.
    """

    num_frames: int
    references: int

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a tile mask has {self.num_frames} frames; need at least 1")
        if not 0 <= self.references <= self.num_frames:
            raise ValueError(f"{self.references} reference frames of {self.num_frames}; need 0 to {self.num_frames}")

    @classmethod
    def parse(cls, name: str) -> TileMask:
        """The mask of a name such as ``2:6``: two reference frames, six others."""
        references, colon, others = name.partition(":")
        if not (colon and references.strip().isdecimal() and others.strip().isdecimal()):
            raise ValueError(f'{name!r} names no tile mask; write reference frames, a colon, other frames, as in "2:6"')
        return cls(num_frames=int(references) + int(others), references=int(references))

    @property
    def name(self) -> str:
        """As published: "2:6" has two reference frames of eight."""
        return f"{self.references}:{self.num_frames - self.references}"

    @property
    def sparsity(self) -> float:
        """Share of the (frame, frame) pairs that is left out."""
        others = self.num_frames - self.references
        return others * max(0, others - 1) / self.num_frames**2

    def reference_frames(self) -> tuple[int, ...]:
        """Uniformly spaced from frame 0 on."""
        return tuple(number * self.num_frames // self.references for number in range(self.references))

    def frame_mask(self) -> Tensor:
        """Bool (F, F), True = attend."""
        is_reference = torch.zeros(self.num_frames, dtype=torch.bool)
        is_reference[list(self.reference_frames())] = True
        return torch.eye(self.num_frames, dtype=torch.bool) | is_reference[:, None] | is_reference[None, :]

    def token_mask(self, tokens_per_frame: int) -> Tensor:
        """Bool (L, L) written out; the twin that tests compare with."""
        frame = torch.arange(self.num_frames * tokens_per_frame) // tokens_per_frame
        return self.frame_mask()[frame[:, None], frame[None, :]]
