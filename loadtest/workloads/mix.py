"""Turns a scenario into the exact list of requests to make. Pure and seeded: same scenario, same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from loadtest import arrivals
from loadtest.clients.base import Budget, Payload
from loadtest.scenario import BudgetModel, Closed, Gamma, MixEntry, Phase, Poisson, Scenario, Trace, Uniform
from loadtest.workloads.bad_inputs import makers
from loadtest.workloads.digits import draw_digit

CLOSED_LOOP_POOL = 1000
"""Distinct requests drawn for a closed-loop phase, whose number of requests is not known before."""

_ARRIVAL_STREAM, _MIX_STREAM, _IMAGE_STREAM = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLoad:
    """A phase with its send times (seconds from the start of the phase; none in a closed loop) and payloads.

    In an open loop there is one payload per time; in a closed loop the payloads are sent in turn, over and over.
    """

    phase: Phase
    times_s: tuple[float, ...]
    payloads: tuple[Payload, ...]


def build_load(scenario: Scenario, *, on_request: Callable[[], None] = lambda: None) -> list[PhaseLoad]:
    """Everything the scenario sends. ``on_request`` is called for each request made, for a progress bar."""
    maker = _PayloadMaker(scenario)
    loads = []
    for number, phase in enumerate(scenario.phases):
        times_s = phase_times(scenario, number)
        num_payloads = CLOSED_LOOP_POOL if isinstance(phase.arrival, Closed) else len(times_s)
        payloads = []
        for _ in range(num_payloads):
            payloads.append(maker.next())
            on_request()
        loads.append(PhaseLoad(phase=phase, times_s=times_s, payloads=tuple(payloads)))
    return loads


def count_requests(scenario: Scenario) -> int:
    """How often ``build_load`` will call ``on_request``."""
    return sum(
        CLOSED_LOOP_POOL if isinstance(phase.arrival, Closed) else len(phase_times(scenario, number))
        for number, phase in enumerate(scenario.phases)
    )


def phase_times(scenario: Scenario, number: int) -> tuple[float, ...]:
    """Send times of phase ``number``, in seconds from its start; empty for a closed loop."""
    phase = scenario.phases[number]
    seed = int(np.random.SeedSequence((scenario.seed, _ARRIVAL_STREAM, number)).generate_state(1)[0])
    return tuple(arrivals.bounded(_arrivals(phase, seed), duration_s=phase.duration_s))


def _arrivals(phase: Phase, seed: int) -> Iterator[float]:
    match phase.arrival:
        case Uniform(rate_per_s=rate):
            return arrivals.uniform(rate)
        case Poisson(rate_per_s=rate):
            return arrivals.poisson(rate, seed=seed)
        case Gamma(rate_per_s=rate, cv=cv):
            return arrivals.gamma(rate, cv=cv, seed=seed)
        case Trace(times_s=times_s, speed=speed):
            return arrivals.trace(times_s, speed=speed)
        case Closed():
            return iter(())


class _PayloadMaker:
    """Draws one request after another: which entry of the mix, fresh or repeated or bad, which picture."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._rng = np.random.default_rng((scenario.seed, _MIX_STREAM))
        self._image_seed = int(np.random.SeedSequence((scenario.seed, _IMAGE_STREAM)).generate_state(1)[0])
        weights = np.array([entry.weight for entry in scenario.mix])
        self._shares = weights / weights.sum()
        self._sent: dict[int, list[Payload]] = {number: [] for number in range(len(scenario.mix))}
        self._next_again = dict.fromkeys(self._sent, 0)
        self._num_distinct = 0
        self._num_images = 0
        self._bad = sorted(makers().items())
        self._num_bad = 0

    def next(self) -> Payload:
        number = int(self._rng.choice(len(self._shares), p=self._shares))
        bad_draw, repeat_draw, pick = self._rng.random(3)
        images = self._scenario.images
        sent = self._sent[number]
        if bad_draw < images.bad_share:
            return self._make_bad(self._scenario.mix[number])
        if sent and repeat_draw < images.repeat_share:
            return sent[int(pick * len(sent))]
        if sent and self._num_distinct >= images.pool_size:
            return self._send_again(number)
        payload = self._make(self._scenario.mix[number])
        sent.append(payload)
        self._num_distinct += 1
        return payload

    def _send_again(self, number: int) -> Payload:
        sent = self._sent[number]
        payload = sent[self._next_again[number] % len(sent)]
        self._next_again[number] += 1
        return payload

    def _make(self, entry: MixEntry) -> Payload:
        drawn = [self._draw() for _ in range(entry.images_per_request)]
        images, labels = zip(*drawn, strict=True)
        return self._payload(entry, images, kind="digit", labels=labels)

    def _make_bad(self, entry: MixEntry) -> Payload:
        kind, make = self._bad[self._num_bad % len(self._bad)]
        self._num_bad += 1
        return self._payload(entry, (make(self._num_bad),), kind=kind, labels=None)

    def _draw(self) -> tuple[bytes, str]:
        images = self._scenario.images
        image_format = images.formats[self._num_images % len(images.formats)]
        self._num_images += 1
        return draw_digit(self._image_seed, self._num_images, size_px=images.size_px, image_format=image_format)

    def _payload(
        self, entry: MixEntry, images: tuple[bytes, ...], *, kind: str, labels: tuple[str, ...] | None
    ) -> Payload:
        return Payload(
            images=images,
            model=self._scenario.model,
            surface=entry.surface,
            tenant=entry.tenant,
            top_k=entry.top_k,
            budget=_budget(entry.budget),
            kind=kind,
            expects_error=labels is None,
            expected_labels=labels,
        )


def _budget(model: BudgetModel | None) -> Budget | None:
    return None if model is None else Budget(**model.model_dump())
