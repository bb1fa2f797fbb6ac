"""What a family that chats has to keep: the checks of ``models.testing`` for the shape "stream".

Each takes a family and one of its variants that has a folder, and raises AssertionError with what it saw.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from models.contract import Family, Grid, Prompts, Variant
from models.identity import WEIGHTS_FILE

_SIZES = ((40, 60), (300, 300), (1000, 260), (75, 900))
"""(height, width)."""


class ChatSubject(Protocol):
    """What is checked."""

    @property
    def family(self) -> Family:
        """The family."""
        ...

    @property
    def variant(self) -> Variant:
        """One of its variants."""
        ...


def _prepared(family: Family, variant: Variant, height: int, width: int) -> tuple[Any, Grid]:
    assert family.prepare is not None, f"{family.name} prepares no images"
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tiles, grid = family.prepare.load()(variant)(pixels)
    return tiles, grid


def _prompts(family: Family, variant: Variant) -> Prompts:
    prompts: Prompts = family.part("prompts")(variant)
    return prompts


def tiles_are_counted_before_they_are_cut(subject: ChatSubject) -> None:
    """A picture's tiles are as many as was said from its size, whichever way up, and no more tokens than declared."""
    family, variant = subject.family, subject.variant
    prompts, count = _prompts(family, variant), family.part("tiles")
    for height, width in _SIZES:
        tiles, grid = _prepared(family, variant, height, width)
        said = count(variant, width, height)
        assert tiles.dtype == np.uint8, f"tiles are {tiles.dtype}"
        assert tiles.ndim == 4, f"tiles have the shape {tiles.shape}"
        assert len(tiles) == said, f"{width}x{height}: {len(tiles)} tiles, {said} were announced"
        assert count(variant, height, width) == said, f"{width}x{height}: turned, it has other tiles"
        tokens = prompts.image_tokens(grid)
        assert tokens <= variant.io.max_image_tokens, f"{width}x{height}: {tokens} tokens, more than the card says"


def prompt_is_as_long_as_it_says(subject: ChatSubject) -> None:
    """Two images among words: one place each, and as many tokens in the end as were counted."""
    family, variant = subject.family, subject.variant
    prompts, grids = _prompts(family, variant), [(1, 1), (1, 2)]
    ids = prompts.build([("system", ["Be brief."]), ("user", [None, "What is it? ", None, "And that?"])])
    assert ids.count(prompts.image_id) == len(grids), "there is not one place for each image"
    expanded = prompts.expand(ids, grids)
    assert len(expanded) == prompts.num_expanded(ids, grids), "an expanded prompt is not as long as was said"
    images = sum(prompts.image_tokens(grid) for grid in grids)
    assert expanded.count(prompts.image_id) == images, "an image is not as many tokens as was said"


def no_text_becomes_a_control_token(subject: ChatSubject) -> None:
    """Special tokens that somebody types are words."""
    family, variant = subject.family, subject.variant
    assert variant.weights is not None
    prompts = _prompts(family, variant)
    added = json.loads((variant.weights / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = {token["id"]: token["content"] for token in added if token["special"]}
    plain, typed = (prompts.build([("user", [text])]) for text in ("x", "x" + "".join(special.values())))
    for number, name in special.items():
        assert typed.count(number) == plain.count(number), f"{name}, typed by a user, is one"


def image_is_as_many_tokens_as_counted(subject: ChatSubject) -> None:
    """What the network makes of images fits the places in the prompt and the language model."""
    family, variant = subject.family, subject.variant
    assert family.build is not None
    prompts, network = _prompts(family, variant), family.build.load()(variant)
    width = network.language_model.get_input_embeddings().weight.shape[1]
    import torch

    for height, wide in _SIZES[:2]:
        tiles, grid = _prepared(family, variant, height, wide)
        with torch.inference_mode():
            (embeddings,) = network.encode_images(torch.from_numpy(tiles), [grid])
        expected = (prompts.image_tokens(grid), width)
        assert tuple(embeddings.shape) == expected, f"an image became {tuple(embeddings.shape)}, not {expected}"


def weights_fit_exactly(subject: ChatSubject) -> None:
    """A folder that lacks a tensor, or has one more, is refused."""
    family, variant = subject.family, subject.variant
    assert family.build is not None
    assert variant.weights is not None
    tensors = load_file(variant.weights / WEIGHTS_FILE)
    extra = {**tensors, "nobody.knows.this": np.zeros(1, np.float32)}
    for what, changed in (("lacks", dict(list(tensors.items())[1:])), ("has too many", extra)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(shutil.copytree(variant.weights, Path(name) / "model"))
            save_file(changed, folder / WEIGHTS_FILE, {"format": "pt"})
            try:
                family.build.load()(variant.with_weights(folder))
            except ValueError:
                continue
            raise AssertionError(f"a folder that {what} a tensor was loaded")


CHECKS: tuple[Callable[[ChatSubject], None], ...] = (
    tiles_are_counted_before_they_are_cut,
    prompt_is_as_long_as_it_says,
    no_text_becomes_a_control_token,
    image_is_as_many_tokens_as_counted,
    weights_fit_exactly,
)
