"""What clients can ask for: one ``Task`` each, of which the rest of the system knows nothing but this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

from models.contract import LazyRef

if TYPE_CHECKING:
    from serving.service import Card, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, as data that costs nothing to import: a gateway needs none of its commands, and a command no gateway.

    ``name``: as families spell it in ``Family.tasks``. ``routes``: paths with their OpenAPI, a tuple of ``Route``.
    ``rpcs``: a tuple of ``Rpc``. ``cards``: the models of a service that are for it. ``block``: what ``/v1/models``
    says of one in ``vireo``, after what it says of any. ``verbs``: (typer.Typer) -> None, adds the commands that ask
    for it; every ``vireo`` imports its module, so what costs is imported inside of the commands. ``checks``: what
    ``vireo up`` asks itself, a mapping from surface to ``serving.client.checks.Check``. ``examples``: what it says to
    type next. ``read``: (ResolvedModel) -> anything, reads what a gateway needs of a model; raises ConfigError where
    that is not there.
    """

    name: str
    routes: LazyRef
    rpcs: LazyRef
    cards: Callable[[Service], Sequence[Card]] = lambda service: ()
    block: LazyRef | None = None
    verbs: LazyRef | None = None
    checks: LazyRef | None = None
    examples: tuple[str, ...] = ()
    read: LazyRef | None = None


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

    tasks: tuple[str, ...]
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
    return {
        "tasks": card.tasks,
        "checkpoint_sha256": card.checkpoint_sha256,
        "settings": settings,
        "ready": is_ready,
    }
