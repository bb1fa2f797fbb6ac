"""Checks of chat families: prompts, tiles, images in the network, and what is counted before it is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.contract import Grid, Prompts
from models.io import MAX_TILES, ChatTokens, knobs_of, with_max_tiles
from models.testing.subject import SIZES, Subject, expect_close

COUNTED = 0.1
"""How much more than a cache holds may be declared, as a share."""
_TALKS: Sequence[Sequence[tuple[str, Sequence[str | None]]]] = (
    [("user", ["What is this? ", None])],
    [("system", ["Be brief."]), ("user", [None, None, "Which is larger?"]), ("assistant", ["1"]), ("user", ["Why?"])],
)
_GRIDS = ((1, 1), (1, 2), (2, 2))


def _prompts(subject: Subject) -> Prompts:
    prompts: Prompts = subject.family.part("prompts")(subject.variant)
    return prompts


def _cut(subject: Subject, height: int, width: int) -> tuple[Any, Grid]:
    assert subject.family.prepare is not None, f"{subject.family.name} prepares no images"
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tiles, grid = subject.family.prepare.load()(subject.variant)(pixels)
    return tiles, grid


@torch.inference_mode()
def _embedded(subject: Subject, images: Sequence[tuple[Any, Grid]]) -> list[Tensor]:
    tiles = torch.from_numpy(np.concatenate([tiles for tiles, _ in images]))
    embeddings: list[Tensor] = subject.network.encode_images(tiles, [grid for _, grid in images])
    return embeddings


# -- before anything is made -----------------------------------------------------------------------------------------


def tokens_are_counted_before_they_are_made(subject: Subject) -> None:
    """Each image is one token until it is expanded to as many as announced; other talks leave nothing behind."""
    prompts = _prompts(subject)
    first = prompts.build(_TALKS[0])
    for talk in _TALKS:
        num_images = sum(part is None for _, parts in talk for part in parts)
        ids, grids = prompts.build(talk), _GRIDS[:num_images]
        assert ids.count(prompts.image_id) == num_images, (
            f"{num_images} images have {ids.count(prompts.image_id)} tokens"
        )
        counted, made = prompts.num_expanded(ids, grids), len(prompts.expand(ids, grids))
        assert made == counted, f"{made} tokens were made, and {counted} announced"
    assert prompts.build(_TALKS[0]) == first, "a talk has other tokens after another talk"


def image_costs_more_with_more_tiles(subject: Subject) -> None:
    """More tiles cost more tokens, and never more than the card's limit."""
    prompts = _prompts(subject)
    tokens = [prompts.image_tokens(grid) for grid in _GRIDS]
    assert tokens == sorted(set(tokens)), f"grids {_GRIDS} have {tokens} tokens"
    assert tokens[-1] <= subject.variant.io.max_image_tokens, f"{tokens[-1]} tokens are above the card's limit"


def tiles_are_counted_before_they_are_cut(subject: Subject) -> None:
    """At least as many tiles are counted as are cut, whichever way the picture is turned; as many where a request may
    bound them, and then no more than it does."""
    assert subject.family.prepare is not None
    count = subject.family.part("tiles")
    knobs = [knob for knob in knobs_of(subject.family, subject.variant) if knob.scope == "request"]
    assert [knob.name for knob in knobs] in ([], [MAX_TILES]), f"a chat has no use for other settings than {MAX_TILES}"
    found: list[int] = []
    for most in knobs[0].points if knobs else (None,):
        variant = with_max_tiles(subject.variant, None if most is None else int(most))
        cut = subject.family.prepare.load()(variant)
        for height, width in SIZES if most is None else (*SIZES, (900, 1300)):
            tiles, (rows, columns) = cut(np.zeros((height, width, 3), np.uint8))
            counted = count(variant, width, height)
            assert len(tiles) <= counted, f"{len(tiles)} tiles of {width}x{height}; {counted} were announced"
            assert counted == count(variant, height, width), f"{width}x{height} has another number when turned"
            if most is not None:
                assert len(tiles) == counted, f"{len(tiles)} tiles of {width}x{height}; {counted} were planned with"
                assert rows * columns <= int(most), f"{width}x{height} was cut into more than {most} tiles"
        found.append(counted)
    assert found == sorted(found), f"more tiles that are allowed are fewer that are cut: {found}"
    assert not knobs or found[0] < found[-1], f"{MAX_TILES} changes nothing"


def work_is_that_of_the_tokens(subject: Subject) -> None:
    """The work of an answer matches its tokens, and more tokens hold more bytes."""
    assert subject.family.work is not None
    small = ChatTokens(text_tokens=7, image_tokens=16, max_tokens=5)
    held = []
    for sizes in (small, ChatTokens(text_tokens=8, image_tokens=16, max_tokens=5), ChatTokens(8, 32, 5)):
        work = subject.family.work.load()(subject.variant, sizes, subject.family.check_point({}))
        found = {name: work.units.get(name) for name in ("image_tokens", "prompt_tokens", "output_tokens")}
        prompt = sizes.text_tokens + sizes.image_tokens
        expected = {"image_tokens": sizes.image_tokens, "prompt_tokens": prompt, "output_tokens": sizes.max_tokens}
        assert found == expected, f"{sizes} is work {found}"
        held.append(work.bytes_held)
    assert held == sorted(set(held)), f"longer talks hold {held} bytes"


# -- where there is a folder -----------------------------------------------------------------------------------------


def no_text_becomes_a_control_token(subject: Subject) -> None:
    """Special tokens that a user types stay plain text."""
    assert subject.variant.weights is not None
    prompts = _prompts(subject)
    added = json.loads((subject.variant.weights / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = {token["id"]: token["content"] for token in added if token["special"]}
    plain, typed = (prompts.build([("user", [text])]) for text in ("x", "x" + "".join(special.values())))
    for number, name in special.items():
        assert typed.count(number) == plain.count(number), f"{name}, typed by a user, is one"


# -- where there is a network ----------------------------------------------------------------------------------------


def image_is_as_many_tokens_as_counted(subject: Subject) -> None:
    """What the network makes of an image fits its places in the prompt and the width of the language model."""
    width = subject.network.language_model.get_input_embeddings().weight.shape[1]
    for height, wide in SIZES:
        tiles, grid = _cut(subject, height, wide)
        (embeddings,) = _embedded(subject, [(tiles, grid)])
        expected = (_prompts(subject).image_tokens(grid), width)
        assert tuple(embeddings.shape) == expected, f"an image became {tuple(embeddings.shape)}, not {expected}"


def images_do_not_depend_on_their_company(subject: Subject) -> None:
    """An image gives what it gives alone, whatever images are beside it."""
    tile = subject.variant.io.tile_size
    images = [_cut(subject, *size) for size in ((tile, tile), (tile, 2 * tile), (2 * tile, 2 * tile))]
    for index, embeddings in enumerate(_embedded(subject, images)):
        (alone,) = _embedded(subject, [images[index]])
        expect_close({"tokens": embeddings}, {"tokens": alone}, f"image {index} among others")


@torch.inference_mode()
def cache_holds_what_is_declared(subject: Subject) -> None:
    """The keys and values that the language model keeps of a prompt take as many bytes as declared, or hardly fewer."""
    assert subject.family.work is not None
    model, num_tokens = subject.network.language_model, 24
    embeddings = model.get_input_embeddings()(torch.arange(num_tokens)[None])
    cache = model(inputs_embeds=embeddings, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    sizes = ChatTokens(text_tokens=num_tokens, image_tokens=0, max_tokens=0)
    declared = subject.family.work.load()(subject.variant, sizes, subject.family.check_point({})).bytes_held
    assert held <= declared <= (1 + COUNTED) * held, f"{num_tokens} tokens hold {held} bytes; {declared} are declared"
