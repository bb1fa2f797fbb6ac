"""Where the files of a job lie in the store of clips."""

from __future__ import annotations


def folder(job_id: str) -> str:
    """Everything of a job is below it."""
    return f"jobs/{job_id}"


def preview_key(job_id: str) -> str:
    """A frame as far as it is denoised, JPEG; written over and over."""
    return f"{folder(job_id)}/preview.jpg"
