"""What a gateway knows of the Ray that it runs on, without asking anybody who may be dead."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from ray import serve
from ray.serve.schema import ApplicationStatus


def raylet_watch() -> Callable[[], bool]:
    """Returns what tells whether this node's raylet, the parent of this process, still lives.

    Without it no replica on this node is replaced, and soon this process is gone as well. The kernel gives an orphan
    another parent at once.
    """
    parent = os.getppid()
    return lambda: os.getppid() == parent


async def is_deploying() -> bool:
    """Whether Serve is still bringing up the application that this replica belongs to."""
    name = serve.get_replica_context().app_name
    status = await asyncio.to_thread(lambda: serve.status().applications[name].status)
    return bool(status in (ApplicationStatus.NOT_STARTED, ApplicationStatus.DEPLOYING))
