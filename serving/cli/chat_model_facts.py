"""What a user may want to know of a chat model before serving it, from the registry and its folder. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.contract import Family, Variant
from models.identity import CHECKPOINTS, WEIGHTS_FILE

BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2}
_CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class ChatModelFacts:
    """One chat model. ``max_image_tokens`` counts an image of the largest grid with its thumbnail;
    ``kv_numbers_per_token`` is None where there is no folder to read it from.
    """

    id: str
    summary: str
    max_model_len: int
    tile_size: int
    max_tiles: int
    max_tiles_side: int
    tokens_per_tile: int
    max_image_tokens: int
    weights: str
    checkpoint_dir: str | None
    model_card: str | None
    kv_numbers_per_token: int | None

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [
            f"weights: {self.weights}" + (f" ({self.checkpoint_dir})" if self.checkpoint_dir else ""),
            f"context: {self.max_model_len} tokens of prompt and answer together",
            f"images: tiles of {self.tile_size}x{self.tile_size}, {self.max_tiles} at most and {self.max_tiles_side} a "
            f"side, besides the thumbnail; {self.tokens_per_tile} tokens a tile, {self.max_image_tokens} an image at "
            "most",
        ]
        if self.kv_numbers_per_token is not None:
            sizes = [
                f"{size * self.kv_numbers_per_token:,} bytes in {name}"
                for name, size in BYTES_PER_NUMBER.items()
                if name != "float16"
            ]
            lines.append(f"KV cache: {' or '.join(sizes)} for each token")
        if self.model_card is not None:
            lines.append(f"model card: {self.model_card}")
        return lines

    def as_json(self) -> str:
        """For a program."""
        return json.dumps(asdict(self), indent=1)


def facts_of(family: Family, variant: Variant) -> ChatModelFacts:
    """Look at the card and at the variant's folder.

    Raises: ValueError: the folder's config.json is not that of a model.
    """
    folder = variant.weights if variant.weights is not None and variant.weights.is_dir() else None
    card = folder / "README.md" if folder is not None and (folder / "README.md").is_file() else None
    io = variant.io
    return ChatModelFacts(
        id=variant.id,
        summary=variant.summary,
        max_model_len=io.max_model_len,
        tile_size=io.tile_size,
        max_tiles=io.max_tiles,
        max_tiles_side=io.max_tiles_side,
        tokens_per_tile=io.tokens_per_tile,
        max_image_tokens=io.max_image_tokens,
        weights=weights_of(family, variant),
        checkpoint_dir=str(folder) if folder is not None else None,
        model_card=str(card) if card is not None else None,
        kv_numbers_per_token=_kv_numbers(folder) if folder is not None else None,
    )


def weights_of(family: Family, variant: Variant) -> str:
    """Whether they are there, and if not, how to get them."""
    folder = variant.weights
    if folder is None:
        return f"bring your own (vireo convert {family.name})"
    if (folder / WEIGHTS_FILE).is_file():
        return "included" if folder.is_relative_to(CHECKPOINTS) else "yours"
    ours = folder.is_relative_to(CHECKPOINTS)
    return f"not here: make train-{variant.id}" if ours else f"not here: no {WEIGHTS_FILE}"


def kv_numbers_per_token(config: Mapping[str, Any]) -> int:
    """Numbers that the KV cache keeps of one token: a key and a value for each layer and KV head.

    Raises: ValueError: ``config`` (of a Hugging Face model folder) does not have the sizes.
    """
    text = config.get("text_config", config)
    try:
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return int(2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_dim)
    except (KeyError, TypeError, ZeroDivisionError, AttributeError):
        raise ValueError(f"{_CONFIG_FILE} does not give the sizes of a language model") from None


def _kv_numbers(folder: Path) -> int | None:
    path = folder / _CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return kv_numbers_per_token(config if isinstance(config, dict) else {})
