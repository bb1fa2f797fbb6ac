"""Staged forward against the whole forward, and the life of a sample's storage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from models.families.dyn_perceiver.load import load_model, random_model
from models.families.dyn_perceiver.model import DynPerceiver
from models.families.dyn_perceiver.staged import SampleState, StagedDynPerceiver, to_input
from models.registry import get_spec

NANO = get_spec("dyn-perceiver-nano")
# Another batch size may mean another kernel and another order of summation; logits are of order 1 here.
REGROUPED = 1e-4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> DynPerceiver:
    return load_model(NANO, random_weights=True)


@pytest.fixture
def staged(model: DynPerceiver) -> StagedDynPerceiver:
    return StagedDynPerceiver(model, NANO)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def whole(model: DynPerceiver, images: np.ndarray) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(model(to_input(torch.from_numpy(images), NANO)))


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_staged_equals_whole_bit_for_bit(fold: bool, batch: int) -> None:
    model = load_model(NANO, fold=fold, random_weights=True)
    staged = StagedDynPerceiver(model, NANO)
    images = pictures(batch)
    states = staged.begin(images)
    for index, expected in enumerate(whole(model, images)):
        assert [state.next_exit for state in states] == [index] * batch
        states, logits = staged.advance(states)
        assert torch.equal(logits, expected)
    assert [state.next_exit for state in states] == [4] * batch


@pytest.mark.parametrize("variant", ["resnet50-x0375", "mobilenetv3-x075"])
def test_published_variants_run_in_stages_too(variant: str) -> None:
    spec = get_spec(f"dyn-perceiver-{variant}")
    model = random_model(spec).eval()
    staged = StagedDynPerceiver(model, spec)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8))
    with torch.inference_mode():
        expected = torch.stack(list(model(to_input(images, spec))))
    assert torch.equal(staged.forward_all(images), expected)


def test_survivors_of_different_arrivals_merge_into_one_batch(model: DynPerceiver, staged: StagedDynPerceiver) -> None:
    first, second = pictures(5, seed=1), pictures(4, seed=2)
    a, _ = staged.advance(staged.begin(first))
    b, _ = staged.advance(staged.begin(second))
    merged = [a[4], b[0], b[1], a[1], b[3], a[0]]
    chosen = np.stack([first[4], second[0], second[1], first[1], second[3], first[0]])
    for expected in whole(model, chosen)[1:]:
        merged, logits = staged.advance(merged)
        torch.testing.assert_close(logits, expected, rtol=0, atol=REGROUPED)


@pytest.mark.parametrize("rows", [[5, 2], [1, 2], [3], [0, 2, 4], [5, 4, 3, 2, 1, 0], [2, 2]])
def test_survivors_of_one_batch_go_on_in_the_order_given(
    model: DynPerceiver, staged: StagedDynPerceiver, rows: list[int]
) -> None:
    images = pictures(6)
    states, _ = staged.advance(staged.begin(images))
    survivors = [states[row] for row in rows]
    for expected in whole(model, images)[1:]:
        survivors, logits = staged.advance(survivors)
        torch.testing.assert_close(logits, expected[rows], rtol=0, atol=REGROUPED)


def test_single_arrivals_merge_before_the_first_exit(model: DynPerceiver, staged: StagedDynPerceiver) -> None:
    images = pictures(6)
    states = [staged.begin(images[i : i + 1])[0] for i in range(6)]
    _, logits = staged.advance(states)
    assert torch.equal(logits, whole(model, images)[0])


def test_a_sample_does_not_depend_on_its_neighbours(staged: StagedDynPerceiver) -> None:
    images = pictures(4)
    together = staged.forward_all(images)
    other = images.copy()
    other[1:] = 255 - other[1:]
    torch.testing.assert_close(staged.forward_all(other)[:, 0], together[:, 0], rtol=0, atol=REGROUPED)


def test_advancing_twice_from_the_same_state_gives_the_same(staged: StagedDynPerceiver) -> None:
    states = staged.begin(pictures(3))
    later, first = staged.advance(states)
    _, again = staged.advance(states)
    assert torch.equal(first, again)
    _, second = staged.advance(later)
    _, second_again = staged.advance(later)
    assert torch.equal(second, second_again)


def test_the_callers_buffer_may_be_reused(model: DynPerceiver, staged: StagedDynPerceiver) -> None:
    images = pictures(2)
    expected = whole(model, images)[0]
    states = staged.begin(images)
    images[:] = 0
    _, logits = staged.advance(states)
    assert torch.equal(logits, expected)


def test_bytes_of_live_samples_add_up_to_what_is_held(staged: StagedDynPerceiver) -> None:
    states = staged.begin(pictures(8))
    assert sum(s.nbytes for s in states) == 8 * 32 * 32 * 3
    states, _ = staged.advance(states)
    held = sum(s.nbytes for s in states)
    del states[1:]
    assert states[0].nbytes == held  # seven have left, their storage is still kept alive by the eighth
    compacted = staged.compact(states)
    assert compacted[0].nbytes == held // 8


def test_compacted_samples_go_on_as_before(staged: StagedDynPerceiver) -> None:
    states, _ = staged.advance(staged.begin(pictures(6)))
    survivors = [states[5], states[2]]
    _, expected = staged.advance(survivors)
    _, logits = staged.advance(staged.compact(survivors))
    assert torch.equal(logits, expected)


def test_finished_samples_hold_nothing_and_cannot_go_on(staged: StagedDynPerceiver) -> None:
    states = staged.begin(pictures(2))
    for _ in range(4):
        states, _ = staged.advance(states)
    assert [s.nbytes for s in states] == [0, 0]
    with pytest.raises(ValueError, match="passed the last of 4"):
        staged.advance(states)


def test_samples_at_different_exits_are_refused(staged: StagedDynPerceiver) -> None:
    early = staged.begin(pictures(1))
    late, _ = staged.advance(staged.begin(pictures(1)))
    mixed: list[SampleState] = [*early, *late]
    with pytest.raises(ValueError, match=r"different exits \[0, 1\]"):
        staged.advance(mixed)


def test_no_samples_are_refused(staged: StagedDynPerceiver) -> None:
    with pytest.raises(ValueError, match="no samples"):
        staged.advance([])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 31, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.float32),
    ],
    ids=["size", "rank", "layout", "dtype"],
)
def test_wrong_pictures_are_refused_with_the_shape_that_is_needed(
    staged: StagedDynPerceiver, wrong: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"\(B, 32, 32, 3\)"):
        staged.begin(wrong)


def test_input_is_normalised_as_the_registry_says() -> None:
    images = pictures(2)
    mean, std = np.array(NANO.mean), np.array(NANO.std)
    plain = ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(to_input(torch.from_numpy(images), NANO).numpy(), plain, atol=1e-5)
