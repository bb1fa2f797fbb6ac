"""Runs samples of any unary or staged family, stage by stage, in whatever batches the scheduler picks.

A unary family is a network of one stage here. The host knows a family by its runner alone: it stacks inputs, gathers
the rows that go on, and keeps what each sample has got.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch

from models.contract import Point, Staged, Unary
from models.inputs import Inputs, blank_row, nbytes_of, shape_of
from models.registry import family_for
from serving.config import ResolvedModel, UnaryOptions
from serving.errors import EngineFailed, QueueFull
from serving.operating_points import points_of
from serving.replica.staged.base import NOTHING_SET, Measured, Outcome, Outputs
from serving.replica.staged.rows import Batch, Row, copied, gather, stacked

_log = structlog.get_logger(__name__)
_FAILED = "the model failed on this image; retry, or send another image"


@dataclass(slots=True)
class _Sample:
    inputs: Inputs | None
    point: Point
    row: Row | None = None
    stage: int = 0
    outputs: list[Outputs] = field(default_factory=list)


class RowEngine:
    """A ``StagedEngine`` around a runner.

    ``bytes_per_sample`` is the measured peak of one sample's share of its batch between stages; ``max_bytes`` bounds
    what all samples hold. Each is charged twice its peak: see ``_copy_out``. ``defaults``: of the family's knobs.
    """

    def __init__(self, runner: Staged, *, bytes_per_sample: int, max_bytes: int, defaults: Point = NOTHING_SET) -> None:
        self._runner = runner
        self._charge_bytes = 2 * bytes_per_sample
        self._max_bytes = max_bytes
        self._defaults = defaults
        self._largest_batch = 1
        self._samples: dict[int, _Sample] = {}

    @property
    def num_stages(self) -> int:
        """Number of stages, equal to the number of exits."""
        return self._runner.num_stages

    @property
    def held_bytes(self) -> int:
        """Upper bound of what the admitted samples hold."""
        return len(self._samples) * self._charge_bytes

    @property
    def bounds(self) -> tuple[int, int]:
        """Bytes that each sample is charged, and that all may hold."""
        return self._charge_bytes, self._max_bytes

    def admit(self, sample_id: int, inputs: Inputs, settings: Point = NOTHING_SET) -> Hashable:
        """Take a sample in; its peak bytes are counted from now on. Rows of equal shapes may run together."""
        if self.held_bytes + self._charge_bytes > self._max_bytes:
            raise QueueFull(
                f"{len(self._samples)} samples hold {self.held_bytes} bytes; limit is {self._max_bytes}; retry later",
                retry_after_s=1.0,
            )
        point = {**self._defaults, **settings} if settings else self._defaults
        self._samples[sample_id] = _Sample(inputs, point)
        return shape_of(inputs)

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        """Advance the samples through consecutive stages; see ``StagedEngine.run``.

        When a batch fails, its samples are tried one by one: the one to blame must not take its neighbours along.
        """
        try:
            self._copy_out()
            return self._run(stage, num_stages, [self._samples[sample_id] for sample_id in sample_ids])
        except Exception:
            _log.exception("engine batch failed", stage=stage, batch_size=len(sample_ids))
        if len(sample_ids) == 1:
            return [EngineFailed(_FAILED)]
        return [outcome for sample_id in sample_ids for outcome in self.run(stage, num_stages, (sample_id,))]

    @torch.inference_mode()
    def _run(self, stage: int, num_stages: int, samples: list[_Sample]) -> list[Outcome]:
        """Nothing of a sample changes before all stages are through."""
        state = self._begin(samples) if stage == 0 else gather([_row(stage, sample) for sample in samples])
        self._largest_batch = max(self._largest_batch, len(samples))
        state, passed, confidence = self._runner.run(state, stage, num_stages)
        rows = Batch(state, len(samples)).rows()
        outcomes = [_outcome(value) for value in confidence.tolist()]
        arrays = [{name: tensor.cpu().numpy() for name, tensor in outputs.items()} for outputs in passed]
        for index, (sample, row) in enumerate(zip(samples, rows, strict=True)):
            sample.inputs = None
            sample.row, sample.stage = row, stage + num_stages
            # Copies: a view of one row would keep the whole batch.
            sample.outputs.extend({name: array[index].copy() for name, array in outputs.items()} for outputs in arrays)
        return outcomes

    def _begin(self, samples: list[_Sample]) -> Any:
        inputs = [sample.inputs for sample in samples if sample.inputs is not None]
        if len(inputs) < len(samples):
            raise RuntimeError("the scheduler ran the first stage twice")
        return self._runner.begin(stacked(inputs), [sample.point for sample in samples])

    def _copy_out(self) -> None:
        """Keep ``held_bytes`` true.

        A sample shares storage with its batch, and keeps all of it when the others leave. Those that hold more than
        they are charged for get storage of their own, unless even so the bound cannot be reached.
        """
        if self.held_bytes * self._largest_batch <= self._max_bytes:
            return
        lonely: dict[int, list[tuple[_Sample, Row]]] = {}
        for sample in tuple(self._samples.values()):
            if sample.row is not None and sample.row.nbytes > self._charge_bytes:
                lonely.setdefault(sample.stage, []).append((sample, sample.row))
        for group in lonely.values():
            for (sample, _), row in zip(group, copied([row for _, row in group]), strict=True):
                sample.row = row

    def result(self, sample_id: int, exit_index: int) -> Outputs:
        """Outputs of an exit that the sample has passed."""
        try:
            return self._samples[sample_id].outputs[exit_index]
        except IndexError:
            raise KeyError(f"sample {sample_id} has not passed exit {exit_index}") from None

    def release(self, sample_id: int) -> None:
        """Drop the sample and its tensors."""
        self._samples.pop(sample_id, None)


def load_engine(model: ResolvedModel[UnaryOptions]) -> Loaded:
    """Load a model and warm it up; measure its stages if nobody has."""
    torch.set_num_threads(model.threads)
    family, variant = family_for(model.family, model.variant), model.variant
    assert family.build is not None
    assert family.runner is not None
    network = family.build.load()(variant, model.device, random_weights=model.options.random_weights, **model.knobs)
    runner = as_staged(family.runner.load()(network, variant))
    row, point = blank_row(family, variant), family.check_point({})
    sizes = tuple(sorted({1, model.options.max_batch}))
    peak_bytes = max(warm_up(runner, row, size, point).bytes_per_sample for size in sizes)
    engine = RowEngine(runner, bytes_per_sample=peak_bytes, max_bytes=model.options.max_held_bytes, defaults=point)
    if points_of(model).cost_model is not None:
        return Loaded(engine)
    # The second time round everything has been allocated and compiled.
    stage_s = zip(*(warm_up(runner, row, size, point).stage_s for size in sizes), strict=True)
    return Loaded(engine, Measured(sizes, tuple(stage_s)))


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine and, where nobody had measured them before, the seconds of its stages."""

    engine: RowEngine
    measured: Measured | None = None


class OneStage:
    """A ``Unary`` runner as a network of one stage, whose only exit is taken by all."""

    num_stages = 1

    def __init__(self, runner: Unary) -> None:
        self._runner = runner

    def begin(self, batch: Any, points: Sequence[Point]) -> Any:
        """Keep both for the forward, which follows at once."""
        return batch, points

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Sequence[Any], Any]:
        """Run the forward. A row with an output that is not finite has no confidence."""
        outputs = self._runner.forward(*state)
        first = next(iter(outputs.values()))
        confidence = torch.ones(len(first), device=first.device)
        for tensor in outputs.values():
            if tensor.is_floating_point():
                confidence[~torch.isfinite(tensor.flatten(1)).all(1)] = math.nan
        return (), [outputs], confidence


def as_staged(runner: Staged | Unary) -> Staged:
    """What the engine runs."""
    return runner if isinstance(runner, Staged) else OneStage(runner)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a batch showed: most bytes that one sample holds between stages, and the seconds of each stage."""

    bytes_per_sample: int
    stage_s: tuple[float, ...]


@torch.inference_mode()
def warm_up(runner: Staged, row: Inputs, num_rows: int, point: Point) -> WarmUp:
    """Run every stage once on a batch of this row."""
    peak, kept, stage_s = nbytes_of(row), 0, []
    state = runner.begin(stacked([row] * num_rows), [point] * num_rows)
    for stage in range(runner.num_stages):
        started_s = time.perf_counter()
        state, passed, confidence = runner.run(state, stage, 1)
        confidence.tolist()  # a GPU works on while we do not look
        stage_s.append(time.perf_counter() - started_s)
        peak = max(peak, -(-Batch(state, num_rows).nbytes // num_rows))
        kept += sum(tensor[0].nbytes for outputs in passed for tensor in outputs.values())
    return WarmUp(peak + kept, tuple(stage_s))


def _row(stage: int, sample: _Sample) -> Row:
    if sample.row is None or sample.stage != stage:
        raise RuntimeError(f"the scheduler ran stage {stage} out of order")
    return sample.row


def _outcome(confidence: float) -> Outcome:
    return confidence if math.isfinite(confidence) else EngineFailed(_FAILED)
