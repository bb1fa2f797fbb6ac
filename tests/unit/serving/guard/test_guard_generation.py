"""What a gateway learns from an answer that was looked at twice: nothing about the price of answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schedulers.answer_cost import AnswerCost, Observed
from schedulers.retry_budget import RetryBudget
from serving.delivery.stream.generation import Generation, Plan
from serving.delivery.stream.links import ChatLinks
from serving.delivery.stream.wire import Delta, FinishReason, GuardSaid
from tests.support.chat_replicas import LocalCalls, engine_request

LOOK_S = 7.0


def plan() -> Plan:
    return Plan(
        point="default",
        prompt_tokens=10,
        max_tokens=50,
        num_choices=1,
        work=lambda tokens: {"prompt_tokens": 10.0, "output_tokens": float(tokens)},
        max_choice_s=1.0,
        expected_choice_s=0.5,
        is_capped=False,
    )


def last(guard: GuardSaid | None) -> Delta:
    looked_s = 0.0 if guard is None else guard.probe_s
    return Delta(0, "text", 9, FinishReason.STOP, (), 10, 0, 0.0, 0.5, 2.0 + looked_s, 3.0, guard=guard)


async def learnt(guard: GuardSaid | None) -> tuple[list[Observed], float]:
    """What was observed of an answer, and what it is then predicted to take."""
    observed: list[Observed] = []
    links = ChatLinks(LocalCalls(), "g")
    generation = Generation(
        links,
        AnswerCost({"prompt_tokens": 0.01, "output_tokens": 0.1}, watts=1.0),
        [engine_request()],
        plan(),
        tenant="t",
        rank=0,
        is_streamed=False,
        deadline_s=asyncio.get_running_loop().time() + 60.0,
        clock=asyncio.get_running_loop().time,
        retries=RetryBudget(floor=1),
        on_retry=lambda: None,
        on_priced=observed.append,
    )
    generation.hear(0, last(guard))
    predicted_s = generation.predicted_s()
    generation.close(lambda _: None)
    await links.stop()
    return observed, predicted_s


@pytest.mark.asyncio
async def test_second_look_is_predicted_as_it_was_and_changes_no_price() -> None:
    said: dict[str, Any] = {"action": "capped", "score": 1.0, "reasons": (), "p_values": {}}
    plain, plain_s = await learnt(None)
    looked, looked_s = await learnt(GuardSaid(**said, probe_tokens=5, probe_s=LOOK_S))
    assert [one.actual_s for one in looked] == pytest.approx([one.actual_s for one in plain])
    assert [one.correction for one in looked] == pytest.approx([one.correction for one in plain])
    assert looked_s == pytest.approx(plain_s + LOOK_S)
