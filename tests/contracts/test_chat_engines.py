"""One suite for every ``ChatEngine``; vLLM is started once for all of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from models.families.texthawk2.prompt import PromptBuilder
from serving.delivery.stream.wire import EngineRequest, FinishReason
from serving.errors import EngineFailed, InvalidRequest, PromptTooLong, TooManyImages
from serving.replica.chat.base import ChatEngine, EngineDelta
from serving.replica.chat.fake_engine import FakeChatEngine
from tests.support.chat_engines import (
    MAX_NUM_SEQS,
    Answer,
    collect,
    engine_processes,
    holds_nothing,
    make_request,
    torch_engine,
    vllm_environment,
    vllm_setup,
)
from tests.support.chat_models import MAX_MODEL_LEN, TILE, make_image, make_model_folder
from tests.support.waiting import lapse, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
REAL = ["torch", "vllm"]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(folder: Path) -> PromptBuilder:
    return PromptBuilder.from_dir(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[ChatEngine]:
    engine = FakeChatEngine(
        answer=lambda request: f"{len(request.prompt_token_ids)} tokens, seed {request.seed}. " + "and so on " * 200,
        step_s=0.001,
        max_num_seqs=MAX_NUM_SEQS,
        max_model_len=MAX_MODEL_LEN,
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def torch(folder: Path) -> AsyncIterator[ChatEngine]:
    engine = torch_engine(folder, max_num_seqs=MAX_NUM_SEQS, max_images=3)
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatEngine]:
    with vllm_environment(tmp_path_factory.mktemp("run")):
        from serving.replica.chat.vllm_engine import VllmEngine

        engine = VllmEngine(vllm_setup(folder), PromptBuilder.from_dir(folder))
        await engine.start()
        yield engine
        await engine.stop()
        assert not engine_processes()


@pytest.fixture(params=["fake", *REAL])
def engine(request: pytest.FixtureRequest) -> ChatEngine:
    made: ChatEngine = request.getfixturevalue(request.param)
    return made


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest) -> ChatEngine:
    made: ChatEngine = request.getfixturevalue(request.param)
    return made


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_answer_ends_at_max_tokens(engine: ChatEngine, prompts: PromptBuilder) -> None:
    for num_tokens in (1, 7):
        answer = await collect(engine, make_request(prompts, "go on", max_tokens=num_tokens))
        assert len(answer.token_ids) == num_tokens
        assert answer.reason is FinishReason.LENGTH
        assert answer.logprobs == ()


async def test_prompt_is_counted_with_its_images_expanded(engine: ChatEngine, prompts: PromptBuilder) -> None:
    images = [make_image(1), make_image(2, 2 * TILE, 3 * TILE)]
    before = engine.stats()
    answer = await collect(engine, make_request(prompts, "two", images, max_tokens=2))
    plain = await collect(engine, make_request(prompts, "two", max_tokens=2))
    assert answer.num_prompt_tokens - plain.num_prompt_tokens == 2 * 2 + 16 * (1 + 7)
    assert engine.stats().image_tokens - before.image_tokens == 16 * (1 + 7)
    assert engine.stats().decode_tokens - before.decode_tokens == 4
    assert engine.stats().prefill_tokens > before.prefill_tokens


async def test_request_holds_what_its_prompt_and_longest_answer_take(
    engine: ChatEngine, prompts: PromptBuilder
) -> None:
    held = [
        engine.held_bytes(make_request(prompts, "two", images, max_tokens=max_tokens))
        for images, max_tokens in (([], 1), ([], 129), ([make_image(1)], 129 + 256))
    ]
    assert 0 < held[0] < held[1] < held[2] < engine.kv_bytes


async def test_text_ends_before_a_stop_string(engine: ChatEngine, prompts: PromptBuilder) -> None:
    whole = await collect(engine, make_request(prompts, "stop me"))
    word = whole.text[len(whole.text) // 2 :][:3]
    answer = await collect(engine, make_request(prompts, "stop me", stop=("never said", word)))
    assert answer.reason is FinishReason.STOP
    assert answer.text == whole.text[: whole.text.index(word)]
    assert len(answer.token_ids) < len(whole.token_ids)


async def test_answer_passes_a_stop_string_over_where_it_is_too_short(
    engine: ChatEngine, prompts: PromptBuilder
) -> None:
    whole = await collect(engine, make_request(prompts, "stop me"))
    word = whole.text[len(whole.text) // 2 :][:3]
    num_tokens = len(whole.token_ids)
    answer = await collect(engine, make_request(prompts, "stop me", stop=(word,), min_tokens=num_tokens))
    assert (answer.text, answer.reason) == (whole.text, FinishReason.LENGTH)


async def test_model_ends_an_answer_only_where_it_may(real: ChatEngine, prompts: PromptBuilder) -> None:
    end = prompts.end_of_turn_id
    asked = make_request(prompts, "end", logit_bias={end: 100.0}, max_tokens=6)
    at_once = await collect(real, asked)
    assert (at_once.token_ids, at_once.reason) == ((end,), FinishReason.STOP)
    later = await collect(real, asked._replace(request_id="later", min_tokens=3))
    assert (later.token_ids.index(end), later.reason) == (3, FinishReason.STOP)
    never = await collect(real, asked._replace(request_id="never", ignore_eos=True))
    assert (never.token_ids, never.text, never.reason) == ((end,) * 6, "", FinishReason.LENGTH)
    both = await collect(real, asked._replace(request_id="both", ignore_eos=True, min_tokens=4))
    assert (len(both.token_ids), both.token_ids.index(end), both.reason) == (6, 4, FinishReason.LENGTH)


async def test_fake_answer_goes_on_where_it_may_not_end(prompts: PromptBuilder) -> None:
    engine = FakeChatEngine(answer=lambda request: "one two.")
    for options, text in (
        ({}, "one two."),
        ({"min_tokens": 3}, "one two.one "),
        ({"ignore_eos": True, "max_tokens": 5}, "one two.one two.one "),
    ):
        assert (await collect(engine, make_request(prompts, "x", **options))).text == text


async def test_same_seed_same_answer(engine: ChatEngine, prompts: PromptBuilder) -> None:
    def request(seed: int) -> EngineRequest:
        return make_request(prompts, "anything", temperature=1.0, top_p=0.95, seed=seed)

    first, again, other = [await collect(engine, request(seed)) for seed in (7, 7, 8)]
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


async def test_seed_means_the_same_when_a_long_prompt_is_read_in_parts(
    engine: ChatEngine, prompts: PromptBuilder
) -> None:
    """vLLM's own generators cannot do this on a CPU: the engine process died of it."""

    def request(seed: int) -> EngineRequest:
        return make_request(prompts, "a long question " * 20, [make_image(5)], temperature=1.0, seed=seed)

    alone = [await collect(engine, request(seed)) for seed in (7, 8, 9)]
    together = await asyncio.gather(*[collect(engine, request(seed)) for seed in (7, 8, 9)])
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert len({answer.token_ids for answer in alone}) == 3


async def test_answer_fits_its_schema(engine: ChatEngine, prompts: PromptBuilder) -> None:
    for temperature in (0.0, 1.0):
        request = make_request(prompts, "as JSON", json_schema=SCHEMA, max_tokens=80, temperature=temperature, seed=3)
        answer = await collect(engine, request)
        parsed = json.loads(answer.text)
        assert parsed["colour"] in ("red", "green", "blue")
        assert parsed["count"] in range(10)
        assert answer.reason is FinishReason.STOP


def assert_same_choices(one: Answer, other: Answer) -> bool:
    """Whether all tokens are the same. Another engine, or a batch of another size, adds up in another order, so two
    tokens that are as likely may change places, and then all that follows; anything else fails."""
    for place, (mine, theirs) in enumerate(zip(one.token_ids, other.token_ids, strict=False)):
        if mine != theirs:
            best, second = (logprob for _, logprob in one.logprobs[place].top)
            assert best - second < 1e-3, f"token {place}: {mine} and {theirs}, and no tie"
            return False
    assert len(one.token_ids) == len(other.token_ids)
    return True


async def test_many_at_a_time_answer_as_each_alone(engine: ChatEngine, prompts: PromptBuilder) -> None:
    requests = [
        make_request(
            prompts, f"number {i}", [make_image(i, TILE, (1 + i % 3) * TILE)] * (i % 2), max_tokens=12, logprobs=2
        )
        for i in range(2 * MAX_NUM_SEQS)
    ]
    together = await asyncio.gather(*[collect(engine, request) for request in requests])
    alone = [await collect(engine, request._replace(request_id=f"{request.request_id}-again")) for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert_same_choices(one, other)
    assert holds_nothing(engine)


async def test_bias_decides_and_logprobs_are_those_of_the_model(real: ChatEngine, prompts: PromptBuilder) -> None:
    token = prompts.encode_untrusted("q")[0]
    answer = await collect(real, make_request(prompts, "x", logit_bias={token: 100.0}, logprobs=3, max_tokens=4))
    assert set(answer.token_ids) == {token}
    for entry in answer.logprobs:
        assert entry.token == "q"
        assert len(entry.top) == 3
        assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)
        assert entry.logprob <= entry.top[0][1] <= 0
        assert entry.logprob < -1  # without the bias the model would hardly say it
    none = await collect(real, make_request(prompts, "x", logprobs=0, max_tokens=2))
    assert [entry.top for entry in none.logprobs] == [(), ()]


async def ends_of(engine: ChatEngine, request: EngineRequest) -> list[EngineDelta]:
    said: list[EngineDelta] = []
    await engine.run(request, said.append)
    ends = [log_p for delta in said for log_p in delta.log_p_ends or ()]
    assert len(ends) == (sum(len(delta.token_ids) for delta in said) if request.tells_ends else 0)
    return said


async def test_end_is_told_where_it_was_drawn_and_only_where_it_was_asked_for(
    real: ChatEngine, prompts: PromptBuilder
) -> None:
    request = make_request(prompts, "as JSON", json_schema=SCHEMA, max_tokens=80, logprobs=0, tells_ends=True)
    said = await ends_of(real, request)
    assert said[-1].token_ids[-1] == prompts.end_of_turn_id
    assert said[-1].log_p_ends is not None
    assert said[-1].log_p_ends[-1] == pytest.approx(said[-1].logprobs[-1].logprob, abs=1e-3)
    silent = await ends_of(real, request._replace(tells_ends=False, request_id="silent"))
    assert {delta.log_p_ends for delta in silent} == {None}


async def test_ends_of_many_at_a_time_are_those_of_each_alone(real: ChatEngine, prompts: PromptBuilder) -> None:
    """Also beside one that nobody watches, and one that asks for the likeliest tokens."""
    requests = [
        make_request(
            prompts, f"number {i}", [make_image(i)], max_tokens=12 + i, tells_ends=i != 1, seed=i, temperature=0.7
        )
        for i in range(MAX_NUM_SEQS)
    ]
    requests[2] = requests[2]._replace(logprobs=5)

    alone = [await ends_of(real, request._replace(request_id=f"{request.request_id} alone")) for request in requests]
    together = await asyncio.gather(*(ends_of(real, request) for request in requests))
    for one, other in zip(alone, together, strict=True):
        found = [[log_p for delta in said for log_p in delta.log_p_ends or ()] for said in (one, other)]
        assert found[1] == pytest.approx(found[0], abs=0.05)  # a batch is summed in another order
        assert [entry.token for delta in one for entry in delta.logprobs] == [
            entry.token for delta in other for entry in delta.logprobs
        ]
    assert all(len(entry.top) == 5 for delta in together[2] for entry in delta.logprobs)


# -- torch and vLLM --------------------------------------------------------------------------------------------------


def mixed_requests(prompts: PromptBuilder) -> list[EngineRequest]:
    """No image, one of several sizes, two in both orders; longer than one step of prefill."""
    small, wide, tall = make_image(1), make_image(2, TILE, 3 * TILE), make_image(3, 3 * TILE, 2 * TILE)
    odd = make_image(4, 37, 111)
    cases = [
        ("hello", []),
        ("你好, read 世界", []),
        ("a longer question " * 12, []),
        ("what is it?", [small]),
        ("what is it?", [wide]),
        ("what is it?", [tall]),
        ("what is it?", [odd]),
        ("which one?", [small, tall]),
        ("which one?", [tall, small]),
        ("which one?", [wide, odd]),
    ]
    return [make_request(prompts, text, images, logprobs=2) for text, images in cases]


async def test_torch_and_vllm_choose_the_same_tokens(
    torch: ChatEngine, vllm: ChatEngine, prompts: PromptBuilder
) -> None:
    requests = mixed_requests(prompts)
    expected = [await collect(torch, request) for request in requests]
    assert len({answer.token_ids for answer in expected}) == len(expected)  # every input matters
    together = await asyncio.gather(*[collect(vllm, request) for request in requests])
    alone = [await collect(vllm, request._replace(cache_salt="cold")) for request in requests]
    for answers in (together, alone):
        for one, other in zip(answers, expected, strict=True):
            if assert_same_choices(one, other):
                assert (one.text, one.reason) == (other.text, other.reason)
            assert one.num_prompt_tokens == other.num_prompt_tokens


async def test_torch_and_vllm_agree_on_logprobs(torch: ChatEngine, vllm: ChatEngine, prompts: PromptBuilder) -> None:
    request = make_request(prompts, "how sure?", [make_image(5)], logprobs=2)
    mine, theirs = await collect(torch, request), await collect(vllm, request)
    for one, other in zip(mine.logprobs, theirs.logprobs, strict=True):
        if "\ufffd" not in one.token:  # one byte of a longer character has no name that both could use
            assert one.token == other.token
        assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-3)
        # float32 sums in another order; logits are around ten
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


async def test_torch_and_vllm_agree_on_how_probable_the_end_was(
    torch: ChatEngine, vllm: ChatEngine, prompts: PromptBuilder
) -> None:
    request = make_request(prompts, "read", [make_image(5)], max_tokens=12, ignore_eos=True, tells_ends=True)
    for changes in ({}, {"logprobs": 3}):
        told = [await ends_of(engine, request._replace(request_id=f"{changes}", **changes)) for engine in (torch, vllm)]
        ends = [[log_p for delta in said for log_p in delta.log_p_ends or ()] for said in told]
        assert ends[0] == pytest.approx(ends[1], abs=0.02)
        assert len(set(ends[0])) > 6, "each token has its own"


async def test_torch_and_vllm_follow_a_schema_alike(
    torch: ChatEngine, vllm: ChatEngine, prompts: PromptBuilder
) -> None:
    request = make_request(prompts, "as JSON", json_schema=SCHEMA, max_tokens=80)
    assert (await collect(torch, request)).text == (await collect(vllm, request)).text


# -- what is kept ----------------------------------------------------------------------------------------------------


async def test_repeated_image_is_encoded_once(engine: ChatEngine, prompts: PromptBuilder) -> None:
    image = make_image(77, TILE, 2 * TILE)
    before = engine.stats()
    answers = [
        await collect(engine, make_request(prompts, "again", [image], max_tokens=4, cache_salt=f"{i}"))
        for i in range(3)
    ]
    after = engine.stats()
    assert after.encoder_images - before.encoder_images == 1
    assert after.image_cache_hits - before.image_cache_hits == 2
    assert after.image_cache_misses - before.image_cache_misses == 1
    assert len({answer.token_ids for answer in answers}) == 1


async def test_time_of_the_encoder_is_counted(real: ChatEngine, prompts: PromptBuilder) -> None:
    before = real.stats().encoder_seconds
    await collect(real, make_request(prompts, "new", [make_image(78, 2 * TILE, 2 * TILE)], max_tokens=1))
    await until(lambda: real.stats().encoder_seconds > before)


async def test_prefix_is_shared_within_a_salt_only(vllm: ChatEngine, prompts: PromptBuilder) -> None:
    image, text = make_image(79, 3 * TILE, 3 * TILE), "a long prompt " * 8

    async def ask(salt: str) -> Answer:
        return await collect(vllm, make_request(prompts, text, [image], max_tokens=2, cache_salt=salt))

    first, again, other = await ask("aa"), await ask("aa"), await ask("bb")
    assert (first.num_cached_tokens, other.num_cached_tokens) == (0, 0)
    assert again.num_cached_tokens > 0
    assert first.token_ids == again.token_ids == other.token_ids


# -- leaving ---------------------------------------------------------------------------------------------------------


async def test_leaving_in_the_middle_frees_everything(engine: ChatEngine, prompts: PromptBuilder) -> None:
    before = engine.stats().aborts
    said: list[EngineDelta] = []
    request = make_request(prompts, "long", [make_image(9)], max_tokens=300)
    task = asyncio.create_task(engine.run(request, said.append))
    await until(lambda: bool(said))
    await until(lambda: engine.stats().running == 1)
    await until(lambda: engine.stats().kv_blocks_used > 0)
    task.cancel()
    await asyncio.wait([task])
    assert said[0].finish_reason is None
    await until(lambda: holds_nothing(engine))
    assert engine.stats().aborts == before + 1


async def test_listener_that_has_enough_ends_a_choice_and_frees_everything_without_an_abort(
    engine: ChatEngine, prompts: PromptBuilder
) -> None:
    """Beside others, which do not feel it; then the engine goes on as if the choice had ended by itself."""
    beside_request = make_request(prompts, "beside", max_tokens=40)
    alone = await collect(engine, beside_request._replace(request_id="alone"))
    before = engine.stats().aborts
    said: list[EngineDelta] = []

    def enough(delta: EngineDelta) -> bool:
        said.append(delta)
        return sum(len(one.token_ids) for one in said) >= 3

    request = make_request(prompts, "long", [make_image(9)], max_tokens=300, ignore_eos=True)
    beside = asyncio.create_task(collect(engine, beside_request))
    await engine.run(request, enough)
    assert 3 <= sum(len(delta.token_ids) for delta in said) < 10
    assert said[-1].finish_reason is None
    assert (await beside).text == alone.text
    await until(lambda: holds_nothing(engine))
    assert engine.stats().aborts == before
    assert len((await collect(engine, make_request(prompts, "and on", max_tokens=5))).token_ids) == 5


async def test_cancelled_tasks_free_everything_wherever_they_were(engine: ChatEngine, prompts: PromptBuilder) -> None:
    """Waiting, being prepared, in prefill, in decode: the delays hit them all."""
    image = make_image(10, 3 * TILE, 3 * TILE)
    before = engine.stats().aborts
    tasks = [
        asyncio.create_task(collect(engine, make_request(prompts, f"{i}", [image], max_tokens=300)))
        for i in range(3 * MAX_NUM_SEQS)
    ]
    for i, task in enumerate(tasks):
        await lapse(0.002 * (i % 4))
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * len(tasks)
    await until(lambda: holds_nothing(engine))
    assert engine.stats().aborts > before


async def test_many_cancelled_requests_do_not_fail_the_one_that_stays(
    engine: ChatEngine, prompts: PromptBuilder
) -> None:
    """Each of them may be the one that had the image's data with it when it went."""
    for i in range(4):
        image = make_image(300 + i, 3 * TILE, 3 * TILE)
        tasks = [
            asyncio.create_task(collect(engine, make_request(prompts, f"gone {j}", [image], max_tokens=300)))
            for j in range(2 * MAX_NUM_SEQS)
        ]
        kept = asyncio.create_task(collect(engine, make_request(prompts, "kept", [image], max_tokens=3)))
        for j, task in enumerate(tasks):
            await lapse(0.003 * (j % 3))
            task.cancel()
        assert len((await kept).token_ids) == 3
        await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: holds_nothing(engine))


async def test_image_of_a_cancelled_request_works_afterwards(engine: ChatEngine, prompts: PromptBuilder) -> None:
    """vLLM keeps track of images in two processes; a request that is lost in between must not poison the next one."""
    for i in range(8):
        image = make_image(200 + i, 2 * TILE, 2 * TILE)
        task = asyncio.create_task(collect(engine, make_request(prompts, "lost", [image], max_tokens=300)))
        await lapse(0.001 * i)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        answer = await collect(engine, make_request(prompts, "kept", [image], max_tokens=3))
        assert len(answer.token_ids) == 3
    await until(lambda: holds_nothing(engine))


# -- refusals --------------------------------------------------------------------------------------------------------


async def test_what_cannot_fit_is_refused(engine: ChatEngine, prompts: PromptBuilder) -> None:
    for text, max_tokens in (("word " * 200, 5), ("short", MAX_MODEL_LEN)):
        with pytest.raises(PromptTooLong, match=f"maximum context length is {MAX_MODEL_LEN} tokens"):
            await collect(engine, make_request(prompts, text, max_tokens=max_tokens))


async def test_bad_requests_are_refused_with_the_reason(real: ChatEngine, prompts: PromptBuilder) -> None:
    image = make_image(1)
    with pytest.raises(TooManyImages, match="limit is 3"):
        await collect(real, make_request(prompts, "x", [image] * 4))
    with pytest.raises(InvalidRequest, match="one place per image"):
        await collect(real, make_request(prompts, "x", [image])._replace(images=()))
    with pytest.raises(InvalidRequest, match="logit_bias"):
        await collect(real, make_request(prompts, "x", logit_bias={10**6: 1.0}))
    with pytest.raises(InvalidRequest, match="top_logprobs"):
        await collect(real, make_request(prompts, "x", logprobs=1000))
    for schema in ('{"type": "nonsense"}', "not JSON", '{"x-guidance": {}}', '{"type": "string", "pattern": "("}'):
        with pytest.raises(InvalidRequest) as caught:
            await collect(real, make_request(prompts, "x", json_schema=schema))
        assert caught.value.param == "response_format"
    assert holds_nothing(real)


@pytest.mark.parametrize("pattern", ["^((a{1000}){1000}){1000}$", "^(a|b)*a(a|b){40}c(a|b)*b(a|b){400}$"])
async def test_costly_schema_hurts_nobody(real: ChatEngine, prompts: PromptBuilder, pattern: str) -> None:
    """Repetition that cannot be written out, and an automaton of two to the power of forty states."""
    schema = json.dumps({"type": "string", "pattern": pattern})
    bad = asyncio.create_task(collect(real, make_request(prompts, "x", json_schema=schema, max_tokens=8)))
    good = await collect(real, make_request(prompts, "x", max_tokens=8))
    assert len(good.token_ids) == 8
    (outcome,) = await asyncio.gather(bad, return_exceptions=True)
    if isinstance(outcome, Answer):
        assert outcome.reason is FinishReason.LENGTH  # eight tokens are not enough, but it went well so far
    else:
        assert isinstance(outcome, InvalidRequest)
        assert outcome.param == "response_format"
    await until(lambda: holds_nothing(real))


@pytest.mark.parametrize("kind", ["fake", "torch"])
async def test_stopping_fails_what_is_in_flight(kind: str, folder: Path, prompts: PromptBuilder) -> None:
    engine: ChatEngine = FakeChatEngine(step_s=0.01, answer=lambda request: "word" * 500, max_num_seqs=2)
    if kind == "torch":
        engine = torch_engine(folder, max_num_seqs=2)
    await engine.start()
    tasks = [asyncio.create_task(collect(engine, make_request(prompts, "x", max_tokens=400))) for _ in range(3)]
    await until(lambda: (engine.stats().running, engine.stats().waiting) == (2, 1))
    await engine.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, EngineFailed) for result in results)
    assert holds_nothing(engine)
    await engine.stop()


# -- death: the last tests, since vLLM is gone after them --------------------------------------------------------------


async def test_death_of_the_fake_is_like_death(prompts: PromptBuilder) -> None:
    engine = FakeChatEngine(step_s=0.01, answer=lambda request: "word" * 500)
    tasks = [asyncio.create_task(collect(engine, make_request(prompts, "x", max_tokens=400))) for _ in range(3)]
    await until(lambda: engine.stats().running == 3)
    engine.die()
    assert all(isinstance(r, EngineFailed) for r in await asyncio.gather(*tasks, return_exceptions=True))
    with pytest.raises(EngineFailed):
        await engine.check_health()
    assert holds_nothing(engine)


async def test_hanging_engine_process_is_reported(vllm: ChatEngine, prompts: PromptBuilder) -> None:
    (process,) = engine_processes()
    process.suspend()
    try:
        task = asyncio.create_task(collect(vllm, make_request(prompts, "x", max_tokens=3)))

        async def is_ill() -> bool:
            return not await is_healthy(vllm)

        await until(is_ill)
    finally:
        process.resume()
    assert len((await task).token_ids) == 3
    assert await is_healthy(vllm)


async def is_healthy(engine: ChatEngine) -> bool:
    try:
        await engine.check_health()
    except EngineFailed:
        return False
    return True


async def test_death_of_the_engine_process_fails_what_it_held_and_is_reported(
    vllm: ChatEngine, prompts: PromptBuilder
) -> None:
    await vllm.check_health()
    tasks = [asyncio.create_task(collect(vllm, make_request(prompts, "x", max_tokens=400))) for _ in range(3)]
    await until(lambda: vllm.stats().running == 3)
    (process,) = engine_processes()
    process.kill()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, EngineFailed) for result in results)
    with pytest.raises(EngineFailed):
        await vllm.check_health()
    with pytest.raises(EngineFailed):
        await collect(vllm, make_request(prompts, "x"))
