"""Something that costs to import, named in place of being imported."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LazyRef:
    """Something that is imported when it is needed, written ``"package.module:attribute"``.

    Raises: ValueError: not of that form.
    """

    target: str

    def __post_init__(self) -> None:
        module, _, attribute = self.target.partition(":")
        if not module or not attribute or not attribute.isidentifier():
            raise ValueError(f"{self.target!r} names nothing; write 'package.module:attribute'")

    def load(self) -> Any:
        """Import it. Raises: ImportError, AttributeError: it is not there."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)
