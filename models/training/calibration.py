"""What every calibration shares: the fit of seconds per unit of work, and the file that comes of it."""

from __future__ import annotations

import datetime
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
import torch

from models.contract import Family, LazyRef, OnProgress, Value, Variant
from models.identity import checkpoint_sha256
from models.io import ImageIO
from models.operating_points import (
    Energy,
    Hardware,
    Point,
    Seconds,
    Slice,
    Table,
    point_name,
    round_off,
    source_commit,
    write_table,
)
from models.training.held_out import Predicted, prediction

T = TypeVar("T")
Settings: TypeAlias = Mapping[str, Value]
LEDGER_FILE = "operating_points.partial.jsonl"
_BY_SHAPE = {
    "image": LazyRef("models.training.pictures:calibrate_pictures"),
    "unary": LazyRef("models.training.classify.calibrate:calibrate_classifier"),
    "staged": LazyRef("models.training.classify.calibrate:calibrate_classifier"),
    "job": LazyRef("models.training.sweep:calibrate_job"),
}
_LOOK_S = 0.5
"""How long others are watched."""
_MUCH = 1e-9
"""Of a residual: a unit that explains less is left out."""


def calibrate(
    family: Family,
    variant: Variant,
    *,
    is_resumed: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
    **options: Any,
) -> Path:
    """Measure a model as its family says (part ``calibrate``), or else as its shape is measured. Returns the table's
    path. ``is_resumed``: go on where an earlier run of the same was killed.

    Raises: ValueError: no weights, nothing to judge on, nothing to measure, an earlier run that was of another model.
    """
    in_one_call = isinstance(variant.io, ImageIO) and family.shape != "job"
    measure = family.parts.get("calibrate") or _BY_SHAPE.get("image" if in_one_call else family.shape)
    if measure is None:
        raise ValueError(f"{variant.id} has no operating points to calibrate")
    if variant.weights is None:
        raise ValueError(
            f"{variant.id} comes without weights; name their folder, {variant.id}=FOLDER ('vireo convert' makes one of "
            "published weights)"
        )
    subject = {
        "model": variant.id,
        "checkpoint_sha256": checkpoint_sha256(variant.weights),
        "options": {name: str(value) for name, value in sorted(options.items())},
    }
    ledger = Ledger(variant.weights, subject, is_resumed=is_resumed)
    path: Path = measure.load()(family, variant, ledger=ledger, on_progress=on_progress, **options)
    ledger.remove()
    return path


@dataclass(frozen=True)
class Measured:
    """A point, and what the usual request takes there, in any unit. ``held_out``: runs there that its prices were not
    fitted to."""

    point: Point
    cost: float
    held_out: tuple[Predicted, ...] = ()

    @property
    def quality(self) -> float | None:
        """Lower bound, None where nobody judged."""
        return None if self.point.quality is None else self.point.quality.low


class Ledger:
    """Finished measurements, in a file beside the table as soon as each is made, so that a calibration that was killed
    goes on where it was. ``subject``: what is measured, and on what. ``is_resumed``: whether the file of an earlier run
    counts; otherwise it is begun anew. ``folder`` None: nothing is written.

    Raises: ValueError: what was measured there is something else.
    """

    def __init__(self, folder: Path | None, subject: Mapping[str, Any], *, is_resumed: bool = False) -> None:
        self._path = None if folder is None else folder / LEDGER_FILE
        self._kept: dict[str, msgspec.Raw] = {}
        head = msgspec.json.encode(subject)
        if self._path is None:
            return
        first, *lines = self._path.read_bytes().splitlines() if is_resumed and self._path.is_file() else [head]
        if first != head:
            raise ValueError(
                f"{self._path} has measurements of {first.decode(errors='replace')}, this is {head.decode()}; "
                "leave --resume out to begin anew"
            )
        for line in lines:
            try:
                made = msgspec.json.decode(line, type=_Kept)
            except msgspec.MsgspecError:
                break  # cut off where it was killed
            self._kept[made.name] = msgspec.Raw(bytes(made.value))
        written = [head, *(msgspec.json.encode(_Kept(name, value)) for name, value in self._kept.items())]
        self._path.write_bytes(b"".join(line + b"\n" for line in written))

    def keep(self, name: str, kind: type[T], measure: Callable[[], T]) -> T:
        """What was measured under that name, or is now."""
        if name in self._kept:
            return msgspec.json.decode(self._kept[name], type=kind)
        made = measure()
        self._kept[name] = msgspec.Raw(msgspec.json.encode(made))
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(_Kept(name, self._kept[name])) + b"\n")
        return made

    def keeping(self, measure: Callable[[Settings], Measured]) -> Callable[[Settings], Measured]:
        """The same, each point once."""
        return lambda settings: self.keep(point_name(settings), Measured, partial(measure, settings))

    def remove(self) -> None:
        """The table is written: nothing is left to go on with."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class _Kept(NamedTuple):
    name: str
    value: msgspec.Raw


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads of torch, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(samples: Sequence[tuple[Mapping[str, float], float]], units: Sequence[str]) -> dict[str, Seconds]:
    """Seconds per unit, none negative, by least squares of relative errors: so much work took so many seconds.

    There are few units, so every subset of them is tried, the first ones first: of two that explain the same the fewer
    units win. Errors are standard errors, None where there are no more samples than units.
    """
    amounts = np.array([[work.get(unit, 0.0) / seconds for unit in units] for work, seconds in samples])
    best: tuple[float, tuple[int, ...], Any] | None = None
    for size in range(1, len(units) + 1):
        for subset in itertools.combinations(range(len(units)), size):
            columns = amounts[:, subset]
            if not columns.any(0).all() or np.linalg.matrix_rank(columns) < size:
                continue
            prices = np.linalg.lstsq(columns, np.ones(len(samples)), rcond=None)[0]
            residual = float(np.square(columns @ prices - 1.0).sum())
            if (prices >= 0.0).all() and (best is None or residual < best[0] - _MUCH):
                best = residual, subset, prices
    if best is None:
        return {}
    residual, subset, prices = best
    spare = len(samples) - len(subset)
    columns = amounts[:, subset]
    errors = np.sqrt(np.diag(np.linalg.inv(columns.T @ columns)) * residual / spare) if spare else [None] * len(subset)
    return {
        units[place]: Seconds(seconds=round_off(float(price)), error=None if error is None else round_off(float(error)))
        for place, price, error in zip(subset, prices, errors, strict=True)
        if price > 0.0
    }


def write(
    variant: Variant,
    points: Iterable[Point],
    *,
    hardware: Hardware,
    watts: float,
    metric: str,
    data: Mapping[str, Any],
    slices: tuple[Slice, ...] = (),
    held_out: Sequence[Predicted] = (),
    commit: str | None = None,
    note: str = "",
) -> Table:
    """Put the file beside the weights, the best point first. Returns what it holds."""
    assert variant.weights is not None
    ranked = sorted(points, key=lambda point: -point.quality.low if point.quality else 0.0)
    table = Table(
        model=variant.id,
        checkpoint_sha256=checkpoint_sha256(variant.weights),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=commit or source_commit(),
        hardware=hardware,
        energy=Energy(
            source="estimate",
            watts=watts,
            note=note or "busy seconds times an assumed power of one busy core or device; not metered",
        ),
        metric=metric,
        data=dict(data),
        points={point_name(point.settings): point for point in ranked},
        slices=slices,
        prediction=prediction(held_out),
    )
    write_table(table, variant.weights)
    return table


def hardware(device: torch.device, num_threads: int | None = None) -> Hardware:
    """What the measurement runs on, as far as the system tells. Ask before it: what else runs then is told, too."""
    return Hardware(
        cpu=_cpu_name(),
        threads=num_threads or torch.get_num_threads(),
        load=_busy_cores(),
        torch=str(torch.__version__),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _busy_cores() -> float:
    """What others keep busy while this process waits; 0 where the system does not tell. The load average would still be
    that of a calibration that has just ended."""
    before = _busy_ticks()
    time.sleep(_LOOK_S)
    return round((_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / _LOOK_S, 2)


def _busy_ticks() -> int:
    stat = Path("/proc/stat")
    fields = stat.read_text().split("\n", 1)[0].split()[1:9] if stat.is_file() else ["0"] * 8
    user, nice, system, _idle, _waiting, *others = map(int, fields)
    return user + nice + system + sum(others)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} x{len(names) or 1}"
