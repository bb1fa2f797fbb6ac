"""How much a chat request may generate, what that is predicted to cost, and whether its budget allows it.

The operating point is always "full": every tile of an image is seen. What a budget may lower is the cap on output.
"""

from __future__ import annotations

from schedulers.token_cost import TokenCost
from serving.delivery.stream.generation import Plan
from serving.domain import Budget
from serving.errors import BudgetInfeasible, PromptTooLong
from serving.service import Card
from serving.tasks.chat.domain import Sampling

POINT = "full"
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
    remaining_s: float,
    now_s: float,
) -> Plan:
    """Decide the cap. ``remaining_s``: until the deadline.

    Raises:
        PromptTooLong: prompt and answer do not fit the context.
        BudgetInfeasible: the budget is not enough for a single token.
    """
    asked = _asked(card, sampling, prompt_tokens)
    allowed = asked
    if cost.is_known(now_s, _MAX_AGE_S):
        allowed = min(
            asked,
            _within_energy(cost, budget, prompt_tokens, sampling.n, watts),
            _within_latency(cost, budget, prompt_tokens, remaining_s),
        )
    return Plan(
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


def _within_energy(cost: TokenCost, budget: Budget, prompt_tokens: int, num_choices: int, watts: float) -> int:
    if budget.energy_j is None:
        return 1 << 30
    tokens = cost.tokens_for(budget.energy_j / watts / num_choices, prompt_tokens)
    if tokens < 1:
        least_j = cost.seconds(prompt_tokens, 1) * watts * num_choices
        raise BudgetInfeasible(
            f"energy_j is {budget.energy_j:g}; the first token of this request is predicted to take {least_j:.3g} J; "
            "allow more, shorten the prompt, or send smaller images",
            param="vireo",
        )
    return tokens


def _within_latency(cost: TokenCost, budget: Budget, prompt_tokens: int, remaining_s: float) -> int:
    if budget.latency_ms is None:
        return 1 << 30
    tokens = cost.tokens_within(remaining_s, prompt_tokens)
    if tokens < 1:
        prices = cost.prices
        least_ms = (prompt_tokens * prices.prefill_s + prices.interval_s) * 1e3
        raise BudgetInfeasible(
            f"latency_ms is {budget.latency_ms:g}, of which {max(0.0, remaining_s) * 1e3:.0f} are left; the first "
            f"token of this request is predicted to take {least_ms:.0f} ms; allow more, or shorten the prompt",
            param="vireo",
        )
    return tokens
