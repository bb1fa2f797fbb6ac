"""Files of jobs in a store that every gateway and replica reaches: a folder, or whatever fsspec has a driver for."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import fsspec

from serving.errors import ConfigError, StoreUnavailable
from serving.video.domain import Artefact

T = TypeVar("T")
_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_TIMEOUT_S = 30.0


class ArtefactStore:
    """``url``: a folder, or a URL such as s3://bucket/prefix, whose driver the operator installs.

    Every method does its blocking work on a thread, in ``timeout_s`` at most.

    Raises: ConfigError: no driver for that URL.
    """

    def __init__(self, url: str, timeout_s: float = _TIMEOUT_S) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"jobs.store {url!r} cannot be used: {error}") from None
        self._timeout_s = timeout_s

    async def put(self, key: str, data: bytes, media_type: str) -> Artefact:
        """Write a file, whole or not at all. Raises: StoreUnavailable."""
        path = self._path(key)
        await self._do("write", lambda: self._write(path, data))
        return Artefact(key=key, media_type=media_type, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes from ``start`` up to, not including, ``end``. Raises: FileNotFoundError, StoreUnavailable."""
        path = self._path(key)
        return await self._do("read", lambda: bytes(self._files.cat_file(path, start=start, end=end)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a file. Raises: StoreUnavailable."""
        path = self._path(key)
        return await self._do("look up", lambda: bool(self._files.exists(path)))

    async def delete(self, key: str) -> None:
        """Remove a file, or everything below a folder. Nothing there is no error. Raises: StoreUnavailable."""
        path = self._path(key)
        await self._do("delete", lambda: self._remove(path))

    async def sweep(self, folder: str, older_than_s: float, is_needed: Callable[[str], Awaitable[bool]]) -> int:
        """Remove the folders below ``folder`` whose youngest file is older than that and that nobody needs any more.

        ``is_needed`` is asked by folder name. Returns how many were removed. Raises: StoreUnavailable.
        """
        now_s, root = time.time(), self._path(folder)
        ages = await self._do("list", lambda: self._youngest(root))
        num_removed = 0
        for name, youngest_s in ages.items():
            if now_s - youngest_s > older_than_s and not await is_needed(name):
                await self.delete(f"{folder}/{name}")
                num_removed += 1
        return num_removed

    # -- blocking, on a thread ---------------------------------------------------------------------------------------

    async def _do(self, what: str, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(work)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a driver makes of what goes wrong
            raise StoreUnavailable(f"the store of clips failed to {what}; try again") from error

    def _write(self, path: str, data: bytes) -> None:
        """Object stores write whole objects; on a file system that is done by renaming."""
        parent = path.rsplit("/", 1)[0]
        self._files.makedirs(parent, exist_ok=True)
        draft = f"{parent}/.{uuid.uuid4().hex}.draft"
        self._files.pipe_file(draft, data)
        self._files.mv(draft, path)

    def _remove(self, path: str) -> None:
        if self._files.exists(path):
            self._files.rm(path, recursive=True)

    def _youngest(self, root: str) -> dict[str, float]:
        if not self._files.exists(root):
            return {}
        ages: dict[str, float] = {}
        for path, facts in self._files.find(root, detail=True).items():
            name = path[len(root.rstrip("/")) + 1 :].split("/", 1)[0]
            ages[name] = max(ages.get(name, 0.0), _modified_s(facts))
        return ages

    def _path(self, key: str) -> str:
        """Keys come from records: nothing that leaves the root may get through.

        Raises: ValueError: no such key can exist.
        """
        if not _KEY.fullmatch(key) or any(part.startswith("..") or part == "." for part in key.split("/")):
            raise ValueError(f"{key!r} is no key of a file: parts of letters, digits, '.', '_' and '-', joined by '/'")
        return f"{self._root.rstrip('/')}/{key}"


def _modified_s(facts: dict[str, Any]) -> float:
    """Drivers disagree on the name and the type; one that says nothing never has a file removed by age."""
    value: Any = facts.get("mtime") or facts.get("LastModified") or facts.get("last_modified") or facts.get("created")
    if hasattr(value, "timestamp"):
        return float(value.timestamp())
    return float(value) if isinstance(value, int | float) else time.time()
