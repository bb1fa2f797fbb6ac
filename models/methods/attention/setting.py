"""The setting ``attention`` of a request, read: ``dense``, ``tile:2:6``, ``adaspa:0.8``, ``ras:0.5``. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

_FORMS = (
    "use dense, tile:K:REST (K reference frames, REST others), adaspa:SPARSITY or ras:SHARE, numbers between 0 and 1"
)


class AttentionKind(StrEnum):
    """How self-attention is thinned out. ``ras`` thins out the tokens instead."""

    DENSE = "dense"
    TILE = "tile"
    ADASPA = "adaspa"
    RAS = "ras"


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

    def check_frames(self, frames: int) -> None:
        """Pass a clip of so many latent frames.

        Raises: ValueError: a tile mask is made for one number of them, and this is another.
        """
        if self.kind is AttentionKind.TILE and self.references + self.others != frames:
            raise ValueError(
                f"attention is 'tile:{self.references}:{self.others}', of {self.references + self.others} latent "
                f"frames; this clip has {frames}: use tile:K:{frames}-K, e.g. tile:2:{max(0, frames - 2)}"
            )


def parse_attention(text: str) -> AttentionSetting:
    """Read the setting.

    Raises: ValueError: no such form, or a number out of range.
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
        raise ValueError(f"attention is {text!r}; {_FORMS}") from None
    return AttentionSetting(kind=kind, amount=amount)


def _is_in_range(kind: AttentionKind, amount: float) -> bool:
    if not math.isfinite(amount):
        return False
    return 0 <= amount < 1 if kind is AttentionKind.ADASPA else 0 < amount <= 1
