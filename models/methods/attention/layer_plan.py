"""Which tile mask each layer has, as a file that the search writes and the pipeline reads.

JSON: ``{"format": "vireo-tile-plan-1", "num_frames": 8, "max_loss": 0.05, "loss": 0.04,
"layers": [{"mask": "2:6", "loss": 0.01}, {"mask": null, "loss": 0.0}]}``; a mask of null is dense.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.methods.attention.tile_attention import TileAttention, TilePlans
from models.methods.attention.tile_mask import TileMask

FORMAT = "vireo-tile-plan-1"


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """``masks`` and ``losses`` by layer, each loss with only that layer sparse; ``loss`` with all of them.

    Raises: ValueError: a mask for other frames, or lists of different lengths.
    """

    num_frames: int
    masks: tuple[TileMask | None, ...]
    losses: tuple[float, ...]
    max_loss: float
    loss: float

    def __post_init__(self) -> None:
        if not self.masks or len(self.masks) != len(self.losses):
            raise ValueError(f"{len(self.masks)} masks and {len(self.losses)} losses; need one of each per layer")
        wrong = [mask.name for mask in self.masks if mask is not None and mask.num_frames != self.num_frames]
        if wrong:
            raise ValueError(f"tile mask {wrong[0]} in a plan for {self.num_frames} latent frames; it must add to that")
        numbers = (*self.losses, self.max_loss, self.loss)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"losses are {numbers}; each must be finite, 0 or more")

    @property
    def sparsity(self) -> float:
        """Mean over the layers."""
        return sum(0.0 if mask is None else mask.sparsity for mask in self.masks) / len(self.masks)

    def attention(self, grid: tuple[int, int, int], *, plans: TilePlans | None = None) -> TileAttention:
        """The attention of this plan; h and w of the grid are free.

        Raises: ValueError: another number of frames.
        """
        if grid[0] != self.num_frames:
            raise ValueError(f"grid {grid} has {grid[0]} latent frames; this plan is for {self.num_frames}")
        return TileAttention(self.masks, grid, plans=plans)

    def save(self, path: Path) -> None:
        """Write the file."""
        layers = [
            {"mask": None if mask is None else mask.name, "loss": loss}
            for mask, loss in zip(self.masks, self.losses, strict=True)
        ]
        document = {
            "format": FORMAT,
            "num_frames": self.num_frames,
            "max_loss": self.max_loss,
            "loss": self.loss,
            "layers": layers,
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LayerPlan:
        """Read a file that ``save`` wrote.

        Raises: ValueError: it is none; OSError: unreadable.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {document['format']!r}; need {FORMAT!r}")
            return cls._from_document(document)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is no tile plan: {error}; write one with models.methods.attention.layer_search"
            ) from error

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> LayerPlan:
        names = [layer["mask"] for layer in document["layers"]]
        return cls(
            num_frames=int(document["num_frames"]),
            masks=tuple(None if name is None else TileMask.parse(name) for name in names),
            losses=tuple(float(layer["loss"]) for layer in document["layers"]),
            max_loss=float(document["max_loss"]),
            loss=float(document["loss"]),
        )
