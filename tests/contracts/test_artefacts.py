"""What every store of artefacts does: a folder, and an object store."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serving.errors import ConfigError, EngineFailed, StoreFull, StoreUnavailable
from serving.stores.artefacts import ArtefactStore
from tests.support.fillable_store import FillableFileSystem


@pytest.fixture(params=["folder", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtefactStore]:
    url = str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}/store"
    store = ArtefactStore(url)
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ArtefactStore]:
    store = ArtefactStore(str(tmp_path))
    yield store
    store.close()


async def nobody_needs(name: str) -> bool:
    return False


# -- files -----------------------------------------------------------------------------------------------------------


async def test_file_is_read_as_it_was_written(store: ArtefactStore) -> None:
    data = os.urandom(70_000)
    artefact = await store.put("jobs/a/clip.mp4", data, "video/mp4")
    assert (artefact.key, artefact.media_type, artefact.num_bytes) == ("jobs/a/clip.mp4", "video/mp4", 70_000)
    assert artefact.sha256 == hashlib.sha256(data).hexdigest()
    assert await store.read("jobs/a/clip.mp4") == await store.read_artefact(artefact) == data


async def test_ranges_end_with_the_file(store: ArtefactStore) -> None:
    await store.put("jobs/a/f", b"0123456789")
    cases = {(0, 4): b"0123", (3, 3): b"", (8, 99): b"89", (10, 12): b"", (50, 60): b"", (4, None): b"456789"}
    assert {case: await store.read("jobs/a/f", *case) for case in cases} == cases
    for bad in ((-1, 3), (4, 2)):
        with pytest.raises(ValueError, match="range"):
            await store.read("jobs/a/f", *bad)


async def test_writing_again_replaces(store: ArtefactStore) -> None:
    await store.put("jobs/a/f", b"a long one")
    await store.put("jobs/a/f", b"short")
    assert await store.read("jobs/a/f") == b"short"


async def test_missing_file_is_told_from_a_broken_store(store: ArtefactStore) -> None:
    assert not await store.exists("jobs/a/f")
    for arguments in ((), (0, 2), (1, None)):
        with pytest.raises(FileNotFoundError):
            await store.read("jobs/a/f", *arguments)
    await store.delete("jobs/a/f")
    await store.put("jobs/a/f", b"x")
    assert await store.exists("jobs/a/f")
    assert not await store.exists("jobs/a")  # a folder is no file


async def test_delete_takes_a_file_or_a_whole_folder_and_nothing_beside_it(store: ArtefactStore) -> None:
    for key in ("jobs/a/f", "jobs/a/g", "jobs/ab/f", "jobs/b/f"):
        await store.put(key, b"x")
    await store.delete("jobs/a/f")
    assert [await store.exists(f"jobs/a/{name}") for name in "fg"] == [False, True]
    await store.delete("jobs/a")
    assert [await store.exists(key) for key in ("jobs/a/g", "jobs/ab/f", "jobs/b/f")] == [False, True, True]


async def test_damaged_file_is_not_handed_out(store: ArtefactStore) -> None:
    artefact = await store.put("jobs/a/f", b"right")
    await store.put("jobs/a/f", b"wrong")
    with pytest.raises(EngineFailed, match="damaged"):
        await store.read_artefact(artefact)


_UNFIT = (
    *("", "/etc/passwd", "../x", "jobs/../../x", "jobs//x", "jobs/", "./x", "jobs/.hidden", "a\\b", "a\nb", "a\x00b"),
    *("*", "jobs/[a]", "~/x", "s3://x", "x" * 200, "/".join(["x" * 100] * 9)),
)


@pytest.mark.parametrize("key", _UNFIT)
async def test_key_that_might_leave_the_root_is_refused(store: ArtefactStore, key: str) -> None:
    with pytest.raises(ValueError, match="unfit"):
        await store.put(key, b"x")
    for call in (store.read, store.exists, store.delete):
        with pytest.raises(ValueError, match="unfit"):
            await call(key)
    with pytest.raises(ValueError, match="unfit"):
        await store.sweep(key, 0, nobody_needs)


async def test_keys_of_checkpoints_and_clips_pass(store: ArtefactStore) -> None:
    for key in ("jobs/video_0f/checkpoint-25-3fa85f64a1b2.safetensors", "jobs/video_0f/clip-3fa85f64.mp4"):
        assert not await store.exists(key)


# -- whole or not at all ---------------------------------------------------------------------------------------------


async def test_reader_never_sees_half_a_file(folder: ArtefactStore) -> None:
    one, two = b"1" * 300_000, b"2" * 500_000
    await folder.put("jobs/a/f", one)
    is_over = asyncio.Event()

    async def write() -> None:
        for number in range(20):
            await folder.put("jobs/a/f", two if number % 2 == 0 else one)
        is_over.set()

    async def read() -> None:
        while not is_over.is_set():
            assert await folder.read("jobs/a/f") in (one, two)

    await asyncio.gather(write(), read())


async def test_write_that_fails_leaves_the_file_before_and_no_draft(
    folder: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await folder.put("jobs/a/f", b"before")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable):
        await folder.put("jobs/a/f", b"after")
    assert await folder.read("jobs/a/f") == b"before"
    assert [path.name for path in (tmp_path / "jobs" / "a").iterdir()] == ["f"]


async def test_slow_store_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtefactStore("memory://slow", timeout_s=0.05)
    go_on = threading.Event()

    def cat_file(*arguments: Any, **options: Any) -> bytes:
        go_on.wait(10)
        return b""

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    try:
        with pytest.raises(StoreUnavailable, match=r"0\.05 s"):
            await store.read("jobs/a/f")
    finally:
        go_on.set()
        store.close()


async def test_driver_that_breaks_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtefactStore("memory://broken")

    def pipe_file(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("what a driver makes of a refused connection")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    with pytest.raises(StoreUnavailable):
        await store.put("jobs/a/f", b"x")
    store.close()


# -- clean-up --------------------------------------------------------------------------------------------------------


async def test_sweep_takes_folders_that_are_old_and_needed_by_nobody(store: ArtefactStore) -> None:
    for name in ("gone", "here"):
        await store.put(f"jobs/{name}/clip.mp4", b"x")
        await store.put(f"jobs/{name}/thumb/t.jpg", b"x")
    await store.put("jobs/loose", b"x")
    await store.put("other/gone", b"x")
    asked: list[str] = []

    async def is_needed(name: str) -> bool:
        asked.append(name)
        return name == "here"

    assert await store.sweep("jobs", 3600, is_needed) == 0
    assert asked == []  # all are young
    assert await store.sweep("jobs", -3600, is_needed) == 1
    assert asked == ["gone", "here"]
    kept = [
        await store.exists(key) for key in ("jobs/here/clip.mp4", "jobs/here/thumb/t.jpg", "jobs/loose", "other/gone")
    ]
    assert kept == [True] * 4
    assert not await store.exists("jobs/gone/clip.mp4")
    assert await store.sweep("nothing", 0, is_needed) == 0


async def test_age_of_a_folder_is_that_of_its_youngest_file(folder: ArtefactStore, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for file in ("old", "new"):
            await folder.put(f"jobs/{name}/{file}", b"x")
            if (name, file) != ("b", "new"):
                os.utime(tmp_path / "jobs" / name / file, (time.time() - 999,) * 2)
    assert await folder.sweep("jobs", 500, nobody_needs) == 1
    assert [await folder.exists(f"jobs/{name}/old") for name in "ab"] == [False, True]


async def test_sweep_takes_drafts_of_writers_that_died(folder: ArtefactStore, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "a").mkdir(parents=True)
    (tmp_path / "jobs" / "a" / ".f.0123456789ab").write_bytes(b"half")
    assert await folder.sweep("jobs", -1, nobody_needs) == 1
    assert not (tmp_path / "jobs" / "a").exists()


async def test_index_that_is_away_ends_the_sweep_with_everything_there(store: ArtefactStore) -> None:
    await store.put("jobs/a/f", b"x")

    async def is_needed(name: str) -> bool:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        await store.sweep("jobs", -1, is_needed)
    assert await store.exists("jobs/a/f")


# -- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["nonsense://bucket", "s3://key:secret@bucket/x"])
def test_url_without_a_driver_is_refused_without_its_secrets(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*arguments: Any, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    if url.startswith("s3"):
        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match="s3fs" if url.startswith("s3") else "no store is known") as caught:
        ArtefactStore(url)
    assert "secret" not in str(caught.value)


# -- a full store ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_full_folder_says_so_and_keeps_what_it_had(
    folder: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    await folder.put("jobs/a/f", b"old")

    def fsync(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    for key in ("jobs/a/f", "jobs/b/g"):
        with pytest.raises(StoreFull, match="the store of files is full") as caught:
            await folder.put(key, b"new")
        assert str(tmp_path) not in caught.value.message
    left = await asyncio.to_thread(lambda: [path.name for path in tmp_path.rglob("*") if path.is_file()])
    assert left == ["f"]
    assert await folder.read("jobs/a/f") == b"old"


async def test_full_object_store_says_so_and_keeps_no_half_of_a_file() -> None:
    FillableFileSystem.empty()
    store = ArtefactStore("fillable://clips")
    await store.put("jobs/a/f", b"whole")
    FillableFileSystem.is_full = True
    with pytest.raises(StoreFull):
        await store.put("jobs/a/g", b"too much")
    assert await store.names("jobs/a") == ["f"]
    await store.delete("jobs/a/f")  # room can be made
    assert await store.names("jobs/a") == []
    store.close()


async def test_driver_that_wraps_what_the_system_said_is_understood(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def makedirs(*_arguments: Any, **_options: Any) -> None:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as error:
            raise RuntimeError("upload failed") from error

    monkeypatch.setattr(os, "fsync", makedirs)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", makedirs)
    with pytest.raises(StoreFull):
        await store.put("jobs/a/f", b"x")


async def test_names_are_those_of_the_files_of_one_folder(store: ArtefactStore) -> None:
    assert await store.names("jobs/a") == []
    for key in ("jobs/a/f", "jobs/a/g", "jobs/a/deeper/h", "jobs/ab/i"):
        await store.put(key, b"x")
    assert sorted(await store.names("jobs/a")) == ["f", "g"]


async def test_folder_that_cannot_be_removed_does_not_keep_the_others(
    store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("jobs/a/f", "jobs/b/f", "jobs/c/f"):
        await store.put(key, b"x")
    delete = store.delete

    async def sometimes(prefix: str) -> None:
        if prefix == "jobs/a":
            raise StoreUnavailable("busy")
        await delete(prefix)

    monkeypatch.setattr(store, "delete", sometimes)
    assert await store.sweep("jobs", -1.0, nobody_needs) == 2
    assert [await store.exists(f"jobs/{name}/f") for name in "abc"] == [True, False, False]
