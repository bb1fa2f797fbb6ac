"""The pre-screen: what it finds strange and what it does not, and that its p-values are what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import median_filter  # type: ignore[import-untyped]

from serving.guard.features import MAX_PIXELS, NAMES, Pixels, _medians, features
from serving.guard.screen import FILE, ImageScreen, expanded, num_terms, p_value, read_head, shipped_screen
from tests.support.source_tree import ROOT

ATTACKED = ROOT / "docs" / "benchmarks" / "attacks"
SCREEN = shipped_screen(b"s" * 32)


def drawn(seed: int = 0) -> Pixels:
    """Rectangles on a plain ground."""
    rng = np.random.default_rng(seed)
    pixels = np.full((224, 224, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(6):
        x, y, width, height = rng.integers(10, 150, 4)
        pixels[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return pixels


# -- the shipped head ------------------------------------------------------------------------------------------------


def test_attacks_that_it_never_saw_are_strange() -> None:
    unseen = ("lingoloop", "special-tail", "verbose-strengthened")
    found = [path for path in sorted(ATTACKED.rglob("*.png")) if path.name.startswith(unseen)]
    assert len(found) >= len(unseen)
    p_values = [SCREEN.p_value(np.asarray(Image.open(path).convert("RGB"), np.uint8)) for path in found]
    assert np.median(p_values) <= 0.01
    assert max(p_values) <= 0.05


def test_drawings_are_not() -> None:
    p_values = [SCREEN.p_value(drawn(seed)) for seed in range(20)]
    assert min(p_values) > 0.05


def test_noise_of_an_attackers_bound_is_not() -> None:
    """Every pixel up or down by 8 levels: what an attack begins with, and nobody's model minds."""
    rng = np.random.default_rng(1)
    p_values = []
    for seed in range(20):
        noise = rng.choice([-8, 8], (224, 224, 3))
        p_values.append(SCREEN.p_value(np.clip(drawn(seed) + noise, 0, 255).astype(np.uint8)))
    assert np.mean(np.array(p_values) <= 0.01) <= 0.1


def test_it_tells_of_which_attacks_it_has_seen_none() -> None:
    known = SCREEN.head.provenance["attacks"]
    assert set(known) == {"delayed-eos", "verbose-released"}
    assert 1 not in SCREEN.head.provenance["seeds_of_attacks"], "the seed of the recorded runs"


def test_nothing_can_look_so_strange_that_its_p_value_is_0() -> None:
    least = min(1 / (1 + len(scores)) for scores in SCREEN.head.benign.values())
    assert p_value(SCREEN.head.benign, 1e9) == max(1 / (1 + len(scores)) for scores in SCREEN.head.benign.values())
    assert 0 < least <= 0.01


# -- p-values --------------------------------------------------------------------------------------------------------


def test_the_kind_that_it_is_most_like_decides() -> None:
    benign = {"plain": (0.0, 1.0, 2.0), "noise": (5.0, 6.0, 7.0)}
    assert p_value(benign, 4.0) == 1.0
    assert p_value(benign, 6.5) == 0.5
    assert p_value(benign, 9.0) == 0.25


def test_no_kind_is_strange_more_often_than_it_says() -> None:
    """Scores of a kind are exchangeable: its own p-value is super-uniform, and so is anything larger."""
    rng = np.random.default_rng(0)
    draw: dict[str, Callable[[], float]] = {
        "plain": lambda: rng.normal(),
        "noise": lambda: rng.normal(3.0, 2.0),
        "rare": lambda: rng.exponential(),
    }
    trials = 4000
    for kind in draw:
        strange = 0
        for _ in range(trials // 40):
            benign = {name: tuple(sorted(each() for _ in range(99))) for name, each in draw.items()}
            strange += sum(p_value(benign, draw[kind]()) <= 0.1 for _ in range(40))
        assert strange / trials <= 0.1 + 0.02


# -- heads that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "train it again"),
        ({"features": ("size",)}, "train it again"),
        ({"weights": (1.0,)}, "weights"),
        ({"scale": (0.0,) * len(NAMES)}, "positive"),
        ({"benign": {}}, "calibrate"),
        ({"benign": {"plain": ()}}, "calibrate"),
        ({"benign": {"plain": (2.0, 1.0)}}, "ascending"),
    ],
)
def test_a_head_that_contradicts_itself_is_none(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ImageScreen(msgspec.structs.replace(SCREEN.head, **change))


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}'])
def test_a_file_that_is_no_head_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "no_head"
    path.write_text(text)
    with pytest.raises(ValueError, match="no_head"):
        read_head(path)


def test_the_shipped_file_is_small_and_says_where_it_is_from() -> None:
    assert FILE.stat().st_size < 200_000
    assert json.loads(FILE.read_text())["provenance"]["command"].startswith("python -m tests.benchmarks.guard")


# -- features --------------------------------------------------------------------------------------------------------


def test_medians_are_medians() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (3, 2, 20, 30), np.uint8)
    assert np.array_equal(_medians(noise), median_filter(noise, (1, 1, 3, 3))[..., 1:-1, 1:-1])


@pytest.mark.parametrize("shape", [(32, 32, 3), (50, 75, 3), (224, 224, 3), (13, 224, 224, 3), (2, 448, 448, 3)])
@pytest.mark.parametrize("fill", [0, 255, None])
def test_every_picture_has_finite_features(shape: tuple[int, ...], fill: int | None) -> None:
    pixels = (
        np.random.default_rng(3).integers(0, 256, shape, np.uint8) if fill is None else np.full(shape, fill, np.uint8)
    )
    found = features(pixels, b"secret")
    assert found.shape == (len(NAMES),)
    assert np.isfinite(found).all()
    assert 0 < SCREEN.p_value(pixels) <= 1


def test_one_tile_is_the_same_with_and_without_its_axis() -> None:
    assert np.array_equal(features(drawn()), features(drawn()[None]))


def test_of_many_tiles_every_one_gives_a_strip_where_the_secret_says() -> None:
    tiles = np.stack([drawn(seed) for seed in range(13)])
    assert tiles[..., 0].size > 2 * MAX_PIXELS
    assert not np.array_equal(features(tiles, b"one secret"), features(tiles, b"another secret"))
    assert np.array_equal(features(tiles, b"one secret"), features(tiles, b"one secret"))
    noise = np.random.default_rng(4).choice([-8, 8], tiles.shape[1:])
    noisy = tiles.copy()
    noisy[7] = np.clip(tiles[7] + noise, 0, 255)
    assert not np.array_equal(features(noisy, b"one secret"), features(tiles, b"one secret")), "whichever is changed"


def test_terms_are_features_and_their_products() -> None:
    terms = expanded([3.0, 5.0], [1.0, 1.0], [1.0, 2.0])
    assert terms.tolist() == [2.0, 2.0, 2.0, 2.0, 2.0]
    assert expanded([100.0, 1.0], [0.0, 1.0], [1.0, 1.0])[0] == 4.0, "no feature decides alone"
    assert len(terms) == num_terms(2)
