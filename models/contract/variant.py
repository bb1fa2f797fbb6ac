"""Checkpoints: what they are, where they come from, and whether their weights may be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.contract.settings import Knob, Value

_OPEN_LICENCES = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where an architecture and its weights come from. ``licence``: of the published weights, as SPDX writes it, or
    "none" where nothing is granted. ``commit``: of the official code that ours was compared with."""

    paper: str = ""
    url: str = ""
    commit: str = ""
    licence: str = "none"

    @property
    def is_open(self) -> bool:
        """Whether weights under this licence are loaded without being asked for expressly."""
        return self.licence.lower() in _OPEN_LICENCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One checkpoint of a family, or one configuration that has none yet. Data, never code.

    ``config``: what ``Family.build`` makes the network of. ``io``: what goes in and comes out, one of ``models.io``.
    ``weights``: the folder; None where they are the user's to bring. ``is_nano``: trained here, on a few MB.
    ``is_default``: served where nobody says what, if the family is Vireo's own.
    ``published``: figures of the paper. ``defaults``: of knobs, where it was made for others than the family's.
    ``tasks`` and ``knobs``: its own in place of the family's, where those of an open family differ; ``Family.of`` says
    what holds.
    """

    id: str
    summary: str
    io: Any
    config: Mapping[str, Any] = field(default_factory=dict)
    source: Source = Source()
    published: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Value] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    knobs: tuple[Knob, ...] | None = None
    weights: Path | None = None
    is_nano: bool = False
    is_default: bool = False

    def with_weights(self, folder: Path) -> Variant:
        """Return the same variant with its weights read from ``folder``."""
        return replace(self, weights=folder)


def check_licence(variant: Variant, *, is_accepted: bool) -> None:
    """Pass a variant whose weights are to be read. Every way in for published weights asks here.

    Raises: ValueError: their licence is not an open one, and nobody has accepted it.
    """
    if not variant.source.is_open and not is_accepted:
        raise ValueError(
            f"the weights of {variant.id} are under licence {variant.source.licence!r}, which is not an open one; if "
            "it allows what you do, say so with --accept-licence, or accept_licence: true in a configuration"
        )
