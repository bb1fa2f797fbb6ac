"""What clients can ask for: one ``Task`` each, of which the rest of the system knows nothing but this."""

from __future__ import annotations

from dataclasses import dataclass

from models.contract import LazyRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, as data that costs nothing to import: a gateway needs none of its commands, and a command no gateway.

    ``name``: as families spell it in ``Family.tasks``. ``routes``: paths with their OpenAPI, a tuple of ``Route``.
    ``rpcs``: a tuple of ``Rpc``. ``verbs``: (typer.Typer) -> None, adds the commands that ask for it; every ``vireo``
    imports its module, so what costs is imported inside of the commands. ``checks``: what ``vireo up`` asks itself, a
    mapping from surface to ``serving.client.checks.Check``. ``examples``: what it says to type next. ``read``:
    (ResolvedModel) -> anything, reads what a gateway needs of a model; raises ConfigError where that is not there.
    """

    name: str
    routes: LazyRef
    rpcs: LazyRef
    verbs: LazyRef | None = None
    checks: LazyRef | None = None
    examples: tuple[str, ...] = ()
    read: LazyRef | None = None
