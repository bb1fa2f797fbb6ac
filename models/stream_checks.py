"""What a family that chats has to keep besides, where a folder with tokenizer and weights is at hand: these checks are
part of ``models.testing``.
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

_SIZES = ((40, 60), (300, 300))
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


def no_text_becomes_a_control_token(subject: ChatSubject) -> None:
    """Special tokens that somebody types are words."""
    family, variant = subject.family, subject.variant
    if variant.weights is None:
        return
    prompts = _prompts(family, variant)
    added = json.loads((variant.weights / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = {token["id"]: token["content"] for token in added if token["special"]}
    plain, typed = (prompts.build([("user", [text])]) for text in ("x", "x" + "".join(special.values())))
    for number, name in special.items():
        assert typed.count(number) == plain.count(number), f"{name}, typed by a user, is one"


def image_is_as_many_tokens_as_counted(subject: ChatSubject) -> None:
    """What the network makes of images fits the places in the prompt and the language model."""
    family, variant = subject.family, subject.variant
    if family.build is None or variant.weights is None:
        return
    prompts, network = _prompts(family, variant), family.build.load()(variant)
    width = network.language_model.get_input_embeddings().weight.shape[1]
    import torch

    for height, wide in _SIZES:
        tiles, grid = _prepared(family, variant, height, wide)
        with torch.inference_mode():
            (embeddings,) = network.encode_images(torch.from_numpy(tiles), [grid])
        expected = (prompts.image_tokens(grid), width)
        assert tuple(embeddings.shape) == expected, f"an image became {tuple(embeddings.shape)}, not {expected}"


def weights_fit_exactly(subject: ChatSubject) -> None:
    """A folder that lacks a tensor, or has one more, is refused."""
    family, variant = subject.family, subject.variant
    if family.build is None or variant.weights is None:
        return
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
    no_text_becomes_a_control_token,
    image_is_as_many_tokens_as_counted,
    weights_fit_exactly,
)
