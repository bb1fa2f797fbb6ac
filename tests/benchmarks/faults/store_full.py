"""The store of clips is full when a clip is finished, and has room again after some seconds.

The store is a folder in memory that can be filled, which takes root. Work lost: what the finished attempt had computed
if it has to be done again, or was for nothing.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.benchmarks.faults.harness import Figures, Start
from tests.support.waiting import wait_until

TITLE = "store full for 5 s when a clip is delivered"
_MODEL = "vdit-nano"
_STEPS = 100
_FULL_S = 5.0


def measure(start: Start) -> Figures:
    """Settings as shipped, but for the store."""
    with (
        _small_store() as store,
        start(f"jobs.store={store}", models=[{"id": _MODEL}]) as system,
        httpx.Client(base_url=system.http_url) as http,
    ):
        body = {
            "model": _MODEL,
            "prompt": "a red circle moves left",
            "sampler": "euler_ancestral",
            "num_inference_steps": _STEPS,
            "seed": 1,
        }
        video_id = http.post("/v1/videos", json=body).raise_for_status().json()["id"]

        def look() -> dict[str, object]:
            video: dict[str, object] = http.get(f"/v1/videos/{video_id}").raise_for_status().json()
            return video

        def is_over() -> bool:
            return look()["status"] in ("completed", "failed")

        wait_until(lambda: int(look()["vireo"]["step"]) >= _STEPS // 2, "half is done", 60.0)  # type: ignore[index]
        filler = store / "filler"
        _fill(filler)
        wait_until(lambda: is_over() or look()["vireo"]["step"] == _STEPS, "the steps are done", 60.0)  # type: ignore[index]
        full_since_s = time.monotonic()
        while time.monotonic() < full_since_s + _FULL_S and not is_over():
            _fill(filler)
            time.sleep(0.1)
        time.sleep(max(0.0, full_since_s + _FULL_S - time.monotonic()))
        filler.unlink()
        room_s = time.monotonic()
        wait_until(is_over, "the job is over", 120.0)
        video, late_s = look(), time.monotonic() - room_s
        told = video["vireo"]
        assert isinstance(told, dict)
        stages = told["stages_s"]
        spent_s = sum(float(stages.get(name, 0.0)) for name in ("text", "denoise", "decode"))
        is_done = video["status"] == "completed"
        error = video["error"]
        return {
            "outcome": str(video["status"]),
            "error": json.dumps(error["code"]) if isinstance(error, dict) else "none",
            "attempts": told["attempts"],
            "s of work lost": 0.0 if is_done and told["attempts"] == 1 else round(spent_s, 2),
            "s from room to clip": round(late_s, 2) if is_done else None,
        }


@contextlib.contextmanager
def _small_store() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="v") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
