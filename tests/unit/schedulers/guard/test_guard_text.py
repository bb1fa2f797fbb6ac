"""What the text of a request alone says: the same everywhere, at a bounded price, and nothing of the picture."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.guard.text import BANDS, MIN_DIMENSIONS, Asked, TextModel, features, group_of


@given(st.text(max_size=300), st.integers(0, 4), st.booleans())
def test_features_are_few_finite_and_of_known_length(text: str, num_images: int, is_structured: bool) -> None:
    found = features(Asked(text, num_images, 1, is_structured), 64)
    assert set(found) <= set(range(64))
    assert all(map(math.isfinite, found.values()))
    hashed = [value for place, value in found.items() if place >= MIN_DIMENSIONS - 1]
    assert not hashed or sum(value * value for value in hashed) == pytest.approx(1.0)


def test_features_are_those_of_every_other_process() -> None:
    """``hash`` of a string differs from one process to the next."""
    code = "from schedulers.guard.text import *; print(features(Asked('Describe the page in 3 lines, please'), 256))"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert runs == {f"{features(Asked('Describe the page in 3 lines, please'), 256)}\n"}


def test_words_their_neighbours_and_numbers_tell_texts_apart() -> None:
    texts = ["Name one thing", "Name 20 things", "Name 200 things", "one thing Name", "name one thing?"]
    assert len({tuple(sorted(features(Asked(text), 1024).items())) for text in texts}) == len(texts)


def test_of_a_long_text_both_ends_are_read_and_no_more() -> None:
    middle = "word " * 100_000
    assert features(Asked(f"begin {middle} end"), 512) != features(Asked(f"begin {middle} stop"), 512)
    assert len(features(Asked(" ".join(map(str, range(100_000)))), 1 << 20)) < 2000
    digits = features(Asked("9" * 100_000), 64)
    assert all(map(math.isfinite, digits.values()))


def test_model_is_linear_and_never_below_zero() -> None:
    weights = [0.0] * 64
    weights[2] = 1.0  # of the largest number
    model = TextModel(weights=tuple(weights), intercept=0.5)
    assert model.log_tokens(Asked("Name 20 things")) == pytest.approx(0.5 + math.log(21))
    assert TextModel(weights=(0.0,) * 64, intercept=-3.0).log_tokens(Asked("x")) == 0.0


def test_models_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="need at least"):
        TextModel(weights=(0.0,))
    with pytest.raises(ValueError, match="not finite"):
        TextModel(weights=(math.nan,) * 64)
    with pytest.raises(ValueError, match="need at least"):
        features(Asked("x"), 2)


def test_groups_are_bands_of_predicted_length_with_structured_answers_apart() -> None:
    assert group_of(Asked("x"), math.log1p(3)) == "free-16"
    assert group_of(Asked("x"), math.log1p(BANDS[0])) == "free-64"
    assert group_of(Asked("x", is_structured=True), math.log1p(3)) == "structured-16"
    assert group_of(Asked("x"), math.log1p(10 * BANDS[-1])) == "free-more"
    assert group_of(Asked("x", num_images=1), 2.0) == group_of(Asked("x", num_images=1), 2.0)
