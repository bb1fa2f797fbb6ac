"""Jobs for tests of the job index."""

from __future__ import annotations

import time

import msgspec

from models.io import ClipRequest
from serving.stores.jobs.base import Artefact, JobRecord, Progress

SECRET = b"s" * 32
CLIP = {"video": Artefact(key="jobs/a/clip.mp4", media_type="video/mp4", num_bytes=3, sha256="0" * 64)}
"""What came of the job ``a``."""


def video_job(
    job_id: str,
    *,
    owner: str = "acme",
    model: str = "vdit-nano",
    priority: str = "normal",
    created_at_s: float | None = None,
    deadline_at_s: float | None = None,
    predicted_s: float = 2.0,
    predicted_j: float = 12.0,
    num_steps: int = 10,
    prompt: str = "a red ball",
    elsewhere_j: float = 0.0,
) -> JobRecord:
    return JobRecord(
        id=job_id,
        owner=owner,
        task="videos",
        model=model,
        payload=msgspec.json.encode(ClipRequest(prompt=prompt, num_frames=29)),
        point={
            "num_inference_steps": num_steps,
            "guidance_scale": 3.5,
            "sampler": "ddim",
            "attention": "tile:2:6",
        },
        seed=7,
        num_steps=num_steps,
        output={"format": "mp4", "fps": 8},
        shown={"width": 64, "height": 64, "variant": "teacher", "user": "somebody"},
        priority=priority,
        created_at_s=time.time() if created_at_s is None else created_at_s,
        deadline_at_s=deadline_at_s,
        predicted_s=predicted_s,
        predicted_j=predicted_j,
        operating_point="dense-20",
        elsewhere_j=elsewhere_j,
    )


def progress(step: int, *, checkpoint_step: int = 0, stage: str = "denoise", preemptions: int = 0) -> Progress:
    return Progress(
        stage=stage,
        step=step,
        remaining_s=0.5,
        checkpoint_step=checkpoint_step,
        preemptions=preemptions,
    )
