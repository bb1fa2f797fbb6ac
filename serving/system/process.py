"""What a process of the graph does for itself, and what it knows of the Ray that it runs on without asking anybody who
may be dead.

Serve sends ``serving.delivery.router`` to other processes by value, where its globals are copies: what routers tell is
kept here.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable

from ray import serve
from ray.serve.schema import ApplicationStatus


def freeze_start_up() -> int:
    """Take everything that exists now out of the collector's sight; call once, when a process is ready to serve.

    A full collection walks every object of every imported module: with torch loaded 250 ms on the machine of
    docs/experiments.md, in which the event loop and the engine stand still. What start-up made lives as long as the
    process, so there is nothing to find in it. Objects made later are collected as always.

    Returns: number of objects taken out.
    """
    gc.collect()
    gc.freeze()
    return gc.get_freeze_count()


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


_COUNTS: dict[str, Callable[[], int]] = {}


def register(deployment: str, count: Callable[[], int]) -> None:
    """Called by a router: ask it from now on. The last one counts."""
    _COUNTS[deployment] = count


def num_live(deployment: str) -> int:
    """Those that the controller says are healthy, without those that were found dead since. 0 before the first call."""
    count = _COUNTS.get(deployment)
    return 0 if count is None else count()
