"""Every surface of the running system gives the same, right answer to the same picture."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, Door
from tests.support.clients import Ask
from tests.support.system import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_held_out_digits_are_recognised(name: str, door: Door, digits: list[Picture]) -> None:
    answer = SURFACES[name](door, Ask([data for data, _ in digits], model=MODEL))
    assert answer.error is None, answer
    assert answer.codes == tuple(label for _, label in digits)


def test_all_surfaces_give_the_same_probabilities(door: Door, new_picture: Callable[[], Picture]) -> None:
    picture, _ = new_picture()
    ask = Ask([picture], model=MODEL, top_k=10)
    (first,) = SURFACES["http_json"](door, ask).items
    assert len(first.top_k) == 10
    assert sum(score for _, score in first.top_k) == pytest.approx(1.0, abs=1e-5)
    for name, surface in SURFACES.items():
        (item,) = surface(door, ask).items
        assert [label for label, _ in item.top_k] == [label for label, _ in first.top_k], name
        # Exactly, up to float32: tensors carry float32, JSON and protobuf doubles.
        assert [score for _, score in item.top_k] == pytest.approx([score for _, score in first.top_k], rel=1e-7), name
        assert (item.label, item.exit) == (first.label, first.exit), name
