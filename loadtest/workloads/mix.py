"""Turns a scenario into the exact list of requests to make. Pure and seeded: same scenario, same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtest import arrivals
from loadtest.clients.base import Budget, Drawing, Filming, Payload, Question
from loadtest.scenario import (
    BudgetModel,
    Chat,
    Closed,
    Draw,
    Film,
    Gamma,
    MixEntry,
    Phase,
    Poisson,
    Scenario,
    Trace,
    Uniform,
)
from loadtest.workloads.bad_inputs import makers
from loadtest.workloads.digits import draw_digit
from loadtest.workloads.words import draw_words

CLOSED_LOOP_POOL = 1000
"""Distinct requests drawn for a closed-loop phase, whose number of requests is not known before."""

_ARRIVAL_STREAM, _MIX_STREAM, _IMAGE_STREAM, _SEED_STREAM = 1, 2, 3, 4


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
        num_payloads = _num_payloads(phase, times_s)
        payloads = []
        for _ in range(num_payloads):
            payloads.append(maker.next(phase.name))
            on_request()
        loads.append(PhaseLoad(phase=phase, times_s=times_s, payloads=tuple(payloads)))
    return loads


def count_requests(scenario: Scenario) -> int:
    """How often ``build_load`` will call ``on_request``."""
    return sum(_num_payloads(phase, phase_times(scenario, number)) for number, phase in enumerate(scenario.phases))


def _num_payloads(phase: Phase, times_s: tuple[float, ...]) -> int:
    if isinstance(phase.arrival, Closed):
        return phase.arrival.num_requests or CLOSED_LOOP_POOL
    return len(times_s)


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
        self._shares = {phase.name: _shares(scenario, phase.name) for phase in scenario.phases}
        self._sent: dict[int, list[Payload]] = {number: [] for number in range(len(scenario.mix))}
        self._next_again = dict.fromkeys(self._sent, 0)
        self._num_distinct = 0
        self._num_images = 0
        self._num_questions = 0
        self._next_seed = int(np.random.SeedSequence((scenario.seed, _SEED_STREAM)).generate_state(1)[0])
        self._shown: dict[int, list[tuple[bytes, ...]]] = {number: [] for number in self._sent}
        self._bad = sorted(makers().items())
        self._num_bad = 0

    def next(self, phase: str) -> Payload:
        shares = self._shares[phase]
        number = int(self._rng.choice(len(shares), p=shares))
        bad_draw, repeat_draw, pick = self._rng.random(3)
        images = self._scenario.images
        sent = self._sent[number]
        if bad_draw < images.bad_share and self._scenario.mix[number].shows_pictures:
            return self._make_bad(self._scenario.mix[number])
        if sent and repeat_draw < images.repeat_share:
            return sent[int(pick * len(sent))]
        if sent and self._num_distinct >= images.pool_size:
            return self._send_again(number)
        payload = self._make(number)
        sent.append(payload)
        self._num_distinct += 1
        return payload

    def _send_again(self, number: int) -> Payload:
        sent = self._sent[number]
        payload = sent[self._next_again[number] % len(sent)]
        self._next_again[number] += 1
        return payload

    def _make(self, number: int) -> Payload:
        entry = self._scenario.mix[number]
        if (chat := entry.question) is not None:
            images = self._show(number, entry, chat)
            return self._payload(entry, images, kind="words" if images else "text", labels=())
        if entry.drawn is not None:
            return self._payload(entry, (), kind="picture", labels=())
        if (film := entry.filmed) is not None:
            return self._payload(entry, (self._draw()[0],) if film.has_first_frame else (), kind="clip", labels=())
        drawn = [self._draw() for _ in range(entry.images_per_request)]
        images, labels = zip(*drawn, strict=True)
        return self._payload(entry, images, kind="digit", labels=labels)

    def _make_bad(self, entry: MixEntry) -> Payload:
        kind, make = self._bad[self._num_bad % len(self._bad)]
        self._num_bad += 1
        return self._payload(entry, (make(self._num_bad),), kind=kind, labels=None)

    def _show(self, number: int, entry: MixEntry, chat: Chat) -> tuple[bytes, ...]:
        """Pictures for a question: new ones, or some that a request of this entry has shown before."""
        shown = self._shown[number]
        if chat.repeat_images_share and shown and self._rng.random() < chat.repeat_images_share:
            return shown[int(self._rng.integers(len(shown)))]
        images = tuple(self._picture(chat) for _ in range(entry.images_per_request))
        shown.append(images)
        return images

    def _picture(self, chat: Chat) -> bytes:
        """Raises: OSError: a file that cannot be read."""
        if not chat.files:
            return self._draw_words(chat)
        self._num_images += 1
        return Path(chat.files[(self._num_images - 1) % len(chat.files)]).read_bytes()

    def _draw_words(self, chat: Chat) -> bytes:
        image_format = self._next_format()
        return draw_words(
            self._image_seed,
            self._num_images,
            width_px=chat.width_px,
            height_px=chat.height_px,
            image_format=image_format,
        )

    def _draw(self) -> tuple[bytes, str]:
        image_format, size_px = self._next_format(), self._scenario.images.size_px
        return draw_digit(self._image_seed, self._num_images, size_px=size_px, image_format=image_format)

    def _next_format(self) -> str:
        formats = self._scenario.images.formats
        image_format = formats[self._num_images % len(formats)]
        self._num_images += 1
        return image_format

    def _payload(
        self, entry: MixEntry, images: tuple[bytes, ...], *, kind: str, labels: tuple[str, ...] | None
    ) -> Payload:
        """``labels``: ``None`` for a broken picture, empty where no label is known."""
        chat, draw, film = entry.question, entry.drawn, entry.filmed
        asked = chat or draw or film
        return Payload(
            images=images,
            model=self._scenario.model if asked is None else asked.model,
            surface=entry.surface,
            tenant=entry.tenant,
            top_k=entry.top_k,
            budget=_budget(entry.budget),
            kind=kind,
            expects_error=labels is None,
            expected_labels=labels or None,
            question=None if chat is None else self._ask(chat),
            drawing=None if draw is None else self._imagine(draw),
            filming=None if film is None else self._direct(film),
        )

    def _imagine(self, draw: Draw) -> Drawing:
        seed, prompt = self._seeds(draw.n), self._prompt_of(draw)
        return Drawing(prompt=prompt, n=draw.n, seed=seed, size=draw.size, settings=draw.settings)

    def _direct(self, film: Film) -> Filming:
        return Filming(
            prompt=self._prompt_of(film),
            seed=self._seeds(1),
            size=film.size,
            num_frames=film.num_frames,
            settings=film.settings,
        )

    def _prompt_of(self, asked: Draw | Film) -> str:
        return asked.prompts[int(self._rng.integers(len(asked.prompts)))]

    def _seeds(self, count: int) -> int:
        """The first of so many that nothing else has."""
        first, self._next_seed = self._next_seed, self._next_seed + count
        return first

    def _ask(self, chat: Chat) -> Question:
        self._num_questions += 1
        text = f"({self._num_questions}) {chat.question}" if chat.is_numbered else chat.question
        return Question(text=text, max_tokens=chat.max_tokens, temperature=chat.temperature)


def _shares(scenario: Scenario, phase: str) -> npt.NDArray[np.float64]:
    """Of the requests of a phase, by entry of the mix."""
    weights = np.array([entry.weight if entry.is_sent_in(phase) else 0.0 for entry in scenario.mix])
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def _budget(model: BudgetModel | None) -> Budget | None:
    return None if model is None else Budget(**model.model_dump())
