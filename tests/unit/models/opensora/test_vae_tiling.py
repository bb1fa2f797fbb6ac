"""Decoding in tiles: equal to the whole where that can be, against a plain twin elsewhere, and how much it holds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.vae_config import CausalVaeConfig, VaeTiling
from models.families.vdit.vae_memory import predicted_peak_bytes
from models.families.vdit.vae_tiling import runs, tiled_decode

CONFIG = dataclasses.replace(
    CausalVaeConfig.published(), hidden_size=8, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1, norm_num_groups=4
)
TILING = VaeTiling(side_px=32, latent_frames=3, overlap=0.25)


@pytest.fixture(scope="module")
def vae() -> CausalVae:
    torch.manual_seed(0)
    return CausalVae(CONFIG).eval().requires_grad_(False)


def latents(*grid: int) -> Tensor:
    return torch.randn(1, 4, *grid, generator=torch.Generator().manual_seed(1))


class Copying(CausalVae):
    """Every pixel is the latent above it: position-independent, so that tiles must give what the whole gives."""

    def decode(self, latents: Tensor) -> Tensor:
        time = torch.cat([latents[:, :, :1], latents[:, :, 1:].repeat_interleave(4, 2)], dim=2)
        return time.repeat_interleave(8, 3).repeat_interleave(8, 4)[:, :3].clone()


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 4, 4), (2, 3, 4)])
def test_clip_of_one_tile_is_decoded_bit_for_bit_as_a_whole(vae: CausalVae, grid: tuple[int, int, int]) -> None:
    assert torch.equal(tiled_decode(vae, latents(*grid), TILING), vae.decode(latents(*grid)))


@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.25, 0.5])
@pytest.mark.parametrize("grid", [(1, 5, 4), (4, 4, 4), (5, 7, 9), (7, 13, 2), (2, 6, 11)])
def test_tiles_meet_where_they_should(grid: tuple[int, int, int], overlap: float) -> None:
    copying = Copying(CONFIG)
    found = tiled_decode(copying, latents(*grid), dataclasses.replace(TILING, overlap=overlap))
    torch.testing.assert_close(found, copying.decode(latents(*grid)))


def test_neighbours_are_blended_linearly(vae: CausalVae) -> None:
    z = latents(2, 3, 7)
    left, right = vae.decode(z[..., :4]), vae.decode(z[..., 3:7])
    weight = torch.arange(8) / 8
    seam = left[..., 24:32] * (1 - weight) + right[..., :8] * weight
    expected = torch.cat([left[..., :24], seam, right[..., 8:24], right[..., 24:]], dim=4)
    # A third tile begins at latent 6 and covers the last column only: blended over what the second has there.
    third = vae.decode(z[..., 6:7])
    expected[..., 48:56] = right[..., 24:32] * (1 - weight) + third * weight
    torch.testing.assert_close(tiled_decode(vae, z, TILING), expected)


def test_runs_share_a_frame_whose_second_copy_is_dropped(vae: CausalVae) -> None:
    z = latents(5, 3, 2)
    expected = torch.cat([vae.decode(z[:, :, :3]), vae.decode(z[:, :, 2:])[:, :, 1:]], dim=2)
    torch.testing.assert_close(tiled_decode(vae, z, TILING), expected)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(1, [(0, 1)]), (16, [(0, 16)]), (17, [(0, 16), (15, 17)]), (31, [(0, 16), (15, 31)]), (24, [(0, 16), (15, 24)])],
)
def test_runs_are_those_of_the_official_code(frames: int, expected: list[tuple[int, int]]) -> None:
    assert list(runs(frames, 16)) == expected


def test_no_more_than_a_tile_is_decoded_at_once() -> None:
    shapes: list[tuple[int, ...]] = []

    class Watched(Copying):
        def decode(self, latents: Tensor) -> Tensor:
            shapes.append(tuple(latents.shape[2:]))
            return super().decode(latents)

    tiled_decode(Watched(CONFIG), latents(9, 10, 10), TILING)
    assert max(shapes) == (3, 4, 4)
    assert len(shapes) == 4 * 16  # runs 0-3, 2-5, 4-7, 6-9; tiles begin at 0, 3, 6, 9 along both sides


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"side_px": 20}, "multiple of 8"), ({"latent_frames": 1}, "at least 2"), ({"overlap": 0.6}, r"0\.\.0\.5")],
)
def test_tiles_that_cannot_be_are_refused(vae: CausalVae, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiled_decode(vae, latents(1, 1, 1), dataclasses.replace(TILING, **changes))  # type: ignore[arg-type]


# -- memory ------------------------------------------------------------------------------------------------------------


def test_prediction_for_tiles_grows_with_the_clip_only() -> None:
    config, tiling = CausalVaeConfig.published(), VaeTiling()
    short = predicted_peak_bytes(config, 93, 720, 1280, tiling)
    long = predicted_peak_bytes(config, 185, 720, 1280, tiling)
    assert long - short == 92 * 720 * 1280 * 3 * 4


def test_prediction_is_the_same_where_one_tile_covers_all() -> None:
    config = CausalVaeConfig.published()
    assert predicted_peak_bytes(config, 29, 256, 256, VaeTiling()) == predicted_peak_bytes(config, 29, 256, 256)


def test_prediction_scales_with_batch_and_precision() -> None:
    one = predicted_peak_bytes(CONFIG, 5, 64, 64)
    assert (
        predicted_peak_bytes(CONFIG, 5, 64, 64, batch=2)
        == 2 * one
        == 4 * predicted_peak_bytes(CONFIG, 5, 64, 64, element_bytes=2)
    )


def test_prediction_of_a_clip_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="6 frames"):
        predicted_peak_bytes(CONFIG, 6, 64, 64)
