"""Points of a family along its axes: one knob at a time, then pairs near the front, never the full product.

A family of jobs says how good its pictures are by its part ``judge``. Without one, as with clips, a point is as good as
what comes of it agrees with what comes of the dearest point for the same requests and seeds: that says what is given up
for time, not how good the best is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.contract import Experts, Family, Job, JobState, Judge, Knob, LaidOut, SettingError, Variant
from models.operating_points import TABLE_FILE, Point, Quality, Seconds, mean_quality, point_name, share_quality
from models.training import calibration
from models.training.agreement import METRIC, agreement
from models.training.calibration import Ledger, Measured, Settings
from models.training.held_out import Predicted, batch_s, rounds
from models.training.requests import USUAL, Asked, example_requests
from models.training.routing import calibrate_routing

OnProgress = Callable[[str, int, int], None]
BATCH_SIZES = (1, 2, 4)
BETWEEN = 3
"""Rows that prices are not fitted to, but have to predict."""
_FITTED_TO_STEPS, _FITTED_TO_REST = ("macs", "slices"), ("pixels", "image_tokens")
"""What prices the steps of a job; and what is done before and after them."""
_JUDGED_TOGETHER = 30
_COUNTED = 90
"""Pictures whose routing is counted, of a family with experts."""


def sweep(
    axes: Sequence[Knob],
    base: Settings,
    measure: Callable[[Settings], Measured],
    is_allowed: Callable[[Settings], bool],
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[Measured]:
    """Measure ``base``, each value of each knob instead of its own, and pairs of those changes that lie on the front:
    nothing is as cheap and as good. Where quality is not judged, what is cheaper than ``base`` is taken for that."""
    changes = [{knob.name: value} for knob in axes for value in knob.points if value != base.get(knob.name)]
    changes = [change for change in changes if is_allowed({**base, **change})]
    found = {point_name(base): measure(base)}

    def extend(made: Sequence[Settings], what: str) -> None:
        for done, settings in enumerate(made, 1):
            if (name := point_name(settings)) not in found:
                found[name] = measure(settings)
            on_progress(what, done, len(made))

    extend([{**base, **change} for change in changes], "one setting at a time")
    first, *_ = found.values()
    near = [change for change in changes if _is_near(found[point_name({**base, **change})], first, found.values())]
    pairs = [{**base, **one, **other} for one, other in itertools.combinations(near, 2) if one.keys() != other.keys()]
    extend([pair for pair in pairs if is_allowed(pair)], "pairs near the front")
    return list(found.values())


def _is_near(one: Measured, base: Measured, others: Any) -> bool:
    quality = one.quality
    if quality is None:
        return one.cost < base.cost
    return not any(
        other.cost <= one.cost and other.quality >= quality and (other.cost, other.quality) != (one.cost, quality)
        for other in others
    )


def calibrate_job(
    family: Family,
    variant: Variant,
    *,
    ledger: Ledger,
    device: str = "cpu",
    num_threads: int = 1,
    watts: float = 6.0,
    repeats: int = 2,
    asked: Asked = USUAL,
    max_batch: int = BATCH_SIZES[-1],
    on_progress: OnProgress = lambda what, done, total: None,
    data_dir: Path | None = None,
) -> Path:
    """Points of a family of jobs: their costs, and their quality. Returns the table's path. ``asked``: how large the
    requests are, and how many where nobody judges. ``max_batch``: most of them that run together.

    The rows of a judge are requests for one picture. Row or request r is drawn with seed r.

    Raises: ValueError: requests that the model does not take.
    """
    assert variant.weights is not None
    hardware = calibration.hardware(torch.device(device), num_threads)
    with calibration.threads(num_threads):
        judge = family.part("judge")(variant) if "judge" in family.parts else None
        requests = example_requests(family, variant, asked, data_dir)
        host = job_host(family, variant, requests, device=device, repeats=repeats, max_batch=max_batch, judge=judge)
        base = host.usual if judge is not None else host.dearest
        if judge is not None:
            host.runs(base)  # to warm up
        found = sweep(host.axes, base, ledger.keeping(host.measure), host.is_allowed, on_progress)
        if isinstance(host.runner, Experts):
            calibrate_routing(host.runner, variant, host.opened(base), on_progress=on_progress)
    calibration.write(
        variant,
        [one.point for one in sorted(found, key=lambda one: -one.cost)],
        hardware=hardware,
        watts=watts,
        metric=METRIC if judge is None else judge.metric,
        data=asked.described(requests, data_dir) if judge is None else dict(judge.data),
        held_out=[run for one in found for run in one.held_out],
    )
    return variant.weights / TABLE_FILE


def job_host(
    family: Family,
    variant: Variant,
    requests: Sequence[Any],
    *,
    device: str = "cpu",
    repeats: int = 2,
    max_batch: int = BATCH_SIZES[-1],
    judge: Judge | None = None,
) -> JobHost:
    """Load the network, and get ready to run these requests."""
    assert family.build is not None
    assert family.runner is not None
    runner = family.runner.load()(family.build.load()(variant, device), variant)
    if isinstance(runner, LaidOut):
        runner.lay_out()  # as it is served
    axes = [knob for knob in family.knobs if knob.is_axis]
    sizes = tuple(size for size in BATCH_SIZES if size <= max_batch)
    return JobHost(family, variant, runner, axes, requests, sizes, repeats, judge)


@dataclass(frozen=True)
class JobHost:
    """Runs requests as a replica does, slice by slice."""

    family: Family
    variant: Variant
    runner: Job
    axes: Sequence[Knob]
    requests: Sequence[Any]
    sizes: Sequence[int]
    repeats: int
    judge: Judge | None = None

    @property
    def usual(self) -> Settings:
        """Every axis at its default."""
        return {knob.name: self.family.check_point({})[knob.name] for knob in self.axes}

    @cached_property
    def dearest(self) -> Settings:
        """Every axis at its best value, where the model takes that."""
        found = dict(self.usual)
        for knob in self.axes:
            better = {**found, knob.name: knob.points[-1]}
            found = better if self.is_allowed(better) else found
        return found

    def is_allowed(self, settings: Settings) -> bool:
        """Whether the model takes them with all of its requests."""
        return all(self._takes(request, settings) for request in self.requests)

    def _takes(self, request: Any, settings: Settings) -> bool:
        if self.family.allowed is None:
            return True
        try:
            self.family.allowed.load()(self.variant, request, self.family.check_point(settings))
        except SettingError:
            return False
        return True

    def measure(self, settings: Settings) -> Measured:
        """Cost and quality."""
        if self.judge is None:
            made = self._best if settings == self.dearest else self._made(settings)
            quality = mean_quality(list(map(agreement, made, self._best)))
        else:
            quality = _quality(self._scores(self.judge, settings))
        return self.priced(settings, quality)

    def priced(self, settings: Settings, quality: Quality | None) -> Measured:
        """A point of this quality, with its cost."""
        runs = self.runs(settings)
        prices = fit_runs(runs)
        point = Point(settings=dict(settings), seconds_per_unit=prices, quality=quality)
        return Measured(point, max(run.seconds for run in runs if run.rows == 1), held_out_of(runs, prices))

    def runs(self, settings: Settings) -> list[Run]:
        """One request of each size and length, so many rows of it together, ``repeats`` times for the fit. Held out:
        further rounds among those; all of a size that lies between others; and rows between those that are fitted.

        Raises: ValueError: the model does not take such settings with any of its requests.
        """
        assert self.family.work is not None
        count, point = self.family.work.load(), self.family.check_point(settings)
        taken = [request for request in self._timed if self._takes(request, settings)]
        if not taken:
            raise ValueError(f"{self.variant.id} does not take {point_name(settings)}, so that cannot be timed")
        work = [(request, count(self.variant, request, point).units) for request in taken]
        between = {id(request) for request, _ in sorted(work, key=lambda one: one[1]["macs"])[1:-1]}
        made = []
        for rows in (*self.sizes, *([BETWEEN] if self.sizes[-1] > BETWEEN else [])):
            for is_spare in rounds(self.repeats):
                if rows == BETWEEN and not is_spare:
                    continue
                for request, units in work:
                    steps_s, other_s = self._run(request, point, rows)
                    made.append(Run(rows, units, steps_s, other_s, is_spare or id(request) in between))
        return made

    def opened(self, settings: Settings) -> list[JobState]:
        """Requests that have begun, to count where their tokens go."""
        rows = self.requests if self.judge is None else self.judge.rows
        point = self.family.check_point(settings)
        return [self.runner.open(row, point, seed) for seed, row in zip(range(_COUNTED), itertools.cycle(rows))]

    @torch.inference_mode()
    def _scores(self, judge: Judge, settings: Settings) -> list[float]:
        scores: list[float] = []
        point = self.family.check_point(settings)
        for first in range(0, len(judge.rows), _JUDGED_TOGETHER):
            rows = judge.rows[first : first + _JUDGED_TOGETHER]
            states = [self.runner.open(row, point, first + number) for number, row in enumerate(rows)]
            while self.runner.remaining(states[0]):
                self.runner.step(states)
            made = [self.runner.close(state) for state in states]
            shown = [one["frames"] if "frames" in one else one["image"][0] for one in made]
            scores += [judge.score(first + number, one) for number, one in enumerate(shown)]
        return scores

    @property
    def _timed(self) -> list[Any]:
        """One request of each size and length: time does not depend on what is asked for."""
        return list({_size_of(request): request for request in reversed(self.requests)}.values())

    @cached_property
    def _best(self) -> list[Any]:
        return self._made(self.dearest)

    @torch.inference_mode()
    def _made(self, settings: Settings) -> list[Any]:
        """All pictures or frames of each request, one after another."""
        point, made = self.family.check_point(settings), []
        for seed, request in enumerate(self.requests):
            state = self.runner.open(request, point, seed)
            while self.runner.remaining(state):
                self.runner.step([state])
            outputs = self.runner.close(state)
            made.append(outputs["frames" if "frames" in outputs else "image"])
        return made

    @torch.inference_mode()
    def _run(self, request: Any, point: Settings, size: int) -> tuple[float, float]:
        """Seconds of the steps, and of all else, of so many rows together."""
        states = [self.runner.open(request, point, seed) for seed in range(size)]
        seconds = {True: 0.0, False: 0.0}
        while left := self.runner.remaining(states[0]):
            started_s = time.perf_counter()
            self.runner.step(states)
            seconds[next(iter(left)) == "denoise"] += time.perf_counter() - started_s
        for state in states:
            self.runner.close(state)
        return seconds[True], seconds[False]


class Run(NamedTuple):
    """Rows of equal work that ran together: seconds of their steps, and of all else."""

    rows: int
    units: Mapping[str, float]
    steps_s: float
    other_s: float
    is_held_out: bool

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.steps_s + self.other_s


def fit_runs(runs: Sequence[Run]) -> dict[str, dict[int, Seconds]]:
    """Seconds per unit of work by rows. Steps go by their multiplications and, where sizes differ, their number; the
    rest by pixels and, where those differ, by what is made of pictures that go in. What explains nothing at some number
    of rows is free there, and not as dear as at another."""
    times: dict[str, dict[int, Seconds]] = {}
    sizes = sorted({run.rows for run in runs if not run.is_held_out})
    for rows in sizes:
        fitted = [run for run in runs if run.rows == rows and not run.is_held_out]
        prices = calibration.fit([(run.units, run.steps_s / rows) for run in fitted], _FITTED_TO_STEPS)
        if all(run.other_s for run in fitted):
            prices |= calibration.fit([(run.units, run.other_s / rows) for run in fitted], _FITTED_TO_REST)
        for unit, price in prices.items():
            times.setdefault(unit, {})[rows] = price
    free = Seconds(seconds=0.0)
    return {unit: {rows: by_rows.get(rows, free) for rows in sizes} for unit, by_rows in times.items()}


def held_out_of(runs: Sequence[Run], prices: Mapping[str, Mapping[int, Seconds]]) -> tuple[Predicted, ...]:
    """What the prices say of the runs that they were not fitted to."""
    held_out = [run for run in runs if run.is_held_out]
    return tuple(Predicted(batch_s(prices, run.units, run.rows), run.seconds) for run in held_out)


def _size_of(request: Any) -> tuple[int, ...]:
    return request.width, request.height, getattr(request, "num_frames", 1)


def _quality(scores: Sequence[float]) -> Quality:
    """Of samples that are right or wrong, the interval is that of a share: it says something even if all are right."""
    mean = mean_quality(scores)
    return share_quality(mean.value, mean.n) if set(scores) <= {0.0, 1.0} else mean
