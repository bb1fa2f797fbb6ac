"""diffusers' networks over two ranks of gloo: equal to one rank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.parallel.degrees import ParallelDegrees
from models.parallel.rank_pool import RankPool
from tests.support import spread_networks as ranks

pytestmark = pytest.mark.timeout(600)

_ULYSSES, _RING = ParallelDegrees(ulysses=2), ParallelDegrees(ring=2)


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    with RankPool(2, timeout_s=500) as pool:
        yield pool


@pytest.mark.parametrize("network", ["wan", "ltx"])
@pytest.mark.parametrize("attention", ["dense", "tile:1:3", "adaspa:0.5"])
def test_two_ranks_equal_one(two: RankPool, network: str, attention: str) -> None:
    for errors, share in two.run(ranks.errors, network, _ULYSSES, attention, "off"):
        assert max(errors) <= 1e-5
        assert share == (0.5 if "adaspa" in attention else 0)


def test_a_ring_equals_one_rank(two: RankPool) -> None:
    for errors, _ in two.run(ranks.errors, "wan", _RING, "tile:1:3", "off"):
        assert max(errors) <= 1e-5


def test_predicted_steps_equal_those_of_one_rank(two: RankPool) -> None:
    """Each rank predicts what its own tokens come to."""
    for errors, share in two.run(ranks.errors, "wan", _ULYSSES, "dense", "taylorseer:2:1"):
        assert max(errors) <= 1e-5
        assert share == 0.5


@pytest.mark.parametrize("settings", [{}, {"attention": "adaspa:0.5"}, {"cache": "taylorseer:2"}], ids=str)
@pytest.mark.parametrize("name", ["wan-t2v", "wan22-ti2v"])
def test_a_clip_of_wan_on_two_ranks_is_that_of_one(two: RankPool, name: str, settings: dict[str, str]) -> None:
    """TI2V-5B has a time for each token, which is cut with them, and here a first frame."""
    for latents, byte in two.run(ranks.clip_error, name, _ULYSSES, settings):
        assert latents <= 1e-5
        assert byte <= 1


@pytest.mark.parametrize(
    ("network", "words"),
    [("hunyuan", "does not say where its tokens may be cut"), ("flux", "attends to text and picture together")],
)
def test_networks_that_cannot_be_spread_are_refused(two: RankPool, network: str, words: str) -> None:
    assert all(words in message for message in two.run(ranks.refusal, network))
