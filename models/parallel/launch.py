"""One rank's membership of a torch.distributed world: joined, used, left. Who starts the processes is not said here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

_BACKENDS = ("gloo", "nccl")
_SCHEMES = ("file://", "tcp://")


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """What a process must know to join. ``init_method`` is ``tcp://host:port`` (rank 0 listens there) or
    ``file:///path`` (a file that does not exist yet, on a disk that all ranks see).
    """

    rank: int
    world_size: int
    init_method: str
    backend: str = "gloo"
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; a world of {self.world_size} has ranks 0 to {self.world_size - 1}")
        if self.backend not in _BACKENDS:
            raise ValueError(f"backend is {self.backend!r}; use gloo on CPUs or nccl on GPUs")
        if not self.init_method.startswith(_SCHEMES):
            raise ValueError(f"init_method is {self.init_method!r}; it must start with file:// or tcp://")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be positive")


def default_backend(device: torch.device) -> str:
    """The backend that moves tensors of ``device``."""
    return "nccl" if device.type == "cuda" else "gloo"


def join(config: RankConfig) -> None:
    """Enter the world; returns when all ranks have. A process is in one world at a time.

    Raises: RuntimeError: if this process is in a world already, or some rank does not come in time.
    """
    if dist.is_initialized():
        raise RuntimeError("this process has joined a world already; leave() it first")
    try:
        dist.init_process_group(
            config.backend,
            init_method=config.init_method,
            rank=config.rank,
            world_size=config.world_size,
            timeout=timedelta(seconds=config.timeout_s),
        )
    except Exception:
        # The failed attempt has used up a group's name (torch 2.13 counts them, and forgets to count back): the next
        # one would wait for its peers under a name that theirs do not have.
        distributed_c10d._world.group_count = 0
        raise


def leave() -> None:
    """Tear down every group of this process. Does not wait for the others, and may be called twice."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def world(config: RankConfig) -> Iterator[None]:
    """``join`` and, whatever happens, ``leave``."""
    join(config)
    try:
        yield
    finally:
        leave()
