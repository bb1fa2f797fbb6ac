"""The pool against real worker processes. The workers cost about 0.3 s to start; most tests share two of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.tiling import TilingLimits, num_tiles
from models.registry import find
from serving.errors import (
    BackendError,
    DecodeTimeout,
    Draining,
    ImageTooLarge,
    InvalidImage,
    QueueFull,
    QuotaExceeded,
    ServingError,
)
from serving.media import pool as media_pool
from serving.media.limits import MediaBudget, MediaLimits
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import content_sha256
from serving.media.worker_process import WorkerGone
from tests.support import media_files as files
from tests.support.media_processors import broken_factory, make_processor, served_processors, strips
from tests.support.waiting import lapse, turns, until

SERVED = served_processors("dyn-perceiver-nano", "texthawk2-nano", "texthawk2-7b")
LIMITS = MediaLimits(decode_timeout_s=0.5, tiny_pixels=64 * 64)
BIG = files.noise(100, 120)
BIG_PNG = files.encode(BIG)
TINY = files.noise(32, 32)
TINY_PNG = files.encode(TINY)


def make_pool(num_workers: int = 2, **options: int | float) -> MediaPool:
    return MediaPool(LIMITS, num_workers, make_processor, **options)  # type: ignore[arg-type]  # mixed keywords


@pytest.fixture
async def pool() -> AsyncIterator[MediaPool]:
    pool = make_pool()
    await pool.start()
    yield pool
    await pool.stop()


async def one_replaced(pool: MediaPool, before: set[int]) -> int:
    """Wait until one of two workers was replaced; return the pid of the dead one."""
    assert await until(lambda: len(pool.worker_pids) == 2 and set(pool.worker_pids) != before)
    (dead,) = before - set(pool.worker_pids)
    return dead


async def is_gone(pid: int) -> bool:
    return await until(lambda: not os.path.exists(f"/proc/{pid}"))


def child_commands() -> str:
    return subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True).stdout


# -- results ---------------------------------------------------------------------------------------------------------


async def test_worker_and_in_place_give_the_same_pixels_and_hash(pool: MediaPool) -> None:
    here = await pool.prepare(TINY_PNG, "corner")
    with_metadata = files.encode(TINY, exif=files.exif_orientation(1))
    there = await pool.prepare(with_metadata, "corner")
    assert (pool.stats.decoded_in_place, pool.stats.decoded_in_workers) == (1, 1)
    np.testing.assert_array_equal(here.pixels, TINY[:4, :4])
    np.testing.assert_array_equal(there.pixels, TINY[:4, :4])
    assert here.content_sha256 == there.content_sha256 == content_sha256(TINY)
    assert here.original_size == there.original_size == (32, 32)
    assert there.decode_ms > 0


async def test_pixels_and_file_of_the_same_image_give_the_same_result(pool: MediaPool) -> None:
    for pixels in (TINY, BIG):
        from_file = await pool.prepare(files.encode(pixels), "corner")
        from_pixels = await pool.prepare_pixels(pixels, "corner")
        assert from_file.content_sha256 == from_pixels.content_sha256
        np.testing.assert_array_equal(from_file.pixels, from_pixels.pixels)
    assert (pool.stats.decoded_in_place, pool.stats.decoded_in_workers) == (2, 2)


async def test_results_are_read_only_on_both_paths(pool: MediaPool) -> None:
    for data in (TINY_PNG, BIG_PNG):
        image = await pool.prepare(data, "corner")
        with pytest.raises(ValueError, match="read-only"):
            image.pixels[0, 0] = 1


async def test_many_at_once_come_back_to_their_own_callers(pool: MediaPool) -> None:
    pictures = [files.noise(80, 80, seed) for seed in range(24)]
    images = await asyncio.gather(*(pool.prepare(files.encode(p), "corner") for p in pictures))
    for picture, image in zip(pictures, images, strict=True):
        assert image.content_sha256 == content_sha256(picture)


async def test_worker_is_limited_and_clean(pool: MediaPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_TEST_SECRET", "hunter2")
    await pool.stop()
    await pool.start()
    image = await pool.prepare(BIG_PNG, "report")
    has_torch, has_secret, has_memory_limit, niceness, has_safe_path = image.pixels[0, :, 0]
    assert not has_torch
    assert not has_secret
    assert has_memory_limit
    assert niceness == os.nice(0)
    assert has_safe_path


# -- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [TINY_PNG, BIG_PNG], ids=["in place", "worker"])
async def test_tiles_come_with_their_grid_on_both_paths(pool: MediaPool, data: bytes) -> None:
    image = await pool.prepare(data, "strips")
    picture = TINY if data is TINY_PNG else BIG
    np.testing.assert_array_equal(image.pixels, strips(picture)[0])
    assert (image.grid, image.num_tiles) == ((1, 2), 3)
    assert image.content_sha256 == content_sha256(picture)
    assert not image.pixels.flags.writeable


async def test_square_has_no_grid_and_counts_as_one_tile(pool: MediaPool) -> None:
    for data in (TINY_PNG, BIG_PNG):
        image = await pool.prepare(data, "corner")
        assert (image.grid, image.num_tiles) == (None, 1)


async def test_processor_whose_tiles_are_none_is_our_fault(pool: MediaPool) -> None:
    for data in (TINY_PNG, BIG_PNG):
        with pytest.raises(BackendError):
            await pool.prepare(data, "flat tiles")


async def test_tiles_are_charged_before_decoding_and_shared_by_the_request(pool: MediaPool) -> None:
    asked: list[tuple[str, int, int]] = []

    def count(model_id: str, width: int, height: int, max_tiles: int | None) -> int:
        asked.append((model_id, width, height))
        return 3

    counting = MediaPool(LIMITS, 1, make_processor, tile_counter=count)
    await counting.start()
    try:
        budget = MediaBudget(MediaLimits(max_tiles_per_request=5))
        await counting.prepare(BIG_PNG, "strips", budget)
        with pytest.raises(ImageTooLarge, match=r"cut into 6 tiles or more; the limit is 5\. Scale them down or split"):
            await counting.prepare(BIG_PNG, "sleep", budget)
        with pytest.raises(ImageTooLarge, match="9 tiles"):
            await counting.prepare_pixels(BIG, "sleep", budget)
    finally:
        await counting.stop()
    assert asked == [("strips", 120, 100), ("sleep", 120, 100), ("sleep", 120, 100)]


async def test_image_that_the_model_cannot_tile_is_refused_before_decoding(pool: MediaPool) -> None:
    narrow = files.encode(files.noise(8, 800))
    tolerant = MediaPool(MediaLimits(max_aspect=1000.0), 1, SERVED, tile_counter=SERVED.count_tiles)
    with pytest.raises(InvalidImage, match=r"an aspect ratio of 100\.0; the limit is 64"):
        await tolerant.prepare(narrow, "texthawk2-nano")
    assert tolerant.stats.refused == 1


async def test_chat_model_gets_the_tiles_that_its_own_processor_cuts() -> None:
    _, variant = find("texthawk2-nano")
    pool = MediaPool(MediaLimits(), 1, SERVED, tile_counter=SERVED.count_tiles)
    await pool.start()
    try:
        picture = files.noise(300, 500)
        sideways = await pool.prepare(files.encode(picture, exif=files.exif_orientation(6)), variant.id)
        upright = np.ascontiguousarray(np.rot90(picture, -1))
        tiles, grid = cut_tiles(upright, TilingLimits.of(variant.io))
        np.testing.assert_array_equal(sideways.pixels, tiles)
        assert sideways.grid == grid
        assert sideways.num_tiles == SERVED.count_tiles(variant.id, 500, 300) == num_tiles(grid)
        coarse = await pool.prepare(files.encode(picture), variant.id, max_tiles=1)
        tiles, grid = cut_tiles(picture, replace(TilingLimits.of(variant.io), max_area=1))
        np.testing.assert_array_equal(coarse.pixels, tiles)
        assert coarse.num_tiles == SERVED.count_tiles(variant.id, 500, 300, 1) == 1 < sideways.num_tiles
        assert coarse.identity != (await pool.prepare(files.encode(picture), variant.id)).identity
    finally:
        await pool.stop()


def test_turning_an_image_does_not_change_its_tiles() -> None:
    sizes = [(200, 300), (224, 1000), (1344, 896), (2688, 1344), (4, 250), (999, 1001), (3000, 5000)]
    for width, height in sizes:
        assert SERVED.count_tiles("texthawk2-7b", width, height) == SERVED.count_tiles("texthawk2-7b", height, width)
    assert SERVED.count_tiles("dyn-perceiver-nano", 3000, 5000) == 1


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(files.bad_files()))
async def test_bad_file_is_refused_with_its_code_and_its_neighbour_is_served(pool: MediaPool, name: str) -> None:
    data, code = files.bad_files()[name]
    bad, good = await asyncio.gather(
        pool.prepare(data, "corner"), pool.prepare(BIG_PNG, "corner"), return_exceptions=True
    )
    assert isinstance(bad, ServingError)
    assert bad.code == code
    assert not isinstance(good, BaseException)
    assert pool.stats.refused == 1
    assert pool.stats.replaced_workers == 0


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (2, 8, 8, 3)])
async def test_pixel_tensor_of_wrong_shape_is_refused(pool: MediaPool, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidImage, match=r"must be UINT8 \[height, width, 3\]"):
        await pool.prepare_pixels(np.zeros(shape, np.uint8), "corner")


async def test_pixel_tensor_of_wrong_type_or_size_is_refused(pool: MediaPool) -> None:
    with pytest.raises(InvalidImage, match="float32"):
        await pool.prepare_pixels(np.zeros((8, 8, 3), np.float32), "corner")  # type: ignore[arg-type]
    with pytest.raises(InvalidImage, match="shortest allowed side is 4"):
        await pool.prepare_pixels(np.zeros((8, 1, 3), np.uint8), "corner")
    with pytest.raises(ImageTooLarge, match="longest allowed side"):
        await pool.prepare_pixels(np.zeros((4, 20_000, 3), np.uint8), "corner")
    assert pool.stats.refused == 3


async def test_budget_of_the_request_is_charged_before_decoding(pool: MediaPool) -> None:
    budget = MediaBudget(MediaLimits(max_pixels_per_request=100 * 120 + 1))
    await pool.prepare(BIG_PNG, "corner", budget)
    with pytest.raises(ImageTooLarge, match="images of this request"):
        await pool.prepare(TINY_PNG, "corner", budget)


@pytest.mark.parametrize("data", [TINY_PNG, BIG_PNG])
async def test_failing_processor_is_our_fault_and_says_nothing_internal(data: bytes) -> None:
    pool = MediaPool(LIMITS, 1, broken_factory)
    await pool.start()
    try:
        with pytest.raises(BackendError) as caught:
            await pool.prepare(data, "anything")
        assert "secret" not in caught.value.message
        assert len(pool.worker_pids) == 1
    finally:
        await pool.stop()


async def test_processor_that_breaks_its_contract_is_our_fault(pool: MediaPool) -> None:
    for data in (TINY_PNG, BIG_PNG):
        with pytest.raises(BackendError):
            await pool.prepare(data, "float")


async def test_processor_that_needs_too_much_memory_fails_alone(pool: MediaPool) -> None:
    with pytest.raises(BackendError):
        await pool.prepare(BIG_PNG, "hog")
    assert (await pool.prepare(BIG_PNG, "corner")).pixels.shape == (4, 4, 3)
    assert pool.stats.replaced_workers == 0


# -- stuck, crashed, cancelled ---------------------------------------------------------------------------------------


async def test_stuck_worker_is_killed_fails_its_image_only_and_is_replaced(pool: MediaPool) -> None:
    before = set(pool.worker_pids)
    stuck, *rest = await asyncio.gather(
        pool.prepare(BIG_PNG, "sleep"), *(pool.prepare(BIG_PNG, "nap") for _ in range(8)), return_exceptions=True
    )
    assert isinstance(stuck, DecodeTimeout)
    assert "0.5 s, the limit" in stuck.message
    assert not any(isinstance(image, BaseException) for image in rest)
    assert await is_gone(await one_replaced(pool, before))
    assert (pool.stats.timeouts, pool.stats.replaced_workers) == (1, 1)


async def test_worker_that_contradicts_itself_is_not_believed_and_replaced(pool: MediaPool) -> None:
    before = set(pool.worker_pids)
    with pytest.raises(InvalidImage, match="crashed the decoder"):
        await pool.prepare(BIG_PNG, "wrong grid")
    await one_replaced(pool, before)
    assert pool.stats.crashes == 1


@pytest.mark.parametrize(("death", "error"), [("sigkill", BackendError), ("sigsegv", InvalidImage)])
async def test_crashed_worker_fails_its_image_only_and_is_replaced(
    pool: MediaPool, death: str, error: type[ServingError]
) -> None:
    before = set(pool.worker_pids)
    crashed, *rest = await asyncio.gather(
        pool.prepare(BIG_PNG, death), *(pool.prepare(BIG_PNG, "nap") for _ in range(8)), return_exceptions=True
    )
    assert type(crashed) is error
    assert not any(isinstance(image, BaseException) for image in rest)
    await one_replaced(pool, before)
    assert (pool.stats.crashes, pool.stats.replaced_workers) == (1, 1)
    await pool.prepare(BIG_PNG, "corner")


async def test_worker_killed_while_idle_is_replaced_and_costs_no_image(pool: MediaPool) -> None:
    before = set(pool.worker_pids)
    victim = pool.worker_pids[0]
    os.kill(victim, signal.SIGKILL)
    assert await one_replaced(pool, before) == victim
    images = await asyncio.gather(*(pool.prepare(BIG_PNG, "nap") for _ in range(6)))
    assert len(images) == 6
    assert pool.stats.crashes == 0


async def test_queue_over_its_bound_is_refused_at_once_and_retryable() -> None:
    pool = make_pool(1, max_queue=1)
    await pool.start()
    try:
        first, second = (asyncio.create_task(pool.prepare(BIG_PNG, "nap")) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pool.num_waiting == 1
        with pytest.raises(QueueFull) as caught:
            await pool.prepare(BIG_PNG, "nap")
        assert caught.value.retry_after_s == 1.0
        await asyncio.gather(first, second)
    finally:
        await pool.stop()


async def test_waiting_longer_than_the_queue_timeout_is_refused() -> None:
    pool = make_pool(1, queue_timeout_s=0.05)
    await pool.start()
    try:
        stuck = asyncio.create_task(pool.prepare(BIG_PNG, "sleep"))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match=r"no decoder was free for 0\.05 s"):
            await pool.prepare(BIG_PNG, "corner")
        assert pool.num_waiting == 0
        with pytest.raises(DecodeTimeout):
            await stuck
    finally:
        await pool.stop()


async def test_cancelled_while_waiting_leaves_the_queue() -> None:
    pool = make_pool(1)
    await pool.start()
    try:
        running, waiting = (asyncio.create_task(pool.prepare(BIG_PNG, "nap")) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.num_waiting == 0
        await running
        assert (await pool.prepare(BIG_PNG, "corner")).pixels.shape == (4, 4, 3)
    finally:
        await pool.stop()


async def test_cancelled_during_a_short_job_keeps_the_worker_and_mixes_up_no_answers() -> None:
    pool = make_pool(1)
    await pool.start()
    try:
        (pid,) = pool.worker_pids
        for seed in range(5):
            job = asyncio.create_task(pool.prepare(BIG_PNG, "nap"))
            await lapse(0.001 * seed)
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            picture = files.noise(90, 90, seed)
            image = await pool.prepare(files.encode(picture), "corner")
            assert image.content_sha256 == content_sha256(picture)
        assert pool.worker_pids == [pid]
    finally:
        await pool.stop()


async def test_cancelled_during_a_long_job_frees_the_slot_well_before_the_decode_timeout() -> None:
    pool = MediaPool(MediaLimits(decode_timeout_s=60.0), 1, make_processor)
    await pool.start()
    try:
        job = asyncio.create_task(pool.prepare(BIG_PNG, "sleep"))
        await turns()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        async with asyncio.timeout(10):
            await pool.prepare(BIG_PNG, "corner")
        assert pool.stats.replaced_workers == 1
    finally:
        await pool.stop()


# -- life and death --------------------------------------------------------------------------------------------------


async def test_stop_ends_every_process_and_every_caller() -> None:
    pool = make_pool(1)
    await pool.start()
    (pid,) = pool.worker_pids
    running, waiting = (asyncio.create_task(pool.prepare(BIG_PNG, "sleep")) for _ in range(2))
    await turns()
    await pool.stop()
    for task in (running, waiting):
        with pytest.raises(Draining):
            await task
    assert await is_gone(pid)
    with pytest.raises(Draining):
        await pool.prepare(BIG_PNG, "corner")
    await pool.stop()


async def test_stop_while_a_worker_is_being_replaced_leaves_nothing_behind() -> None:
    pool = make_pool(1)
    await pool.start()
    os.kill(pool.worker_pids[0], signal.SIGKILL)
    assert await until(lambda: not pool.worker_pids)
    await pool.stop()
    assert "serving.media.worker" not in child_commands()


async def test_worker_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(WorkerGone):
        await make_pool().start()


async def test_worker_that_dies_at_its_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerGone):
        await make_pool().start()


PARENT = """
import asyncio, sys
from serving.media.limits import MediaLimits
from serving.media.pool import Caller, MediaPool
from tests.support import media_files as files
from tests.support.media_processors import make_processor
from tests.support.waiting import lapse, turns, until

async def main():
    pool = MediaPool(MediaLimits(), 2, make_processor)
    await pool.start()
    stuck = asyncio.create_task(pool.prepare(files.encode(files.noise(100, 100)), "sleep"))
    while len(pool._free) == 2:
        await asyncio.sleep(0)
    print(*pool.worker_pids, flush=True)
    await stuck

asyncio.run(main())
"""


def kill_a_parent() -> list[int]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    return pids


async def test_no_worker_outlives_a_parent_that_was_killed() -> None:
    pids = kill_a_parent()
    assert len(pids) == 2
    for pid in pids:
        assert await is_gone(pid), f"worker {pid}, one idle and one busy, is still there"


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers 0"):
        make_pool(0)


# -- tenants -----------------------------------------------------------------------------------------------------------


class Account:
    """Implements ``DecodeAccount``: what is set aside, and what was charged."""

    def __init__(self) -> None:
        self.held = 0
        self.charged: list[tuple[str, float]] = []
        self.empty: set[str] = set()

    def hold_decode(self, tenant: str, predicted_s: float) -> None:
        if tenant in self.empty:
            raise QuotaExceeded("empty", retry_after_s=1.0)
        assert predicted_s > 0.0
        self.held += 1

    def charge_decode(self, tenant: str, predicted_s: float, used_s: float) -> None:
        self.held -= 1
        self.charged.append((tenant, used_s))

    async def settled(self, count: int) -> list[float]:
        """Wait until nothing is set aside and ``count`` decodes were charged."""
        assert await until(lambda: self.held == 0 and len(self.charged) == count)
        return [seconds for _, seconds in self.charged]


@asynccontextmanager
async def charged_pool(num_workers: int = 1, **options: int | float) -> AsyncIterator[tuple[MediaPool, Account]]:
    account = Account()
    pool = MediaPool(LIMITS, num_workers, make_processor, account=account, **options)  # type: ignore[arg-type]
    await pool.start()
    try:
        yield pool, account
    finally:
        await pool.stop()


ACME = Caller("acme")


@pytest.mark.parametrize("data", [TINY_PNG, BIG_PNG], ids=["in place", "in a worker"])
async def test_decoding_is_charged_also_when_the_image_is_no_good(data: bytes) -> None:
    async with charged_pool() as (pool, account):
        await pool.prepare(data, "nap", caller=ACME)
        with pytest.raises(InvalidImage):
            await pool.prepare(_damaged(data), "nap", caller=ACME)
        seconds = await account.settled(2)
        assert seconds[0] >= 0.02
        assert all(used > 0.0 for used in seconds)
        assert {tenant for tenant, _ in account.charged} == {"acme"}


def _damaged(data: bytes) -> bytes:
    """With another bit in the middle of the pixel data: the header is good."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


async def test_pixels_are_charged_too() -> None:
    async with charged_pool() as (pool, account):
        await pool.prepare_pixels(BIG, "nap", caller=ACME)
        await pool.prepare_pixels(TINY, "nap", caller=ACME)
        assert all(used >= 0.02 for used in await account.settled(2))


async def test_decode_that_runs_out_of_time_or_crashes_is_charged() -> None:
    async with charged_pool() as (pool, account):
        with pytest.raises(DecodeTimeout):
            await pool.prepare(BIG_PNG, "sleep", caller=ACME)
        with pytest.raises(InvalidImage):
            await pool.prepare(BIG_PNG, "sigsegv", caller=ACME)
        seconds = await account.settled(2)
        assert seconds[0] >= LIMITS.decode_timeout_s
        assert seconds[1] > 0.0


async def test_who_leaves_pays_for_what_ran_and_not_for_waiting() -> None:
    async with charged_pool() as (pool, account):
        running, waiting = (asyncio.create_task(pool.prepare(BIG_PNG, "nap", caller=ACME)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert account.held == 2
        waiting.cancel()
        await asyncio.wait([waiting])
        assert account.charged == [("acme", 0.0)]
        running.cancel()
        await asyncio.wait([running])
        assert (await account.settled(2))[1] >= 0.02


async def test_empty_account_decodes_nothing() -> None:
    async with charged_pool() as (pool, account):
        account.empty.add("acme")
        for data in (TINY_PNG, BIG_PNG):
            with pytest.raises(QuotaExceeded):
                await pool.prepare(data, "corner", caller=ACME)
        assert (pool.stats.decoded_in_place, pool.stats.decoded_in_workers, account.charged) == (0, 0, [])
        await pool.prepare(BIG_PNG, "corner", caller=Caller("rival"))


async def test_tenants_take_turns_however_many_images_one_of_them_sends() -> None:
    async with charged_pool() as (pool, account):
        flood = [asyncio.create_task(pool.prepare(BIG_PNG, "nap", caller=ACME)) for _ in range(12)]
        await asyncio.sleep(0)
        await pool.prepare(BIG_PNG, "nap", caller=Caller("rival"))
        assert sum(task.done() for task in flood) <= 2
        await asyncio.gather(*flood)
        await account.settled(13)


async def test_flood_fills_the_queue_for_its_own_tenant_only() -> None:
    async with charged_pool(max_queue=4) as (pool, account):
        flood = [asyncio.create_task(pool.prepare(BIG_PNG, "nap", caller=ACME)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await pool.prepare(BIG_PNG, "nap", caller=ACME)
        image = await pool.prepare(BIG_PNG, "nap", caller=Caller("rival"))
        assert image.content_sha256 == content_sha256(BIG)
        ends = await asyncio.gather(*flood, return_exceptions=True)
        assert [type(end) for end in ends if isinstance(end, BaseException)] == [QueueFull]
        await account.settled(7)


async def test_long_decodes_never_have_the_last_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_pool, "predict_s", lambda header, num_bytes: 1.0 if num_bytes > len(BIG_PNG) else 0.01)
    long_png = files.encode(files.noise(200, 200))
    async with charged_pool(2) as (pool, account):
        flood = [asyncio.create_task(pool.prepare(long_png, "sleep", caller=ACME)) for _ in range(2)]
        await asyncio.sleep(0)
        assert pool.num_waiting == 1
        await pool.prepare(BIG_PNG, "corner", caller=Caller("rival"))
        await pool.prepare(BIG_PNG, "corner", caller=ACME)
        assert not any(task.done() for task in flood)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await account.settled(4)


async def test_urgent_images_of_a_tenant_go_before_its_others() -> None:
    async with charged_pool() as (pool, _):
        order: list[int] = []

        async def ask(rank: int) -> None:
            await pool.prepare(BIG_PNG, "nap", caller=Caller("acme", rank))
            order.append(rank)

        tasks = []
        for rank in (2, 2, 1, 0):  # the first finds the worker free
            tasks.append(asyncio.create_task(ask(rank)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert order == [2, 0, 1, 2]
