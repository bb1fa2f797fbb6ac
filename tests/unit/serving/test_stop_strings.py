from __future__ import annotations

import pytest

from serving.replica.chat.base import StopStrings


def stream(text: str, stop: tuple[str, ...], size: int) -> tuple[str, bool]:
    watch = StopStrings(stop)
    given = ""
    for start in range(0, len(text), size):
        more, stopped = watch.push(text[start : start + size])
        given += more
        if stopped:
            return given, True
    return given + watch.flush(), False


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a plain answer", (), ("a plain answer", False)),
        ("one\n\ntwo", ("\n\n",), ("one", True)),
        ("almost\n, not quite\n", ("\n\n",), ("almost\n, not quite\n", False)),
        ("aaab", ("aab",), ("a", True)),
        ("END", ("END",), ("", True)),
    ],
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stop: tuple[str, ...], expected: tuple[str, bool], size: int
) -> None:
    given, stopped = stream(text, stop, size)
    assert stopped == expected[1]
    assert given == expected[0]


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    watch = StopStrings(("</s>",))
    assert watch.push("word</s") == ("word", False)
    assert watch.push("!") == ("<", False)
    assert watch.flush() == "/s!"


@pytest.mark.parametrize(
    ("unwatched", "watched", "stop", "expected"),
    [
        (["a", "b", "c"], ["d"], ("b",), ("abcd", False)),
        (["a", "b", "c"], ["b"], ("b",), ("abc", True)),
        (["a", "b"], ["c", "d"], ("bc", "never"), ("a", True)),  # its end is in what is watched
        (["a", "ab"], ["x"], ("ab", "never"), ("aabx", False)),
        (["ab"], ["", "ab"], ("ab",), ("ab", True)),
    ],
)
def test_stop_string_counts_where_its_end_is_watched(
    unwatched: list[str], watched: list[str], stop: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    watch = StopStrings(stop)
    pushed = [watch.push(text, is_watched=False) for text in unwatched] + [watch.push(text) for text in watched]
    stopped = any(is_stop for _, is_stop in pushed)
    assert ("".join(given for given, _ in pushed) + ("" if stopped else watch.flush()), stopped) == expected
