"""Files of jobs in a shared store: what they made, thumbnails, previews, checkpoints of latents.

A folder, or any URL that fsspec knows. Keys are relative (``jobs/ID/NAME``) and checked. Whatever is named by a key is
whole: local files are written beside their place and renamed, objects appear when their upload ends. All I/O runs in
threads and under a deadline; a call that is over its deadline goes on unseen, and harms nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serving.errors import ConfigError, EngineFailed, StoreFull, StoreUnavailable
from serving.stores.jobs.base import Artefact

T = TypeVar("T")
_PART: Final = re.compile(r"[A-Za-z0-9_=][A-Za-z0-9._=-]{0,127}")
_MAX_KEY: Final = 512
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NUM_THREADS: Final = 8


class ArtefactStore:
    """One per process; ``close`` when done. Safe to use from several loops.

    ``url``: a folder (absolute or not), ``file://``, ``memory://``, or an object store such as ``s3://bucket/prefix``,
    whose driver has to be installed; it takes its credentials as that driver is used to. ``timeout_s`` bounds a call.

    Raises: ConfigError: nothing knows such URLs, or the driver is not installed.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}; need a positive number")
        self._fs, self._root = _open(url)
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="artefacts")

    def close(self) -> None:
        """Let go of the threads; calls that run go on to their end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- files -------------------------------------------------------------------------------------------------------

    async def put(self, key: str, data: bytes, media_type: str = "application/octet-stream") -> Artefact:
        """Write a file; one of that key before is replaced at once.

        Raises: StoreFull; StoreUnavailable: the store cannot be reached, or took too long. Nothing is left of the file.
        """
        path = self._path(key)
        return await self._in_thread(lambda: self._put(path, key, data, media_type))

    def _put(self, path: str, key: str, data: bytes, media_type: str) -> Artefact:
        if isinstance(self._fs, LocalFileSystem):
            _write_local(Path(path), data)
        else:
            self._write_remote(path, data)
        digest = hashlib.sha256(data).hexdigest()
        return Artefact(key=key, media_type=media_type, num_bytes=len(data), sha256=digest)

    def _write_remote(self, path: str, data: bytes) -> None:
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        try:
            self._fs.pipe_file(path, data)
        except BaseException:
            with contextlib.suppress(Exception):  # most stores have nothing then
                self._fs.rm_file(path)
            raise

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """A file, or its bytes from ``start`` up to and without ``end``; fewer where it is shorter.

        Raises: FileNotFoundError; StoreUnavailable; ValueError: not 0 <= start <= end.
        """
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"range {start}:{end} of {key}: need 0 <= start <= end")
        path = self._path(key)
        return await self._in_thread(lambda: self._read(path, start, end))

    def _read(self, path: str, start: int, end: int | None) -> bytes:
        if end is None and start == 0:
            return bytes(self._fs.cat_file(path))
        num_bytes = self._fs.size(path)
        stop = num_bytes if end is None else min(end, num_bytes)
        return bytes(self._fs.cat_file(path, start=start, end=stop)) if start < stop else b""

    async def read_artefact(self, artefact: Artefact) -> bytes:
        """A whole file that is what it was when it was written.

        Raises: FileNotFoundError; StoreUnavailable; EngineFailed: somebody has changed it.
        """
        data = await self.read(artefact.key)
        if len(data) != artefact.num_bytes or hashlib.sha256(data).hexdigest() != artefact.sha256:
            raise EngineFailed("the stored file is damaged; make the clip again")
        return data

    async def exists(self, key: str) -> bool:
        """Whether there is such a file. Raises: StoreUnavailable."""
        path = self._path(key)
        return await self._in_thread(lambda: bool(self._fs.isfile(path)))

    async def names(self, folder: str) -> list[str]:
        """Names of the files that lie in a folder, none where there is no such folder. Raises: StoreUnavailable."""
        path = self._path(folder)
        return await self._in_thread(lambda: self._names(path))

    def _names(self, path: str) -> list[str]:
        try:
            entries = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]

    async def delete(self, prefix: str) -> None:
        """Remove a file, or a folder with all that is in it. Nothing there is no error. Raises: StoreUnavailable."""
        path = self._path(prefix)
        await self._in_thread(lambda: self._delete(path))

    def _delete(self, path: str) -> None:
        try:
            self._fs.rm(path, recursive=True)
        except FileNotFoundError:
            return

    # -- clean-up ----------------------------------------------------------------------------------------------------

    async def sweep(self, folder: str, older_than_s: float, is_needed: Callable[[str], Awaitable[bool]]) -> int:
        """Remove the folders below ``folder`` whose youngest file is older than that and that nobody needs any more.

        ``is_needed`` is asked by folder name; what it raises ends the sweep before anything more is removed. A folder
        that cannot be removed is left for the next one. Drafts of writers that died go with their folder. Returns how
        many were removed. Raises: StoreUnavailable.
        """
        root = self._path(folder)
        youngest = await self._in_thread(lambda: self._youngest(root))
        now_s, num_removed = time.time(), 0
        for name, youngest_s in sorted(youngest.items()):
            if now_s - youngest_s > older_than_s and _PART.fullmatch(name) and not await is_needed(name):
                with contextlib.suppress(StoreUnavailable):
                    await self.delete(f"{folder}/{name}")
                    num_removed += 1
        return num_removed

    def _youngest(self, root: str) -> dict[str, float]:
        """When the last file of each folder was written, Unix seconds."""
        ages: dict[str, float] = {}
        for path, facts in self._fs.find(root, detail=True).items():
            name, is_inside, _ = path[len(root) + 1 :].partition("/")
            if is_inside:
                ages[name] = max(ages.get(name, 0.0), _modified_s(facts))
        return ages

    # -- plumbing ----------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self._root}/{key}"

    async def _in_thread(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await future
        except FileNotFoundError:
            raise
        except TimeoutError:
            raise StoreUnavailable(f"the store of files did not answer within {self._timeout_s:g} s") from None
        except Exception as error:  # drivers raise what they like
            if _is_full(error):
                raise StoreFull("the store of files is full") from error
            raise StoreUnavailable("the store of files failed") from error


def check_key(key: str) -> None:
    """Keys are relative, and stay below the root.

    Raises: ValueError: this one might not.
    """
    if len(key) > _MAX_KEY or not all(_PART.fullmatch(part) for part in key.split("/")):
        raise ValueError(f"key {key[:80]!r} is unfit: parts of letters, digits, '.', '_', '-', '=' joined by '/'")


def _open(url: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(f"the driver for store {_scheme(url)} is not installed ({error}); install it") from None
    except ValueError:
        known = "a folder, file://, memory://, s3://, gs://, abfs://"
        raise ConfigError(f"no store is known for {_scheme(url)}; use {known}") from None
    return fs, root.rstrip("/")


def _scheme(url: str) -> str:
    """Without what may be secret."""
    return url.split("://", 1)[0] + "://" if "://" in url else "a folder"


def _is_full(error: BaseException | None) -> bool:
    """Drivers wrap what the system said."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _modified_s(facts: Mapping[str, Any]) -> float:
    """Drivers disagree on name and type. A file without a time is as good as new: it is never removed for its age."""
    names = ("mtime", "LastModified", "last_modified", "updated", "created")
    value: Any = next((facts[name] for name in names if facts.get(name) is not None), None)
    if hasattr(value, "timestamp"):
        return float(value.timestamp())
    return float(value) if isinstance(value, int | float) else time.time()


def _write_local(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the machine stops in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
