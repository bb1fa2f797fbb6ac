"""Files go once the index has forgotten their job, and not before."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.errors import StoreUnavailable
from serving.stores.artefacts import ArtefactStore
from serving.stores.periodic import ArtefactCleaner
from tests.support.waiting import turns, until


class Index:
    def __init__(self, *names: str) -> None:
        self.names = set(names)
        self.is_away = False
        self.asked = False

    async def has(self, job_id: str) -> bool:
        self.asked = True
        if self.is_away:
            raise StoreUnavailable("away")
        return job_id in self.names


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtefactStore]:
    store = ArtefactStore(str(tmp_path))
    yield store
    store.close()


async def put(store: ArtefactStore, folder: Path, name: str, age_s: float) -> None:
    await store.put(f"jobs/{name}/clip.mp4", b"x")
    then_s = time.time() - age_s
    os.utime(folder / "jobs" / name / "clip.mp4", (then_s, then_s))


async def test_old_files_without_a_job_go(store: ArtefactStore, tmp_path: Path) -> None:
    for name, age_s in (("gone", 7200), ("here", 7200), ("young", 60)):
        await put(store, tmp_path, name, age_s)
    assert await ArtefactCleaner(store, Index("here")).sweep() == 1
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["here", "young"]


async def test_it_goes_on_after_an_outage(store: ArtefactStore, tmp_path: Path) -> None:
    index = Index()
    index.is_away = True
    await put(store, tmp_path, "gone", 7200)
    cleaner = ArtefactCleaner(store, index, every_s=0.01)
    cleaner.start()
    await until(lambda: index.asked)
    assert (tmp_path / "jobs" / "gone").exists()
    index.is_away = False
    await until(lambda: not (tmp_path / "jobs" / "gone").exists())
    await cleaner.stop()
    await cleaner.stop()
    await put(store, tmp_path, "after", 7200)
    await turns()
    assert (tmp_path / "jobs" / "after").exists()


def test_times_must_be_positive(store: ArtefactStore) -> None:
    for options in ({"every_s": 0.0}, {"older_than_s": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            ArtefactCleaner(store, Index(), **options)


async def test_it_goes_on_after_an_error_that_nobody_foresaw(
    store: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index()
    await put(store, tmp_path, "gone", 7200)
    sweep, failures = store.sweep, iter([ValueError("a name nobody expected")])

    async def once(*arguments: Any) -> int:
        if (error := next(failures, None)) is not None:
            raise error
        return await sweep(*arguments)

    monkeypatch.setattr(store, "sweep", once)
    cleaner = ArtefactCleaner(store, index, every_s=0.01)
    cleaner.start()
    await until(lambda: not (tmp_path / "jobs/gone").exists())
    await cleaner.stop()
