"""What clients can ask for: one ``Task`` each, of which the rest of the system knows nothing but this."""

from __future__ import annotations

from dataclasses import dataclass

from models.contract import LazyRef

_POINTS = LazyRef("serving.operating_points:points_of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, as data that costs nothing to import: a gateway needs none of its commands, and a command no gateway.

    ``name``: as families spell it in ``Family.tasks``, and of the folder below ``serving.tasks``. ``about``: what it is
    for, to readers of the OpenAPI document. ``has_commands``: whether somebody types something to ask for it, and
    `vireo up` asks itself. ``has_rpcs``: whether it is offered over gRPC. ``examples``: what `vireo up` says to type
    next; ``picture_examples``: the same for a model that needs a picture and takes no words; ``both_examples``: for one
    that needs a picture and takes words. ``read``: (ResolvedModel) -> anything, reads what a gateway needs of a model;
    raises ConfigError where that is not there.
    """

    name: str
    about: str
    has_commands: bool = True
    has_rpcs: bool = True
    examples: tuple[str, ...] = ()
    picture_examples: tuple[str, ...] = ()
    both_examples: tuple[str, ...] = ()
    read: LazyRef = _POINTS

    @property
    def routes(self) -> LazyRef:
        """Paths with their OpenAPI, a tuple of ``Route``."""
        return self._part("http:ROUTES")

    @property
    def rpcs(self) -> LazyRef | None:
        """A tuple of ``Rpc``."""
        return self._part("grpc:RPCS") if self.has_rpcs else None

    @property
    def verbs(self) -> LazyRef | None:
        """(typer.Typer) -> None: adds its commands, whose modules every ``vireo`` imports and which import the rest."""
        return self._part("cli:register") if self.has_commands else None

    @property
    def checks(self) -> LazyRef | None:
        """What ``vireo up`` asks itself: a mapping from surface to ``serving.client.checks.Check``."""
        return self._part("checks:CHECKS") if self.has_commands else None

    def _part(self, path: str) -> LazyRef:
        return LazyRef(f"serving.tasks.{self.name}.{path}")
