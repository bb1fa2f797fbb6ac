"""TextHawk2 as a model of vLLM, without a change to vLLM. ``models.vllm_plugin`` calls ``register``."""

from __future__ import annotations

_ARCHITECTURE = "TextHawk2ForConditionalGeneration"


def register() -> None:
    """Tell transformers about the configuration and vLLM about the architecture. Idempotent."""
    from vllm import ModelRegistry

    from models.families.texthawk2.auto import register as register_with_transformers

    register_with_transformers()
    if _ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name: vLLM imports the module, and torch with it, when it loads such a model.
        ModelRegistry.register_model(_ARCHITECTURE, f"models.families.texthawk2.vllm_model:{_ARCHITECTURE}")
