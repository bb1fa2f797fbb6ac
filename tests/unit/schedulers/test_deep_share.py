"""The share of rows that reach the last exit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schedulers.deep_share import WINDOW, DeepShare


@given(
    st.floats(0.0, 1.0),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(0, 8), st.booleans()), max_size=60),
)
def test_of_rows_that_are_done_no_more_than_the_share_were_deep(
    limit: float, requests: list[tuple[int, int, int, bool]]
) -> None:
    share, rows, deep = DeepShare(), 0, 0
    running: list[tuple[int, int, int]] = []

    def end(taken: int, run: int, deep_run: int) -> None:
        nonlocal rows, deep
        share.done("a", taken=taken, rows=run, deep=deep_run)
        rows, deep = rows + run, deep + deep_run
        assert deep <= limit * rows + 1e-9

    for size, run, deep_run, ends_later in requests:
        may = share.take("a", size, limit)
        run = min(run, size)  # the others were found, or failed
        one = (size if may else 0, run, min(deep_run, run) if may else 0)
        if ends_later:
            running.append(one)
        else:
            end(*one)


def test_share_is_one_of_latest_rows_and_each_key_has_its_own() -> None:
    share = DeepShare()
    share.done("a", taken=0, rows=2 * WINDOW - 2, deep=2 * WINDOW - 2)
    assert not share.take("a", 1, 0.5)
    assert not share.take("b", 1, 0.5)
    share.done("b", taken=0, rows=1, deep=0)
    assert share.take("b", 1, 0.5)
    for _ in range(2 * WINDOW):
        share.done("a", taken=0, rows=1, deep=0)
    assert share.take("a", 1, 0.5), "what was long ago counts less and less"
