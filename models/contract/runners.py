"""What runs: the protocols between a family's networks and their hosts.

Rows come first in every tensor: the host stacks, gathers survivors and merges arrivals. State is a tree (tuples,
lists, dicts) of tensors, and of plain values that rows which may meet have in common. Arrays and tensors are ``Any``
here: these files are read without torch. The host calls from one thread, in torch's inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from models.contract.settings import Point


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


Runner: TypeAlias = Unary | Staged | Job
"""What ``Family.runner`` makes. A stream family has parts instead: see ``chat``."""
Prepare: TypeAlias = Callable[[Any], Any]
