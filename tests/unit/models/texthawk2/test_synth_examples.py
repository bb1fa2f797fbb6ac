"""Examples: the same from the same seed, true about their pictures, and never of another split."""

from __future__ import annotations

import re
from itertools import count, pairwise

import numpy as np
import pytest
from PIL import Image

from models.families.texthawk2.coordinates import Box, format_box
from models.families.texthawk2.tiling import Grid, best_grid
from models.training.texthawk2.synth import finding, reading
from models.training.texthawk2.synth.backgrounds import background, ink_colour, luminance
from models.training.texthawk2.synth.example import Example
from models.training.texthawk2.synth.examples import CHINESE_TASKS, TASKS, WEIGHTS, sample
from models.training.texthawk2.synth.finding import COLOURS
from models.training.texthawk2.synth.fonts import SPLITS, FontSet, Split
from models.training.texthawk2.synth.scene import (
    LIMITS,
    SHAPES,
    Frame,
    Placed,
    any_frame,
    block_thing,
    inked,
    many_tiles,
    one_tile,
    rows_of,
    scatter,
    shape_thing,
    strip,
    text_thing,
)
from models.training.texthawk2.synth.words import held_out
from tests.support.synth_fonts import DEJAVU, WITH_CHINESE, needs_chinese_fonts

LATIN_TASKS = sorted(set(TASKS) - set(CHINESE_TASKS))
_FACE = DEJAVU.latin[0][0]


def _all(task: str, split: Split, number: int, fonts: FontSet = DEJAVU) -> list[Example]:
    rng = np.random.default_rng(1)
    return [TASKS[task](rng, split, fonts) for _ in range(number)]


# -- every task ------------------------------------------------------------------------------------------------------


def _check(example: Example, task: str) -> None:
    assert example.task == task
    assert example.image.mode == "RGB"
    assert 1 <= len(example.turns) <= (10 if task == "interview" else 3)
    assert all(question and answer for question, answer in example.turns)
    pixels = np.asarray(example.image)
    for box in example.boxes:
        rows = slice(int(box.y1 * pixels.shape[0]), int(box.y2 * pixels.shape[0]) + 1)
        columns = slice(int(box.x1 * pixels.shape[1]), int(box.x2 * pixels.shape[1]) + 1)
        assert pixels[rows, columns].std(axis=(0, 1)).max() > 8, "there is ink in every box"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", LATIN_TASKS)
def test_task_is_sound_and_drawn_again_from_the_same_seed(task: str, split: Split) -> None:
    for first, second in zip(_all(task, split, 12), _all(task, split, 12), strict=True):
        _check(first, task)
        assert first.turns == second.turns
        np.testing.assert_array_equal(np.asarray(first.image), np.asarray(second.image))


@needs_chinese_fonts
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", sorted(TASKS))
def test_task_with_chinese_fonts(task: str, split: Split) -> None:
    for first, second in zip(_all(task, split, 6, WITH_CHINESE), _all(task, split, 6, WITH_CHINESE), strict=True):
        _check(first, task)
        assert first.turns == second.turns


@pytest.mark.parametrize("split", SPLITS)
def test_words_belong_to_their_split(split: Split) -> None:
    texts = [example.turns[0][1] for task in ("word", "line", "page") for example in _all(task, split, 15)]
    words = [word for text in texts for word in text.split()]
    assert len(words) > 200
    assert {held_out(word) for word in words} == {split != "train"}


@needs_chinese_fonts
@pytest.mark.parametrize("split", SPLITS)
def test_chinese_strings_belong_to_their_split(split: Split) -> None:
    texts = [example.turns[0][1] for example in _all("chinese", split, 40, WITH_CHINESE)]
    texts += [
        re.findall('"(.*)"', question)[0]
        for example in _all("chinese_ground", split, 20, WITH_CHINESE)
        for question, _ in example.turns
    ]
    assert {held_out(text) for text in texts} == {split != "train"}


def test_boxes_of_text_and_example_must_agree() -> None:
    image, box = Image.new("RGB", (10, 10)), Box(0.1, 0.2, 0.3, 0.4)
    Example(image, "task", (("Where?", format_box(*box)),), (box,))
    with pytest.raises(ValueError, match="differ"):
        Example(image, "task", (("Where?", format_box(*box)),), ())
    with pytest.raises(ValueError, match="differ"):
        Example(image, "task", (("Where?", format_box(*box)),), (Box(0.1, 0.2, 0.3, 0.41),))


# -- what is on the picture ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_named_shape_is_in_its_box(split: Split) -> None:
    """The middle of a shape has its colour: the nearest of all named ones."""
    seen = 0
    for example in _all("ground_shape", split, 60):
        pixels = np.asarray(example.image).astype(int)
        for (question, _), box in zip(example.turns, example.boxes, strict=True):
            colour = next(name for name in COLOURS if name in question)
            y = box.y1 + (box.y2 - box.y1) * 0.55
            row, column = int(y * pixels.shape[0]), int((box.x1 + box.x2) / 2 * pixels.shape[1])
            middle = pixels[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
            nearest = min(COLOURS, key=lambda name: float(np.abs(middle - COLOURS[name]).sum()))
            assert nearest == colour, question
            seen += 1
    assert seen > 60


def test_questions_of_one_example_are_about_different_things() -> None:
    for example in _all("ground_shape", "train", 40) + _all("ground_text", "train", 40):
        names = [re.sub("^(Where is|Find|Locate) ", "", question).rstrip("?.") for question, _ in example.turns]
        assert len(set(names)) == len(names)


def test_counts_fit_each_other() -> None:
    seen = set()
    for example in _all("count", "train", 150):
        answers = {re.sub(r"^(How many|Count the) | are there|[?.]", "", q): int(a) for q, a in example.turns}
        seen |= set(answers.values())
        total = answers.get("shapes", 8)
        assert all(0 <= number <= total for number in answers.values())
        for name, number in answers.items():
            for part in name.split():
                assert number <= answers.get(part, answers.get(f"{part} shapes", 8))
    assert seen >= set(range(6))


def test_counted_shapes_are_there() -> None:
    """On plain papers the pieces of ink can be counted again by filling them."""
    counted = 0
    for example in _all("count", "val", 80):
        numbers = [int(answer) for question, answer in example.turns if re.search(r"(many|the) shapes", question)]
        pieces = _pieces(np.asarray(example.image).astype(int))
        if numbers and pieces is not None:
            assert pieces == numbers[0]
            counted += 1
    assert counted > 5


def _pieces(pixels: np.ndarray) -> int | None:
    """Connected areas that differ from a plain paper; None where the paper is not plain. Tips of stars do not count."""
    values, occurrences = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    if occurrences.max() < 0.5 * occurrences.sum():
        return None
    ink = np.abs(pixels - values[occurrences.argmax()]).max(axis=2) > 60
    pieces = 0
    while ink.any():
        reached = np.zeros_like(ink)
        reached[tuple(np.argwhere(ink)[0])] = True
        while True:
            grown = np.pad(reached, 1)
            grown = (grown[:-2] | grown[2:])[:, 1:-1] | (grown[:, :-2] | grown[:, 2:])[1:-1] | reached
            grown &= ink
            if (grown == reached).all():
                break
            reached = grown
        ink &= ~reached
        pieces += int(np.count_nonzero(reached) >= 12)
    return pieces


def test_caption_names_things_in_the_order_of_reading() -> None:
    names = {f"{'an' if c[0] == 'o' else 'a'} {c} {s}" for c in COLOURS for s in SHAPES}
    for example in _all("caption", "train", 40):
        parts = re.split(", | and ", example.turns[0][1])
        assert all(part in names or part.startswith("the word ") for part in parts)


def test_box_that_is_asked_about_holds_the_thing() -> None:
    answers = {answer for example in _all("read_box", "train", 60) for _, answer in example.turns}
    shapes = {answer for answer in answers if answer.split()[-1] in SHAPES}
    assert shapes <= {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
    assert len(shapes) > 5
    assert len(answers - shapes) > 20


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_absent_is_not_there(split: Split) -> None:
    shown = [finding.Figure(shape_thing("circle", 30.0, f"{colour} circle"), COLOURS[colour]) for colour in COLOURS]
    shown.append(finding.Figure(text_thing(_FACE, 30, "Apple"), None))
    rng = np.random.default_rng(0)
    asked = [finding._missing(rng, split, shown) for _ in range(300)]
    assert {answer for _, answer in asked} == {finding.NONE}
    assert not any(figure.thing.name in question for question, _ in asked for figure in shown)
    assert any("the word" in question for question, _ in asked)
    assert any(shape in question for question, _ in asked for shape in SHAPES)
    assert any("hexagon" in question for question, _ in asked) == (split == "test")


def test_interview_asks_of_each_thing_once() -> None:
    for example in _all("interview", "train", 40):
        assert len(example.boxes) == len({tuple(box) for box in example.boxes})
        told = [answer for _, answer in example.turns if "<box>" not in answer]
        named = [q for q, answer in example.turns if "<box>" in answer]
        things = [name for name in told if name != finding.NONE and not name.isdigit()]
        assert not any(f"the {thing}" in question for thing in things for question in named)


def test_two_pictures_are_told_apart() -> None:
    for example in _all("two_pictures", "train", 30):
        assert len(example.images) == 2
        for question, answer in example.turns:
            assert (answer.count("\n") == 1) == ("first" not in question and "second" not in question)


def test_pages_are_long_and_fit() -> None:
    pages = [example.turns[0][1] for example in _all("page", "train", 40)]
    assert all(3 <= page.count("\n") + 1 <= 10 for page in pages)
    assert max(map(len, pages)) > 180
    assert max(map(len, pages)) < 330


# -- things and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.0, 5.0, -6.0])
@pytest.mark.parametrize("what", [*SHAPES, "text", "block"])
def test_box_is_the_ink(what: str, degrees: float) -> None:
    if what == "text":
        thing = text_thing(_FACE, 30, "Apple", degrees)
    elif what == "block":
        thing = block_thing([(_FACE, 20, "two"), (_FACE, 30, "lines")], 1.3, 0.0, degrees)
    else:
        thing = shape_thing(what, 40.0, what, degrees)
    frame, placed = Frame(200, 160), Placed(thing, 31, 17)
    picture = inked(Image.new("RGB", frame.size), [placed], [(255, 255, 255)])
    edges = picture.getbbox()
    assert edges == placed.edges
    box = placed.box(frame)
    assert (box.x1 * 200, box.y1 * 160, box.x2 * 200, box.y2 * 160) == pytest.approx(edges)


def test_shapes_are_as_large_as_they_say() -> None:
    assert shape_thing("square", 40.0, "s").ink.size == pytest.approx((40, 40), abs=2)
    assert shape_thing("circle", 40.0, "c").ink.size == pytest.approx((40, 40), abs=2)
    area = {shape: np.asarray(shape_thing(shape, 40.0, shape).ink).sum() / 255 for shape in SHAPES}
    assert area["square"] == pytest.approx(1600, rel=0.05)
    assert area["circle"] == pytest.approx(np.pi * 400, rel=0.05)
    assert area["star"] < area["triangle"] < area["circle"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_scattered_things_stay_inside_and_apart(split: Split) -> None:
    frame, things = Frame(200, 140), [shape_thing("circle", 45.0, str(i)) for i in range(6)]
    for seed in range(10):
        placed = scatter(np.random.default_rng(seed), split, frame, things)
        covered = np.zeros((140, 200), int)
        for one in placed:
            left, top, right, bottom = one.edges
            assert left >= 0
            assert top >= 0
            covered[top:bottom, left:right] += 1
            assert right <= 200
            assert bottom <= 140
        assert covered.max() == 1
        assert len(placed) >= 3


def test_thing_larger_than_the_frame_is_left_out() -> None:
    assert scatter(np.random.default_rng(0), "train", Frame(40, 40), [shape_thing("square", 60.0, "s")]) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_keep_the_order_of_reading(split: Split) -> None:
    rows = [[shape_thing("circle", 30.0, f"{row}{column}") for column in range(2)] for row in range(3)]
    placed = rows_of(np.random.default_rng(0), split, Frame(224, 224), rows)
    assert [one.thing.name for one in placed] == ["00", "01", "10", "11", "20", "21"]
    for first, second in pairwise(placed):
        if first.thing.name[0] == second.thing.name[0]:
            assert first.edges[2] <= second.edges[0]
        else:
            assert first.edges[3] <= second.edges[1]


def test_frames_become_the_tiles_that_they_say() -> None:
    rng = np.random.default_rng(0)
    grids = [best_grid(frame.height, frame.width, LIMITS) for frame in (one_tile(rng) for _ in range(200))]
    assert set(grids) == {Grid(1, 1)}
    larger = [best_grid(frame.height, frame.width, LIMITS) for frame in (many_tiles(rng) for _ in range(200))]
    assert all(2 <= grid.rows * grid.cols <= 6 for grid in larger)
    assert len(set(larger)) >= 6
    share = np.mean([best_grid(f.height, f.width, LIMITS) == Grid(1, 1) for f in (any_frame(rng) for _ in range(500))])
    assert 0.62 < share < 0.78
    assert all(best_grid(f.height, f.width, LIMITS).rows == 1 for f in (strip(rng) for _ in range(50)))


def test_zoom_is_that_of_the_grid() -> None:
    assert Frame(224, 224).zoom == 1
    assert Frame(112, 112).zoom == 2
    assert Frame(448, 224).zoom == 1
    assert Frame(100, 50).zoom == pytest.approx(4.48)


@pytest.mark.parametrize("split", SPLITS)
def test_ink_stands_out_from_the_background(split: Split) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        paper = tuple(int(value) for value in rng.integers(256, size=3))
        assert abs(luminance(ink_colour(rng, paper)) - luminance(paper)) >= 90  # type: ignore[arg-type]
        pixels = np.asarray(background(rng, split, 60, 40, paper)).astype(int)  # type: ignore[arg-type]
        assert pixels.shape == (40, 60, 3)
        assert np.abs(pixels - np.asarray(paper)).max() <= 32


# -- sampling --------------------------------------------------------------------------------------------------------


def test_sample_follows_the_weights() -> None:
    rng = np.random.default_rng(0)
    weights = {"word": 3.0, "count": 1.0, "line": 0.0}
    tasks = [sample(rng, "train", weights, DEJAVU).task for _ in range(200)]
    assert set(tasks) == {"word", "count"}
    assert 120 < tasks.count("word") < 180


def test_sample_without_chinese_fonts_leaves_those_tasks_out() -> None:
    rng = np.random.default_rng(0)
    tasks = {sample(rng, "train", None, DEJAVU).task for _ in range(300)}
    assert tasks == set(WEIGHTS) - set(CHINESE_TASKS)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"poem": 1.0}, "unknown"),
        ({"word": -1.0}, "negative"),
        ({"word": 0.0}, "positive"),
        ({}, "positive"),
        ({"chinese": 1.0}, "drawn"),
        ({"word": float("nan")}, "positive"),
    ],
)
def test_impossible_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(np.random.default_rng(0), "train", weights, DEJAVU)


def test_every_task_is_sampled_by_default() -> None:
    assert set(WEIGHTS) == set(TASKS) - {"page"}
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    assert TASKS["word"] is reading.word
    assert TASKS["count"] is finding.count


def test_a_conversation_without_a_question_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is asked"):
        Example(Image.new("RGB", (30, 30)), "ground_text", ())


@pytest.mark.parametrize(
    "task", ["ground_shape", "ground_text", pytest.param("chinese_ground", marks=needs_chinese_fonts), "read_box"]
)
def test_what_finds_no_room_is_drawn_anew(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second time nothing is placed."""
    times = count()
    scattered = finding._scattered
    monkeypatch.setattr(
        finding, "_scattered", lambda *given: scattered(*given[:-1], () if next(times) % 2 == 0 else given[-1])
    )
    example = TASKS[task](np.random.default_rng(0), "train", WITH_CHINESE if task == "chinese_ground" else DEJAVU)
    assert example.turns
    assert next(times) == 2
