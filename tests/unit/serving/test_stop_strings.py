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
