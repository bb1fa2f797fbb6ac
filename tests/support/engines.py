"""Fake engines that a test can hold still, and drivers around them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from schedulers.cost import CostModel, measured_stages
from schedulers.kernel import Kernel
from schedulers.policies.exits import ExitConfig, early_exits
from schedulers.types import Scheduler
from serving.domain import Pixels
from serving.replica.driver import Driver
from serving.replica.staged.base import Outcome, StagedEngine
from tests.support.fake_engine import FakeEngine

SIDE = 4
NEVER = 1e8
WAIT_S = 30.0
"""How long a test waits for what must happen; only a broken program comes near it."""


class GatedEngine(FakeEngine):
    """A ``FakeEngine`` whose ``run`` stands still while ``gate`` is closed; ``calls`` are (stage, num_stages, ids)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[tuple[int, int, tuple[int, ...]]] = []
        self.on_run: Callable[[], None] = lambda: None

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        """Wait for the gate, then pretend to run."""
        self.calls.append((stage, num_stages, tuple(sample_ids)))
        if not self.gate.wait(WAIT_S):
            raise TimeoutError("the test never opened the gate")
        self.on_run()
        return super().run(stage, num_stages, sample_ids)


def pixels(value: int, side: int = SIDE) -> Pixels:
    """An image whose class, to a ``FakeEngine``, is ``value``."""
    return np.full((side, side, 3), value, dtype=np.uint8)


def cost_table(num_stages: int = 4, stage_s: float = 1e-4) -> CostModel:
    """Every stage takes ``stage_s`` for one sample and twice that for 32."""
    return measured_stages((1, 32), [(stage_s, 2 * stage_s)] * num_stages)


def early_exit_scheduler(num_stages: int = 4, **limits: Any) -> Kernel:
    """The real policy on a made-up cost table."""
    return early_exits(cost_table(num_stages), ExitConfig(**limits))


@asynccontextmanager
async def running_driver(
    engine: StagedEngine, scheduler: Scheduler | None = None, **options: Any
) -> AsyncIterator[Driver]:
    """A started driver, stopped at the end."""
    scheduler = scheduler or early_exit_scheduler(engine.num_stages)
    driver = Driver(scheduler=scheduler, engine=engine, **options)
    driver.start()
    try:
        yield driver
    finally:
        if isinstance(engine, GatedEngine):
            engine.gate.set()
        await asyncio.wait_for(driver.stop(), WAIT_S)
