from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from serving.system.process import freeze_start_up


class Node:
    """Refers to itself: only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_exists_at_start_is_not_walked_again() -> None:
    assert freeze_start_up() > 1000
    assert gc.get_freeze_count() > len(gc.get_objects())


def test_garbage_of_the_start_itself_is_freed_and_not_kept_for_ever() -> None:
    leaving = weakref.ref(Node())
    freeze_start_up()
    assert leaving() is None


def test_objects_made_afterwards_are_collected_as_always() -> None:
    freeze_start_up()
    leaving = weakref.ref(Node())
    gc.collect()
    assert leaving() is None
