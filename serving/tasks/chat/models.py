"""What a gateway and a replica read of a chat model before they serve it. Free of torch."""

from __future__ import annotations

from pathlib import Path

from models.contract import Family, Prompts, Variant
from models.identity import WEIGHTS_FILE, checkpoint_sha256
from models.registry import families
from serving.config import ResolvedModel, StreamOptions
from serving.errors import ConfigError
from serving.service import ChatModelCard
from serving.tasks.chat.prompt import BytePrompts

_NO_WEIGHTS = ("0" * 64, 0)


def family_of(model: ResolvedModel[StreamOptions]) -> tuple[Family, Variant]:
    """Family and variant of a served chat model, the variant with its folder."""
    return families()[model.family], model.variant


def checkpoint_of(model: ResolvedModel[StreamOptions]) -> Path:
    """The folder with its weights.

    Raises: ConfigError: there are none; the message says what to do.
    """
    _, variant = family_of(model)
    folder = variant.weights
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"chat model {model.id} has no weights here: convert a checkpoint (`vireo convert {model.family}`) and set "
            f"its checkpoint_dir (--model {model.id}=FOLDER), or leave it out of models"
        )
    return folder


def context_of(model: ResolvedModel[StreamOptions]) -> int:
    """Most tokens of prompt and answer together."""
    _, variant = family_of(model)
    return model.options.max_model_len or int(variant.io.max_model_len)


def read_card(model: ResolvedModel[StreamOptions]) -> ChatModelCard:
    """What clients may know.

    Raises: ConfigError: no weights.
    """
    context = context_of(model)
    sha256, created_s = _NO_WEIGHTS if model.options.engine == "fake" else _weights(model)
    return ChatModelCard(
        id=model.id,
        created_s=created_s,
        max_model_len=context,
        max_output_tokens=min(model.options.max_output_tokens, context - 1),
        checkpoint_sha256=sha256,
        tasks=model.tasks,
        prepare_version=families()[model.family].prepare_version,
    )


def read_served(model: ResolvedModel[StreamOptions]) -> tuple[ChatModelCard, Prompts]:
    """Everything that a gateway needs of one model. Raises: ConfigError: see ``read_card`` and ``read_prompts``."""
    return read_card(model), read_prompts(model)


def _weights(model: ResolvedModel[StreamOptions]) -> tuple[str, int]:
    folder = checkpoint_of(model)
    try:
        return checkpoint_sha256(folder), int((folder / WEIGHTS_FILE).stat().st_mtime)
    except (OSError, ValueError) as error:
        raise ConfigError(f"chat model {model.id} cannot be used: {error}") from None


def read_prompts(model: ResolvedModel[StreamOptions]) -> Prompts:
    """The model's prompt builder.

    Raises: ConfigError: its folder has no tokenizer that we can use.
    """
    family, variant = family_of(model)
    if model.options.engine == "fake":
        return BytePrompts(variant.io.tokens_per_tile)
    checkpoint_of(model)
    try:
        prompts: Prompts = family.part("prompts")(variant)
    except ValueError as error:
        raise ConfigError(f"chat model {model.id} cannot be used: {error}") from None
    return prompts
