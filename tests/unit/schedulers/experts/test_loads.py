from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.experts.loads import ExpertLoads, balancedness, utilisation

SLICES = st.lists(
    st.tuples(st.sampled_from(("early", "late")), st.lists(st.integers(0, 9), min_size=6, max_size=6)), max_size=60
)


def rows(flat: list[int]) -> list[list[int]]:
    return [flat[:3], flat[3:]]


@given(SLICES, st.sampled_from((8, 16, 20)))
def test_counts_the_last_turns_by_phase(slices: list[tuple[str, list[int]]], window: int) -> None:
    loads = ExpertLoads(2, 3, window)
    for phase, flat in slices:
        loads.add(rows(flat), phase)
        loads.turn()
    part = window // 8
    kept = slices[len(slices) - (7 * part + len(slices) % part) :] if len(slices) >= 8 * part else slices
    assert set(loads.groups) == {phase for phase, _ in kept}
    expected = {}
    for phase in ("early", "late"):
        mine = [flat for name, flat in kept if name == phase]
        expected[phase] = rows([sum(column) for column in zip(*mine, strict=True)] or [0] * 6)
        assert loads.counts(phase) == expected[phase]
    both = zip(expected["early"], expected["late"], strict=True)
    assert loads.counts() == [[a + b for a, b in zip(*pair, strict=True)] for pair in both]


def test_balancedness_weighs_layers_by_their_tokens_and_utilisation_does_not() -> None:
    layers = [[4.0, 0.0], [10.0, 10.0]]
    assert balancedness(layers) == pytest.approx(12 / 14)
    assert utilisation(layers) == pytest.approx(0.75, abs=1e-5)
    assert balancedness([[0.0, 0.0]]) == utilisation([[0.0, 0.0]]) == 1.0


@given(st.lists(st.lists(st.integers(0, 10**6).map(float), min_size=4, max_size=4), min_size=1))
def test_both_are_parts_of_one(layers: list[list[float]]) -> None:
    assert 0.25 <= balancedness(layers) <= 1.0 + 1e-9
    assert 0.25 <= utilisation(layers) <= 1.0 + 1e-9


def test_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="window"):
        ExpertLoads(1, 1, window=7)
    with pytest.raises(ValueError, match="layers"):
        ExpertLoads(0, 1)
    loads = ExpertLoads(1, 2)
    for counts in ([[1]], [[1, 2], [3, 4]]):
        with pytest.raises(ValueError, match="1 layers with 2 experts"):
            loads.add(counts)
    with pytest.raises(ValueError, match="negative"):
        loads.add([[1, -1]])
    assert loads.counts() == [[0, 0]]
