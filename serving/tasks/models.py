"""Models as ``/v1/models`` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from models.contract import Scope, Shape, Value
from serving.delivery.job.experts import PlacedFacts
from serving.service import Card


class SettingAnswer(TypedDict):
    """A setting of a model: what may be sent, what is meant by nothing, and what is given up at the cheap end."""

    name: str
    default: Value
    trades: str
    is_lossless: bool
    scope: Scope
    schema: dict[str, Any]


class ExpertFactsAnswer(TypedDict):
    """A mixture of experts. ``layers``: those that have experts. ``experts``: of a layer, of which a token chooses
    ``chosen`` at most; ``shared``: further ones that every token meets. ``active_parameters``: those of the
    ``parameters`` that a token meets."""

    layers: int
    experts: int
    chosen: int
    shared: int
    parameters: int
    active_parameters: int


class PlacementAnswer(TypedDict):
    """Where a replica's experts are. ``slots``: of a layer, on all ranks."""

    version: int
    ranks: int
    slots: int


class ModelBlock(TypedDict):
    """What Vireo says of a model beyond OpenAI's fields, read from its card. ``bending``: how far
    quality gives way to load, 0 (not) to 4, where it may. ``placements``: of each replica whose
    experts are spread over ranks, as it says now."""

    family: str
    shape: Shape
    tasks: tuple[str, ...]
    licence: str
    io: dict[str, Any]
    limits: dict[str, int]
    operating_points: tuple[str, ...]
    calibrated: bool
    settings: list[SettingAnswer]
    checkpoint_sha256: str
    ready: bool
    bending: NotRequired[int]
    experts: NotRequired[ExpertFactsAnswer]
    placements: NotRequired[list[PlacementAnswer]]


class ModelAnswer(TypedDict):
    """A served model. ``root``: what it was made of, as in vLLM: the model's id behind a name of the operator's own."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    vireo: ModelBlock


def placement_of(placed: PlacedFacts) -> PlacementAnswer:
    """Return a placement in short."""
    return {"version": placed.version, "ranks": placed.num_ranks, "slots": placed.num_slots}


def shown_model(
    card: Card, *, is_ready: bool, placements: Sequence[PlacedFacts] = (), bending: int | None = None
) -> ModelAnswer:
    """Return a model as OpenAI spells it, with a ``vireo`` block."""
    settings: list[SettingAnswer] = [
        {
            "name": knob.name,
            "default": knob.default,
            "trades": knob.trades,
            "is_lossless": knob.is_lossless,
            "scope": knob.scope,
            "schema": knob.json_schema(),
        }
        for knob in card.knobs
    ]
    block: ModelBlock = {
        "family": card.family,
        "shape": card.shape,
        "tasks": card.tasks,
        "licence": card.licence,
        "io": card.io.facts,
        "limits": dict(card.limits),
        "operating_points": card.operating_points,
        "calibrated": card.is_calibrated,
        "settings": settings,
        "checkpoint_sha256": card.checkpoint_sha256,
        "ready": is_ready,
    }
    if bending is not None:
        block["bending"] = bending
    if card.experts is not None:
        block["experts"] = cast(ExpertFactsAnswer, asdict(card.experts))
    if placements:
        block["placements"] = [placement_of(placed) for placed in placements]
    return {
        "id": card.id,
        "object": "model",
        "created": card.created_s,
        "owned_by": "vireo",
        "root": card.made_of,
        "vireo": block,
    }
