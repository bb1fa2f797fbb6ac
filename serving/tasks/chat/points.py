"""How much a chat request may generate, what that is predicted to cost, and whether its budget allows it.

Its points differ in the cap on output: what was asked for, and the most that the budget pays for at recent prices.
"""

from __future__ import annotations

import math

from models.operating_points import point_name
from schedulers.cost import Units
from schedulers.plan import Budget as PointBudget
from schedulers.plan import Load, Point, Refusal, Settings, most, plan
from schedulers.token_cost import TokenCost
from serving.delivery.stream.generation import Plan
from serving.domain import Budget
from serving.errors import BudgetInfeasible, PromptTooLong
from serving.service import Card
from serving.tasks.chat.domain import Sampling

_CAP = "max_tokens"
_MAX_AGE_S = 30.0
"""Prices that have not been observed for so long refuse nobody."""


def make_plan(
    card: Card,
    cost: TokenCost,
    sampling: Sampling,
    budget: Budget,
    prompt_tokens: int,
    *,
    watts: float,
    quality: float | None,
    remaining_s: float,
    now_s: float,
) -> Plan:
    """Decide the cap. ``remaining_s``: until the deadline. ``quality``: lower bound of that of whole answers, None
    where nobody measured it. An answer that a budget cuts short promises none.

    Raises:
        PromptTooLong: prompt and answer do not fit the context.
        BudgetInfeasible: the budget is not enough for a single token, or the floor for any answer.
    """
    asked = _asked(card, sampling, prompt_tokens)
    wanted = PointBudget(quality_floor=budget.quality_floor)
    if cost.is_known(now_s, _MAX_AGE_S):
        latency_s = None if budget.latency_ms is None else max(0.0, remaining_s)
        wanted = PointBudget(latency_s=latency_s, energy_j=budget.energy_j, quality_floor=budget.quality_floor)
    prices = cost.priced(watts, sampling.n)
    affordable = most(prices, {"prompt_tokens": prompt_tokens}, "output_tokens", wanted)
    caps = {asked: quality, max(1, math.floor(min(asked, affordable))): None} | {asked: quality}
    points = [
        Point(name=point_name({_CAP: cap}), settings={_CAP: cap}, cost=prices, quality=worth)
        for cap, worth in caps.items()
    ]

    def work(settings: Settings) -> Units:
        return {"prompt_tokens": prompt_tokens, "output_tokens": float(settings[_CAP])}

    made = plan(points, work, wanted, Load())
    if isinstance(made, Refusal):
        raise BudgetInfeasible(f"{made.message}, shorten the prompt, or send smaller images", param="vireo")
    allowed = int(made.point.settings[_CAP])
    return Plan(
        point=made.point.name,
        prompt_tokens=prompt_tokens,
        max_tokens=allowed,
        num_choices=sampling.n,
        max_choice_s=cost.seconds(prompt_tokens, allowed),
        expected_choice_s=cost.seconds(prompt_tokens, round(min(allowed, cost.prices.answer_tokens))),
        prefill_s=cost.seconds(prompt_tokens, 0),
        is_capped=allowed < asked,
    )


def _asked(card: Card, sampling: Sampling, prompt_tokens: int) -> int:
    longest, most = card.limits["max_model_len"], card.limits["max_output_tokens"]
    room = longest - prompt_tokens
    if sampling.max_tokens is None:
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {prompt_tokens} tokens, images included; {card.id} takes {longest} with "
                "the answer; shorten it, or send fewer or smaller images",
                param="messages",
            )
        return min(most, room)
    asked = min(sampling.max_tokens, most)
    if asked > room:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, images included, and max_tokens is {asked}: together "
            f"{prompt_tokens + asked}; {card.id} takes {longest}; shorten the prompt or lower max_tokens",
            param="messages",
        )
    return asked
