"""Tokens drawn with a seed: from the right distribution, the same for the same seed, whatever happens around them."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from serving.replica.chat.vllm_worker import SeededSampling, perturbed, seeded_arguments

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])
NUM_DRAWS = 4000


def shares(temperature: float, top_p: float) -> list[float]:
    drawn = [int(perturbed(LOGITS, temperature, top_p, seed=11, step=step).argmax()) for step in range(NUM_DRAWS)]
    return [drawn.count(token) / NUM_DRAWS for token in range(len(LOGITS))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    wanted = (LOGITS / temperature).softmax(dim=-1).tolist()
    # Five standard deviations of a share of a half.
    assert shares(temperature, 1.0) == pytest.approx(wanted, abs=5 * 0.5 / NUM_DRAWS**0.5)


def test_tokens_beyond_top_p_never_come() -> None:
    first, second, third, fourth = shares(1.0, 0.8)  # 0.64, 0.24, ...
    assert (third, fourth) == (0, 0)
    assert first == pytest.approx(0.731, abs=0.04)
    assert second == pytest.approx(0.269, abs=0.04)


def test_smallest_top_p_leaves_the_likeliest() -> None:
    assert {int(perturbed(LOGITS, 2.0, 1e-6, seed=1, step=step).argmax()) for step in range(50)} == {0}


def test_forbidden_tokens_stay_forbidden() -> None:
    logits = torch.tensor([0.0, float("-inf"), 0.0])
    assert {int(perturbed(logits, 2.0, 0.9, seed=4, step=step).argmax()) for step in range(50)} == {0, 2}


def test_neighbouring_seeds_and_steps_are_unrelated() -> None:
    flat = torch.zeros(1000)
    drawn = {int(perturbed(flat, 1.0, 1.0, seed, step).argmax()) for seed in range(8) for step in range(8)}
    assert len(drawn) > 50


def test_rows_are_followed_while_requests_come_move_and_go() -> None:
    processor = SeededSampling(None, torch.device("cpu"), False)
    params = [SamplingParams(temperature=0, extra_args=seeded_arguments(seed, 1.0, 1.0)) for seed in (1, 2)]
    said: list[list[int]] = [[], []]

    def rows() -> list[list[float]]:
        scores: list[list[float]] = processor.apply(torch.zeros(3, 50)).tolist()
        return scores

    added = [(0, params[0], [5], said[0]), (1, SamplingParams(temperature=0), [5], []), (2, params[1], [5], said[1])]
    processor.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    first = rows()
    assert first[1] == [0.0] * 50, "a request without a seed is left alone"
    assert first[0] != first[2]
    processor.update_state(None)
    assert rows() == first, "nothing was said, so nothing changes: a part of a prompt was read"
    said[0].append(9)
    assert rows()[0] != first[0]
    assert rows()[2] == first[2]
    moved = [(2, 0, MoveDirectionality.UNIDIRECTIONAL)]
    processor.update_state(BatchUpdate(batch_size=2, removed=[0], added=[], moved=moved))
    assert rows()[0] == first[2]
    assert rows()[2] == [0.0] * 50
