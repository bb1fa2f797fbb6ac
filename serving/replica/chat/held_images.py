"""Which images a replica has seen recently: what the request router gets, in a few bytes each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MAX_HELD = 512


def mark(key: str) -> int:
    """32 bits of an image's key (hex). Two images with the same mark cost a detour, nothing else."""
    return int(key[:8], 16)


class HeldImages:
    """The images seen last, at most ``max_held``."""

    def __init__(self, max_held: int = MAX_HELD) -> None:
        self._max_held = max_held
        self._marks: OrderedDict[int, None] = OrderedDict()

    def add(self, keys: Iterable[str]) -> None:
        """Images were sent to this replica."""
        for key in keys:
            number = mark(key)
            self._marks[number] = None
            self._marks.move_to_end(number)
        while len(self._marks) > self._max_held:
            self._marks.popitem(last=False)

    def marks(self) -> tuple[int, ...]:
        """The marks, oldest first."""
        return tuple(self._marks)
