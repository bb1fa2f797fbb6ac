"""A sorted list cut into chunks: O(log n) to insert and remove, O(batch) to take a whole batch from the front.

A heap would do for inserting and popping one at a time, but a scheduler takes 32 entries at once and removes from the
middle when a client leaves; slices of sorted chunks do both several times faster in CPython.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

#: Entries are tuples that start with a unique sort key, so that comparing never reaches their payload.
EntryT = TypeVar("EntryT", bound=tuple[Any, ...])

_CHUNK_ENTRIES = 512
#: So many are sorted anew, a few more among them, before as many could be inserted one by one.
_FEW = 64


class OrderedQueue(Generic[EntryT]):
    """Unique tuples in ascending order. A chunk is cut in two when it has twice ``chunk_entries``."""

    __slots__ = ("_chunk_entries", "_chunks", "_lasts", "num_entries")

    def __init__(self, chunk_entries: int = _CHUNK_ENTRIES) -> None:
        self._chunk_entries = chunk_entries
        #: Non-empty ascending lists; every entry of a chunk sorts before every entry of the next one.
        self._chunks: list[list[EntryT]] = []
        #: ``_lasts[i] == _chunks[i][-1]``.
        self._lasts: list[EntryT] = []
        #: As ``len``, without its call.
        self.num_entries = 0

    def __len__(self) -> int:
        return self.num_entries

    def __iter__(self) -> Iterator[EntryT]:
        for chunk in self._chunks:
            yield from chunk

    def first(self) -> EntryT:
        """The smallest entry. Raises IndexError when empty."""
        return self._chunks[0][0]

    def last(self) -> EntryT:
        """The largest entry. Raises IndexError when empty."""
        return self._lasts[-1]

    def add(self, entry: EntryT) -> None:
        """Insert one entry whose key is not in the queue yet."""
        self.num_entries += 1
        chunks, lasts = self._chunks, self._lasts
        if not chunks:
            chunks.append([entry])
            lasts.append(entry)
            return
        at = bisect_left(lasts, entry) if len(lasts) > 1 else 0
        if at == len(lasts):
            at -= 1
        chunk = chunks[at]
        insort(chunk, entry)
        if len(chunk) > 2 * self._chunk_entries:
            chunks.insert(at + 1, chunk[self._chunk_entries :])
            del chunk[self._chunk_entries :]
            lasts.insert(at + 1, chunks[at + 1][-1])
        lasts[at] = chunk[-1]

    def add_all(self, entries: list[EntryT]) -> None:
        """Insert several."""
        chunks = self._chunks
        if len(chunks) == 1 and len(chunks[0]) + len(entries) <= min(_FEW, self._chunk_entries):  # the usual case
            chunk = chunks[0]
            chunk += entries
            chunk.sort()
            self._lasts[0] = chunk[-1]
            self.num_entries += len(entries)
            return
        for entry in entries:
            self.add(entry)

    def remove(self, entry: EntryT) -> None:
        """Remove one entry, found by its key.

        Raises:
            KeyError: if no entry has this key.
        """
        at = bisect_left(self._lasts, entry)
        if at == len(self._lasts):
            raise KeyError(entry)
        chunk = self._chunks[at]
        index = bisect_left(chunk, entry)
        if chunk[index] != entry:
            raise KeyError(entry)
        del chunk[index]
        self.num_entries -= 1
        self._close(at)

    def take(self, max_entries: int) -> list[EntryT]:
        """Remove and return up to ``max_entries`` of the smallest entries, ascending."""
        if self._chunks and max_entries < len(self._chunks[0]):  # the usual case: the first chunk stays
            chunk = self._chunks[0]
            taken = chunk[:max_entries]
            del chunk[:max_entries]
            self.num_entries -= max_entries
            return taken
        taken = []
        while self._chunks and (wanted := max_entries - len(taken)) > 0:
            chunk = self._chunks[0]
            taken += chunk[:wanted]
            del chunk[:wanted]
            self._close(0)
        self.num_entries -= len(taken)
        return taken

    def take_first(self) -> EntryT:
        """Remove and return the smallest entry. Raises IndexError when empty."""
        chunk = self._chunks[0]
        entry = chunk.pop(0)
        self.num_entries -= 1
        if not chunk:
            self._close(0)
        return entry

    def _close(self, at: int) -> None:
        """Restore the invariants of chunk ``at`` after something left it."""
        chunk = self._chunks[at]
        if chunk:
            self._lasts[at] = chunk[-1]
        else:
            del self._chunks[at]
            del self._lasts[at]
