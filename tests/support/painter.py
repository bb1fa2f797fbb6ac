"""A model that makes pictures, its driver, and durable jobs of it: the picture that goes in, brighter by its seed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch

from models.contract import Point
from models.io import ImageIO
from schedulers.policies.exits import ExitConfig, early_exits
from serving.replica.driver import Driver
from serving.replica.job.base import JobInput
from serving.replica.staged.engine import RowEngine, as_staged
from serving.replica.staged.jobs import RowJobs
from tests.support.engines import WAIT_S, GatedEngine, cost_table

IO = ImageIO(takes_picture=True, takes_prompt=True, is_seeded=True, max_side=64)
UNPAINTABLE = 255
"""A picture of this brightness fails."""


def words(prompt: str) -> Any:
    return np.array([len(prompt)], np.int64)


class Painter:
    """``models.contract.Unary``. ``batches``: seeds of each."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def forward(self, batch: Mapping[str, torch.Tensor], points: Sequence[Point]) -> Mapping[str, torch.Tensor]:
        self.batches.append(batch["seed"].tolist())
        if bool((batch["picture"] == UNPAINTABLE).any()):
            raise ValueError("too bright")
        return {"image": (batch["picture"] + batch["seed"].reshape(-1, 1, 1, 1)).to(torch.uint8)}


class PainterEngine(RowEngine):
    """Stands still while ``gate`` is closed."""

    def __init__(self, painter: Painter, max_rows: int = 64) -> None:
        super().__init__(as_staged(painter), bytes_per_sample=1, max_bytes=2 * max_rows)
        self.gate = GatedEngine().gate

    def run(self, *arguments: Any) -> Any:
        assert self.gate.wait(WAIT_S)
        return super().run(*arguments)


@asynccontextmanager
async def painting(engine: PainterEngine) -> AsyncIterator[tuple[Driver, RowJobs]]:
    """A driver around it and its jobs."""
    scheduler = early_exits(cost_table(1), ExitConfig())
    driver = Driver(scheduler=scheduler, engine=engine)
    driver.start()
    try:
        yield driver, RowJobs(IO, words, driver)
    finally:
        engine.gate.set()
        await driver.stop()


def wanted(request: Any, seed: int = 7, **values: Any) -> JobInput:
    return JobInput(request=request, point={}, seed=seed, num_steps=1, tenant="acme", **values)
