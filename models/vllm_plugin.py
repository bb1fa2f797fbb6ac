"""Every stream family's architecture, made known to vLLM: one plug-in for them all.

vLLM calls ``register`` (entry point group ``vllm.general_plugins``) in each of its processes, in the bare OpenAI server
as in ours, perhaps several times. A family from another distribution needs no plug-in of its own.
"""

from __future__ import annotations

from models.registry import families


def register() -> None:
    """Let each family that has a part for vLLM tell it about its architecture."""
    for family in families().values():
        if "vllm" in family.parts:
            family.part("vllm")()
