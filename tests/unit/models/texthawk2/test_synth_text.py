"""Characters, words and fonts of the synthetic data, and what is held out of training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from models.training.texthawk2.synth import fonts, words
from models.training.texthawk2.synth.charset import CHAR_CLASSES, CHINESE, CLASS_OF, LATIN
from models.training.texthawk2.synth.fonts import SPLITS, Split, draw_text, font, load_fonts
from models.training.texthawk2.synth.words import chinese_word, held_out, latin_word, made_up_word, real_words
from tests.support.synth_fonts import DEJAVU, WITH_CHINESE, fetched, needs_chinese_fonts


def test_characters_are_unique_and_numbered_from_one() -> None:
    assert len(CHINESE) == len(set(CHINESE)) == 300
    assert all("一" <= char <= "鿿" for char in CHINESE)
    assert len(CHAR_CLASSES) == len(set(CHAR_CLASSES)) == 1 + len(LATIN) + len(CHINESE)
    assert CHAR_CLASSES[0] == ""
    assert all(CHAR_CLASSES[number] == char and number > 0 for char, number in CLASS_OF.items())
    assert set(CLASS_OF) == set(LATIN) | set(CHINESE)


def test_word_lists_are_words_and_disjoint() -> None:
    train, held = real_words(False), real_words(True)
    assert len(train) > 3500
    assert len(held) > 400
    assert not set(train) & set(held)
    assert all(re.fullmatch("[a-z]{2,12}", word) for word in train + held)


def test_what_is_held_out_does_not_depend_on_capitals_or_machine() -> None:
    assert held_out("Apple") == held_out("apple") == held_out("APPLE")
    assert [word for word in ("the", "image", "paper", "window", "reading", "lines") if held_out(word)] == ["paper"]


def test_drawn_words_of_train_and_of_the_rest_never_meet() -> None:
    rng = np.random.default_rng(0)
    drawn = {split: {latin_word(rng, split).lower() for _ in range(3000)} for split in SPLITS}
    assert not drawn["train"] & (drawn["val"] | drawn["test"])
    assert len(drawn["train"]) > 1500
    assert all(set(word) <= set(LATIN.lower()) and 2 <= len(word) <= 12 for word in drawn["train"] | drawn["test"])
    assert all(len(latin_word(rng, "train", 6)) <= 6 for _ in range(200))


def test_train_has_more_of_the_letters_that_are_read_wrong() -> None:
    def share(split: Split) -> float:
        rng = np.random.default_rng(0)
        letters = "".join(latin_word(rng, split) for _ in range(2000))
        return sum(letter in words._HARD for letter in letters) / len(letters)

    assert share("train") > 1.1 * share("val")


def test_drawn_chinese_strings_of_train_and_of_the_rest_never_meet() -> None:
    rng = np.random.default_rng(0)
    drawn = {split: {chinese_word(rng, split) for _ in range(3000)} for split in SPLITS}
    assert not drawn["train"] & (drawn["val"] | drawn["test"])
    assert {len(text) for text in drawn["test"]} == {2, 3, 4}
    assert set("".join(drawn["train"])) == set(CHINESE)
    with pytest.raises(ValueError, match="2 or more"):
        chinese_word(rng, "train", 1)


def test_made_up_words_are_letters() -> None:
    rng = np.random.default_rng(0)
    assert all(re.fullmatch("[a-z]{3,10}", made_up_word(rng)) for _ in range(500))


def test_whole_families_are_held_out() -> None:
    for train, held in ((fonts.LATIN, fonts.HELD_OUT_LATIN), (fonts.CHINESE, fonts.HELD_OUT_CHINESE)):
        assert not {family.name for family in train} & {family.name for family in held}
        assert not {family.package for family in train} & {family.package for family in held}
    assert len(fonts.HELD_OUT_LATIN) >= 4
    assert len(fonts.HELD_OUT_CHINESE) >= 2


def test_script_fetches_every_package_that_is_listed() -> None:
    script = (Path(__file__).parents[4] / "scripts" / "fonts.sh").read_text()
    listed = (*fonts.LATIN, *fonts.HELD_OUT_LATIN, *fonts.CHINESE, *fonts.HELD_OUT_CHINESE)
    assert {family.package for family in listed} <= set(script.split())


def test_missing_fonts_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fonts-adf-accanthis/.* more missing in .*scripts/fonts\.sh"):
        load_fonts(tmp_path)


def test_val_has_the_fonts_of_train_and_test_the_others() -> None:
    assert DEJAVU.families("latin", "val") == DEJAVU.families("latin", "train") == DEJAVU.latin
    assert DEJAVU.families("latin", "test") == DEJAVU.held_out_latin
    with pytest.raises(ValueError, match="no chinese fonts"):
        DEJAVU.families("chinese", "train")
    with pytest.raises(ValueError, match="expected one of"):
        DEJAVU.families("latin", "dev")  # type: ignore[arg-type]


def test_text_is_drawn_at_its_place_from_the_pen() -> None:
    drawn = draw_text(DEJAVU.latin[0][0], 40, "Hg")
    assert drawn.top < 0 < drawn.bottom, "ink above and, for the g, below the baseline"
    assert np.asarray(drawn.ink).max() == 255
    assert drawn.advance > drawn.ink.width * 0.8


@needs_chinese_fonts
def test_every_font_that_is_here_has_every_character() -> None:
    latin = (*DEJAVU.latin, *DEJAVU.held_out_latin, *fetched((*fonts.LATIN, *fonts.HELD_OUT_LATIN)))
    chinese = (*WITH_CHINESE.chinese, *WITH_CHINESE.held_out_chinese)
    for chars, families in ((LATIN, latin), (CHINESE, chinese)):
        for face in (face for family in families for face in family):
            drawn = font(face, 20)
            absent = bytes(drawn.getmask("\U0010fffd"))
            bad = [char for char in chars if bytes(drawn.getmask(char)) == absent]
            assert not bad, f"{face.path.name}: {bad}"


def test_listed_families_are_loaded_when_all_their_files_are_there(tmp_path: Path) -> None:
    for listed in (*fonts.LATIN, *fonts.HELD_OUT_LATIN, *fonts.CHINESE, *fonts.HELD_OUT_CHINESE):
        for name in listed.files:
            path = tmp_path / "packages" / listed.package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = load_fonts(tmp_path)
    assert [len(group) for group in (found.latin, found.held_out_latin)] == [
        len(fonts.LATIN),
        len(fonts.HELD_OUT_LATIN),
    ]
    noto = found.chinese[0][0]
    assert (noto.path.name, noto.index) == ("NotoSansCJK-Regular.ttc", 2)
