"""The gateway's half of the guard, from the request to the words in its answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from schedulers.policies.guard import Action, Verdict, graver
from serving.delivery.stream.wire import GuardSaid
from serving.domain import RANKS, Budget, Priority
from serving.guard.gateway import LAST_RANK
from serving.telemetry.events import (
    ChatGuarded,
    GuardConfirmed,
    GuardFailed,
    GuardKept,
    GuardLevelMoved,
    GuardScreened,
    ResultShared,
)
from tests.support.guarded_chats import BENIGN_TOKENS, CAP_TOKENS, MODEL, GuardedWorld, ScriptedScreen, request

RARE = 0.0005
CAUGHT = GuardSaid("capped", 0.999, ("length", "confirmed"), {"length": 0.0001}, is_confirmed=True, probe_tokens=32)
CLEARED = GuardSaid("deprioritised", 0.995, ("length",), {"length": 0.001}, is_confirmed=False, probe_tokens=32)
NORMAL = GuardSaid("normal", 0.3, (), {"length": 0.4})
Make = Callable[..., GuardedWorld]
LAYERS = ("screen", "replay", "length", "repeat", "special", "eos", "squeeze", "confirm")


def content(*greys: int) -> bytes:
    digests = [hashlib.sha256(bytes([grey])).digest() for grey in greys]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(sorted(digests))).digest()


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[GuardedWorld] = []

    def make(**options: Any) -> GuardedWorld:
        made.append(GuardedWorld(**options))
        return made[-1]

    yield make
    for world in made:
        await world.stop()


# -- who is watched --------------------------------------------------------------------------------------------------


async def test_chat_about_an_image_is_watched_and_its_answer_says_that_nothing_was_found(make: Make) -> None:
    world = make()
    world.calls.said = NORMAL
    end = await world.ask(request("hello", 1))
    assert end.report.guard == {"score": 0.3, "action": "normal", "reasons": []}
    (start,) = world.calls.starts
    order = start.guard
    assert order is not None
    assert (order.mode, order.group, order.cap_tokens) == ("enforce", "free-16", CAP_TOKENS)
    assert BENIGN_TOKENS < order.bound_tokens < 4 * BENIGN_TOKENS
    assert (order.p_values, order.is_capped, order.watch_at, order.suspect_at) == ({"screen": 1.0}, False, 0.05, 0.01)
    assert order.layers == LAYERS[2:]
    assert start.rank == RANKS[Priority.NORMAL]
    assert world.told(ChatGuarded) == [ChatGuarded(MODEL, "acme", "enforce", "normal", ())]


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        ({}, ()),
        ({"is_calibrated": False}, (1,)),
        ({"modes": {"acme": "off"}}, (1,)),
        ({"settings": dict.fromkeys(LAYERS, False)}, (1,)),
    ],
    ids=["no image", "no calibration", "off", "no layer"],
)
async def test_who_is_not_watched_is_told_nothing(
    make: Make, options: dict[str, Any], pictures: tuple[int, ...]
) -> None:
    world = make(**options)
    world.calls.said = CAUGHT
    end = await world.ask(request("hello", *pictures))
    assert (end.report.guard, world.calls.starts[0].guard, world.told(ChatGuarded)) == ({}, None, [])
    assert not world.screen.seen


@pytest.mark.parametrize("layer", LAYERS)
async def test_each_layer_has_a_switch(make: Make, layer: str) -> None:
    world = make(settings={layer: False}, has_screen=layer != "screen", has_quarantine=layer != "replay")
    await world.ask(request("hello", 1))
    order = world.calls.starts[0].guard
    assert order is not None
    assert layer not in order.layers
    assert (order.p_values == {}) == (not world.screen.seen) == (layer == "screen")
    assert (not world.quarantine.looks) == (layer == "replay")


async def test_answers_that_ignore_their_end_are_watched_by_nobody_but_at_the_door(make: Make) -> None:
    world = make()
    await world.ask(request("hello", 1, sampling={"ignore_eos": True}))
    order = world.calls.starts[0].guard
    assert order is not None
    assert (order.layers, order.p_values) == ((), {"screen": 1.0})


async def test_answer_that_ignores_its_end_is_not_capped_for_a_known_picture(make: Make) -> None:
    world = make()
    world.quarantine.known.add((None, content(1)))
    end = await world.ask(request("hello", 1, sampling={"ignore_eos": True}))
    order = world.calls.starts[0].guard
    assert order is not None
    assert not order.is_capped
    assert end.report.guard["action"] == "normal"
    assert (await world.ask(request("hello", 1))).report.guard["action"] == "capped"


async def test_no_bound_and_no_cap_is_lower_than_what_the_sender_wants_at_least(make: Make) -> None:
    world = make()
    await world.ask(request("hello", 1, sampling={"min_tokens": 100}))
    order = world.calls.starts[0].guard
    assert order is not None
    assert (order.bound_tokens, order.cap_tokens) == (100, 100)


# -- one canonical decode --------------------------------------------------------------------------------------------


async def test_guard_cache_key_and_engine_get_the_same_array(make: Make) -> None:
    """Layer 1: nobody decodes again, so that no two of them can see different pictures."""
    world = make()
    await world.ask(request("hello", 1, 2))
    prepared = world.images.prepared
    assert len(prepared) == 2
    for seen, image, given in zip(world.screen.seen, prepared, world.engine_requests[0].images, strict=True):
        assert seen is image.pixels
        assert given.tiles is image.pixels
        assert not image.pixels.flags.writeable
    digests = [digest for _, digest in world.quarantine.looks]
    assert digests[:2] == [image.content_sha256 for image in prepared]
    tenant_key = world.engine_requests[0].images[0].key
    assert tenant_key == world.keys.image_key("acme", MODEL, prepared[0].identity)
    assert prepared[0].identity.startswith(prepared[0].content_sha256), "what the cache keys are made of"


# -- what is done ----------------------------------------------------------------------------------------------------


async def test_strange_picture_goes_after_its_tenants_other_requests_and_its_answer_is_the_same(make: Make) -> None:
    world = make(screen=ScriptedScreen({9: RARE}))
    end = await world.ask(request("hello", 9))
    assert world.calls.starts[0].rank == LAST_RANK > max(RANKS.values())
    assert end.report.guard["action"] == "deprioritised"
    assert end.report.guard["reasons"] == ["screen"]
    assert end.report.guard["score"] == pytest.approx(1 - 6 * RARE), "one of six detectors"
    assert end.usage.completion_tokens == len("ordinary") // 4


async def test_watched_costs_nothing_but_a_word(make: Make) -> None:
    world = make(screen=ScriptedScreen({9: 0.005}))
    end = await world.ask(request("hello", 9))
    assert end.report.guard["action"] == "watched"
    assert world.calls.starts[0].rank == RANKS[Priority.NORMAL]


async def test_observed_tenant_is_told_and_nothing_else(make: Make) -> None:
    world = make(screen=ScriptedScreen({9: RARE}), modes={"acme": "observe"})
    end = await world.ask(request("hello", 9))
    assert end.report.guard["action"] == "deprioritised"
    order = world.calls.starts[0].guard
    assert order is not None
    assert (order.mode, world.calls.starts[0].rank) == ("observe", RANKS[Priority.NORMAL])


async def test_of_many_pictures_the_strangest_counts_for_how_many_there_are(make: Make) -> None:
    world = make(screen=ScriptedScreen({9: RARE}))
    await world.ask(request("hello", 1, 2, 3, 9, 9))
    order = world.calls.starts[0].guard
    assert order is not None
    assert order.p_values == {"screen": pytest.approx(4 * RARE)}, "four different ones"


async def test_gravest_of_several_choices_counts() -> None:
    one, other = Verdict(Action.WATCHED, 0.97, ("eos",)), Verdict(Action.CAPPED, 0.9, ("length", "confirmed"))
    assert graver(one, other) == graver(other, one) == Verdict(Action.CAPPED, 0.9, ("length", "confirmed", "eos"))
    assert graver(one, one._replace(score=0.99, reasons=("repeat",))).reasons == ("repeat", "eos")


async def test_series_of_almost_equal_pictures_waits(make: Make) -> None:
    world = make()
    world.quarantine.streams.add(content(7))
    end = await world.ask(request("hello", 7, budget=Budget(priority=Priority.HIGH)))
    assert (end.report.guard["action"], end.report.guard["reasons"]) == ("deprioritised", ["stream"])
    assert world.calls.starts[0].rank == LAST_RANK


# -- what was caught -------------------------------------------------------------------------------------------------


async def test_what_was_confirmed_is_kept_and_capped_from_the_start_when_it_comes_again(make: Make) -> None:
    world = make()
    world.calls.said = CAUGHT
    end = await world.ask(request("hello", 5))
    assert end.report.guard == {"score": 0.999, "action": "capped", "reasons": ["length", "confirmed"]}
    await world.guard.stop()
    (kept,) = world.quarantine.kept
    assert (kept["tenant"], kept["digest"], kept["model"], kept["request_id"]) == ("acme", content(5), MODEL, "id")
    assert (kept["score"], kept["reasons"], kept["num_tokens"]) == (0.999, ("length", "confirmed"), 2)
    assert world.told(GuardKept) == [GuardKept(MODEL, True)]
    assert world.told(GuardConfirmed) == [GuardConfirmed(MODEL, True, 32)]
    world.calls.said = None
    again = await world.ask(request("another question", 5, tenant="rival"))
    order = world.calls.starts[-1].guard
    assert order is not None
    assert order.is_capped
    assert (again.report.guard["action"], again.report.guard["reasons"]) == ("capped", ["replay"])
    await world.guard.stop()
    assert len(world.quarantine.kept) == 1, "a replay renews nothing: who is there by mistake gets out"


async def test_picture_that_travelled_with_a_crafted_one_is_not_kept_by_itself(make: Make) -> None:
    world = make()
    world.calls.said = CAUGHT
    await world.ask(request("hello", 5, 6))
    await world.guard.stop()
    assert [kept["digest"] for kept in world.quarantine.kept] == [content(5, 6)]
    world.calls.said = NORMAL
    assert (await world.ask(request("hi", 6))).report.guard["action"] == "normal"
    assert (await world.ask(request("hi", 6, 5))).report.guard["reasons"] == ["replay"], "both again, in any order"


async def test_picture_whose_answer_was_drawn_counts_for_its_tenant_alone(make: Make) -> None:
    """Whoever asks often enough finds an answer that is long by chance; others with that picture are not to pay."""
    world = make()
    world.calls.said = CAUGHT
    await world.ask(request("hello", 5, sampling={"temperature": 1.0}))
    await world.guard.stop()
    world.calls.said = NORMAL
    assert (await world.ask(request("hi", 5, tenant="rival"))).report.guard["action"] == "normal"
    assert (await world.ask(request("hi", 5))).report.guard["reasons"] == ["replay"]


async def test_observed_and_cleared_requests_are_not_kept(make: Make) -> None:
    world = make(modes={"watched": "observe"})
    world.calls.said = CAUGHT
    await world.ask(request("hello", 5, tenant="watched"))
    world.calls.said = CLEARED
    await world.ask(request("hello", 6))
    await world.guard.stop()
    assert world.quarantine.kept == []
    assert world.told(GuardConfirmed)[-1] == GuardConfirmed(MODEL, False, 32)


@pytest.mark.parametrize("said", [CAUGHT, CLEARED], ids=["caught", "cleared"])
async def test_what_was_found_counts_though_the_client_has_left(make: Make, said: GuardSaid) -> None:
    """While another choice is under way."""
    world = make(answer="long " * 20, trusted={"acme": True})
    world.calls.said = said

    def say(event: Any) -> None:
        if getattr(event, "finish_reason", None) is not None:
            task.cancel()

    wanted = request("hello", 5, is_streamed=True, sampling={"n": 2})
    task = asyncio.create_task(world.service.chat(wanted, say))
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.guard.stop()
    assert (len(world.told(ChatGuarded)), len(world.told(GuardConfirmed))) == (1, 1)
    assert [kept["digest"] for kept in world.quarantine.kept] == [content(5)] * bool(said.is_confirmed)
    assert world.told(GuardLevelMoved) == [], "those that end first are short"


# -- the cache, and requests under way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_capped_answer_is_given_to_nobody_else(make: Make, is_streamed: bool) -> None:
    world = make()
    world.calls.said = CAUGHT
    for _ in range(2):
        assert (await world.ask(request("hello", 5, is_streamed=is_streamed))).report.cache == "miss"
    assert world.store.payloads == {}


async def test_answer_that_the_guard_only_observed_is_stored(make: Make) -> None:
    world = make(modes={"acme": "observe"})
    world.calls.said = CAUGHT
    ends = [await world.ask(request("hello", 5)) for _ in range(2)]
    assert [(end.report.cache, end.report.guard["action"]) for end in ends] == [("miss", "capped"), ("hit", "capped")]


async def test_answer_about_a_known_picture_that_ended_before_its_cap_is_stored(make: Make) -> None:
    world = make()
    world.quarantine.known.add((None, content(5)))
    ends = [await world.ask(request("hello", 5)) for _ in range(2)]
    assert [(end.report.cache, end.report.guard["action"]) for end in ends] == [("miss", "capped"), ("hit", "capped")]


@pytest.mark.parametrize("said", [NORMAL, CLEARED], ids=["normal", "cleared"])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_stored_answer_has_the_verdict_of_the_request_that_made_it(
    make: Make, said: GuardSaid, is_streamed: bool
) -> None:
    world = make()
    world.calls.said = said
    first = await world.ask(request("hello", 5, is_streamed=is_streamed))
    again = await world.ask(request("hello", 5, is_streamed=is_streamed))
    assert (first.report.cache, again.report.cache) == ("miss", "hit")
    assert again.report.guard == first.report.guard == {
        "score": said.score, "action": said.action, "reasons": list(said.reasons)
    }  # fmt: skip
    assert len(world.told(ChatGuarded)) == 1, "nothing was generated the second time"


async def test_stored_answer_says_nothing_of_the_guard_to_whom_it_does_not_guard(make: Make) -> None:
    modes: dict[str, str] = {}
    world = make(modes=modes)
    world.calls.said = NORMAL
    await world.ask(request("hello", 5))
    modes["acme"] = "off"
    hit = await world.ask(request("hello", 5))
    assert (hit.report.cache, hit.report.guard) == ("hit", {})


async def test_answer_of_a_release_without_a_guard_is_still_found(make: Make) -> None:
    world = make()
    await world.ask(request("hello", 5))
    ((name, payload),) = world.store.payloads.items()
    world.store.payloads[name] = {"chat": payload["chat"][:2]}
    hit = await world.ask(request("hello", 5))
    assert (hit.report.cache, hit.report.guard) == ("hit", {})


async def test_equal_requests_under_way_share_the_verdict_of_one_and_never_a_capped_answer(make: Make) -> None:
    world = make()
    world.calls.said = CLEARED
    ends = await asyncio.gather(*(world.ask(request("hello", 5)) for _ in range(3)))
    assert [end.report.guard for end in ends] == [ends[0].report.guard] * 3
    assert ends[0].report.guard["action"] == "deprioritised"
    assert (len(world.engine_requests), len(world.told(ResultShared))) == (1, 2)
    world.calls.said = CAUGHT
    ends = await asyncio.gather(*(world.ask(request("again", 5)) for _ in range(3)))
    assert [end.report.guard["action"] for end in ends] == ["capped"] * 3
    assert (len(world.engine_requests), len(world.told(ResultShared))) == (4, 2)


# -- learning ----------------------------------------------------------------------------------------------------------


async def test_bound_is_learnt_from_tenants_that_are_trusted_and_from_no_others(make: Make) -> None:
    world = make(answer="long " * 20, trusted={"friend": True})  # 25 tokens: over the bound of 1%
    world.calls.said = NORMAL

    async def bound(tenant: str, text: str) -> int:
        await world.ask(request(text, 1, tenant=tenant))
        order = world.calls.starts[-1].guard
        assert order is not None
        return order.bound_tokens

    assert [await bound("stranger", f"s{number}") for number in range(5)] == [await bound("friend", "f")] * 5
    assert world.told(GuardLevelMoved)[0].level < 0.01
    first = await bound("friend", "g")
    for number in range(5):
        last = await bound("friend", f"h{number}")
    assert last > first


@pytest.mark.parametrize("sampling", [{"ignore_eos": True, "max_tokens": 25}, {"max_tokens": 3}], ids=["forced", "cut"])
async def test_nothing_is_learnt_from_answers_whose_length_was_set(make: Make, sampling: dict[str, Any]) -> None:
    world = make(answer="long " * 20, trusted={"acme": True})
    await world.ask(request("hello", 1, sampling=sampling))
    assert all(event.level == 0.01 for event in world.told(GuardLevelMoved))


async def test_nothing_is_learnt_from_what_was_capped(make: Make) -> None:
    world = make(answer="long " * 20, trusted={"acme": True})
    world.calls.said = CAUGHT
    await world.ask(request("hello", 1))
    assert world.told(GuardLevelMoved) == []


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_screen_that_fails_lets_the_request_pass_and_is_counted(make: Make) -> None:
    world = make(screen=ScriptedScreen(error=RuntimeError("broken")))
    for _ in range(2):
        end = await world.ask(request("hello", 1, sampling={"temperature": 1.0}))
        assert end.report.guard["action"] == "normal"
    assert world.told(GuardFailed) == [GuardFailed("screen")] * 2, "it is asked again"


async def test_quarantine_that_fails_lets_the_request_pass_and_is_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    world = make()
    monkeypatch.setattr(world.quarantine, "look", broken)
    assert (await world.ask(request("hello", 1))).report.guard["action"] == "normal"
    assert world.told(GuardFailed) == [GuardFailed("replay")]


async def test_reservation_of_a_client_that_leaves_while_its_picture_is_looked_at_is_given_back(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking, world = asyncio.Event(), make()

    async def look(*_: Any) -> None:
        looking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.quarantine, "look", look)
    task = asyncio.create_task(world.ask(request("hello", 1, is_streamed=True)))
    await looking.wait()
    assert len(world.store.open) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.store.open == {}
    assert world.store.settled_s == [0.0]


async def test_picture_is_looked_at_once_in_a_conversation(make: Make) -> None:
    world = make()
    for text in ("one", "two", "three"):
        await world.ask(request(text, 1))
    assert len(world.screen.seen) == len(world.told(GuardScreened)) == 1
    assert len(world.quarantine.looks) == 3


async def test_second_look_is_reserved_for_where_one_may_be_taken_and_nowhere_else(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be charged is what was set aside: a glance at the pictures, the prompt once more, and the cap."""

    async def reserved_s(*pictures: int, fields: dict[str, Any] | None = None, **options: Any) -> float:
        world = make(**options)
        wanted: list[Any] = []
        fetch = world.pipeline.fetch
        monkeypatch.setattr(world.pipeline, "fetch", lambda one: (wanted.append(one), fetch(one))[1])
        await world.ask(request("hello", *pictures, sampling={"max_tokens": 200, **(fields or {})}))
        seconds: float = wanted[0].costs[0].seconds
        return seconds

    alone = await reserved_s(1, is_calibrated=False)
    prompt_s, glance_s, cap_s = alone - 200e-5, 16e-6, (CAP_TOKENS - 1) * 1e-5
    assert await reserved_s(1) - alone == pytest.approx(glance_s + prompt_s + cap_s)
    assert await reserved_s(1, fields={"n": 2}) == pytest.approx(2 * await reserved_s(1))
    for options in ({"modes": {"acme": "observe"}}, {"modes": {"acme": "off"}}, {"settings": {"confirm": False}}):
        assert await reserved_s(1, **options) == alone
    for fields in ({"ignore_eos": True}, {"min_tokens": 1}):
        assert await reserved_s(1, fields=fields) == alone
    short = {"max_tokens": CAP_TOKENS}
    assert await reserved_s(1, fields=short) == await reserved_s(1, fields=short, is_calibrated=False)
    assert await reserved_s() == await reserved_s(is_calibrated=False)
