"""What a gateway and a replica read of a chat model before they serve it. Free of torch."""

from __future__ import annotations

from pathlib import Path

from models.families.texthawk2.prompt import PromptBuilder
from models.identity import WEIGHTS_FILE, checkpoint_sha256
from models.registry import ChatModelSpec, get_chat_spec
from serving.config import ResolvedModel, StreamOptions
from serving.errors import ConfigError
from serving.service import ChatModelCard
from serving.tasks.chat.prompt import BytePrompts, Prompts, TextHawkPrompts

_NO_WEIGHTS = ("0" * 64, 0)


def spec_of(model: ResolvedModel[StreamOptions]) -> ChatModelSpec:
    """Registry entry of a served chat model, with its checkpoint folder.

    Raises: ConfigError: unknown id.
    """
    try:
        spec = get_chat_spec(model.id)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return spec.with_checkpoint(model.checkpoint_dir) if model.checkpoint_dir else spec


def checkpoint_of(spec: ChatModelSpec) -> Path:
    """The folder with its weights.

    Raises: ConfigError: there are none; the message says what to do.
    """
    folder = spec.checkpoint_dir
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"chat model {spec.id} has no weights here: convert a checkpoint (`vireo convert {spec.family}`) and set "
            f"its checkpoint_dir (--model {spec.id}=FOLDER), or leave it out of models"
        )
    return folder


def context_of(model: ResolvedModel[StreamOptions], spec: ChatModelSpec) -> int:
    """Most tokens of prompt and answer together."""
    return model.options.max_model_len or spec.max_model_len


def read_card(model: ResolvedModel[StreamOptions]) -> ChatModelCard:
    """What clients may know.

    Raises: ConfigError: unknown id, or no weights.
    """
    spec = spec_of(model)
    context = context_of(model, spec)
    sha256, created_s = _NO_WEIGHTS if model.options.engine == "fake" else _weights(spec)
    return ChatModelCard(
        id=spec.id,
        created_s=created_s,
        max_model_len=context,
        max_output_tokens=min(model.options.max_output_tokens, context - 1),
        checkpoint_sha256=sha256,
    )


def _weights(spec: ChatModelSpec) -> tuple[str, int]:
    folder = checkpoint_of(spec)
    try:
        return checkpoint_sha256(folder), int((folder / WEIGHTS_FILE).stat().st_mtime)
    except (OSError, ValueError) as error:
        raise ConfigError(f"chat model {spec.id} cannot be used: {error}") from None


def read_prompts(model: ResolvedModel[StreamOptions]) -> Prompts:
    """The model's prompt builder.

    Raises: ConfigError: its folder has no tokenizer that we can use.
    """
    spec = spec_of(model)
    if model.options.engine == "fake":
        return BytePrompts(spec.tokens_per_tile)
    try:
        return TextHawkPrompts(PromptBuilder.from_dir(checkpoint_of(spec), spec.tokens_per_tile), spec.tokens_per_tile)
    except ValueError as error:
        raise ConfigError(f"chat model {spec.id} cannot be used: {error}") from None
