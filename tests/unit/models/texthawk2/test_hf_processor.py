"""The Hugging Face side: same tiles, same tokens as the plain functions, and folders that Auto classes load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from models.families.texthawk2.auto import register
from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.hf_image_processor import TextHawk2ImageProcessor, to_rgb
from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.processor import TextHawk2Processor
from models.families.texthawk2.prompt import PromptBuilder
from models.families.texthawk2.tiling import TilingLimits
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from tests.support.media_files import encode, noise

TOKENIZER = build_nano_tokenizer("中国")
WIDE, SMALL = noise(50, 110), noise(20, 20)


def load_processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]


def make_processor() -> TextHawk2Processor:
    return TextHawk2Processor(TextHawk2ImageProcessor(tile_size=56, max_tiles=8, max_tiles_side=4), TOKENIZER)


LIMITS = TilingLimits(tile_size=56, max_area=8, max_side=4)


def chat(*parts: str) -> str:
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(rendered, str)
    return rendered


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda i: i, lambda i: [i[0], i[1]], lambda i: [[i[0]], [i[1]]]])
def test_images_become_the_tiles_of_cut_tiles_one_after_the_other(wrap: Any) -> None:
    result = make_processor().image_processor(wrap([Image.fromarray(WIDE), SMALL]), return_tensors="np")
    expected = [cut_tiles(image, LIMITS) for image in (WIDE, SMALL)]
    np.testing.assert_array_equal(result["pixel_values"], np.concatenate([tiles for tiles, _ in expected]))
    assert result["grids"].tolist() == [list(grid) for _, grid in expected]
    assert result["num_tiles"].tolist() == [len(tiles) for tiles, _ in expected]


def test_a_call_may_override_the_limits() -> None:
    processor = make_processor().image_processor
    assert processor(WIDE, max_tiles=1)["grids"].tolist() == [[1, 1]]
    assert processor(WIDE)["grids"].tolist() == [[1, 2]]


@pytest.mark.parametrize("arguments", [{"do_resize": False}, {"rescale_factor": 1.0}, {"max_tiles": 0}])
def test_arguments_that_are_not_understood_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not understood|at least 1"):
        make_processor().image_processor(WIDE, **arguments)


@pytest.mark.parametrize("images", ["picture.png", ["https://example.com/a.png"], [["a"]]])
def test_names_are_never_opened(images: Any) -> None:
    with pytest.raises(ValueError, match="decoded, not named"):
        make_processor().image_processor(images)
    with pytest.raises(ValueError, match="decoded, not named"):
        make_processor()(images=images, text="<image>")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_modes_look_as_in_the_servers_decoder(mode: str) -> None:
    image = Image.fromarray(noise(30, 40)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(noise(30, 40, 1)[..., 0]))
    expected = decode(encode(image), MediaLimits()).rgb.astype(int)
    # Blending rounds once in one of the two, twice in the other.
    assert np.abs(to_rgb(image).astype(int) - expected).max() <= (1 if "A" in mode else 0)


# -- text and images -------------------------------------------------------------------------------------------------


def test_call_gives_the_ids_of_the_prompt_builder_and_all_keys() -> None:
    builder = PromptBuilder(TOKENIZER.backend_tokenizer)
    ids = builder.build([("user", ["a 中", None, None, "b"])])
    result = make_processor()(images=[WIDE, SMALL], text=chat("a 中", "image", "image", "b"), return_tensors="pt")
    assert set(result) == {"input_ids", "attention_mask", "pixel_values", "grids", "num_tiles"}
    assert set(result) <= set(make_processor().model_input_names)
    grids = [tuple(grid) for grid in result["grids"].tolist()]
    assert grids == [(1, 2), (1, 1)]
    assert result["input_ids"].tolist() == [builder.expand(ids, grids)]
    assert result["attention_mask"].all()
    assert result["pixel_values"].dtype == torch.uint8
    assert result["pixel_values"].shape == (4, 56, 56, 3)
    assert result["num_tiles"].tolist() == [3, 1]


def test_batch_of_texts_takes_images_in_order_and_pads() -> None:
    texts = [chat("image"), chat("image", "longer")]
    result = make_processor()(images=[SMALL, WIDE], text=texts, padding=True, return_tensors="np")
    image_id = TOKENIZER.convert_tokens_to_ids("<image>")
    assert [(row == image_id).sum() for row in result["input_ids"]] == [16, 48]
    assert result["attention_mask"].sum(axis=1).tolist() == [
        len(make_processor()(images=[i], text=t)["input_ids"][0]) for i, t in zip([SMALL, WIDE], texts, strict=True)
    ]


def test_text_alone_keeps_its_places_for_images() -> None:
    result = make_processor()(text=chat("image", "a"))
    assert result["input_ids"][0].count(TOKENIZER.convert_tokens_to_ids("<image>")) == 1


def test_videos_are_refused() -> None:
    with pytest.raises(ValueError, match="images and text only"):
        make_processor()(videos=[WIDE], text="a")


@pytest.mark.parametrize("text", ["no place", "<image>", "<image><image><image>"])
def test_places_and_images_must_be_as_many(text: str) -> None:
    with pytest.raises(ValueError, match="2 images were given"):
        make_processor()(images=[WIDE, SMALL], text=text)


# -- files -----------------------------------------------------------------------------------------------------------


def test_folder_round_trip_through_auto_classes(tmp_path: Path) -> None:
    register()
    register()
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    TextHawk2Config().save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    assert isinstance(loaded, TextHawk2Processor)
    assert loaded.tokens_per_tile == 16
    assert loaded.chat_template == processor.chat_template == TOKENIZER.chat_template
    inputs = {"images": [WIDE], "text": chat("image", "a <box>"), "return_tensors": "np"}
    ours, theirs = processor(**inputs), loaded(**inputs)
    assert set(ours) == set(theirs)
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
    images = AutoImageProcessor.from_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    assert isinstance(images, TextHawk2ImageProcessor)
    assert (images.tile_size, images.max_tiles, images.max_tiles_side) == (56, 8, 4)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == TOKENIZER.get_vocab()
    assert PromptBuilder.from_dir(tmp_path).vocabulary_size == len(TOKENIZER)


def test_processor_keeps_other_than_default_tokens_per_tile(tmp_path: Path) -> None:
    register()
    TextHawk2Processor(TextHawk2ImageProcessor(tile_size=56), TOKENIZER, tokens_per_tile=4).save_pretrained(tmp_path)
    TextHawk2Config().save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    count = loaded(images=[SMALL], text="<image>")["input_ids"][0].count(TOKENIZER.convert_tokens_to_ids("<image>"))
    assert count == 4


def test_impossible_limits_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TextHawk2ImageProcessor(max_tiles=0)
