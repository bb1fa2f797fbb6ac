"""Rows that travel on their own: what meets, what is shared, what is freed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serving.replica.staged.rows import Batch, copied, gather


def state(count: int, start: int = 0, plain: str = "same") -> dict[str, Any]:
    """A tree with every kind of branch; row i holds start + i everywhere."""
    column = torch.arange(start, start + count, dtype=torch.float32)
    return {"features": (column[:, None].repeat(1, 3), [column.clone()]), "note": plain, "nothing": None}


def values(tree: dict[str, Any]) -> list[int]:
    first, (second,) = tree["features"]
    assert torch.equal(first[:, 0], second)
    assert tree["nothing"] is None
    return [int(value) for value in second]


@pytest.mark.parametrize("chosen", [[5, 2], [1, 2], [3], [0, 2, 4], [5, 4, 3, 2, 1, 0], [2, 2], [0, 1, 2, 3, 4, 5]])
def test_rows_of_one_batch_come_in_the_order_asked(chosen: list[int]) -> None:
    rows = Batch(state(6), 6).rows()
    assert values(gather([rows[index] for index in chosen])) == chosen


def test_rows_of_different_batches_meet() -> None:
    first, second = Batch(state(5), 5).rows(), Batch(state(4, start=10), 4).rows()
    assert values(gather([first[4], second[0], second[1], first[1], second[3]])) == [4, 10, 11, 1, 13]


def test_a_whole_batch_in_order_is_passed_on_without_a_copy() -> None:
    tree = state(3)
    gathered = gather(Batch(tree, 3).rows())
    assert gathered["features"][0].data_ptr() == tree["features"][0].data_ptr()


def test_rows_with_other_plain_values_do_not_meet() -> None:
    one, other = Batch(state(1), 1).rows(), Batch(state(1, plain="other"), 1).rows()
    with pytest.raises(RuntimeError, match="different states"):
        gather([*one, *other])


def test_state_must_have_its_rows_first() -> None:
    with pytest.raises(RuntimeError, match="4 rows first"):
        Batch((torch.zeros(4, 2), torch.zeros(2, 4)), 4)
    with pytest.raises(RuntimeError, match="4 rows first"):
        Batch((torch.zeros(()),), 4)


def test_bytes_of_live_rows_add_up_to_what_is_held() -> None:
    rows = Batch(state(8), 8).rows()
    held = sum(row.nbytes for row in rows)
    assert held == 8 * (3 + 1) * 4
    del rows[1:]
    assert rows[0].nbytes == held  # seven have left, their storage is still kept alive by the eighth
    assert copied(rows)[0].nbytes == held // 8
    assert values(gather(copied(rows))) == [0]


def test_finished_rows_hold_nothing() -> None:
    rows = Batch((), 2).rows()
    assert [row.nbytes for row in rows] == [0, 0]
    assert gather([rows[1]]) == ()
