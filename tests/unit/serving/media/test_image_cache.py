"""The cache of processed images: what is kept, for whom, and who pays for room."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serving.media.image_cache import ImageKey, ProcessedImages, image_key
from serving.media.prepare import PreparedImage
from serving.telemetry.events import Event, ImageLookedUp, ImagesHeld

OVERHEAD = 1024


def image(num_bytes: int = 48, fill: int = 0) -> PreparedImage:
    """An image of ``num_bytes`` of pixels, of which 1024 more are counted."""
    pixels = np.full((1, num_bytes // 3, 3), fill, np.uint8)
    return PreparedImage(pixels=pixels, content_sha256=bytes(32), original_size=(1, 1), decode_ms=7.0)


def key(name: str, tenant: str = "acme", model: str = "m", max_tiles: int | None = None) -> ImageKey:
    return ImageKey(tenant, model, max_tiles, hashlib.sha256(name.encode()).digest())


class Told:
    """A sink that keeps what it was told about the cache."""

    def __init__(self) -> None:
        self.lookups: list[tuple[str, bool]] = []
        self.held: list[int] = []

    def __call__(self, event: Event) -> None:
        match event:
            case ImageLookedUp(model, is_hit):
                self.lookups.append((model, is_hit))
            case ImagesHeld(num_bytes):
                self.held.append(num_bytes)
            case _:
                raise AssertionError(f"the cache told {event}")


def test_image_is_found_again_without_its_time_of_decoding() -> None:
    told = Told()
    cache = ProcessedImages(10_000, told)
    assert cache.get(key("a")) is None
    kept = image(fill=5)
    cache.put(key("a"), kept)
    found = cache.get(key("a"))
    assert found is not None
    assert found.pixels is kept.pixels, "not copied"
    assert found.decode_ms == 0
    assert told.lookups == [("m", False), ("m", True)]
    assert told.held == [48 + OVERHEAD] == [cache.num_bytes]


@pytest.mark.parametrize("other", [key("a", tenant="umbrella"), key("a", model="n"), key("b"), key("a", max_tiles=4)])
def test_image_of_another_tenant_model_content_or_number_of_tiles_is_not_found(other: ImageKey) -> None:
    cache = ProcessedImages(10_000)
    cache.put(key("a"), image())
    assert cache.get(other) is None


async def test_key_is_the_hash_of_the_bytes_whatever_their_number() -> None:
    for data in (b"", b"x", bytes(300_000)):
        assert await image_key("t", "m", 4, data) == ("t", "m", 4, hashlib.sha256(data).digest())


def test_least_recently_used_image_goes_first() -> None:
    cache = ProcessedImages(3 * (48 + OVERHEAD))
    for name in "abc":
        cache.put(key(name), image())
    cache.get(key("a"))
    cache.put(key("d"), image())
    assert [name for name in "abcd" if cache.get(key(name))] == ["a", "c", "d"]


def test_tenant_that_floods_the_cache_drives_out_its_own_images() -> None:
    cache = ProcessedImages(10 * (48 + OVERHEAD))
    for name in "abc":
        cache.put(key(name), image())
    for number in range(100):
        cache.put(key(str(number), tenant="flood"), image())
    assert all(cache.get(key(name)) for name in "abc")
    assert cache.get(key("99", tenant="flood")) is not None


def test_image_larger_than_the_cache_is_not_kept_and_displaces_nothing() -> None:
    cache = ProcessedImages(5_000)
    cache.put(key("a"), image())
    cache.put(key("b"), image(6_000))
    assert cache.get(key("a")) is not None
    assert cache.get(key("b")) is None


def test_cache_of_no_bytes_keeps_nothing() -> None:
    cache = ProcessedImages(0)
    cache.put(key("a"), image())
    assert cache.get(key("a")) is None
    assert cache.num_bytes == 0


def test_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes is -1"):
        ProcessedImages(-1)


class CacheMachine(RuleBasedStateMachine):
    """Any order of calls: the bound holds, the count is true, and what is found is what was put."""

    LIMIT = 12_000
    names = st.sampled_from("abcdefgh")
    tenants = st.sampled_from(["t1", "t2", "t3"])

    def __init__(self) -> None:
        super().__init__()
        self.cache = ProcessedImages(self.LIMIT)
        self.put_in: dict[ImageKey, PreparedImage] = {}

    @rule(name=names, tenant=tenants, size=st.integers(1, 4_500))
    def put(self, name: str, tenant: str, size: int) -> None:
        new = image(3 * size)
        was_there = self.cache.get(key(name, tenant))
        self.cache.put(key(name, tenant), new)
        if was_there is None:
            self.put_in[key(name, tenant)] = new

    @rule(name=names, tenant=tenants)
    def get(self, name: str, tenant: str) -> None:
        found = self.cache.get(key(name, tenant))
        assert found is None or found.pixels is self.put_in[key(name, tenant)].pixels

    @invariant()
    def count_is_true_and_within_the_bound(self) -> None:
        found = [self.cache.get(known) for known in self.put_in]
        assert self.cache.num_bytes == sum(one.pixels.nbytes + OVERHEAD for one in found if one is not None)
        assert self.cache.num_bytes <= self.LIMIT


TestCache = CacheMachine.TestCase
