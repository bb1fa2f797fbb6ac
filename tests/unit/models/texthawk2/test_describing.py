"""Answers of three lengths: the picture settles them, and what is true of them is counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from models.training.texthawk2.synth.describing import (
    FACTS,
    KINDS,
    PLACES,
    QUESTIONS,
    Kind,
    Scene,
    Seen,
    answer_of,
    judge,
    place_of,
    scene,
)
from models.training.texthawk2.synth.fonts import Split
from models.training.texthawk2.synth.words import held_out
from tests.support.synth_fonts import DEJAVU

STAR = Seen("red star", "a red star", False, "top left")
CIRCLE = Seen("orange circle", "an orange circle", False, "centre")
PRICE = Seen("12.50", "the word 12.50", True, "bottom")
WORD = Seen("Apple", "the word Apple", True, "right")


def _scenes(split: Split = "train", number: int = 80) -> list[Scene]:
    rng = np.random.default_rng(1)
    return [scene(rng, split, DEJAVU) for _ in range(number)]


@pytest.mark.parametrize(
    "things", [(STAR,), (PRICE,), (STAR, PRICE), (WORD, STAR, CIRCLE), (CIRCLE, WORD, PRICE, STAR)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_right_answer_states_nothing_but_facts(kind: Kind, things: tuple[Seen, ...]) -> None:
    found = judge(answer_of(kind, things), things)
    assert sum(found.stated.values()) >= 1
    assert found.true == found.stated


def test_list_names_every_thing_its_place_and_how_many_there_are() -> None:
    things = (WORD, STAR, CIRCLE)
    answer = answer_of("list", things)
    assert answer.split("\n") == [
        "The picture has two shapes and one word.",
        "1. the word Apple, right",
        "2. a red star, top left",
        "3. an orange circle, centre",
        "Nothing else is in the picture.",
    ]
    found = judge(answer, things)
    assert (found.named, found.things) == (3, 3)
    assert found.stated == {"shape": 2, "word": 1, "place": 3, "number": 2}


def test_other_kinds_are_shorter() -> None:
    assert answer_of("caption", (STAR,)) == "red star"
    assert answer_of("caption", (WORD, STAR, CIRCLE)) == "three things"
    assert answer_of("caption", (WORD,)) == "one word"
    assert answer_of("description", (STAR, PRICE)) == "I see a red star and the word 12.50."
    of_four = answer_of("description", (CIRCLE, WORD, PRICE, STAR))
    assert of_four == "I see four things, among them an orange circle, the word Apple and the word 12.50."


@pytest.mark.parametrize(
    ("answer", "kind", "stated", "true"),
    [
        ("I see a blue star.", "shape", 1, 0),
        ("I see a red star, a red star and an orange circle.", "shape", 3, 2),
        ("I see the word Appel and the word 12.50.", "word", 2, 1),
        ("1. a red star, top left\n2. an orange circle, bottom", "place", 2, 1),
        ("1. a red star, top left\n2. a red star, top left", "place", 2, 1),
        ("The picture has three shapes and two words.", "number", 2, 1),
        ("four things", "number", 1, 1),
    ],
)
def test_what_is_not_so_is_counted(answer: str, kind: str, stated: int, true: int) -> None:
    found = judge(answer, (STAR, CIRCLE, WORD, PRICE))
    assert (found.stated[kind], found.true[kind]) == (stated, true)


def test_answer_that_says_nothing_states_no_fact() -> None:
    found = judge("Nothing else is in the picture.", (STAR,))
    assert {kind: found.stated[kind] for kind in FACTS} == dict.fromkeys(FACTS, 0)
    assert found.named == 0


def test_places_are_thirds() -> None:
    assert [place_of(x, y) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)] == list(PLACES)
    assert PLACES == (
        "top left",
        "top",
        "top right",
        "left",
        "centre",
        "right",
        "bottom left",
        "bottom",
        "bottom right",
    )


def test_kinds_differ_in_length_by_the_question_alone() -> None:
    rng = np.random.default_rng(2)
    lengths = {kind: [len(one.example(rng, kind).turns[0][1]) for one in _scenes()] for kind in KINDS}
    assert 5 <= min(lengths["caption"]) <= max(lengths["caption"]) <= 16
    assert 25 <= min(lengths["description"]) <= max(lengths["description"]) <= 100
    assert 75 <= min(lengths["list"]) <= max(lengths["list"]) <= 260
    assert np.quantile(lengths["description"], 0.95) < np.quantile(lengths["list"], 0.25)


def test_no_question_is_asked_for_two_kinds_of_answers() -> None:
    asked = [question for kind in KINDS for question in QUESTIONS[kind]]
    assert len(asked) == len(set(asked)) >= 15


@pytest.mark.parametrize("split", ["train", "test"])
def test_things_are_those_of_the_picture_and_their_words_of_the_split(split: Split) -> None:
    seen = _scenes(split, 30)
    assert {held_out(thing.name) for one in seen for thing in one.things if thing.is_text} == {split != "train"}
    blank = [np.asarray(one.image).std() < 1 for one in seen]
    assert not any(blank)
    rng = np.random.default_rng(3)
    for one in seen:
        answers = {one.example(rng, "list").turns[0][1] for _ in range(3)}
        assert len(answers) == 1
        assert judge(answers.pop(), one.things).named == len(one.things)
        moved = [dataclasses.replace(thing, place="nowhere") for thing in one.things]
        assert judge(answer_of("list", one.things), moved).true["place"] == 0
