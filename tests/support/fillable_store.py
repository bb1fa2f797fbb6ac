"""An object store that can be full, through fsspec's own interface: ``fillable://NAME/...``."""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FillableFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Leaves half of a file behind when it is full, as the worst of drivers do."""

    protocol = "fillable"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    is_full = False
    num_refused = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.removeprefix("fillable://") if isinstance(path, str) else path)

    @classmethod
    def empty(cls) -> None:
        """As new."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.is_full, cls.num_refused = False, 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        cls = type(self)
        if not cls.is_full:
            super().pipe_file(path, value, mode, **kwargs)
            return
        cls.num_refused += 1
        super().pipe_file(path, value[: len(value) // 2], mode, **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"/srv/secret/{path}")


fsspec.register_implementation("fillable", FillableFileSystem, clobber=True)
