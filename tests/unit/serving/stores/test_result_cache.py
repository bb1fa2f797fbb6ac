from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.stores import keys
from serving.stores.sealed import ResultCache, ResultKey
from tests.support.store_observer import RecordingObserver

SECRET = b"0123456789abcdef"
KEY = ResultKey(
    tenant="acme",
    model="dyn-perceiver-nano",
    checkpoint_sha256="c" * 64,
    operating_point="fast",
    processor_version="1",
    content_sha256=b"\x01" * 32,
)
PAYLOAD = {"probabilities": b"\0\x01\xff", "exit_index": 2, "scores": [0.1, 1e-30]}


def test_secret_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="15 bytes; give at least 16"):
        ResultCache(b"x" * 15)


def test_what_was_sealed_is_opened() -> None:
    cache = ResultCache(SECRET)
    digest = cache.digest(KEY)
    assert cache.open(digest, cache.seal(digest, PAYLOAD)) == PAYLOAD
    assert cache.open(digest, None) is None


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ResultKey)])
def test_every_part_of_the_key_matters(field: str) -> None:
    cache = ResultCache(SECRET)
    old = getattr(KEY, field)
    other = dataclasses.replace(KEY, **{field: old + (b"x" if isinstance(old, bytes) else "x")})
    assert cache.digest(other) != cache.digest(KEY)


def test_parts_cannot_be_shifted_into_each_other() -> None:
    cache = ResultCache(SECRET)
    shifted = dataclasses.replace(KEY, tenant="acmed", model=KEY.model[1:])
    assert cache.digest(shifted) != cache.digest(KEY)


def test_digest_needs_the_secret() -> None:
    assert ResultCache(SECRET).digest(KEY) != ResultCache(SECRET + b"!").digest(KEY)


@given(st.data())
def test_any_change_of_a_stored_value_is_a_counted_miss(data: st.DataObject) -> None:
    observer = RecordingObserver()
    cache = ResultCache(SECRET, observer)
    digest = cache.digest(KEY)
    value = bytearray(cache.seal(digest, PAYLOAD))
    position = data.draw(st.integers(0, len(value) - 1))
    value[position] ^= data.draw(st.integers(1, 255))
    assert cache.open(digest, bytes(value)) is None
    assert observer.rejected == 1


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_counted_miss(value: bytes) -> None:
    observer = RecordingObserver()
    cache = ResultCache(SECRET, observer)
    assert cache.open(cache.digest(KEY), value) is None
    assert observer.rejected == 1


def test_value_moved_from_another_key_or_sealed_with_another_secret_is_a_miss() -> None:
    cache = ResultCache(SECRET)
    other = cache.digest(dataclasses.replace(KEY, tenant="rival"))
    assert cache.open(cache.digest(KEY), cache.seal(other, PAYLOAD)) is None
    assert cache.open(other, ResultCache(b"f" * 16).seal(other, PAYLOAD)) is None


def test_all_keys_of_a_tenant_share_one_cluster_slot_and_odd_names_cannot_break_out() -> None:
    for tenant in ("acme", "a}b{c", "ä:b c"):
        names = [keys.result(tenant, "d"), keys.bucket(tenant), keys.reservation(tenant, "r")]
        tags = {name[name.index("{") + 1 : name.index("}")] for name in names}
        assert len(tags) == 1
    assert len({keys.bucket(tenant) for tenant in ("a", "a}b", "a:b", "a%7Db")}) == 4
