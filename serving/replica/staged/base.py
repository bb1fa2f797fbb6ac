"""What a driver needs from any staged engine.

A sample lives in the engine from ``admit`` to ``release``. Everything it holds is counted in bytes before it is
admitted, belongs to the sample, and is freed by ``release``. ``admit``, ``result`` and ``release`` are called on the
event loop and must be cheap; ``run`` blocks and is called on the engine's own thread, one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias, runtime_checkable

from models.contract import Point
from models.inputs import Array, Inputs
from serving.errors import ServingError

NOTHING_SET: Point = MappingProxyType({})
Outputs: TypeAlias = Mapping[str, Array]
"""What one sample has got at an exit, by name; of a classifier ``probabilities``."""


Outcome: TypeAlias = float | ServingError
"""What one sample has after a stage: the confidence of the exit it reached, between 0 and 1."""
Done: TypeAlias = Callable[[list[Outcome] | Exception], None]
"""Gets what ``StagedEngine.run`` returns or raises."""


@dataclass(frozen=True, slots=True)
class Measured:
    """``stage_s[stage]``: seconds of batches of ``batch_sizes``, measured where the engine runs."""

    batch_sizes: tuple[int, ...]
    stage_s: tuple[tuple[float, ...], ...]


class StagedEngine(Protocol):
    """Runs samples stage by stage; stage k ends at exit k."""

    @property
    def num_stages(self) -> int:
        """Number of stages, equal to the number of exits."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes that all admitted samples hold, or will hold at their largest."""
        ...

    def admit(self, sample_id: int, inputs: Inputs, settings: Point = NOTHING_SET) -> Hashable:
        """Take a sample in, and return its batch key: samples run together only where it is equal.

        ``inputs``: see ``models.inputs``. It is not copied and must not change until ``release``.
        ``settings``: of the family's knobs, where they are not the defaults.

        Raises: QueueFull: the sample does not fit into the engine's memory bound.
        """
        ...

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        """Run ``num_stages`` consecutive stages, the first being ``stage``. One outcome per sample, in order.

        A failure of the whole batch is reported as one ServingError per sample, never raised.
        """
        ...

    def result(self, sample_id: int, exit_index: int) -> Outputs:
        """Outputs of an exit that the sample has passed.

        Raises: KeyError: the sample is not here, or has not passed that exit.
        """
        ...

    def release(self, sample_id: int) -> None:
        """Free everything the sample holds. Unknown ids are ignored: cancellation races with completion."""
        ...


@runtime_checkable
class Starting(Protocol):
    """An engine that needs no thread of the driver: it works elsewhere."""

    def start(self, stage: int, num_stages: int, sample_ids: Sequence[int], done: Done) -> None:
        """``StagedEngine.run`` without waiting; ``done`` is called on the event loop, later and once."""
        ...
