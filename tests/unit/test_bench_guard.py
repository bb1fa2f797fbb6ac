"""``bench-guard``: what is replayed is what was recorded, guarded as it would be served, and counted once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from schedulers.guard.calibration import Group, GuardCalibration
from schedulers.guard.text import Asked, TextModel
from schedulers.policies.guard import Action
from tests.benchmarks.guard import corpus
from tests.benchmarks.guard.corpus import HARD_FROM, MODELS, Part, hard_places, items, photo
from tests.benchmarks.guard.judged import BUCKETS, bucket, joules_of
from tests.benchmarks.guard.replay import Answered, replayed

CAP = 20
CALIBRATION = GuardCalibration(
    model="m",
    checkpoint_sha256="",
    num_benign=1000,
    text=TextModel(weights=(0.0,) * 16, intercept=math.log1p(10)),
    groups={
        "all": Group(
            num=1000,
            p95_tokens=CAP,
            residuals=tuple(i / 1000 - 0.5 for i in range(1000)),
            squeeze=tuple(i / 100_000 for i in range(1000)),
        )
    },
)
LONG = Answered(
    asked=Asked("Read the word.", num_images=1),
    token_ids=tuple(range(10, 310)),
    log_p_ends=(-9.0,) * 300,
    is_ended=True,
)


def test_an_ordinary_answer_passes_whole() -> None:
    outcome = replayed(replace(LONG, token_ids=LONG.token_ids[:8], log_p_ends=LONG.log_p_ends[:8]), CALIBRATION)
    assert (outcome.verdict.action, outcome.tokens, outcome.probe_tokens) == (Action.NORMAL, 8, 0)
    assert (outcome.is_glanced, outcome.suspect_at) == (False, None)


def test_a_long_answer_is_ended_once_its_copy_has_ended_and_both_are_counted() -> None:
    outcome = replayed(replace(LONG, purified=(6, True)), CALIBRATION)
    assert outcome.verdict.action is Action.CAPPED
    assert outcome.suspect_at is not None
    assert (
        outcome.tokens == outcome.suspect_at + 6 + 1
    )  # the copy is told about after its tokens, and heeded at the next
    assert outcome.probe_tokens == 6
    assert outcome.combined <= 0.01


def test_a_long_answer_whose_copy_is_long_too_runs_on() -> None:
    outcome = replayed(replace(LONG, purified=(CAP, False)), CALIBRATION)
    assert (outcome.verdict.action, outcome.tokens, outcome.probe_tokens) == (Action.DEPRIORITISED, 300, CAP)


def test_a_copy_that_nobody_asked_about_ends_nothing() -> None:
    outcome = replayed(LONG, CALIBRATION)
    assert (outcome.verdict.action, outcome.tokens) == (Action.DEPRIORITISED, 300)


def test_an_embedding_that_moves_makes_it_shorter() -> None:
    seen = replace(LONG, p_screen=0.009, squeeze=0.9, purified=(6, True))
    outcome = replayed(seen, CALIBRATION)
    assert (outcome.is_glanced, outcome.suspect_at) == (True, 1)
    assert outcome.tokens < CAP
    assert outcome.p_values["squeeze"] == pytest.approx(1 / 1001)


def test_a_layer_that_is_switched_off_says_nothing() -> None:
    seen = replace(LONG, p_screen=0.009, squeeze=0.9, purified=(6, True))
    outcome = replayed(seen, CALIBRATION, layers=("length", "confirm"))
    assert set(outcome.p_values) == {"length"}
    assert not outcome.is_glanced


@pytest.mark.parametrize(
    ("times", "name"), [(1.0, "1 to 1.5"), (1.5, "1.5 to 2"), (5.9, "4 to 6"), (50.0, "10 and more")]
)
def test_buckets_have_their_lower_edge(times: float, name: str) -> None:
    assert bucket(times) == name


def test_every_edge_has_a_bucket() -> None:
    assert len({bucket(edge) for edge in (1.0, *BUCKETS)}) == len(BUCKETS) + 1


def test_without_timed_attacks_no_joules_are_made_up() -> None:
    assert joules_of([]) == (0.0, 0.0)


@pytest.mark.parametrize("model", MODELS)
def test_an_item_is_the_same_whenever_it_is_drawn(model: str) -> None:
    (alone,) = items(model, "evaluation", [3])
    among = list(items(model, "evaluation", range(5)))
    assert (alone.files, alone.question) == (among[3].files, among[3].question)
    (other,) = items(model, "calibration", [3])
    assert other.files != alone.files


def test_hard_places_have_hard_items_and_leave_none_out() -> None:
    places = hard_places(MODELS[0], "evaluation", 2)
    assert HARD_FROM <= places[0] < places[1]
    assert all(item.is_hard for item in items(MODELS[0], "evaluation", places))
    between = [place for place in range(HARD_FROM, places[1]) if place not in places]
    assert not any(item.is_hard for item in items(MODELS[0], "evaluation", between))


def test_each_part_has_a_photograph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shades: dict[str, int] = {}
    monkeypatch.setattr(
        corpus, "_photograph", lambda name: Image.new("L", (300, 200), shades.setdefault(name, 50 * len(shades)))
    )
    parts: tuple[Part, ...] = ("calibration", "evaluation")
    seen = [
        {photo(np.random.default_rng(place), part, 8).getpixel((4, 4)) for place in range(20)} for part in parts
    ]
    assert [len(of_part) for of_part in seen] == [1, 1]
    assert seen[0] != seen[1]
