"""Kinds of attention and the rings that they cannot go round."""

from typing import Any, cast

import pytest
import torch

from models.methods.attention.dense import DENSE
from models.methods.ras.attention import RasAttention
from models.parallel.choose import sequence_parallel
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import Group, SequenceGroups, single_rank
from models.parallel.meter import CommunicationMeter
from models.parallel.usp import UspAttention


def _ring_of_two() -> SequenceGroups:
    """Nobody is called over it."""
    ring = Group(process_group=cast("Any", object()), ranks=(0, 1))
    degrees, meter = ParallelDegrees(ring=2), CommunicationMeter()
    alone = Group()
    return SequenceGroups(
        degrees=degrees,
        instance=0,
        sequence=ring,
        ulysses=alone,
        ring=ring,
        cfg=alone,
        expert=alone,
        beside=alone,
        meter=meter,
    )


def test_kinds_that_need_all_keys_of_a_head_are_refused_on_a_ring_by_name() -> None:
    with pytest.raises(ValueError, match="RasAttention needs every key of a head on one rank"):
        sequence_parallel(RasAttention(DENSE, [], None), _ring_of_two(), 8)


def test_dense_goes_round_a_ring() -> None:
    assert isinstance(sequence_parallel(DENSE, _ring_of_two(), 8), UspAttention)


def test_fewer_tokens_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="1 tokens cannot be split over 2 ranks"):
        sequence_parallel(DENSE, _ring_of_two(), 1)


def test_on_one_rank_every_kind_sees_all_heads_of_all_tokens() -> None:
    q = torch.randn(1, 6, 2, 4)
    assert torch.equal(sequence_parallel(DENSE, single_rank(), 6)(q, q, q, layer=0), DENSE(q, q, q))
