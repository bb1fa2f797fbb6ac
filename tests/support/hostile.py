"""JSON files of a folder, spoilt one value at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (None, "x", -1, 0, 10**30, 1e308, float("nan"), [], {}, True, [[1]])
_GONE = object()


def spoilt(files: list[Path]) -> Iterator[str]:
    """Spoil each value of each file, say which, and put it back. The values take turns, so that all places and all
    values are met, though not each with each."""
    turn = 0
    for path in files:
        text = path.read_text()
        whole = json.loads(text)
        for place in _places(whole):
            for value in (HOSTILE[turn % len(HOSTILE)], HOSTILE[(turn + 4) % len(HOSTILE)], _GONE):
                turn += 1
                path.write_text(json.dumps(_changed(whole, place, value)))
                yield f"{path.parent.name}/{path.name} {place} {'gone' if value is _GONE else repr(value)}"
        for content in ("[" * 100_000, "null", "[1]", "\xff", json.dumps(dict.fromkeys(whole, 1))):
            path.write_text(content, encoding="latin-1")
            yield f"{path.parent.name}/{path.name} {content[:20]!r}"
        path.write_text(text)


def _places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _changed(whole: Any, place: tuple[Any, ...], value: Any) -> Any:
    tree = changed = copy.deepcopy(whole)
    for key in place[:-1]:
        tree = tree[key]
    if value is _GONE:
        del tree[place[-1]]
    else:
        tree[place[-1]] = value
    return changed
