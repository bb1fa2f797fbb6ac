"""What a model family is: one folder, described by one ``Family``, from which everything else is read.

The description is data and costs nothing to import: no torch, and what does cost is named (``LazyRef``) rather than
imported. Serving, the command line, OpenAPI, cache keys and the generic tests know families by this alone.
"""

from __future__ import annotations

import copyreg
import importlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable


def read_only(mapping: dict[str, Any]) -> MappingProxyType[str, Any]:
    """A mapping that stays as it is."""
    return MappingProxyType(mapping)


# Families and variants travel to ranks and replicas, read-only mappings and all.
copyreg.pickle(MappingProxyType, lambda mapping: (read_only, (dict(mapping),)))

Shape: TypeAlias = Literal["unary", "staged", "job", "stream"]
"""How a family runs: a whole forward, exit by exit, step by step over minutes, or token by token."""
Scope: TypeAlias = Literal["request", "deployment"]
Value: TypeAlias = bool | int | float | str
Point: TypeAlias = Mapping[str, Value]
"""One setting of a family's knobs, complete."""
OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True, slots=True)
class LazyRef:
    """Something that is imported when it is needed, written ``"package.module:attribute"``.

    Raises: ValueError: not of that form.
    """

    target: str

    def __post_init__(self) -> None:
        module, _, attribute = self.target.partition(":")
        if not module or not attribute or not attribute.isidentifier():
            raise ValueError(f"{self.target!r} names nothing; write 'package.module:attribute'")

    def load(self) -> Any:
        """Import it. Raises: ImportError, AttributeError: it is not there."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class SettingError(ValueError):
    """A setting or a field of a request that cannot be done: its ``name``, and words fit for the caller."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One setting of a family. Written once: validation, JSON schema, ``/v1/models``, command line, cache keys and the
    axes of a calibration are read from it.

    Either ``values``, from the cheapest to the best, or a range from ``low`` to ``high``, or texts of a form: ``parse``
    reads one and raises ValueError with words fit for the caller. Of the last two ``grid`` is what a calibration
    measures. ``trades``: what is given up towards the cheap end, in a few words; "" where nothing is and the knob is no
    axis of operating points. ``is_lossless``: every value gives the same answer, only at another price.

    Raises: ValueError: not exactly one of values, range and form, or a default outside of them (a form's is read when
    it is used).
    """

    name: str
    default: Value
    summary: str
    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    parse: LazyRef | None = None
    grid: tuple[Value, ...] = ()
    is_integer: bool = False
    trades: str = ""
    is_lossless: bool = False
    scope: Scope = "request"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"knob {self.name!r} must be named like a variable")
        has_range = self.low is not None and self.high is not None
        kinds = (bool(self.values), has_range, self.parse is not None)
        if sum(kinds) != 1 or (self.low is None) != (self.high is None):
            raise ValueError(f"knob {self.name} needs either values, a range from low to high, or a form")
        for value in () if self.parse else (self.default, *self.grid):
            self.check(value)

    @property
    def is_axis(self) -> bool:
        """Whether a calibration measures along it."""
        return bool(self.trades) and self.scope == "request"

    @property
    def points(self) -> tuple[Value, ...]:
        """What a calibration measures, from the cheapest to the best."""
        return self.values or self.grid or (self.default,)

    def check(self, value: object) -> Value:
        """Pass a value, a whole number as an integer where the knob takes integers.

        Raises: SettingError: not one of its values, outside its range or not of its form.
        """
        if self.values:
            if any(value == known and type(value) is type(known) for known in self.values):
                return value  # type: ignore[return-value]
            raise self._refusal(value, f"choose one of {', '.join(map(_short, self.values))}")
        return self._parsed(value) if self.parse is not None else self._ranged(value)

    def _parsed(self, value: object) -> str:
        assert self.parse is not None
        if not isinstance(value, str):
            raise self._refusal(value, f"give a text such as {self.default!r}")
        try:
            self.parse.load()(value)
        except ValueError as error:
            raise SettingError(self.name, str(error)) from None
        return value

    def _ranged(self, value: object) -> int | float:
        assert self.low is not None
        assert self.high is not None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:  # type: ignore[operator]
            raise self._refusal(value, f"give a number from {self.low:g} to {self.high:g}")
        if self.is_integer:
            if value != int(value):  # type: ignore[call-overload]
                raise self._refusal(value, "give a whole number")
            return int(value)  # type: ignore[call-overload, no-any-return]
        return float(value)  # type: ignore[arg-type]

    def _refusal(self, value: object, remedy: str) -> SettingError:
        return SettingError(self.name, f"{self.name} is {_short(value)}; {remedy}")

    def json_schema(self) -> dict[str, Any]:
        """Its JSON schema, with what it is for and what it trades."""
        text = f"{self.summary} Trades {self.trades}." if self.trades else self.summary
        if self.values:
            return {"enum": list(self.values), "default": self.default, "description": text}
        if self.parse is not None:
            return {"type": "string", "default": self.default, "examples": list(self.points), "description": text}
        kind = "integer" if self.is_integer else "number"
        bounds = {"minimum": self.low, "maximum": self.high}
        return {"type": kind, **bounds, "default": self.default, "description": text}


def find_knob(name: str, knobs: Sequence[Knob], owner: str) -> Knob:
    """The knob of that name. Raises: SettingError: ``owner`` has none; the message names those that it has."""
    for knob in knobs:
        if knob.name == name:
            return knob
    known = ", ".join(knob.name for knob in knobs) or "none"
    raise SettingError(name, f"{owner} has no setting {_short(name)}; settings are: {known}")


def check_settings(
    settings: Mapping[str, object], knobs: Sequence[Knob], owner: str, scope: Scope = "request"
) -> dict[str, Value]:
    """Pass what is set, each as its knob takes it.

    Raises: SettingError: an unknown setting, or a value that it does not take.
    """
    checked: dict[str, Value] = {}
    for name, value in settings.items():
        knob = find_knob(name, knobs, owner)
        if knob.scope != scope:
            raise SettingError(name, f"{name} is set for a whole {knob.scope}, not for a {scope}")
        checked[name] = knob.check(value)
    return checked


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def point_key(point: Point) -> str:
    """One spelling for one point: ``name=value`` in the order of names. For keys of tables and caches."""
    return ",".join(f"{name}={_spelt(point[name])}" for name in sorted(point))


def _spelt(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, ".12g") if isinstance(value, float) else str(value)


UNITS = ("macs", "slices", "pixels", "image_tokens", "prompt_tokens", "output_tokens", "token_steps", "experts_read")
"""Units of work that a planner may price. ``macs``: multiply-accumulates. ``slices``: passes of the network.
``pixels``: those that are decoded, of all frames. ``image_tokens``: made of pictures. ``token_steps``: tokens of a
latent times the steps taken on them; in a chat, tokens in the cache times the tokens written from them."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for at a point, before it runs: named units, and the most bytes that it may hold meanwhile.

    Where only the replica can count, both are upper bounds.

    Raises: ValueError: an unknown unit, or a number that is negative or not finite.
    """

    units: Mapping[str, float]
    bytes_held: int

    def __post_init__(self) -> None:
        for name, amount in self.units.items():
            if name not in UNITS:
                raise ValueError(f"work unit {name!r} is unknown; units are {', '.join(UNITS)}")
            if not math.isfinite(amount) or amount < 0:
                raise ValueError(f"{amount} {name} cannot be done")
        if self.bytes_held < 0:
            raise ValueError(f"{self.bytes_held} bytes cannot be held")


_OPEN_LICENCES = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where an architecture and its weights come from. ``licence``: of the published weights, as SPDX writes it, or
    "none" where nothing is granted. ``commit``: of the official code that ours was compared with."""

    paper: str = ""
    url: str = ""
    commit: str = ""
    licence: str = "none"

    @property
    def is_open(self) -> bool:
        """Whether weights under this licence are loaded without being asked for expressly."""
        return self.licence.lower() in _OPEN_LICENCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One checkpoint of a family, or one configuration that has none yet. Data, never code.

    ``config``: what ``Family.build`` makes the network of. ``io``: what goes in and comes out, one of ``models.io``.
    ``weights``: the folder; None where they are the user's to bring. ``is_nano``: trained here, on a few MB.
    ``is_default``: served where nobody says what, if the family is Vireo's own.
    ``published``: figures of the paper. ``defaults``: of knobs, where it was made for others than the family's.
    ``tasks`` and ``knobs``: its own in place of the family's, where those of an open family differ; ``Family.of`` says
    what holds.
    """

    id: str
    summary: str
    io: Any
    config: Mapping[str, Any] = field(default_factory=dict)
    source: Source = Source()
    published: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Value] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    knobs: tuple[Knob, ...] | None = None
    weights: Path | None = None
    is_nano: bool = False
    is_default: bool = False

    def with_weights(self, folder: Path) -> Variant:
        """Return the same variant with its weights read from ``folder``."""
        return replace(self, weights=folder)


def check_licence(variant: Variant, *, is_accepted: bool) -> None:
    """Pass a variant whose weights are to be read. Every way in for published weights asks here.

    Raises: ValueError: their licence is not an open one, and nobody has accepted it.
    """
    if not variant.source.is_open and not is_accepted:
        raise ValueError(
            f"the weights of {variant.id} are under licence {variant.source.licence!r}, which is not an open one; if "
            "it allows what you do, say so with --accept-licence, or accept_licence: true in a configuration"
        )


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture with its checkpoints.

    ``tasks``: what clients may ask of it, the usual one first. ``prepare``: (variant) -> torch-free function from
    canonical pixels to inputs, for decode workers. ``prepare_version``: raised whenever the same picture gives other
    inputs; part of every cache key. ``build``: (variant, device, random_weights=False, the knobs of a deployment by
    name; a job's and a stream's have a dtype) -> the network with the variant's weights, or with seeded random ones
    where asked for. ``runner``: (network, variant) -> one of the protocols below. ``rename``: published parameter name
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


# -- what runs -------------------------------------------------------------------------------------------------------
# Rows come first in every tensor: the host stacks, gathers survivors and merges arrivals. State is a tree (tuples,
# lists, dicts) of tensors, and of plain values that rows which may meet have in common. Arrays and tensors are ``Any``
# here: this file is read without torch. The host calls from one thread, in torch's inference mode.


@runtime_checkable
class Unary(Protocol):
    """A whole forward pass."""

    def forward(self, batch: Any, points: Sequence[Point]) -> Mapping[str, Any]:
        """``batch``: a tensor of inputs as ``prepare`` makes them, stacked, or several by name: see ``models.inputs``.
        ``points``: one a row.

        Returns outputs by name, rows first. A classifier gives ``probabilities`` (rows, classes), float32; what makes
        pictures gives ``image`` (rows, height, width, 3), uint8.
        """
        ...


@runtime_checkable
class Staged(Protocol):
    """A network with early exits: stage k ends at exit k."""

    num_stages: int

    def begin(self, batch: Any, points: Sequence[Point]) -> Any:
        """Take rows in, as ``Unary.forward`` gets them. Computes nothing; ``run`` follows at once."""
        ...

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Sequence[Any], Any]:
        """Run consecutive stages on rows that all wait for ``first_stage``.

        Returns the state, each stage's outputs as of ``Unary.forward``, and the confidence (rows,) at the last of them.
        """
        ...


Phase: TypeAlias = Literal["condition", "denoise", "decode"]
"""Of a job, in order: what is made of the request once, the steps that a scheduler deals out, what comes of them."""

Figures: TypeAlias = Mapping[str, float]
"""What a slice reports besides: ``sparsity``, ``search_s``."""


@dataclass(slots=True)
class JobState:
    """One request of a job between two slices.

    ``kept``: tensors and plain values from which a later attempt goes on, replaced as a whole by each slice, so that
    another thread never sees half of it. ``cache``: whatever else. It may be dropped, and is made anew; where that
    changes what comes out, the runner says so. What is neither array nor tensor shows its own by ``tensors()``.
    """

    request: Any
    point: Point
    seed: int
    kept: Mapping[str, Any]
    cache: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> list[Any]:
        """Every array and tensor, once."""
        return list({id(leaf): leaf for leaf in _arrays([self.kept, self.cache])}.values())

    @property
    def bytes_held(self) -> int:
        """Of all arrays and tensors."""
        return sum(leaf.nbytes for leaf in self.arrays())


def _arrays(tree: Any) -> Iterator[Any]:
    if hasattr(tree, "nbytes"):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _arrays(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for inner in tree:
            yield from _arrays(inner)
    elif hasattr(tree, "tensors"):
        yield from _arrays(tree.tensors())


@runtime_checkable
class Job(Protocol):
    """Minutes of work, one slice at a time, on several requests together."""

    def open(self, request: Any, point: Point, seed: int) -> JobState:
        """State of a new request. Runs no network. Raises: SettingError."""
        ...

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """Slices that are left of each phase, in order, without those that are over. Empty: it may be closed."""
        ...

    def group_key(self, state: JobState) -> Hashable:
        """States of one key may share a slice."""
        ...

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        """Advance all of them by one slice, in place, and return when it is done. None for a state that nothing came of
        (not a number): it is as it was. Where this raises, all are."""
        ...

    def close(self, state: JobState) -> Mapping[str, Any]:
        """Outputs of a state that has nothing left. Runs no network."""
        ...


@runtime_checkable
class Previews(Protocol):
    """A job that shows what it has come to."""

    def preview(self, state: JobState) -> Any:
        """A rough small picture, uint8 (1, h, w, 3), from the present estimate; cheap."""
        ...


@runtime_checkable
class LaidOut(Protocol):
    """A job whose weights can be laid out as the processor reads them fastest."""

    def lay_out(self) -> None:
        """Once, before the first request, where one rank serves and weights change no more. They take as much memory as
        before, and are saved as before; what comes out differs by rounding. Does nothing where nothing is gained."""
        ...


@runtime_checkable
class ExpertPhases(Protocol):
    """A job whose steps wake different experts, which costs time: one of two networks, say. Jobs that wake the same
    ones then go on together."""

    def expert_phase(self, state: JobState) -> Hashable:
        """Which experts its next step wakes; equal where they are the same ones."""
        ...


class Judge(Protocol):
    """Says how good the pictures or clips are that a family makes. Its part ``judge``: (variant) -> Judge, or None if
    nobody has judged that variant; for calibrations."""

    metric: str
    """What a score means, in a few words."""
    data: Mapping[str, Any]
    """What the rows are, for the record."""
    rows: Sequence[Any]
    """Independent of each other and unseen in training, each as ``models.inputs`` has it."""

    def score(self, row: int, image: Any) -> float:
        """From 0 to 1, of what came of a row: a picture, uint8 (height, width, 3), or a clip, with frames first."""
        ...


@runtime_checkable
class Parallel(Protocol):
    """A job whose requests are spread over ranks, which all do the same in the same order."""

    def spread(self, degrees: Any, groups_of: Callable[[int], Any]) -> None:
        """From now on. ``degrees``: ``models.parallel`` degrees of all ranks; ``groups_of``: number of tokens of a
        request -> its groups. Raises: ValueError: degrees that do not fit the network."""
        ...


@runtime_checkable
class Experts(Protocol):
    """A job whose network sends its tokens to experts, and counts them."""

    @property
    def expert_shape(self) -> tuple[int, int]:
        """Layers that have experts, and experts of each."""
        ...

    def take_loads(self) -> Sequence[Any]:
        """How many tokens each state of the last denoising slice sent to which expert: one array int64 (layers,
        experts) a state, in their order. Taken once, on the thread that ran the slice; slices of other phases, which
        may run meanwhile, change nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFacts:
    """What a client may know of a mixture of experts.

    ``layers``: those that have experts. ``experts``: of a layer, those that tokens choose from. ``chosen``: of them, by
    a token at most. ``shared``: further ones that every token meets. ``parameters``: of the network that is routed, and
    ``active_parameters``: of them, those that a token meets.
    """

    layers: int
    experts: int
    chosen: int
    shared: int = 0
    parameters: int
    active_parameters: int

    @property
    def expert_parameters(self) -> int:
        """Of one expert of one layer, at least 1: what a token does not meet is the experts that it did not choose."""
        return max(1, (self.parameters - self.active_parameters) // max(1, self.layers * (self.experts - self.chosen)))


Slots: TypeAlias = Sequence[Sequence[int]]
"""Of each layer, the expert in each slot; with R ranks, rank r has the r-th part of the slots."""
Move: TypeAlias = tuple[int, int, int, int]
"""Layer, expert, slot that has it, and slot that gets it."""
Choose: TypeAlias = Callable[[Sequence[int], Sequence[int], int], Sequence[Sequence[int]]]
"""(experts in a layer's slots, tokens of each expert, number of ranks) -> of each expert, those of its slots that share
its tokens in this step."""


@runtime_checkable
class PlacedExperts(Protocol):
    """A ``Parallel`` job each of whose ranks has a part of the experts, some of them perhaps on several. All ranks are
    called alike; where experts are changes nothing of what comes out."""

    def place(self, slots: Slots, choose: Choose | None = None) -> None:
        """After ``spread``, once: keep the experts of this rank's slots alone. ``choose``: where each expert runs in a
        step; None: in all its slots. Raises: ValueError: slots that cannot be held."""
        ...

    def fetch(self, slots: Slots, moves: Sequence[Move]) -> None:
        """On another thread, beside steps: get what this rank will lack, from ranks that have it, and keep it apart.
        Raises: ValueError, RuntimeError: nothing has changed."""
        ...

    def switch(self) -> None:
        """Between two steps: what was fetched is in place."""
        ...


Runner: TypeAlias = Unary | Staged | Job
"""What ``Family.runner`` makes. A stream family has parts instead, below."""
Prepare: TypeAlias = Callable[[Any], Any]

# -- parts of a stream family ----------------------------------------------------------------------------------------
# vLLM batches and generates by itself, so such a family has no runner. It names these in ``Family.parts``:
#   prompts   (variant) -> Prompts
#   tiles     (variant, width, height) -> how many squares ``prepare`` cuts a picture of that size into; the same for
#             the picture turned by 90 degrees. Raises ValueError: it cannot be cut
#   vllm      () -> None: tell vLLM about the architecture; called in each of its processes, perhaps more than once.
#             Not where the architecture is vLLM's own
#   vllm_image (tiles, grid) -> what the model's processor in vLLM takes; without this part it takes (tiles, grid)
#   grids     (variant) -> None, or (height, width) -> the grid of a picture of that size, in place of the one from
#             ``prepare``: for what only another process can count. May take long; a gateway calls it from threads.
#             Raises ValueError: the model takes no such picture
#   boxes     (text) -> list[TextBox]: places in an image that an answer names; only where it can
# and ``build`` gives a ChatNetwork, for the plain engine that vLLM is compared with. What all this must keep is in
# ``models.testing.streams``.
#
# The one knob of scope ``request`` that such a family may have is ``models.io.MAX_TILES``: ``prepare`` and ``tiles``
# then get a variant whose io allows no more tiles than the request. Pictures become coarser, and cost fewer tokens.

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of the tiles that an image was cut into, without its thumbnail."""
Turn: TypeAlias = tuple[str, Sequence[str | None]]
"""Who speaks (system, user or assistant), and what: texts, and None where an image stands."""


class Prompts(Protocol):
    """Tokens of conversations. Threads may share one."""

    @property
    def image_id(self) -> int:
        """The token that stands for an image."""
        ...

    @property
    def end_of_turn_id(self) -> int:
        """The token with which an answer ends."""
        ...

    def build(self, messages: Iterable[Turn]) -> list[int]:
        """Ids with one ``image_id`` per image, and the beginning of an answer. No text becomes a control token.

        Raises: ValueError: the model takes no such conversation; the words are fit for the caller."""
        ...

    def image_tokens(self, grid: Grid) -> int:
        """Tokens of one image, without those that mark its begin and end."""
        ...

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """Ids as the model reads them. Raises: ValueError: not one grid per image."""
        ...

    def num_expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        """Length of ``expand(ids, grids)``. Raises: ValueError: not one grid per image."""
        ...


class ChatNetwork(Protocol):
    """A network that chats, in plain torch."""

    @property
    def language_model(self) -> Any:
        """A causal language model with the interface of transformers'."""
        ...

    def encode_images(self, tiles: Any, grids: Sequence[Grid]) -> Sequence[Any]:
        """uint8 tiles (T, S, S, 3) of all images, one after another, to one tensor (tokens, width) per image."""
        ...


class TextBox(NamedTuple):
    """A box that a text names: where it is spelt, and its corners as shares of the image's width and height, 0 to 1."""

    start: int
    end: int
    left: float
    top: float
    right: float
    bottom: float
