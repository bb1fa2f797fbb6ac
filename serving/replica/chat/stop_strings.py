"""Where a generated text ends: what may be sent on, and what might still turn out to begin a stop string."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one text as it grows. The stop string itself is never given out.

    As many characters as the longest stop string less one are held back until the text ends, as vLLM does.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = max((len(text) for text in stop), default=1) - 1
        self._pending = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text. Returns what may be given out now, and whether a stop string was met."""
        self._pending += text
        found = [place for word in self._stop if (place := self._pending.find(word)) >= 0]
        if found:
            given, self._pending = self._pending[: min(found)], ""
            return given, True
        cut = max(0, len(self._pending) - self._held)
        given, self._pending = self._pending[:cut], self._pending[cut:]
        return given, False

    def flush(self) -> str:
        """The text ended without a stop string: the rest."""
        rest, self._pending = self._pending, ""
        return rest
