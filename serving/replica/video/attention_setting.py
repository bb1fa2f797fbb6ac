"""The setting ``attention`` of a clip, read: ``dense``, ``tile:2:6``, ``adaspa:0.8``, ``ras:0.5``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from serving.errors import UnsupportedVideo
from serving.tasks.videos.domain import AttentionKind

_FORMS = (
    "use dense, tile:K:REST (K reference frames, REST others), adaspa:SPARSITY or ras:SHARE, numbers between 0 and 1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSetting:
    """``references`` and ``others``: latent frames of a tile mask. ``amount``: sparsity of AdaSpa, or RAS's share of
    tokens that are run."""

    kind: AttentionKind
    references: int = 0
    others: int = 0
    amount: float = 0.0

    @property
    def has_schedule(self) -> bool:
        """Whether its steps differ in kind, so that only requests at the same step may share one."""
        return self.kind in (AttentionKind.ADASPA, AttentionKind.RAS)

    def fits(self, frames: int) -> bool:
        """Whether it can be had in a clip of so many latent frames: a tile mask is made for one number of them."""
        return self.kind is not AttentionKind.TILE or self.references + self.others == frames


def parse_attention(text: str) -> AttentionSetting:
    """Read the setting.

    Raises: UnsupportedVideo: no such form, or a number out of range.
    """
    name, *numbers = text.split(":")
    try:
        kind = AttentionKind(name)
        if kind is AttentionKind.TILE:
            references, others = (int(number) for number in numbers)
            if references < 1 or others < 0:
                raise ValueError
            return AttentionSetting(kind=kind, references=references, others=others)
        if kind is AttentionKind.DENSE:
            () = numbers
            return AttentionSetting(kind=kind)
        (amount,) = (float(number) for number in numbers)
        if not _is_in_range(kind, amount):
            raise ValueError
    except ValueError:
        raise UnsupportedVideo(f"attention is {text!r}; {_FORMS}", param="attention") from None
    return AttentionSetting(kind=kind, amount=amount)


def _is_in_range(kind: AttentionKind, amount: float) -> bool:
    if not math.isfinite(amount):
        return False
    return 0 <= amount < 1 if kind is AttentionKind.ADASPA else 0 < amount <= 1
