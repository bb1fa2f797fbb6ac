"""Tables in a terminal and in a pipe, and whether colour is asked for."""

from __future__ import annotations

import pytest

from serving.client.told import show_table

HEAD = ("surface", "n", "ok", "p50 ms", "finish reasons")
ROWS = [("http_chat", "120", "118", "41.5", "stop: 110, length: 8"), ("grpc_chat", "80", "80", "40.1", "stop: 80")]


def shown(capsys: pytest.CaptureFixture[str], columns: int, monkeypatch: pytest.MonkeyPatch, **options: bool) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    show_table(HEAD, ROWS, title="Chat", **options)
    return capsys.readouterr().out


def test_what_fits_is_a_plain_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(capsys, 80, monkeypatch) == (
        "Chat\n"
        "surface    n    ok   p50 ms  finish reasons\n"
        "http_chat  120  118  41.5    stop: 110, length: 8\n"
        "grpc_chat  80   80   40.1    stop: 80\n"
    )


def test_what_does_not_fit_is_turned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(capsys, 48, monkeypatch).splitlines()[1:3] == [
        "surface         http_chat             grpc_chat",
        "n               120                   80",
    ]


def test_what_is_wider_still_is_told_row_by_row_and_nothing_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shown(capsys, 30, monkeypatch)
    assert max(map(len, out.splitlines())) <= 30
    assert out.count("finish reasons") == 2
    assert "length: 8" in out
    assert "…" not in out


def test_mere_words_may_be_left_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown(capsys, 40, monkeypatch, may_drop_last=True)
    assert "finish reasons" not in out
    assert len(out.splitlines()) == 4


def test_pipe_has_any_width_and_no_colour(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table(("name", "words"), [("a", "x" * 500), ("b", "\x1b[31mred")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"a     {'x' * 500}"
    assert lines[2] == "b     \ufffd[31mred"
