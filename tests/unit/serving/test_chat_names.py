"""Names of images and tenants, and what routers hear of them."""

from __future__ import annotations

from serving.delivery.stream.wire import HeldImages, mark
from serving.tasks.chat.results import TenantKeys

KEYS = TenantKeys(b"secret" * 6)


def test_names_depend_on_every_field_and_on_the_secret() -> None:
    names = {
        KEYS.image_key("acme", "m", b"1" * 32),
        KEYS.image_key("rival", "m", b"1" * 32),
        KEYS.image_key("acme", "n", b"1" * 32),
        KEYS.image_key("acme", "m", b"2" * 32),
        KEYS.image_key("acmem", "", b"1" * 32),
        TenantKeys(b"other" * 6).image_key("acme", "m", b"1" * 32),
        KEYS.cache_salt("acme"),
        KEYS.cache_salt("rival"),
    }
    assert len(names) == 8
    assert all(len(bytes.fromhex(name)) == 16 for name in names)
    assert KEYS.image_key("acme", "m", b"1" * 32) == TenantKeys(b"secret" * 6).image_key("acme", "m", b"1" * 32)


def test_the_images_seen_last_are_held() -> None:
    held = HeldImages(max_held=3)
    keys = [f"{number:08x}ffff" for number in range(5)]
    held.add(keys[:3])
    held.add([keys[0], keys[3]])
    assert held.marks() == (2, 0, 3)
    assert mark(keys[4]) == 4
