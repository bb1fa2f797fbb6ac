"""Between ``JobRecord`` and the hash that Redis keeps of it.

    record   the job as it was created: sealed, never changed
    result   how its worker says that it ended: sealed
    ...      everything that the scripts change: status, step, attempts, times

Redis is not trusted to hold only what was written. Whose a job is, what is made and which files came of it are sealed
(``serving.stores.sealed``): whoever writes to Redis can make a job vanish or begin anew, and can neither give it to
another tenant nor name another tenant's files. What cannot be read, or was not sealed here, is no job.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from serving.stores.jobs.base import (
    ATTEMPTS_EXHAUSTED,
    CANCELLED,
    MAX_PAYLOAD_BYTES,
    Artefact,
    JobError,
    JobRecord,
    JobStatus,
    Progress,
)
from serving.stores.sealed import Sealer

_STAGE: Final = re.compile(r"[a-z]{1,16}")
_MAX_NUMBER: Final = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a worker says at the end of a job."""

    status: JobStatus
    report: dict[str, Any]
    artefacts: dict[str, Artefact] = field(default_factory=dict)
    error: JobError | None = None


# Made once: msgspec takes a millisecond to understand a dataclass.
_JOB: Final = msgspec.json.Decoder(JobRecord)
_RESULT: Final = msgspec.json.Decoder(Result)


class RecordCodec:
    """Writes and reads what only holders of the secret can write."""

    def __init__(self, secret: bytes) -> None:
        self._records = Sealer(secret, "job record")
        self._results = Sealer(secret, "job result")

    def encode(self, job: JobRecord) -> bytes:
        """The job as it was created. Raises: ValueError: its payload is too large."""
        if len(job.payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"payload of {len(job.payload)} bytes; limit is {MAX_PAYLOAD_BYTES}")
        return self._records.seal(job.id, msgspec.json.encode(job))

    def encode_result(self, job_id: str, result: Result) -> bytes:
        """How a job ended."""
        return self._results.seal(job_id, msgspec.json.encode(result))

    def decode(self, job_id: str, fields: dict[str, bytes]) -> JobRecord:
        """The job of that id as it is now.

        Raises: ValueError: these are not the fields of that job.
        """
        try:
            job = self._created(job_id, fields)
            status = JobStatus(fields["status"].decode())
            job = replace(job, status=status, **_progress(fields, job.num_steps))
            return self._ended(job, fields) if status.is_final else job
        except (KeyError, ValueError, msgspec.MsgspecError) as error:
            raise ValueError(f"not a job: {error}") from None

    def _created(self, job_id: str, fields: dict[str, bytes]) -> JobRecord:
        raw = self._records.open(job_id, fields["record"])
        if raw is None:
            raise ValueError("the record was not sealed here")
        return _JOB.decode(raw)

    def _ended(self, job: JobRecord, fields: dict[str, bytes]) -> JobRecord:
        if "result" not in fields:
            return replace(job, error=_error_of_index(fields["ended"].decode(), job))
        raw = self._results.open(job.id, fields["result"])
        if raw is None:
            raise ValueError("the result was not sealed here")
        result = _RESULT.decode(raw)
        if result.status is not job.status:
            raise ValueError(f"the result says {result.status}, the record {job.status}")
        return replace(job, artefacts=result.artefacts, error=result.error, report={**job.report, **result.report})


def fields_of(reply: Any) -> dict[str, bytes]:
    """What HGETALL answers with inside a script: names and values in turns. Raises: ValueError: it is not that."""
    return {bytes(name).decode(): bytes(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}


def _error_of_index(ended: str, job: JobRecord) -> JobError:
    """Of a job that the index ended by itself, which cannot seal. Raises: ValueError: it does not end jobs so."""
    if job.status is JobStatus.FAILED and ended == CANCELLED:
        return JobError(code=CANCELLED, message="the job was cancelled")
    if job.status is JobStatus.FAILED and ended == ATTEMPTS_EXHAUSTED:
        message = f"the job was begun {job.attempts} times and never finished; simplify it or try again later"
        return JobError(code=ATTEMPTS_EXHAUSTED, message=message)
    raise ValueError(f"no job ends as {job.status} by {ended[:40]!r}")


def _progress(fields: dict[str, bytes], num_steps: int) -> dict[str, Any]:
    """Raises: ValueError: not what a script writes."""
    stage = fields["stage"].decode()
    if not _STAGE.fullmatch(stage):
        raise ValueError(f"stage {stage[:40]!r}")
    return {
        "stage": stage,
        "step": _whole(fields, "step", num_steps),
        "attempts": _whole(fields, "attempts"),
        "preemptions": _whole(fields, "preemptions"),
        "checkpoint_step": _whole(fields, "checkpoint_step", num_steps),
        "started_at_s": _number(fields, "started_at_s"),
        "completed_at_s": _number(fields, "completed_at_s"),
        "expires_at_s": _number(fields, "expires_at_s"),
        "remaining_s": _number(fields, "remaining_s"),
    }


def _whole(fields: dict[str, bytes], name: str, limit: float = _MAX_NUMBER) -> int:
    number = int(fields.get(name, b"0"))
    if not 0 <= number <= limit:
        raise ValueError(f"{name} is {number}")
    return number


def _number(fields: dict[str, bytes], name: str) -> float | None:
    if name not in fields:
        return None
    number = float(fields[name])
    if not (math.isfinite(number) and 0 <= number <= _MAX_NUMBER):
        raise ValueError(f"{name} is {number}")
    return number


def progress_arguments(progress: Progress) -> Sequence[str | int]:
    """In the order in which the scripts take them."""
    remaining = "" if progress.remaining_s is None else repr(float(progress.remaining_s))
    return (progress.stage, progress.step, remaining, progress.checkpoint_step, progress.preemptions)
