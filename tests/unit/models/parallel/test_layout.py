"""Token runs: contiguous, complete, even to one token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.parallel.groups import single_rank
from models.parallel.layout import TokenSplit, gather, shard


@given(num_ranks=st.integers(1, 16), more=st.integers(0, 100))
def test_runs_cover_all_tokens_once_and_differ_by_at_most_one(num_ranks: int, more: int) -> None:
    split = TokenSplit(num_ranks + more, num_ranks)
    tokens = torch.arange(split.num_tokens)
    assert torch.equal(torch.cat([tokens[split.run(rank)] for rank in range(num_ranks)]), tokens)
    assert max(split.lengths) - min(split.lengths) <= 1
    assert [len(tokens[split.run(rank)]) for rank in range(num_ranks)] == list(split.lengths)


def test_fewer_tokens_than_ranks_are_refused_with_the_degree_that_would_do() -> None:
    with pytest.raises(ValueError, match="3 tokens cannot be split over 4 ranks; use a sequence degree of at most 3"):
        TokenSplit(3, 4)


def test_one_rank_has_everything_and_gathers_it_without_copying() -> None:
    tokens, groups = torch.randn(2, 7, 3), single_rank()
    mine = shard(tokens, groups)
    assert torch.equal(mine, tokens)
    assert gather(mine, groups).data_ptr() == tokens.data_ptr()
    assert groups.meter.sent_bytes == 0
