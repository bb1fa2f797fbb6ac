from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse

from schedulers.spending import Spending
from serving.stores.replies import Levels, ReserveReply, parse_reserve, parse_settle, parse_values

LEVELS = [b"98.5", b"9.75", b"20", b"300", b"1.5", b"1700000000.5"]
NUMBERS = [b"1.5", b"0.25", b"0", *LEVELS]
SPENDING = Spending(at_s=1700000000.5, day_j=20.0, month_j=300.0, open_j=1.5)
anything = st.recursive(
    st.none() | st.binary(max_size=4) | st.integers() | st.floats() | st.booleans() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=10,
)


def test_answers_of_the_scripts_are_read() -> None:
    assert parse_values([b"a", None], 2) == (b"a", None)
    assert parse_reserve([[b"a"]], 1) == ((b"a",), None)
    granted = ReserveReply(True, 1.5, 0.25, 0.0, Levels(98.5, 9.75, SPENDING, is_repaired=True))
    assert parse_reserve([[None], 1, *NUMBERS, 1], 1) == ((None,), granted)
    _, refused = parse_reserve([[None], 0, *NUMBERS[:2], b"inf", *LEVELS, 0], 1)
    assert refused is not None
    assert not refused.is_granted
    assert refused.wait_s == math.inf
    assert parse_settle([]) is None
    assert parse_settle([b"-3.5", *LEVELS[1:], 0]) == Levels(-3.5, 9.75, SPENDING, is_repaired=False)


@pytest.mark.parametrize(
    "answer",
    [
        [[None], 1, *NUMBERS],
        [[None, None], 1, *NUMBERS, 0],
        [[1], 1, *NUMBERS, 0],
        [[None], 1, b"nan", *NUMBERS[1:], 0],
        [[None], 1, *NUMBERS[:3], b"inf", *NUMBERS[4:], 0],
        [[None], 1, *NUMBERS[:2], b"nan", *LEVELS, 0],
        [[None], 1, *NUMBERS[:-1], b"1e300", 0],
        [[None], 1, *NUMBERS[:-1], b"-1", 0],
    ],
)
def test_answer_of_the_wrong_shape_or_with_impossible_numbers_is_refused(answer: Any) -> None:
    with pytest.raises(InvalidResponse):
        parse_reserve(answer, 1)


@given(anything)
def test_any_answer_is_read_or_refused(answer: Any) -> None:
    with contextlib.suppress(InvalidResponse):
        assert len(parse_values(answer, 1)) == 1
    with contextlib.suppress(InvalidResponse):
        values, reply = parse_reserve(answer, 1)
        assert len(values) == 1
        assert reply is None or math.isfinite(reply.levels.joules)
    with contextlib.suppress(InvalidResponse):
        settled = parse_settle(answer)
        assert settled is None or all(map(math.isfinite, (settled.joules, settled.seconds)))
