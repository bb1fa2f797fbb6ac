"""Points of a family along its axes: one knob at a time, then pairs near the front, never the full product.

A family of jobs says how good its pictures are by its part ``judge``. Without one, as with clips, a point is as good as
what comes of it agrees with what comes of the dearest point for the same requests and seeds: that says what is given up
for time, not how good the best is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from models.contract import Experts, Family, Job, JobState, Judge, Knob, LaidOut, SettingError, Variant
from models.operating_points import TABLE_FILE, Point, Quality, Seconds, mean_quality, point_name, share_quality
from models.training import calibration
from models.training.agreement import METRIC, agreement
from models.training.calibration import Ledger, Measured, Settings
from models.training.requests import USUAL, Asked, example_requests
from models.training.routing import calibrate_routing

OnProgress = Callable[[str, int, int], None]
BATCH_SIZES = (1, 2, 4)
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
    assert family.build is not None
    assert family.runner is not None
    hardware = calibration.hardware(torch.device(device), num_threads)
    with calibration.threads(num_threads):
        runner = family.runner.load()(family.build.load()(variant, device), variant)
        if isinstance(runner, LaidOut):
            runner.lay_out()  # as it is served
        judge = family.part("judge")(variant) if "judge" in family.parts else None
        axes = [knob for knob in family.knobs if knob.is_axis]
        requests = example_requests(family, variant, asked, data_dir)
        sizes = tuple(size for size in BATCH_SIZES if size <= max_batch)
        host = _JobHost(family, variant, runner, axes, requests, sizes, repeats, judge)
        base = host.usual if judge is not None else host.dearest
        if judge is not None:
            host.cost(base)  # to warm up
        found = sweep(axes, base, ledger.keeping(host.measure), host.is_allowed, on_progress)
        if isinstance(runner, Experts):
            calibrate_routing(host.runner, variant, host.opened(base), on_progress=on_progress)
    calibration.write(
        variant,
        [one.point for one in sorted(found, key=lambda one: -one.cost)],
        hardware=hardware,
        watts=watts,
        metric=METRIC if judge is None else judge.metric,
        data=asked.described(requests, data_dir) if judge is None else dict(judge.data),
    )
    return variant.weights / TABLE_FILE


@dataclass(frozen=True)
class _JobHost:
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
        if self.family.allowed is None:
            return True
        try:
            for request in self.requests:
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
        seconds_per_unit, alone_s = self.cost(settings)
        return Measured(Point(settings=dict(settings), seconds_per_unit=seconds_per_unit, quality=quality), alone_s)

    def cost(self, settings: Settings) -> tuple[dict[str, dict[int, Seconds]], float]:
        """Seconds per unit of work by rows, and of the longest request alone. Steps go by their multiplications and,
        where sizes differ, a constant; the rest by its pixels."""
        assert self.family.work is not None
        count = self.family.work.load()
        times: dict[str, dict[int, Seconds]] = {}
        point = self.family.check_point(settings)
        alone_s = 0.0
        for size in self.sizes:
            steps, rest = [], []
            for request in [*self._timed] * self.repeats:
                units = count(self.variant, request, point).units
                steps_s, rest_s = self._run(request, point, size)
                steps.append((units, steps_s / size))
                rest.append((units, rest_s / size))
                alone_s = max(alone_s, steps_s + rest_s) if size == 1 else alone_s
            fitted = calibration.fit(steps, ("macs", "slices"))
            if all(seconds for _, seconds in rest):
                fitted |= calibration.fit(rest, ("pixels",))
            for unit, price in fitted.items():
                times.setdefault(unit, {})[size] = price
        return times, alone_s

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


def _size_of(request: Any) -> tuple[int, ...]:
    return request.width, request.height, getattr(request, "num_frames", 1)


def _quality(scores: Sequence[float]) -> Quality:
    """Of samples that are right or wrong, the interval is that of a share: it says something even if all are right."""
    mean = mean_quality(scores)
    return share_quality(mean.value, mean.n) if set(scores) <= {0.0, 1.0} else mean
