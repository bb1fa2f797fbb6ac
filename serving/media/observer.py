"""What the media package tells whoever counts."""

from __future__ import annotations

from typing import Protocol


class MediaObserver(Protocol):
    """Is told, and must not raise."""

    def image_fetched(self, outcome: str, num_bytes: int, elapsed_s: float) -> None:
        """A URL was fetched ("ok") or not (the code of the error)."""
        ...

    def image_decoded(self, tenant: str, seconds: float) -> None:
        """A decoder was busy for a tenant, whatever came of it."""
        ...

    def image_looked_up(self, model: str, is_hit: bool) -> None:
        """The cache of processed images was asked."""
        ...

    def images_held(self, num_bytes: int) -> None:
        """The cache of processed images now holds so much."""
        ...


class NullObserver:
    """Counts nothing."""

    def image_fetched(self, outcome: str, num_bytes: int, elapsed_s: float) -> None:
        """Ignore."""

    def image_decoded(self, tenant: str, seconds: float) -> None:
        """Ignore."""

    def image_looked_up(self, model: str, is_hit: bool) -> None:
        """Ignore."""

    def images_held(self, num_bytes: int) -> None:
        """Ignore."""
