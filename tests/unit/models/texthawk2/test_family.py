"""The card of TextHawk2 says what the paper and the network say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.contract import TextBox
from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.family import FAMILY, SEVEN_B
from models.families.texthawk2.tiling import TilingLimits
from models.registry import find, known_ids


def test_its_models_chat() -> None:
    assert {"texthawk2-nano", "texthawk2-7b"} <= set(known_ids("chat"))
    assert find("texthawk2-7b") == (FAMILY, SEVEN_B)


def test_largest_image_of_the_published_model_has_as_many_tokens_as_the_paper_says() -> None:
    io = SEVEN_B.io
    assert TilingLimits.of(io).max_tiles * io.tokens_per_tile == io.max_image_tokens == 1168


def test_model_must_hold_its_largest_image() -> None:
    with pytest.raises(ValueError, match="1168 tokens and max_model_len is 1168"):
        dataclasses.replace(SEVEN_B.io, max_model_len=1168)


def test_published_configuration_is_that_of_the_card() -> None:
    assert FAMILY.build is not None
    network = FAMILY.build.load()(SEVEN_B, "meta", "bfloat16", random_weights=True)
    config = network.config
    assert isinstance(config, TextHawk2Config)
    assert (config.tile_size, config.max_tiles, config.max_tiles_side) == (224, 72, 12)
    assert config.tokens_per_tile == SEVEN_B.io.tokens_per_tile
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("text", ["<box><100><200><,><050><999></box>", "<box><050><200><,><100><999></box>"])
def test_boxes_of_an_answer_have_their_corners_in_order(text: str) -> None:
    said = f"it: {text}"
    assert FAMILY.part("boxes")(said) == [TextBox(4, len(said), 50 / 999, 200 / 999, 100 / 999, 1.0)]


def test_a_broken_box_is_none() -> None:
    assert FAMILY.part("boxes")("<box><100><200><999></box> <box>") == []


def test_without_a_folder_there_are_neither_tokenizer_nor_weights() -> None:
    assert FAMILY.build is not None
    with pytest.raises(ValueError, match="texthawk2-7b has no folder"):
        FAMILY.part("prompts")(SEVEN_B)
    with pytest.raises(ValueError, match="texthawk2-7b has no weights"):
        FAMILY.build.load()(SEVEN_B)
