"""Groups, the meter, guidance and ranks of one."""

import pytest
import torch

from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import Group, make_groups, single_rank
from models.parallel.guidance import NO_PROMPT, PROMPT, guided
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


def test_one_rank_computes_both_branches_of_guidance() -> None:
    outputs = {PROMPT: torch.tensor([3.0]), NO_PROMPT: torch.tensor([1.0])}
    assert guided(outputs.__getitem__, 7.5, single_rank()).item() == 1 + 7.5 * 2


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
