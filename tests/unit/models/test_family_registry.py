"""Where families come from: the table, and whatever distribution is installed beside Vireo."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models import registry

FAMILY = """
from models.contract import Family, LazyRef, Variant
def resolve(name, folder):
    return Variant(id=NAME + ":" + name, summary="resolved", io=None)
NAME = {name!r}
FAMILY = Family(name=NAME, summary="A guest.", tasks=("classify",), shape="unary",
    variants=(Variant(id={variant!r}, summary="One.", io=None),), resolve=LazyRef("{module}:resolve"))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Lay a distribution with one family on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def lay(module: str, name: str, variant: str, attribute: str = "FAMILY") -> None:
        (tmp_path / f"{module}.py").write_text(FAMILY.format(name=name, variant=variant, module=module))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}:{attribute}\n")
        registry.families.cache_clear()

    yield lay
    registry.families.cache_clear()
    for module in [name for name in sys.modules if name.startswith("guest_")]:
        del sys.modules[module]


def test_another_distribution_brings_a_family(install: Callable[..., None]) -> None:
    install("guest_one", "guest", "guest-nano")
    family, variant = registry.find("guest-nano")
    assert (family.name, variant.id) == ("guest", "guest-nano")
    assert registry.find("guest:any name")[1].id == "guest:any name"
    assert {"guest-nano", "guest:NAME"} <= set(registry.known_ids("classify"))
    assert "guest-nano" not in registry.known_ids("chat")


def test_unknown_model_is_refused_with_the_known_ones(install: Callable[..., None]) -> None:
    install("guest_two", "guest", "guest-nano")
    with pytest.raises(ValueError, match="guest-nano"):
        registry.find("no-such-model")


def test_family_or_variant_that_is_there_twice_is_refused(install: Callable[..., None]) -> None:
    install("guest_three", "guest", "guest-nano")
    install("guest_four", "guest", "other-nano")
    with pytest.raises(ValueError, match="'guest' is there twice"):
        registry.families()


def test_two_families_with_one_variant_are_refused(install: Callable[..., None]) -> None:
    install("guest_five", "guest", "same-nano")
    install("guest_six", "visitor", "same-nano")
    with pytest.raises(ValueError, match="'same-nano' is there twice"):
        registry.families()


def test_entry_point_that_is_no_family_is_refused_by_name(install: Callable[..., None]) -> None:
    install("guest_seven", "guest", "guest-nano", attribute="NAME")
    with pytest.raises(ValueError, match="guest_seven:NAME"):
        registry.families()
