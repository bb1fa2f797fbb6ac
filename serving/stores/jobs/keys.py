"""Key names of the job index. All lie in one slot of a cluster, because one script touches several of them.

No key of a job that is not over has a lifetime, so that ``volatile-lru`` evicts none of them; final records have one.

    P:job:ID       hash: the record as created (sealed), and everything that changes beside it
    P:live         hash: "OWNER MODEL US" of jobs that are not over; US: predicted microseconds that wait. What has to
                   be put right when a job leaves is known from here, also where its record is damaged or gone
    P:flow:OWNER:MODEL  sorted set: jobs that wait, by ``schedulers.urgency.queue_key``; OWNER is ``*`` for those that
                   have been paid for and came back
    P:turns:MODEL  sorted set: owners that wait, and some that did, by where their next job starts in virtual time
    P:virtual      hash: virtual time by model, while something waits
    P:waiting      set: jobs that wait, of all models
    P:load:MODEL   hash: predicted microseconds of the jobs that wait, by flow, OWNER as above
    P:leases       sorted set: running jobs, by when their lease expires (ms, the server's clock)
    P:owner:OWNER  sorted set: an owner's jobs by creation
    P:open:OWNER   set: an owner's jobs that are not over
    P:ended        sorted set: "ID OWNER" by when the record expires; the owner's list is swept by it
    P:unsettled    sorted set: jobs that are over and perhaps still charged as predicted, by when they ended (ms)
    P:claim:TOKEN  string with a lifetime: which job a claim was given, should its answer be lost
"""

from __future__ import annotations

from typing import Final

from serving.stores.keys import PREFIX

JOBS: Final = f"{PREFIX}:{{jobs}}"
"""``P`` above; the scripts append the rest."""


def job(job_id: str) -> str:
    """The record of a job."""
    return f"{JOBS}:job:{job_id}"


def unsettled() -> str:
    """Jobs that are over and perhaps still charged as predicted."""
    return f"{JOBS}:unsettled"


def load(model: str) -> str:
    """Predicted work that waits, by flow."""
    return f"{JOBS}:load:{model}"
