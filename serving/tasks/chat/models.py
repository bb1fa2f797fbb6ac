"""What a gateway reads of a chat model before it serves it. Free of torch."""

from __future__ import annotations

from models.contract import Prompts
from models.identity import checkpoint_sha256, weight_files
from models.registry import family_for
from schedulers.guard.calibration import GuardCalibration
from serving.config import ResolvedModel, StreamOptions
from serving.errors import ConfigError
from serving.guard.calibrated import read_calibration
from serving.media.request_images import GridOf
from serving.operating_points import points_of_answers
from serving.replica.chat.setup import checkpoint_of, context_of, family_of, read_prompts
from serving.service import Card, card_of

_NO_WEIGHTS = ("0" * 64, 0)


def read_card(model: ResolvedModel[StreamOptions]) -> Card:
    """What clients may know.

    Raises: ConfigError: no weights.
    """
    context = context_of(model)
    sha256, created_s = _NO_WEIGHTS if model.options.engine == "fake" else _weights(model)
    limits = {"max_model_len": context, "max_output_tokens": min(model.options.max_output_tokens, context - 1)}
    family = family_for(model.family, model.variant)
    points = points_of_answers(model)
    return card_of(
        family,
        model.variant,
        served_as=model.id,
        created_s=created_s,
        checkpoint_sha256=sha256,
        limits=limits,
        operating_points=tuple(point.name for point in points),
        is_calibrated=bool(points),
    )


def read_served(model: ResolvedModel[StreamOptions]) -> tuple[Card, Prompts]:
    """Everything that a gateway needs of one model. Raises: ConfigError: see ``read_card`` and ``read_prompts``."""
    return read_card(model), read_prompts(model)


def read_guard(model: ResolvedModel[StreamOptions], card: Card) -> GuardCalibration | None:
    """What benign answers of it are like; None where nobody has calibrated that. ``card``: its own.

    Raises: ConfigError: see ``read_calibration``.
    """
    return None if model.options.engine == "fake" else read_calibration(checkpoint_of(model), card.checkpoint_sha256)


def read_grids(model: ResolvedModel[StreamOptions]) -> GridOf | None:
    """The part ``grids`` of a model's family, where it has one and needs it."""
    family, variant = family_of(model)
    if model.options.engine == "fake" or "grids" not in family.parts:
        return None
    grids: GridOf | None = family.part("grids")(variant)
    return grids


def _weights(model: ResolvedModel[StreamOptions]) -> tuple[str, int]:
    folder = checkpoint_of(model)
    try:
        return checkpoint_sha256(folder), int(weight_files(folder)[0].stat().st_mtime)
    except (OSError, ValueError) as error:
        raise ConfigError(f"chat model {model.id} cannot be used: {error}") from None
