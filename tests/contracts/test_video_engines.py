"""The contract of a video engine, kept by the one without a model and by the one in torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from serving.errors import ClientError, EngineFailed, InvalidRequest
from serving.replica.job.base import Engine, Frames, JobInput, StepDone
from serving.replica.job.snapshots import snapshot_step
from tests.support.video_engines import BAD_PROMPT, fake_engine, torch_engine
from tests.support.video_models import clip_input

ENGINES: dict[str, Callable[[], Engine]] = {"fake": fake_engine, "torch": torch_engine}


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    made = ENGINES[request.param]()
    await made.start()
    yield made
    await made.stop()


async def run_steps(engine: Engine, *job_ids: str, count: int = 1) -> None:
    for _ in range(count):
        outcomes = await engine.run_step(job_ids)
        assert all(isinstance(outcome, StepDone) for outcome in outcomes), outcomes


async def clip(engine: Engine, settings: JobInput, job_id: str = "job") -> Frames:
    await engine.admit(job_id, settings)
    await run_steps(engine, job_id, count=settings.num_steps)
    frames = (await engine.decode(job_id))["frames"]
    engine.release(job_id)
    return frames


async def test_clip_has_the_size_and_the_frames_that_were_asked_for(engine: Engine) -> None:
    frames = await clip(engine, clip_input(num_frames=9))
    assert frames.shape == (9, 32, 48, 3)
    assert frames.dtype == np.uint8


async def test_same_settings_give_the_same_clip_and_another_seed_another(engine: Engine) -> None:
    first = await clip(engine, clip_input(seed=5))
    assert np.array_equal(first, await clip(engine, clip_input(seed=5)))
    assert not np.array_equal(first, await clip(engine, clip_input(seed=6)))


@pytest.mark.parametrize("attention", ["dense", "tile:1:2"])
@pytest.mark.parametrize("after", [0, 1, 3, 4])
async def test_clip_resumed_from_a_snapshot_is_the_same(engine: Engine, after: int, attention: str) -> None:
    settings = clip_input(attention=attention)
    whole = await clip(engine, settings)
    await engine.admit("first", settings)
    await run_steps(engine, "first", count=after)
    snapshot = await engine.snapshot("first")
    engine.release("first")
    assert snapshot_step(snapshot) == after
    admitted = await engine.admit("second", settings, snapshot)
    assert admitted.step == after
    await run_steps(engine, "second", count=settings.num_steps - after)
    assert np.array_equal((await engine.decode("second"))["frames"], whole)


async def test_each_step_is_reported_and_counted(engine: Engine) -> None:
    admitted = await engine.admit("job", clip_input())
    assert admitted.step == 0
    for step in (1, 2, 3, 4):
        (outcome,) = await engine.run_step(["job"])
        assert isinstance(outcome, StepDone)
        assert (outcome.job_id, outcome.step) == ("job", step)
        assert outcome.compute_s >= 0
        assert outcome.held_bytes > 0


async def test_requests_of_equal_phase_may_be_at_different_steps(engine: Engine) -> None:
    settings = clip_input(seed=2)
    alone = await clip(engine, settings)
    await engine.admit("early", clip_input(seed=1, prompt="a blue square that moves"))
    await run_steps(engine, "early", count=2)
    await engine.admit("late", settings)
    assert engine.phase("early") == engine.phase("late")
    await run_steps(engine, "early", "late", count=2)
    await run_steps(engine, "late", count=2)
    together = (await engine.decode("late"))["frames"]
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1, "rounding of 1e-5 at most"


@pytest.mark.parametrize("changes", [{"sampler": "consistency"}, {"attention": "ras:0.5"}])
async def test_other_weights_and_attention_have_other_phases(engine: Engine, changes: dict[str, object]) -> None:
    await engine.admit("one", clip_input())
    await engine.admit("other", clip_input(**changes))
    assert engine.phase("one") is not None
    assert engine.phase("one") != engine.phase("other")


@pytest.mark.parametrize("attention", ["ras:0.5", "adaspa:0.5"])
async def test_attention_with_a_schedule_goes_together_at_the_same_step_only(engine: Engine, attention: str) -> None:
    await engine.admit("one", clip_input(attention=attention))
    await engine.admit("other", clip_input(attention=attention, seed=9))
    assert engine.phase("one") == engine.phase("other")
    await run_steps(engine, "one")
    assert engine.phase("one") != engine.phase("other")
    await run_steps(engine, "other")
    assert engine.phase("one") == engine.phase("other")


async def test_request_that_fails_does_not_fail_its_batch(engine: Engine) -> None:
    good = clip_input(seed=2)
    alone = await clip(engine, good)
    await engine.admit("good", good)
    await engine.admit("bad", clip_input(prompt=BAD_PROMPT))
    for _ in range(good.num_steps):
        outcomes = await engine.run_step(["good", "bad"])
        assert isinstance(outcomes[0], StepDone)
        assert isinstance(outcomes[1], EngineFailed)
    assert np.abs((await engine.decode("good"))["frames"].astype(int) - alone.astype(int)).max() <= 1


async def test_step_of_a_request_that_is_not_there_is_an_outcome(engine: Engine) -> None:
    await engine.admit("here", clip_input())
    outcomes = await engine.run_step(["gone", "here"])
    assert isinstance(outcomes[0], EngineFailed)
    assert isinstance(outcomes[1], StepDone)


async def test_step_after_the_last_is_refused(engine: Engine) -> None:
    await engine.admit("job", clip_input(num_steps=1))
    await run_steps(engine, "job")
    (outcome,) = await engine.run_step(["job"])
    assert isinstance(outcome, EngineFailed)


@pytest.mark.parametrize(
    ("changes", "param", "allowed"),
    [
        ({"num_frames": 10}, "num_frames", "9"),
        ({"num_steps": 0}, "num_inference_steps", "1 to 200"),
        ({"num_steps": 101}, "num_inference_steps", "1 to 100"),
        ({"guidance_scale": 0.5}, "guidance_scale", "1 to 20"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "1 to 20"),
        ({"sampler": "heun"}, "sampler", "euler_ancestral"),
        ({"attention": "sparse"}, "attention", "tile:K"),
        ({"attention": "tile:2"}, "attention", "tile:K"),
        ({"attention": "tile:2:6"}, "attention", "tile:2:1"),
        ({"attention": "tile:0:3"}, "attention", "tile:K"),
        ({"attention": "adaspa:1.0"}, "attention", "adaspa:"),
        ({"attention": "ras:0"}, "attention", "ras:"),
        ({"attention": "ras:nan"}, "attention", "ras:"),
        ({"attention": "dense:1"}, "attention", "dense"),
    ],
)
async def test_setting_that_cannot_be_done_is_refused_with_what_can(
    engine: Engine, changes: dict[str, object], param: str, allowed: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.work(clip_input(**changes))
    assert caught.value.param == param
    assert allowed in caught.value.message
    with pytest.raises(ClientError):
        await engine.admit("job", clip_input(**changes))
    assert engine.held_bytes() == 0


@pytest.mark.parametrize("attention", ["dense", "tile:1:2", "adaspa:0.5", "ras:0.5"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
async def test_no_more_is_held_than_was_predicted_and_nothing_after_release(
    engine: Engine, attention: str, guidance_scale: float
) -> None:
    settings = clip_input(attention=attention, guidance_scale=guidance_scale)
    predicted = engine.work(settings).bytes_held
    await engine.admit("job", settings)
    for _ in range(settings.num_steps):
        await run_steps(engine, "job")
        assert 0 < engine.held_bytes() <= predicted
    engine.release("job")
    engine.release("job")
    assert engine.held_bytes() == 0


async def test_preview_is_one_small_picture(engine: Engine) -> None:
    await engine.admit("job", clip_input())
    for _ in range(2):
        await run_steps(engine, "job")
        picture = await engine.preview("job")
        assert picture.shape == (1, 4, 6, 3)
        assert picture.dtype == np.uint8


async def test_decode_runs_beside_the_steps_of_others(engine: Engine) -> None:
    settings = clip_input()
    whole = await clip(engine, settings)
    await engine.admit("done", settings)
    await run_steps(engine, "done", count=4)
    await engine.admit("other", clip_input(seed=3))
    outputs, outcomes = await asyncio.gather(engine.decode("done"), engine.run_step(["other"]))
    assert np.array_equal(outputs["frames"], whole)
    assert isinstance(outcomes[0], StepDone)


@pytest.mark.parametrize("snapshot", [b"", b"rubbish" * 10])
async def test_snapshot_that_cannot_be_read_is_an_engine_failure(engine: Engine, snapshot: bytes) -> None:
    with pytest.raises(EngineFailed):
        await engine.admit("job", clip_input(), snapshot)
    assert engine.held_bytes() == 0


async def test_snapshot_of_another_request_is_an_engine_failure(engine: Engine) -> None:
    await engine.admit("job", clip_input(num_frames=5))
    snapshot = await engine.snapshot("job")
    with pytest.raises(EngineFailed):
        await engine.admit("other", clip_input(), snapshot)


@pytest.mark.parametrize("call", ["decode", "preview", "snapshot"])
async def test_request_that_is_not_there_is_an_engine_failure(engine: Engine, call: str) -> None:
    with pytest.raises(EngineFailed):
        await getattr(engine, call)("gone")


@pytest.mark.parametrize("name", ENGINES)
async def test_engine_that_was_stopped_is_unhealthy_and_fails_what_comes(name: str) -> None:
    engine = ENGINES[name]()
    await engine.start()
    engine.check_health()
    await engine.admit("job", clip_input())
    await engine.stop()
    with pytest.raises(EngineFailed):
        engine.check_health()
    with pytest.raises(EngineFailed):
        await engine.admit("other", clip_input())
    assert engine.held_bytes() == 0


@pytest.mark.parametrize("num_frames", [1, 5, 9])
async def test_every_length_that_is_allowed_works(engine: Engine, num_frames: int) -> None:
    frames = await clip(engine, clip_input(num_frames=num_frames, num_steps=1))
    assert frames.shape == (num_frames, 32, 48, 3)
