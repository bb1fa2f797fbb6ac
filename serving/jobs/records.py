"""Between ``VideoJob`` and the hash that Redis keeps of it.

The record as created is one JSON value that never changes; what the scripts change lies beside it in fields of its own.
What cannot be read is no job: Redis is not trusted to hold only what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec

from serving.jobs.base import Progress
from serving.video.domain import Artefact, JobError, JobStatus, VideoJob

T = TypeVar("T")
# Made once: msgspec takes a millisecond to understand a dataclass.
_JOB: Final = msgspec.json.Decoder(VideoJob)
_ARTEFACTS: Final = msgspec.json.Decoder(dict[str, Artefact])
_ERROR: Final = msgspec.json.Decoder(JobError)
_REPORT: Final = msgspec.json.Decoder(dict[str, Any])


def encode_record(job: VideoJob) -> bytes:
    """The job as it was created."""
    return msgspec.json.encode(job)


def fields_of(reply: Any) -> dict[str, bytes]:
    """What HGETALL answers with inside a script: names and values in turns."""
    return {bytes(name).decode(): bytes(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}


def decode_job(fields: dict[str, bytes]) -> VideoJob:
    """The job as it is now.

    Raises: ValueError: these are not the fields of a job.
    """
    try:
        return _decode(fields)
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise ValueError(f"not a job: {error}") from None


def _decode(fields: dict[str, bytes]) -> VideoJob:
    def number(name: str) -> float | None:
        return float(fields[name]) if name in fields else None

    def whole(name: str) -> int:
        return int(fields.get(name, b"0"))

    def value(name: str, decoder: msgspec.json.Decoder[T], default: T) -> T:
        return decoder.decode(fields[name]) if name in fields else default

    created = _JOB.decode(fields["record"])
    return replace(
        created,
        status=JobStatus(fields["status"].decode()),
        stage=fields["stage"].decode(),
        step=whole("step"),
        attempts=whole("attempts"),
        preemptions=whole("preemptions"),
        checkpoint_key=fields["checkpoint_key"].decode() if "checkpoint_key" in fields else None,
        checkpoint_step=whole("checkpoint_step"),
        started_at_s=number("started_at_s"),
        completed_at_s=number("completed_at_s"),
        expires_at_s=number("expires_at_s"),
        remaining_s=number("remaining_s"),
        artefacts=value("artefacts", _ARTEFACTS, {}),
        error=_ERROR.decode(fields["error"]) if "error" in fields else None,
        report=value("report", _REPORT, {}),
    )


def progress_arguments(progress: Progress) -> Sequence[str | int]:
    """In the order in which the scripts take them."""
    remaining = "" if progress.remaining_s is None else repr(float(progress.remaining_s))
    return (
        progress.stage,
        progress.step,
        remaining,
        progress.checkpoint_key or "",
        progress.checkpoint_step,
        progress.preemptions,
    )
