"""Tile masks: which frames see which, and that the published sparsities come out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from models.methods.attention.tile_mask import TileMask

_PUBLISHED = {
    "4:4": 17.60, "3:5": 29.88, "2:6": 45.47, "1:7": 64.38,
    "12:12": 21.51, "8:16": 40.30, "6:18": 51.88, "4:20": 64.98, "3:21": 72.05,
}  # fmt: skip


@pytest.mark.parametrize("name", _PUBLISHED)
def test_sparsity_is_the_published_one(name: str) -> None:
    """The paper measures at its own block size, which cuts through frames: within two points."""
    mask = TileMask.parse(name)
    assert mask.name == name
    assert abs(100 * mask.sparsity - _PUBLISHED[name]) < 2.0


@pytest.mark.parametrize(("num_frames", "references"), [(8, 2), (24, 3), (7, 3), (5, 0), (5, 5), (1, 1), (1, 0)])
def test_sparsity_is_the_share_of_pairs_that_the_mask_leaves_out(num_frames: int, references: int) -> None:
    mask = TileMask(num_frames=num_frames, references=references)
    assert mask.sparsity == pytest.approx(1 - mask.frame_mask().double().mean().item())


@pytest.mark.parametrize(("num_frames", "references"), [(8, 2), (24, 5), (7, 3), (9, 9), (4, 1)])
def test_references_are_distinct_and_evenly_spread(num_frames: int, references: int) -> None:
    frames = TileMask(num_frames=num_frames, references=references).reference_frames()
    assert len(set(frames)) == references
    gaps = [later - earlier for earlier, later in pairwise((*frames, num_frames))]
    assert all(num_frames // references <= gap <= -(-num_frames // references) for gap in gaps)


def test_frame_mask_written_out() -> None:
    mask = TileMask(num_frames=4, references=1).frame_mask()
    assert mask.tolist() == [
        [True, True, True, True],
        [True, True, False, False],
        [True, False, True, False],
        [True, False, False, True],
    ]


def test_token_mask_repeats_each_frame() -> None:
    mask = TileMask(num_frames=3, references=1)
    assert torch.equal(mask.token_mask(2), mask.frame_mask().repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("name", ["2", "a:b", "2:", ":6", "-1:9", "2:6:1", "0:0"])
def test_name_of_no_mask_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"mask"):
        TileMask.parse(name)


def test_more_references_than_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="9 reference frames of 8"):
        TileMask(num_frames=8, references=9)
