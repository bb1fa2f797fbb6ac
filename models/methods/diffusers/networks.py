"""What diffusers' networks allow of our methods, by the names of their classes. Free of torch.

A class that is not here is not refused by the code that runs: that goes by the interface alone. But nobody has checked
it, so nothing is offered for it. Each entry is what the installed class itself says (a test compares).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

TextPlace = Literal["none", "first", "last"]
"""Where a network puts the text in the sequence that attends; none: it looks at text by cross-attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """``text``: see ``TextPlace``. ``has_cache``: it takes diffusers' caches (``CacheMixin``), and its last layer is
    one that can be predicted. ``has_first_block``: diffusers also knows what its blocks take and return, and can skip
    all but the first. ``has_plan``: it says where its tokens may be cut (``_cp_plan``). ``text_outputs``: outputs in
    that plan with a place for each token of text."""

    text: TextPlace
    has_cache: bool
    has_first_block: bool
    has_plan: bool
    text_outputs: tuple[str, ...] = ()


NETWORKS: Mapping[str, NetworkFacts] = MappingProxyType(
    {
        "WanTransformer3DModel": NetworkFacts(text="none", has_first_block=True, has_cache=True, has_plan=True),
        "LTXVideoTransformer3DModel": NetworkFacts(text="none", has_first_block=True, has_cache=True, has_plan=True),
        "HunyuanVideo15Transformer3DModel": NetworkFacts(
            text="last", has_first_block=False, has_cache=True, has_plan=False
        ),
        "FluxTransformer2DModel": NetworkFacts(text="first", has_first_block=True, has_cache=True, has_plan=True),
        "SD3Transformer2DModel": NetworkFacts(text="last", has_first_block=False, has_cache=False, has_plan=False),
        "QwenImageTransformer2DModel": NetworkFacts(
            text="first", has_first_block=True, has_cache=True, has_plan=True, text_outputs=("pos_embed.1",)
        ),
    }
)


def text_place(network: Any) -> TextPlace:
    """Where this network puts text; "none" also where nobody knows, so that only self-attention proper is changed."""
    facts = NETWORKS.get(type(network).__name__)
    return "none" if facts is None else facts.text
