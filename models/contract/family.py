"""A family: an architecture with its checkpoints, and all that is read from it."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from models.contract.lazy import LazyRef
from models.contract.settings import Knob, Scope, Value, check_settings, find_knob
from models.contract.variant import Variant


def _read_only(mapping: dict[str, Any]) -> MappingProxyType[str, Any]:
    """A mapping that stays as it is."""
    return MappingProxyType(mapping)


# Families and variants travel to ranks and replicas, read-only mappings and all.
copyreg.pickle(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))

Shape: TypeAlias = Literal["unary", "staged", "job", "stream"]
"""How a family runs: a whole forward, exit by exit, step by step over minutes, or token by token."""


OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture with its checkpoints.

    ``tasks``: what clients may ask of it, the usual one first. ``prepare``: (variant) -> torch-free function from
    canonical pixels to inputs, for decode workers. ``prepare_version``: raised whenever the same picture gives other
    inputs; part of every cache key. ``build``: (variant, device, random_weights=False, the knobs of a deployment by
    name; a job's and a stream's have a dtype) -> the network with the variant's weights, or with seeded random ones
    where asked for. ``runner``: (network, variant) -> one of ``Runner``. ``rename``: published parameter name
    -> ours, or None to leave it out. ``work``: (variant, request, point) -> Work. ``allowed``: (variant, request,
    point) -> None, or SettingError where the variant cannot do it. ``resolve``: (name, folder of weights or None) ->
    Variant, for a family whose variants are more than can be listed; the names are written ``family:name``.
    ``examples``: names that the generic tests resolve. ``miniatures``: variants for these tests alone, with random
    weights, where the listed ones are large. ``oracle``: (variant, folder of the official code or None) ->
    ``Parity`` of each thing that can be compared; None: with installed libraries and plain twins. ``exempt``: checks of
    ``models.testing`` that the family cannot keep, and why; shown on its card.

    Raises: ValueError: a knob or a variant twice, or a shape that has nothing to run it.
    """

    name: str
    summary: str
    tasks: tuple[str, ...]
    shape: Shape
    variants: tuple[Variant, ...] = ()
    prepare: LazyRef | None = None
    prepare_version: str = "1"
    build: LazyRef | None = None
    runner: LazyRef | None = None
    rename: LazyRef | None = None
    work: LazyRef | None = None
    allowed: LazyRef | None = None
    resolve: LazyRef | None = None
    oracle: LazyRef | None = None
    knobs: tuple[Knob, ...] = ()
    examples: tuple[str, ...] = ()
    miniatures: tuple[Variant, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    parts: Mapping[str, LazyRef] = field(default_factory=lambda: MappingProxyType({}))
    """What its shape or its task needs besides, by name: see the hosts in ``serving.replica``.

    ``save``: (network, variant, folder) -> None: writes a folder as ``build`` reads it, where ``model.safetensors``
    alone is not one.
    ``recognise``: (folder) -> the name under which ``resolve`` takes what is in it, or None where that is not this
    family's; for open families. Reads small files alone, and imports nothing heavy. Raises ValueError where it is the
    family's but cannot be served; the message says why.
    ``weight_files``: (variant) -> files of weights by the name of their network, where ``build`` reads others than
    those in the network's own folder; for what is said about memory.
    ``facts``: (variant) -> whatever else `vireo models show` should say, by name; texts, numbers or tuples of them.
    ``convert``: (variant, ..., on_progress) -> what was done, in lines: brings published weights into a folder. Its
    other parameters, each ``Annotated`` with a text, are the arguments and (keyword-only) options of `vireo convert`.
    ``experts``: (variant) -> ExpertFacts, of a mixture of experts.
    """

    def __post_init__(self) -> None:
        for what, names in (
            ("knob", [knob.name for knob in self.knobs]),
            ("variant", [variant.id for variant in self.variants]),
        ):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"family {self.name} has {what} {', '.join(repeated)} twice")
        if not self.tasks:
            raise ValueError(f"family {self.name} names no task that it is for")
        if not self.variants and self.resolve is None:
            raise ValueError(f"family {self.name} has neither variants nor a way to resolve a name to one")

    def of(self, variant: Variant) -> Family:
        """The family as it is for one variant: its tasks, its knobs, and their defaults."""
        knobs = self.knobs if variant.knobs is None else variant.knobs
        own = tuple(replace(knob, default=variant.defaults.get(knob.name, knob.default)) for knob in knobs)
        tasks = variant.tasks or self.tasks
        return self if (own, tasks) == (self.knobs, self.tasks) else replace(self, tasks=tasks, knobs=own)

    def knob(self, name: str) -> Knob:
        """The knob of that name. Raises: SettingError: there is none; the message names those that are."""
        return find_knob(name, self.knobs, self.name)

    def check_point(self, settings: Mapping[str, object], scope: Scope = "request") -> dict[str, Value]:
        """A complete point: each setting checked, the defaults for the others.

        Raises: SettingError: an unknown setting, or a value that it does not take.
        """
        defaults = {knob.name: knob.default for knob in self.knobs if knob.scope == scope}
        return check_settings({**defaults, **settings}, self.knobs, self.name, scope)

    def part(self, name: str) -> Any:
        """Load one of ``parts``. Raises: ValueError: the family has none of that name."""
        try:
            return self.parts[name].load()
        except KeyError:
            raise ValueError(f"family {self.name} has no part {name!r}") from None


class Parity(NamedTuple):
    """Ours beside those of an oracle: tensors of one shape."""

    case: str
    ours: Any
    theirs: Any
    tolerance: float = 1e-4

    @property
    def largest_difference(self) -> float:
        """Of any two numbers."""
        return float((self.ours.double() - self.theirs.double()).abs().max())

    @property
    def largest_value(self) -> float:
        """Which the difference is to be seen against."""
        return float(self.theirs.double().abs().max())
