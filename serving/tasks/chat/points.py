"""How finely a chat request's pictures are cut and how much it may generate, what that is predicted to cost, and
whether its budget allows it.

Its points differ in the tiles of a picture, where the family has a knob for them, and in the cap on output: what was
asked for, and the most that the budget pays for at recent prices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from models.contract import Knob
from models.io import MAX_TILES, MAX_TOKENS, ChatTokens
from models.operating_points import point_name
from schedulers.answer_cost import AnswerCost
from schedulers.cost import Units
from schedulers.plan import Budget as PointBudget
from schedulers.plan import Cost, Load, Point, Refusal, Settings, Value, most, plan
from schedulers.plan import Plan as Planned
from serving.bending import degradation_of
from serving.delivery.stream.generation import Plan
from serving.domain import Budget
from serving.errors import BudgetInfeasible, DeadlineUnreachable, PromptTooLong
from serving.service import Card
from serving.tasks.chat.domain import Sampling

MAX_AGE_S = 30.0
"""Prices that have not been observed for so long refuse nobody."""


class Measured:
    """Lower bounds of the quality of a model's answers, by the tiles of a picture and the cap on the answer.

    ``points``: calibrated ones. Each has a setting for its cap, and one for its tiles where the family has that knob.
    """

    def __init__(self, points: Sequence[Point] = ()) -> None:
        self.names = tuple(point.name for point in points)
        self._bounds: dict[int | None, list[tuple[int, float]]] = {}
        for point in points:
            if point.quality is not None and MAX_TOKENS in point.settings:
                of_tiles = self._bounds.setdefault(_tiles_of(point.settings), [])
                of_tiles.append((int(point.settings[MAX_TOKENS]), point.quality))
        self._caps = tuple(sorted({cap for bounds in self._bounds.values() for cap, _ in bounds}))

    def quality(self, tiles: int | None, cap: int) -> float | None:
        """That of the longest cap that was measured and is not above: what is right within fewer tokens stays so.
        Between two numbers of tiles the lower bound counts; below all it is not known. ``tiles``: None where nothing is
        cut, which is as good as any.
        """
        if tiles is None:
            return max((bound for one in self._bounds if (bound := self._within(one, cap)) is not None), default=None)
        known = [one for one in self._bounds if one is not None]
        below = max((one for one in known if one <= tiles), default=None)
        above = min((one for one in known if one >= tiles), default=below)
        if below is None:
            return None
        bounds = [self._within(below, cap), self._within(above, cap)]
        return None if None in bounds else min(bound for bound in bounds if bound is not None)

    def caps_of(self, tiles: int | None) -> tuple[int, ...]:
        """Caps that were measured, for so many tiles or for any."""
        return tuple(cap for cap, _ in self._bounds.get(tiles, ())) if tiles is not None else self._caps

    def _within(self, tiles: int | None, cap: int) -> float | None:
        return max((bound for known, bound in self._bounds[tiles] if known <= cap), default=None)

    def tiles_of(self, knobs: Sequence[Knob], settings: Settings) -> tuple[int, ...]:
        """Numbers of tiles that a request's pictures may be cut into, the best first: what it asks for, or else what
        was measured, or else what there is. Empty where the family has no such knob."""
        knob = next((knob for knob in knobs if knob.name == MAX_TILES), None)
        if knob is None:
            return ()
        if MAX_TILES in settings:
            return (int(settings[MAX_TILES]),)
        best = {one: max(bound for _, bound in bounds) for one, bounds in self._bounds.items() if one is not None}
        known = best or {int(tiles): 0.0 for tiles in knob.points}
        return tuple(sorted(known, key=lambda tiles: (-known[tiles], -tiles)))


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one request may be answered with, by the tiles of its pictures and the cap on the answer. ``prices``: of all
    of its choices."""

    prompts: Mapping[int | None, ChatTokens]
    sampling: Sampling
    work: Callable[[ChatTokens], Units]
    prices: Cost
    measured: Measured

    def units(self, tiles: int | None, cap: int) -> Units:
        """Of one answer."""
        return self.work(replace(self.prompts[tiles], max_tokens=cap))

    def units_at(self, settings: Settings) -> Units:
        """The same, by the settings of a point."""
        return self.units(_tiles_of(settings), int(settings[MAX_TOKENS]))

    def points(self, caps: Iterable[tuple[int | None, int]]) -> list[Point]:
        """One for each pair of tiles and cap."""
        return [self._point(tiles, cap) for tiles, cap in caps]

    def _point(self, tiles: int | None, cap: int) -> Point:
        settings: dict[str, Value] = {MAX_TOKENS: cap} if tiles is None else {MAX_TILES: tiles, MAX_TOKENS: cap}
        quality = self.measured.quality(tiles, cap)
        return Point(name=point_name(settings), settings=settings, cost=self.prices, quality=quality)

    def affordable(self, tiles: int | None, asked: int, within: PointBudget) -> int:
        """The most tokens that a budget pays for."""
        return max(1, most(self.prices, partial(self.units, tiles), asked, within))

    def shorter(self, caps: Mapping[int | None, int]) -> list[Point]:
        """Points under load: caps that were measured, where the request leaves its cap open."""
        if self.sampling.max_tokens is not None:
            return []
        return self.points(
            (tiles, cap)
            for tiles, longest in caps.items()
            for cap in self.measured.caps_of(tiles)
            if self.sampling.min_tokens <= cap < longest
        )


def make_plan(
    card: Card,
    cost: AnswerCost,
    sampling: Sampling,
    budget: Budget,
    prompts: Mapping[int | None, ChatTokens],
    work: Callable[[ChatTokens], Units],
    load: Load,
    *,
    measured: Measured,
    remaining_s: float,
    now_s: float,
    planned: Plan | None = None,
) -> Plan:
    """Decide tiles and cap. ``prompts``: tokens of the prompt by the tiles that pictures may have, the best first; None
    where nothing is cut. ``work``: of one answer. ``remaining_s``: until the deadline. ``planned``: what was decided
    before the tokens were known for certain.

    Raises:
        PromptTooLong: prompt and answer do not fit the context, however the pictures are cut.
        DeadlineUnreachable: it is the queue that is too long.
        BudgetInfeasible: the budget is not enough for a single token, or the floor for any answer.
    """
    asked = _asked(card, sampling, {tiles: _length(tokens) for tiles, tokens in prompts.items()})
    prices = cost.priced(sampling.n)
    answers = _Answers(prompts=prompts, sampling=sampling, work=work, prices=prices, measured=measured)
    caps = asked
    if planned is not None and load.bend:
        load = replace(load, bend=0.0)  # it has bent
        caps = {tiles: min(cap, planned.max_tokens) for tiles, cap in asked.items()}
    wanted = _wanted(budget, remaining_s, is_priced=cost.is_known(now_s, MAX_AGE_S))
    made = _chosen(answers, asked, caps, wanted, load)
    tiles, allowed = _tiles_of(made.point.settings), int(made.point.settings[MAX_TOKENS])
    finest, tokens = next(iter(prompts)), _length(prompts[tiles])
    if finest in asked:  # there is room for it; what is as good for less is no loss
        finest = _tiles_of((made.best or made).point.settings)
    usual = allowed if sampling.ignore_eos else max(sampling.min_tokens, round(cost.answer_tokens))
    return Plan(
        point=made.point.name,
        prompt_tokens=tokens,
        max_tokens=allowed,
        max_tiles=tiles,
        num_choices=sampling.n,
        work=partial(answers.units, tiles),
        max_choice_s=cost.busy_s(answers.units(tiles, allowed)),
        alone_choice_s=prices.latency(answers.units(tiles, allowed)),
        expected_choice_s=cost.busy_s(answers.units(tiles, min(allowed, usual))),
        is_capped=allowed < asked[tiles],
        is_coarser=tokens < _length(prompts[finest]),
        degradation=degradation_of(made, sampling.n) or (None if planned is None else planned.degradation),
    )


def _wanted(budget: Budget, remaining_s: float, *, is_priced: bool) -> PointBudget:
    """What a request may cost, as far as prices are known well enough to refuse it."""
    if not is_priced:
        return PointBudget(quality_floor=budget.quality_floor)
    latency_s = None if budget.latency_ms is None else max(0.0, remaining_s)
    return PointBudget(latency_s=latency_s, energy_j=budget.energy_j, quality_floor=budget.quality_floor)


def _chosen(
    answers: _Answers,
    asked: Mapping[int | None, int],
    caps: Mapping[int | None, int],
    wanted: PointBudget,
    load: Load,
) -> Planned:
    """The best of the points with the caps, with as much as the budget pays for of what was asked, and, under load,
    with less. Raises: DeadlineUnreachable, BudgetInfeasible."""
    left_s = None if wanted.latency_s is None else max(0.0, wanted.latency_s - load.queued_s)
    within = PointBudget(latency_s=left_s, energy_j=wanted.energy_j)
    paid = {tiles: answers.affordable(tiles, asked[tiles], within) for tiles in caps}
    points = answers.points([*caps.items(), *((tiles, cap) for tiles, cap in paid.items() if cap < caps[tiles])])
    made = plan(points, answers.units_at, wanted, replace(load, bend=0.0))
    if load.bend and isinstance(made, Planned):
        made = _under_load(made, plan([*points, *answers.shorter(caps)], answers.units_at, wanted, load))
    if isinstance(made, Refusal):
        raise _refused(made)
    return made


def _under_load(unbent: Planned, bent: Planned | Refusal) -> Planned:
    """What load makes of a plan: a shorter answer, even if as good as far as anybody measured, is a lower point."""
    if isinstance(bent, Refusal) or bent.point.name == unbent.point.name:
        return unbent
    return replace(bent, degraded=(*unbent.degraded, "load"), best=unbent.best or unbent)


def _length(tokens: ChatTokens) -> int:
    return tokens.text_tokens + tokens.image_tokens


def _refused(refusal: Refusal) -> DeadlineUnreachable | BudgetInfeasible:
    if refusal.retry_after_s is not None:
        message = f"{refusal.message}, or retry in {refusal.retry_after_s:.2f} s"
        return DeadlineUnreachable(message, param="vireo", retry_after_s=refusal.retry_after_s)
    return BudgetInfeasible(f"{refusal.message}, shorten the prompt, or send smaller images", param="vireo")


def _tiles_of(settings: Settings) -> int | None:
    return int(settings[MAX_TILES]) if MAX_TILES in settings else None


def _asked(card: Card, sampling: Sampling, prompt_tokens: Mapping[int | None, int]) -> dict[int | None, int]:
    """The cap that was asked for, by tiles, without those for which there is no room."""
    caps: dict[int | None, int] = {}
    for tiles, tokens in prompt_tokens.items():
        try:
            caps[tiles] = _cap(card, sampling, tokens)
        except PromptTooLong as error:
            refusal = error
    if not caps:
        raise refusal
    return caps


def _cap(card: Card, sampling: Sampling, prompt_tokens: int) -> int:
    longest, most = card.limits["max_model_len"], card.limits["max_output_tokens"]
    room = longest - prompt_tokens
    asked = min(sampling.max_tokens or room, most)
    if room < 1 or asked > room:
        raise PromptTooLong.of_chat(longest, prompt_tokens, sampling.max_tokens)
    return asked
