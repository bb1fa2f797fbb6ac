"""What clients can ask for: one ``Task`` each, of which the front knows nothing but this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

from serving.front.grpc.rpc import Rpc
from serving.front.http.call import Route
from serving.service import Card, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: its paths with their OpenAPI, its RPCs, and the models that are for it.

    ``cards``: those of a service. ``block``: what ``/v1/models`` says of one in ``vireo``, after what it says of any.
    """

    name: str
    routes: tuple[Route, ...]
    rpcs: tuple[Rpc, ...]
    cards: Callable[[Service], Sequence[Card]] = lambda service: ()
    block: Callable[[Any, ModelBlock], Any] = lambda card, block: block


class SettingAnswer(TypedDict):
    """A setting of a model: what may be sent, what is meant by nothing, and what is given up at the cheap end."""

    name: str
    default: bool | int | float | str
    trades: str
    is_lossless: bool
    scope: Literal["request", "deployment"]
    schema: dict[str, Any]


class ModelBlock(TypedDict):
    """What Vireo says of any model beyond OpenAI's fields."""

    checkpoint_sha256: str
    settings: list[SettingAnswer]
    ready: bool


def block_of(card: Card, *, is_ready: bool) -> ModelBlock:
    """Return what is said of a model, whatever it is for."""
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
    return {"checkpoint_sha256": card.checkpoint_sha256, "settings": settings, "ready": is_ready}
