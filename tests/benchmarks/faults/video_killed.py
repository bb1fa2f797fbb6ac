"""Both video replicas are killed 1.3 s into a clip of 100 steps: where does the next attempt begin?

Two seconds or more would not show it: that long, no attempt left anything behind.
"""

from __future__ import annotations

import time

import httpx

from tests.benchmarks.faults.harness import Figures, Start
from tests.support.waiting import wait_until

TITLE = "both video replicas killed 1.3 s into a clip"
_MODEL = {"id": "vdit-nano", "replicas": 2}
_STEPS = 100
_BEGUN_S = 1.3


def measure(start: Start) -> Figures:
    """Settings as shipped."""
    with start(models=[_MODEL]) as system, httpx.Client(base_url=system.http_url) as http:
        body = {
            "model": _MODEL["id"],
            "prompt": "a red circle moves left",
            "sampler": "euler_ancestral",
            "num_inference_steps": _STEPS,
            "seed": 1,
        }
        video_id = http.post("/v1/videos", json=body).raise_for_status().json()["id"]

        def look() -> dict[str, object]:
            video: dict[str, object] = http.get(f"/v1/videos/{video_id}").raise_for_status().json()
            return video

        def step() -> int:
            return int(look()["vireo"]["step"])  # type: ignore[index]

        wait_until(lambda: look()["status"] == "in_progress", "it is begun", 60.0)
        begun_s = time.monotonic()
        wait_until(lambda: time.monotonic() >= begun_s + _BEGUN_S, "so long", 10.0)
        for replica in system.replicas(str(_MODEL["id"])):
            replica.kill()
        killed_s, killed_at = time.monotonic(), step()
        wait_until(lambda: look()["status"] in ("completed", "failed"), "the job is over", 120.0)
        video, seconds = look(), time.monotonic() - killed_s
        told = video["vireo"]
        assert isinstance(told, dict)
        return {
            "killed at step": killed_at,
            "resumed at step": told["resumed_at_step"],
            "outcome": str(video["status"]),
            "attempts": told["attempts"],
            "s until done": round(seconds, 1),
        }
