"""Packed sequences: what each gives alone, and what a mask of segments gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.families.vdit.rope3d import grid_positions
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE, reference
from models.methods.attention.thinned import ModelCall
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.methods.packing.attention import PackedAttention
from models.methods.packing.forward import packed_forward
from models.methods.packing.layout import BATCH, Packed
from tests.support.video_models import CAPTION_CHANNELS, tiny_transformer

RUNS = ((2, 3), (1, 7), (3, 1))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_packing_can_be_undone_and_copies_nothing_on_the_way_back() -> None:
    layout = Packed(RUNS)
    parts = [normal(count, length, 4, seed=length) for count, length in RUNS]
    packed = layout.pack(parts)
    assert packed.shape == (1, layout.num_tokens, 4) == (1, 16, 4)
    back = layout.unpack(packed)
    assert all(torch.equal(one, other) for one, other in zip(parts, back, strict=True))
    assert all(one.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr() for one in back)


def test_what_depends_on_the_sequence_sees_its_own_row() -> None:
    layout, values = Packed(RUNS), normal(6, 1, 4)
    tokens = normal(1, 16, 4, seed=1)
    rows = torch.arange(6).repeat_interleave(torch.tensor([3, 3, 7, 1, 1, 1]))
    assert torch.equal(layout.by_sequence(torch.mul, tokens, values)[0], tokens[0] * values[rows, 0])
    batch = normal(6, 3, 4)
    assert torch.equal(BATCH.by_sequence(torch.mul, batch, values), batch * values)


@pytest.mark.parametrize("runs", [(), ((0, 3),), ((1, 0),)])
def test_empty_runs_are_refused(runs: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Packed(runs)


def test_attention_is_that_under_a_mask_of_segments() -> None:
    layout = Packed(RUNS)
    mask = layout.mask()
    assert mask.sum() == sum(count * length**2 for count, length in RUNS)
    q, k, v = (normal(1, 16, 2, 8, seed=seed) for seed in range(3))
    ours = PackedAttention(layout, [DENSE] * len(RUNS))(q, k, v, layer=0)
    torch.testing.assert_close(ours, reference(q, k, v, mask), atol=1e-6, rtol=1e-5)


def call(model: Any, rows: int, grid: tuple[int, int, int], text_tokens: int, seed: int) -> ModelCall:
    """``grid``: of latents. Text is padded to 6 tokens."""
    mask = torch.arange(6)[None].expand(rows, -1) < text_tokens
    return ModelCall(
        transformer=model,
        latents=normal(rows, 4, *grid, seed=seed),
        timestep=torch.arange(rows) * 100 + seed,
        text=normal(rows, 6, CAPTION_CHANNELS, seed=seed + 50),
        text_mask=mask,
        step=0,
    )


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


def test_clips_of_any_length_and_size_together_are_what_each_is_alone() -> None:
    model = tiny_transformer()
    calls = [
        call(model, 2, (3, 4, 6), 5, seed=1),
        call(model, 1, (1, 8, 2), 6, seed=2),
        call(model, 3, (3, 4, 6), 2, seed=3),
        call(model, 1, (5, 2, 2), 1, seed=4),
    ]
    tile = TileAttention([TileMask(num_frames=3, references=1)] * 2, (3, 2, 3))
    of_calls: list[SelfAttention] = [DENSE, DENSE, tile, DENSE]
    with torch.inference_mode():
        together = packed_forward(model, calls, of_calls)
        for ours, one, attention in zip(together, calls, of_calls, strict=True):
            assert ours.shape == one.latents.shape
            assert close(ours, one.run(attention))


def test_network_is_that_under_a_mask_of_segments() -> None:
    """The plain twin has all tokens in one sequence and strikes out the pairs of different ones."""
    model = tiny_transformer()
    calls = [call(model, 1, (3, 4, 6), 6, seed=1), call(model, 2, (2, 2, 4), 6, seed=2)]
    timestep = torch.tensor([300, 300, 300])
    text = calls[0].text.expand(3, -1, -1)

    class Masked:
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
            return reference(q, k, v, layout.mask())

    with torch.inference_mode():
        tokens = [model.patchify(one.latents) for one in calls]
        layout = Packed(tuple((len(part), part.shape[1]) for part in tokens))
        positions = torch.cat([grid_positions((3, 2, 3)), grid_positions((2, 1, 2)), grid_positions((2, 1, 2))])
        one_row = model.conditioning(timestep[:1], text[:1])  # alike for all, so that no layout is needed
        values = model.project(model.run_blocks(layout.pack(tokens), positions, one_row, None, Masked()), one_row)
        alike = [
            ModelCall(
                transformer=model, latents=one.latents, timestep=timestep[: len(one.latents)],
                text=text[: len(one.latents)], text_mask=one.text_mask, step=0,
            )
            for one in calls
        ]  # fmt: skip
        together = packed_forward(model, alike, [DENSE, DENSE])
    for ours, theirs, one in zip(together, layout.unpack(values), calls, strict=True):
        grid = model.config.grid(*one.latents.shape[2:])
        assert math.prod(grid) == theirs.shape[1]
        assert close(ours, model.unpatchify(theirs, grid))
