"""Fingerprints: what a small change leaves, what another picture has not, what another secret does not know."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from loadtest.adversarial.pictures import FONTLESS, cases
from models.families.texthawk2.tiling import TilingLimits
from serving.guard.fingerprints import FINGERPRINT_BYTES, NEAR_AT, Fingerprints, Pixels, similarities

FINGERPRINTS = Fingerprints(b"s" * 32)


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    return [case.picture for task in FONTLESS for case in cases(task, 12, seed=5, limits=TilingLimits())]


def within(bound: int) -> Callable[[Pixels], Pixels]:
    def changed(picture: Pixels) -> Pixels:
        noise = np.random.default_rng(3).integers(-bound, bound + 1, picture.shape)
        return np.clip(picture + noise, 0, 255).astype(np.uint8)

    return changed


def jpeg(picture: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("change", [within(2), within(8), jpeg], ids=["2 levels", "8 levels", "JPEG"])
def test_a_picture_that_is_changed_a_little_is_known_again(
    pictures: list[Pixels], change: Callable[..., Pixels]
) -> None:
    alike = [similarities(FINGERPRINTS.of(one), FINGERPRINTS.of(change(one)))[0] for one in pictures]
    assert min(alike) >= NEAR_AT


def test_other_pictures_of_its_kind_are_not(pictures: list[Pixels]) -> None:
    all_of_them = [FINGERPRINTS.of(one) for one in pictures]
    for place, one in enumerate(all_of_them):
        others = b"".join(all_of_them[:place] + all_of_them[place + 1 :])
        assert similarities(one, others).max() < NEAR_AT / 1.5


def test_what_lies_in_one_tile_of_many_counts(pictures: list[Pixels]) -> None:
    tiles = np.stack(pictures[:6])
    other = tiles.copy()
    other[3:] = np.stack(pictures[6:9])
    shared = similarities(FINGERPRINTS.of(tiles), FINGERPRINTS.of(other))[0]
    assert 0.05 < shared < 0.8
    assert similarities(FINGERPRINTS.of(tiles), FINGERPRINTS.of(within(2)(tiles)))[0] >= NEAR_AT


def test_another_secret_makes_others(pictures: list[Pixels]) -> None:
    other = Fingerprints(b"t" * 32)
    assert max(similarities(FINGERPRINTS.of(one), other.of(one))[0] for one in pictures) < 0.1


def test_a_picture_without_anything_in_it_is_like_none() -> None:
    flat = FINGERPRINTS.of(np.full((224, 224, 3), 200, np.uint8))
    assert similarities(flat, flat)[0] == 0.0


def test_all_have_one_length() -> None:
    assert {len(FINGERPRINTS.of(np.zeros((size, size, 3), np.uint8))) for size in (32, 100, 448)} == {FINGERPRINT_BYTES}
    assert similarities(bytes(FINGERPRINT_BYTES), b"").shape == (0,)


def test_what_is_no_fingerprint_is_told() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        similarities(b"short", bytes(FINGERPRINT_BYTES))
