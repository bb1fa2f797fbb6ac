"""The board on which vLLM's engine process writes how probable the end was, by row of the request, and by token."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from serving.replica.chat.vllm_ends import DEPTH, EndBoard, EndsToBoard

END = 3


@pytest.fixture
def board() -> Iterator[EndBoard]:
    made = EndBoard(4)
    yield made
    made.close()


def params(board: EndBoard, row: int | None) -> SamplingParams:
    return SamplingParams(extra_args=None if row is None else board.arguments(row, END))


def test_each_watched_request_has_its_row_wherever_the_batch_puts_it(board: EndBoard) -> None:
    processor, said = EndsToBoard(None, torch.device("cpu"), False), ([], [], [])
    added = [(place, params(board, row), [1], said[place]) for place, row in enumerate((2, None, 0))]
    processor.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    wanted = logits.log_softmax(-1)[:, END].tolist()
    before = logits.clone()
    assert torch.equal(processor.apply(logits), before), "it changes nothing"
    assert board.read(2, 0, 1) == pytest.approx((wanted[0],), abs=1e-5)
    assert board.read(0, 0, 1) == pytest.approx((wanted[2],), abs=1e-5)
    for tokens in said:
        tokens.append(7)
    moved = [(2, 0, MoveDirectionality.UNIDIRECTIONAL)]
    processor.update_state(BatchUpdate(batch_size=2, removed=[0], added=[], moved=moved))
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    processor.apply(logits)
    assert board.read(0, 0, 2) == pytest.approx((wanted[2], float(logits.log_softmax(-1)[0, END])), abs=1e-5)
    assert board.read(2, 0, 1) == pytest.approx((wanted[0],), abs=1e-5), "who has left writes no more"


def test_one_of_many_is_told_as_all_are(board: EndBoard) -> None:
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    for num_watched in (1, 4):
        processor = EndsToBoard(None, torch.device("cpu"), False)
        added = [(5 - i, params(board, i), [1], []) for i in range(num_watched)]
        processor.update_state(BatchUpdate(batch_size=6, removed=[], added=added, moved=[]))
        processor.apply(logits)
        for i in range(num_watched):
            assert board.read(i, 0, 1) == pytest.approx((float(logits.log_softmax(-1)[5 - i, END]),), abs=1e-5)


def test_row_goes_round_and_says_nothing_of_what_it_has_lost(board: EndBoard) -> None:
    processor = EndsToBoard(None, torch.device("cpu"), False)
    said: list[int] = []
    processor.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, params(board, 1), [1], said)], moved=[]))
    for number in range(DEPTH + 2):
        processor.apply(torch.tensor([[0.0, 0.0, 0.0, float(number) / DEPTH]]))
        said.append(0)
    found = board.read(1, DEPTH - 1, 3)
    assert found is not None
    assert found[0] < found[1] < found[2]
    assert board.read(1, 0, DEPTH + 1) is None


def test_rows_are_given_out_once_and_used_again_as_late_as_can_be(board: EndBoard) -> None:
    rows = [board.take() for _ in range(4)]
    assert sorted(row for row in rows if row is not None) == [0, 1, 2, 3]
    assert board.take() is None
    board.give_back(2)
    board.give_back(0)
    assert (board.take(), board.take(), board.take()) == (2, 0, None)


def test_second_engine_of_a_process_reads_its_own_board_though_the_first_one_had_the_same_path() -> None:
    first = EndBoard(4)
    (path, *_) = first.arguments(0, END)["vireo_ends"]
    first.close()
    second = EndBoard(4)
    try:
        assert second.arguments(0, END)["vireo_ends"][0] == path, "the number of a file is used again"
        with open(path, "r+b", buffering=0) as memory:
            memory.write(struct.pack("f", -1.5))
        assert second.read(0, 0, 1) == (-1.5,)
    finally:
        second.close()
