"""Gathers the pieces of a chat answer, whatever surface they came over."""

from __future__ import annotations

from loadtest.records import Generated

MAX_TEXT_CHARS = 400
"""How much of an answer a record keeps."""


class Pieces:
    """Add pieces in the order of their arrival; times are absolute, in seconds."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._last_s = 0.0
        self._gaps_s: list[float] = []
        self._texts: list[str] = []
        self._reasons: dict[int, str] = {}

    def text(self, index: int, text: str, at_s: float) -> None:
        """More of choice ``index``. An empty piece is none; pieces that came at once are one arrival."""
        if not text:
            return
        if index == 0:
            self._texts.append(text)
        if self._first_s is None:
            self._first_s = at_s
        elif at_s > self._last_s:
            self._gaps_s.append(at_s - self._last_s)
        self._last_s = at_s

    def finish(self, index: int, reason: str) -> None:
        """Choice ``index`` is complete."""
        self._reasons[index] = reason

    def generated(
        self,
        *,
        num_tokens: int | None = None,
        num_prompt_tokens: int | None = None,
        num_image_tokens: int | None = None,
        num_cached_tokens: int | None = None,
    ) -> Generated:
        """All of it, with the counts that the server gave."""
        return Generated(
            first_token_at_s=self._first_s,
            gaps_s=tuple(self._gaps_s),
            num_tokens=num_tokens,
            num_prompt_tokens=num_prompt_tokens,
            num_image_tokens=num_image_tokens,
            num_cached_tokens=num_cached_tokens,
            finish_reasons=tuple(self._reasons[index] for index in sorted(self._reasons)),
            text="".join(self._texts)[:MAX_TEXT_CHARS],
        )
