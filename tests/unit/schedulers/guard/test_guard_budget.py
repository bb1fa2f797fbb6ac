"""The budget holds whatever detectors say: 100,000 answers, with second looks, faults and aborts, each beside what the
chat service reserves for it.

The engine here keeps to the ``max_tokens`` of what it is asked and to nothing else: it never ends an answer by itself.
What it does has prices, and they are added up here, step by step; the reservation is the service's own, by its own
formula and the same prices. Real replicas are in ``tests/unit/serving/guard/test_guard_reservation.py``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from typing import Any, NamedTuple, cast

import numpy as np

from models.io import ChatTokens
from schedulers.answer_cost import AnswerCost
from schedulers.cost import Units
from schedulers.guard.calibration import Group, GuardCalibration
from schedulers.guard.text import TextModel
from schedulers.guard.watch import Next
from schedulers.plan import Load
from schedulers.retry_budget import RetryBudget
from serving.config import GuardSettings
from serving.delivery.stream.wire import EngineImage, EngineRequest, GuardOrder
from serving.domain import Budget
from serving.guard.gateway import ChatGuard
from serving.guard.watching import limited, purified_request, said, watch_for
from serving.tasks.chat.domain import ChatRequest, Sampling
from serving.tasks.chat.points import make_plan
from serving.tasks.chat.service import ServedChat, _Ready
from serving.tasks.chat.turns import asking
from tests.support.chat_replicas import engine_request
from tests.support.fake_service import make_chat_card
from tests.support.guarded_chats import MODEL, request

NUM_ANSWERS = 100_000
NUM_KINDS = 400
CAP, MOST_AT_ONCE = 6, 5
WATTS = 5.0
READ_S, SEE_S, WRITE_S = 1e-4, 7e-4, 2e-3
"""Of a token of the prompt, of one of a picture that is encoded, and of one of the answer after the first."""
IMAGE_TOKENS = 16
IMAGE = EngineImage("5a", np.zeros((1, 8, 8, 3), np.uint8), (1, 1))
MODES = {"acme": "enforce", "watched": "observe", "free": "off"}
CALIBRATION = GuardCalibration(
    model=MODEL,
    checkpoint_sha256="",
    num_benign=600,
    text=TextModel(weights=(0.0,) * 8, intercept=math.log1p(4)),
    groups={
        "all": Group(
            num=600,
            p95_tokens=CAP,
            residuals=tuple(i / 600 - 0.5 for i in range(600)),
            special_run=(1.0,) * 600,
            eos=(2.0,) * 600,
            eos_median=(-4.0,),
            squeeze=tuple(i / 600 for i in range(600)),
        )
    },
    special_ids=frozenset({0}),
)


class Kind(NamedTuple):
    """A request, as the gateway hands it on, and what it reserves."""

    request: EngineRequest
    order: GuardOrder | None
    num_choices: int
    num_prompt: int
    num_seen: int
    look_tokens: int
    reserved_j: float


class Done(NamedTuple):
    """Of one answer. ``looked_at``: tokens that had been said when the copy's answer ended."""

    num_tokens: int
    num_probe: int
    is_cut: bool
    looked_at: int | None
    joules: float


def work(tokens: ChatTokens) -> Units:
    """As families price it."""
    prompt = tokens.text_tokens + tokens.image_tokens
    return {"prompt_tokens": prompt, "image_tokens": tokens.image_tokens, "output_tokens": tokens.max_tokens}


def served() -> ServedChat:
    card = make_chat_card(MODEL)
    return ServedChat(
        card=dataclasses.replace(card, limits={"max_model_len": 1024, "max_output_tokens": 256}, knobs=()),
        prompts=cast(Any, None),
        links=cast(Any, None),
        cost=AnswerCost({"prompt_tokens": READ_S, "image_tokens": SEE_S, "output_tokens": WRITE_S}, watts=WATTS),
        work=work,
        retries=RetryBudget(1),
        watts=WATTS,
        slots=8,
    )


def asked(draw: random.Random) -> ChatRequest:
    """Mostly about pictures, and mostly of those who are guarded."""
    sampling = {
        "max_tokens": draw.randint(1, 40),
        "min_tokens": draw.choice((0, 0, 0, 1, CAP)),
        "ignore_eos": draw.random() < 0.1,
        "n": draw.choice((1, 1, 1, 3)),
    }
    sampling["min_tokens"] = min(sampling["min_tokens"], sampling["max_tokens"])
    pictures = range(draw.choice((0, 1, 1, 2)))
    return request("w" * draw.randint(1, 30), *pictures, tenant=draw.choice(("acme", *MODES)), sampling=sampling)


async def kind_of(guard: ChatGuard, model: ServedChat, chat: ChatRequest, draw: random.Random) -> Kind:
    """By what the service does, in its order."""
    sampling: Sampling = chat.sampling
    num_images = len(chat.messages[0].parts) - 1
    prompt = ChatTokens(len(chat.messages[0].parts) * 8, num_images * IMAGE_TOKENS, 0)
    plan = make_plan(
        model.card,
        model.cost,
        sampling,
        Budget(),
        {None: prompt},
        model.work,
        Load(),
        measured=model.measured,
        remaining_s=1e6,
        now_s=0.0,
    )
    wanted = asking(chat, plan.max_tokens)
    images: Any = (IMAGE,) * num_images
    ready = _Ready(
        model=model,
        request=chat,
        deadline_s=1e6,
        images=images,
        token_ids=(),
        plan=plan,
        image_tokens=prompt.image_tokens,
        name=None,
        look_tokens=guard.second_look_tokens(wanted),
    )
    order = (await guard.examine(wanted, images)).order
    if order is not None:
        order = order._replace(is_capped=draw.random() < 0.1 and not sampling.ignore_eos)
    engine = engine_request(
        max_tokens=plan.max_tokens, min_tokens=sampling.min_tokens, ignore_eos=sampling.ignore_eos, images=images
    )
    num_prompt = prompt.text_tokens + prompt.image_tokens
    joules = ready.reserved.joules
    return Kind(engine, order, sampling.n, num_prompt, prompt.image_tokens, ready.look_tokens, joules)


def answer(kind: Kind, order: GuardOrder, draw: random.Random) -> Done:
    """One choice: what a replica does, with an engine that fails, finds no room, and is left at any time."""
    order = order._replace(p_values={"screen": draw.choice((1.0, 0.02, 0.009, 1e-4))})
    first = limited(kind.request, order, CALIBRATION)
    again = purified_request(first, order)
    watch = watch_for(first, order, CALIBRATION, sees_apart=draw.random() < 0.7)
    read_j = WATTS * (READ_S * kind.num_prompt + SEE_S * kind.num_seen)
    joules, num, num_probe = read_j, 0, 0
    is_looking = has_looked = is_cut = False
    looked_at: int | None = None
    while num < first.max_tokens and draw.random() > 0.03:  # a deadline, a fault, a client that leaves
        some = min(draw.choice((1, 1, 1, 2, MOST_AT_ONCE)), first.max_tokens - num)
        joules += WATTS * WRITE_S * (some if num else some - 1)
        num += some
        ends = [draw.choice((-1.0, -30.0)) for _ in range(some)] if draw.random() < 0.9 else None
        now = watch.push([draw.randrange(3) for _ in range(some)], ends, num == first.max_tokens)
        if now is Next.END:
            is_cut = True
            break
        if now is Next.LOOK_TWICE and not is_looking and not has_looked and draw.random() < 0.8:
            if watch.wants_squeeze:
                joules += WATTS * SEE_S * kind.num_seen
                watch.squeezed(draw.choice(([], [0.1], [5.0])))
            if watch.is_suspect:
                is_looking = has_looked = True
                joules += read_j
        if is_looking:
            more = min(draw.randrange(1, 4), again.max_tokens - num_probe)
            joules += WATTS * WRITE_S * (more if num_probe else more - 1)
            num_probe += more
            is_ended = draw.random() < 0.25
            if is_ended or num_probe == again.max_tokens:
                watch.looked(is_ended, num_probe)
                is_looking, looked_at = False, num if is_ended else None
            elif draw.random() < 0.1:
                watch.gave_up(num_probe)
                is_looking = False
    if is_looking:
        watch.gave_up(num_probe)
    assert said(watch, 0.0).probe_tokens == num_probe, "what was asked again is told, so that it is charged"
    return Done(num, num_probe, is_cut, looked_at, joules)


def check(kind: Kind, order: GuardOrder, done: Done) -> None:
    """What nobody may get more of."""
    acts = order.mode == "enforce"
    assert acts or not (done.is_cut or done.num_probe)
    assert done.num_tokens <= kind.request.max_tokens
    assert done.num_probe <= kind.look_tokens, "what is not reserved is not done"
    if order.is_capped and acts:
        assert done.num_tokens <= order.cap_tokens
    if done.looked_at is not None:
        assert done.num_tokens < max(order.cap_tokens, done.looked_at + 1) + MOST_AT_ONCE


def test_no_answer_takes_more_tokens_than_its_cap_or_more_joules_than_are_reserved() -> None:
    draw = random.Random(16)
    model, guard = served(), ChatGuard({MODEL: CALIBRATION}, GuardSettings(), modes=MODES)

    async def kinds() -> list[Kind]:
        return [await kind_of(guard, model, asked(draw), draw) for _ in range(NUM_KINDS)]

    watched = [(kind, kind.order) for kind in asyncio.run(kinds()) if kind.order is not None]
    num_answers = num_cut = num_probed = num_replays = num_confirmed = 0
    most_of_reserved = 0.0
    while num_answers < NUM_ANSWERS:
        kind, order = draw.choice(watched)
        answers = [answer(kind, order, draw) for _ in range(kind.num_choices)]
        for one in answers:
            check(kind, order, one)
        joules = sum(one.joules for one in answers)
        assert joules <= kind.reserved_j
        most_of_reserved = max(most_of_reserved, joules / kind.reserved_j)
        num_answers += len(answers)
        num_cut += sum(one.is_cut for one in answers)
        num_probed += sum(one.num_probe > 0 for one in answers)
        num_confirmed += sum(one.looked_at is not None for one in answers)
        num_replays += order.is_capped
    assert min(num_cut, num_probed, num_confirmed, num_replays) > 2000, "detectors spoke, and copies were asked about"
    assert most_of_reserved > 0.9, "it is not far more than can be used"
