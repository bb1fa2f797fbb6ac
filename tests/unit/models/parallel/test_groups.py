"""Groups, the meter, the guidance axis and ranks of one."""

from typing import Any, cast

import pytest
import torch

from models.parallel.branches import all_rows, own_rows
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import Group, make_groups, single_rank
from models.parallel.launch import RankConfig, leave
from models.parallel.meter import CommunicationMeter


def test_world_of_one_needs_no_torch_distributed() -> None:
    groups = make_groups(ParallelDegrees())
    assert (groups.instance, groups.sequence.size, groups.cfg.size) == (0, 1, 1)
    groups.close()
    leave()


def test_degrees_beyond_a_world_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match="= 2 ranks do not divide a world of 1"):
        make_groups(ParallelDegrees(ring=2))


def test_all_axes_count_into_one_meter() -> None:
    meter = CommunicationMeter()
    groups = single_rank(meter)
    groups.ulysses.meter.record("all_to_all", 10, 0.5)
    groups.ring.meter.record("ring", 5)
    groups.ring.meter.record("ring", 5)
    assert (meter.sent_bytes, meter.waited_s, meter.by_collective["ring"].calls) == (20, 0.5, 2)
    meter.reset()
    assert meter.sent_bytes == 0


def test_group_of_several_ranks_needs_a_process_group() -> None:
    with pytest.raises(ValueError, match="a group of 2 ranks needs a process group"):
        Group(ranks=(0, 1))
    with pytest.raises(ValueError, match="rank 3 is not one of the 1"):
        Group(rank=3)


def test_one_rank_has_both_branches_of_guidance() -> None:
    rows, cfg = torch.randn(3, 2), single_rank().cfg
    assert torch.equal(all_rows(own_rows(rows, cfg), cfg), rows)


def test_batch_without_two_branches_for_each_request_is_refused_on_two_ranks() -> None:
    cfg = Group(process_group=cast("Any", object()), rank=1, ranks=(0, 1))
    assert own_rows(torch.arange(4), cfg).tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"a batch of 3 rows .* use a cfg degree of 1"):
        own_rows(torch.arange(3), cfg)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 2}, "rank is 2; a world of 2 has ranks 0 to 1"),
        ({"backend": "mpi"}, "use gloo on CPUs or nccl on GPUs"),
        ({"init_method": "env://"}, "must start with file:// or tcp://"),
        ({"timeout_s": 0.0}, "must be positive"),
    ],
)
def test_wrong_rank_configuration_is_refused(wrong: dict[str, object], message: str) -> None:
    right: dict[str, object] = {"rank": 0, "world_size": 2, "init_method": "file:///nowhere"}
    with pytest.raises(ValueError, match=message):
        RankConfig(**(right | wrong))  # type: ignore[arg-type]
