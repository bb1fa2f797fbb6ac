"""Where a request whose steps need what earlier ones kept is taken up again: before the last step that needed nothing.

What region-adaptive sampling keeps is far too much for a snapshot. So a request has in ``kept`` a second, older state
beside its own: that before the last step that ran all tokens. From there the same steps make the same latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PREFIX = "anchor."


def anchored(kept: Mapping[str, Any], anchor: Mapping[str, Any]) -> dict[str, Any]:
    """A state with the older one beside it. Of ``anchor``, what is older still is left out."""
    return {**kept, **{_PREFIX + name: value for name, value in own(anchor).items()}}


def own(kept: Mapping[str, Any]) -> dict[str, Any]:
    """A state without the older one."""
    return {name: value for name, value in kept.items() if not name.startswith(_PREFIX)}


def anchor_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The older state; nothing where there is none."""
    return {name.removeprefix(_PREFIX): value for name, value in kept.items() if name.startswith(_PREFIX)}
