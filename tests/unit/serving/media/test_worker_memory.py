"""A worker keeps the memory of one image for the next, and not more than that. Counted in faults and bytes."""

from __future__ import annotations

from pathlib import Path

from serving.media.limits import MediaLimits
from serving.media.pool import MediaPool
from tests.support import media_files as files
from tests.support.media_processors import make_processor

PAGE_BYTES = 4096


def minor_faults(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7])


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


async def test_next_image_reuses_the_memory_of_the_last_and_little_is_kept() -> None:
    pool = MediaPool(MediaLimits(decode_timeout_s=20), 1, make_processor)
    await pool.start()
    try:
        medium = files.encode(files.gradient(1000, 2000), "JPEG")
        for _ in range(3):
            await pool.prepare(medium, "corner")
        (pid,) = pool.worker_pids
        before = minor_faults(pid)
        for _ in range(5):
            await pool.prepare(medium, "corner")
        pages_of_one_image = 1000 * 2000 * (4 + 3) // PAGE_BYTES  # as Pillow holds it, and as an array
        assert minor_faults(pid) - before < pages_of_one_image / 4

        resident = resident_bytes(pid)
        await pool.prepare(files.encode(files.gradient(4000, 4000), "JPEG"), "corner")
        await pool.prepare(medium, "corner")
        assert resident_bytes(pid) - resident < 80 << 20  # 64 MiB on top of the heap, and what lies between
        assert pool.worker_pids == [pid]
    finally:
        await pool.stop()
