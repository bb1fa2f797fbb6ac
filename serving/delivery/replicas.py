"""What both ways of calling replicas need to know of them: when one is lost, and whether a cancellation is our own."""

from __future__ import annotations

import asyncio

import grpc
from ray.exceptions import ActorUnavailableError, RayActorError

from serving.errors import RetriesSpent


def is_replica_lost(error: BaseException) -> bool:
    """Whether the replica, rather than the model, failed, so that another replica may answer: Ray's errors about an
    actor, and what gRPC says when the connection to one breaks in a stream."""
    return isinstance(error, RayActorError | ActorUnavailableError | grpc.aio.AioRpcError)


def is_cancelled_itself() -> bool:
    """Whether somebody cancels the task that runs, rather than what it waits for having been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def retries_spent() -> RetriesSpent:
    """For a request whose replica was lost when too many had been sent again already."""
    return RetriesSpent(
        "the replica that had this request was lost, and so were those of many others: it is not sent again; retry",
        retry_after_s=1.0,
    )
