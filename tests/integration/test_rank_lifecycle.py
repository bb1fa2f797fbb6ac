"""A process joins a world, leaves it, and joins another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import make_groups
from models.parallel.launch import RankConfig, default_backend, join, leave, world
from tests.support.ports import free_port


def test_world_is_left_when_the_work_in_it_fails_and_another_can_be_joined(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), world(_alone(f"file://{tmp_path / 'store'}")):
        _work_that_fails()
    assert not dist.is_initialized()
    with world(_alone(f"tcp://127.0.0.1:{free_port()}")):
        assert dist.get_world_size() == 1
    leave()  # twice is fine


def test_second_world_of_one_process_is_refused(tmp_path: Path) -> None:
    with (
        world(_alone(f"file://{tmp_path / 'store'}")),
        pytest.raises(RuntimeError, match="has joined a world already"),
    ):
        join(_alone(f"file://{tmp_path / 'other'}"))


def test_rank_whose_peers_do_not_come_gives_up_in_time(tmp_path: Path) -> None:
    lonely = RankConfig(rank=0, world_size=2, init_method=f"file://{tmp_path / 'store'}", timeout_s=0.5)
    with pytest.raises(RuntimeError, match="timeout"):
        join(lonely)
    assert not dist.is_initialized()


def test_join_that_failed_leaves_no_trace_in_the_next_world(tmp_path: Path) -> None:
    """Peers meet under the group's name: a process that failed once must use the one that fresh processes do."""
    lonely = RankConfig(rank=0, world_size=2, init_method=f"file://{tmp_path / 'store'}", timeout_s=0.5)
    with pytest.raises(RuntimeError, match="timeout"):
        join(lonely)
    with world(_alone(f"file://{tmp_path / 'next'}")):
        assert dist.group.WORLD is not None
        assert dist.group.WORLD.group_name == "0"


def test_backend_follows_the_device() -> None:
    assert (default_backend(torch.device("cpu")), default_backend(torch.device("cuda"))) == ("gloo", "nccl")


def _work_that_fails() -> None:
    assert make_groups(ParallelDegrees()).sequence.size == 1
    raise ZeroDivisionError


def _alone(init_method: str) -> RankConfig:
    return RankConfig(rank=0, world_size=1, init_method=init_method)
