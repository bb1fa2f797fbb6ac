"""The engine with the runner of vdit, beyond the contract: exact batches, guilty ones alone, memory as predicted."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from models.contract import Job
from models.families.vdit.runner import VditRunner
from models.families.vdit.transformer import Conditioning, OpenSoraT2V
from models.families.vdit.work import predict
from models.methods.ras.config import RasConfig
from models.methods.samplers.base import step_generator
from models.methods.samplers.make import make_sampler
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import single_rank
from schedulers.policies.denoising import DECODE, DenoisingConfig, DenoisingWork, denoising
from schedulers.types import RunSlice, SliceFinished, SliceResult, UnitArrived
from serving.errors import EngineFailed, InvalidRequest
from serving.replica.job.base import JobInput, StepDone
from serving.replica.job.engine import EngineOptions, JobEngine
from tests.support.clip_limits import clip_limits
from tests.support.live_bytes import LiveBytes
from tests.support.video_engines import LIMITS, OPTIONS, TINY, tiny_networks, tiny_runner
from tests.support.video_models import (
    clip_input,
    decode_linearly,
    encode_words,
    tiny_config,
    tiny_transformer,
    words,
)
from tests.support.waiting import until

RAS = RasConfig(num_warmup_steps=1, resets=(0.75,))
HELD_FACTOR = 1.1
"""Prediction of what is held, over what is: all of it is counted, nothing is rounded but by a snapshot's estimate."""

ACTIVATION_FACTOR = 2.5
"""Prediction of a step's peak over what was seen live; with few tokens, what does not grow with them counts."""


def engine_with(options: EngineOptions = OPTIONS, **networks: Any) -> JobEngine:
    return JobEngine(options, lambda: tiny_runner(RAS, **networks))


@pytest.fixture
async def engine() -> AsyncIterator[JobEngine]:
    made = engine_with()
    await made.start()
    yield made
    await made.stop()


async def latents(engine: JobEngine, job_id: str) -> Tensor:
    return load(await engine.snapshot(job_id))["latents"]


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["dense", "tile:1:2", "adaspa:0.6", "ras:0.5", "ras:1"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
async def test_batched_step_equals_single_steps(engine: JobEngine, attention: str, guidance_scale: float) -> None:
    """Prompts of different lengths: the shorter one is padded, and must not notice. 1e-5 of the largest number:
    products of other sizes add up in another order."""
    wanted = [
        clip_input(attention=attention, guidance_scale=guidance_scale, seed=seed, prompt=prompt)
        for seed, prompt in ((1, "a ball"), (2, "a very small blue square on a plain"), (3, "red"))
    ]
    names = [f"together-{index}" for index in range(3)]
    for index, settings in enumerate(wanted):
        await engine.admit(names[index], settings)
        await engine.admit(f"alone-{index}", settings)
    for _ in range(4):
        assert len({engine.phase(name) for name in names}) == 1
        await engine.run_step(names)
        for index in range(3):
            await engine.run_step([f"alone-{index}"])
            alone = await latents(engine, f"alone-{index}")
            difference = (await latents(engine, names[index]) - alone).abs().max()
            assert difference <= 1e-5 * alone.abs().max()


async def test_clip_that_arrives_while_a_step_runs_joins_the_next_one_and_both_come_out_as_alone(
    engine: JobEngine,
) -> None:
    wanted = {
        "early": clip_input(seed=1, num_steps=3),
        "late": clip_input(seed=2, num_steps=4, guidance_scale=1.0, prompt="a very small blue square"),
    }
    for name, settings in wanted.items():
        await engine.admit(f"{name}, alone", settings)
        for _ in range(settings.num_steps):
            await engine.run_step([f"{name}, alone"])
    kernel, ran = denoising(DenoisingConfig(max_batch=4)), []

    async def arrived(name: str) -> UnitArrived:
        await engine.admit(name, wanted[name])
        steps = DenoisingWork(steps_left=wanted[name].num_steps, seconds_per_step=1.0, tokens=8)
        return UnitArrived(unit_id=name, work=steps, batch_key=engine.phase(name), held_bytes=1)

    running = list(kernel.handle(0.0, await arrived("early")))
    assert kernel.handle(0.5, await arrived("late")) == [], "a step is running"
    now_s = 1.0
    while running:
        one = running.pop(0)
        if not isinstance(one, RunSlice):
            continue
        names = [str(name) for name in one.unit_ids]
        if one.stage != DECODE:
            ran.append(tuple(sorted(names)))
            assert all(isinstance(outcome, StepDone) for outcome in await engine.run_step(names))
        results = tuple(SliceResult(unit_id=name, report=engine.phase(name)) for name in names)
        running += kernel.handle(now_s, SliceFinished(slice_id=one.slice_id, results=results, elapsed_s=1.0))
        now_s += 1.0
    assert ran == [("early",), ("early", "late"), ("early", "late"), ("late",), ("late",)]
    for name in wanted:
        alone = await latents(engine, f"{name}, alone")
        assert (await latents(engine, name) - alone).abs().max() <= 1e-5 * alone.abs().max()


async def test_lengths_guidance_and_attention_share_a_step_that_equals_single_ones(engine: JobEngine) -> None:
    wanted = [
        clip_input(num_frames=frames, guidance_scale=scale, attention=attention, seed=seed, prompt=prompt)
        for seed, (frames, scale, attention, prompt) in enumerate(
            [
                (9, 1.0, "dense", "a ball"),
                (1, 5.0, "dense", "a very small blue square on a plain"),
                (9, 5.0, "tile:1:2", "red"),
                (5, 1.0, "dense", "a red ball"),
                (9, 3.0, "dense", "a circle"),
            ]
        )
    ]
    names = [f"together-{index}" for index in range(len(wanted))]
    for index, settings in enumerate(wanted):
        await engine.admit(names[index], settings)
        await engine.admit(f"alone-{index}", settings)
    await engine.run_step([names[0]])  # steps differ as well
    await engine.run_step(["alone-0"])
    for _ in range(3):
        assert len({engine.phase(name) for name in names}) == 1
        outcomes = await engine.run_step(names)
        for index, outcome in enumerate(outcomes):
            assert isinstance(outcome, StepDone)
            assert outcome.figures["sparsity"] == pytest.approx(2 / 9 if index == 2 else 0)
            await engine.run_step([f"alone-{index}"])
            alone = await latents(engine, f"alone-{index}")
            difference = (await latents(engine, names[index]) - alone).abs().max()
            assert difference <= 1e-5 * alone.abs().max()


async def test_time_of_a_shared_step_is_split_by_what_each_computes(engine: JobEngine) -> None:
    """A clip of one latent frame beside one of three, under guidance."""
    jobs = {"short": clip_input(num_frames=1, guidance_scale=1.0), "long": clip_input(num_frames=9)}
    for job_id, wanted in jobs.items():
        await engine.admit(job_id, wanted)
    outcomes = await engine.run_step(list(jobs))
    short_s, long_s = (outcome.compute_s for outcome in outcomes if isinstance(outcome, StepDone))
    macs = [engine.work(wanted).units["macs"] for wanted in jobs.values()]
    assert long_s / short_s == pytest.approx(macs[1] / macs[0])
    assert macs[1] > 6 * macs[0]


def test_ranks_that_share_tokens_pack_none() -> None:
    runner = tiny_runner()
    runner.spread(ParallelDegrees(), lambda num_tokens: single_rank())
    keys = set()
    for frames in (5, 9):
        wanted = clip_input(num_frames=frames)
        state = runner.open(wanted.request, wanted.point, 0)
        runner.step([state])
        keys.add(runner.group_key(state))
    assert len(keys) == 2


@pytest.mark.parametrize("attention", ["adaspa:0.6", "ras:0.5"])
async def test_what_chooses_step_by_step_is_not_packed(engine: JobEngine, attention: str) -> None:
    for job_id, frames in (("short", 5), ("long", 9), ("dense", 9)):
        wanted = clip_input(num_frames=frames, attention="dense" if job_id == "dense" else attention)
        await engine.admit(job_id, wanted)
    assert len({engine.phase(job_id) for job_id in ("short", "long", "dense")}) == 3


@pytest.mark.parametrize("name", ["tile:3:0", "tile:2:1"])
async def test_tile_mask_that_leaves_nothing_out_is_dense_to_rounding(engine: JobEngine, name: str) -> None:
    for job_id, attention in (("dense", "dense"), ("tile", name)):
        await engine.admit(job_id, clip_input(attention=attention))
        for _ in range(2):
            (outcome,) = await engine.run_step([job_id])
            assert isinstance(outcome, StepDone)
            assert outcome.figures["sparsity"] == 0
    dense = await latents(engine, "dense")
    assert (await latents(engine, "tile") - dense).abs().max() <= 1e-5 * dense.abs().max()


async def test_tile_mask_leaves_out_its_share_in_every_step(engine: JobEngine) -> None:
    await engine.admit("dense", clip_input())
    await engine.admit("tile", clip_input(attention="tile:1:2"))
    for _ in range(2):
        await engine.run_step(["dense"])
        (outcome,) = await engine.run_step(["tile"])
        assert isinstance(outcome, StepDone)
        assert outcome.figures["sparsity"] == pytest.approx(2 / 9)
    assert not torch.allclose(await latents(engine, "tile"), await latents(engine, "dense"))


async def test_adaspa_that_leaves_nothing_out_is_dense_to_the_bit(engine: JobEngine) -> None:
    for job_id, attention in (("dense", "dense"), ("all", "adaspa:0")):
        await engine.admit(job_id, clip_input(attention=attention))
        for _ in range(4):
            await engine.run_step([job_id])
    assert torch.equal(await latents(engine, "dense"), await latents(engine, "all"))


async def test_adaspa_searches_twice_and_is_sparse_after_the_first(engine: JobEngine) -> None:
    """Ten steps: searches after the published fifth and three fifths. 18 tokens are 3 blocks, of which 1 is kept."""
    await engine.admit("job", clip_input(attention="adaspa:0.6", num_steps=10))
    outcomes = [(await engine.run_step(["job"]))[0] for _ in range(10)]
    assert all(isinstance(outcome, StepDone) for outcome in outcomes)
    done = [outcome for outcome in outcomes if isinstance(outcome, StepDone)]
    assert [outcome.figures["search_s"] > 0 for outcome in done] == [step in (1, 5) for step in range(10)]
    assert [outcome.figures["sparsity"] > 0.3 for outcome in done] == [step > 1 for step in range(10)]


async def test_share_one_of_region_adaptive_sampling_is_dense(engine: JobEngine) -> None:
    """Within rounding: gathered tokens may be multiplied by another kernel than those of a dense step."""
    for job_id, attention in (("dense", "dense"), ("all", "ras:1")):
        await engine.admit(job_id, clip_input(attention=attention))
        for _ in range(4):
            await engine.run_step([job_id])
    torch.testing.assert_close(await latents(engine, "dense"), await latents(engine, "all"), atol=1e-4, rtol=1e-4)


async def test_sparse_steps_are_reported_and_change_the_clip(engine: JobEngine) -> None:
    sparsity = []
    for job_id, attention in (("dense", "dense"), ("half", "ras:0.5")):
        await engine.admit(job_id, clip_input(attention=attention))
        for _ in range(4):
            (outcome,) = await engine.run_step([job_id])
            assert isinstance(outcome, StepDone)
            sparsity.append(outcome.figures["sparsity"])
    assert sparsity == [0, 0, 0, 0, 0, 0.5, 0.5, 0]
    assert not torch.equal(await latents(engine, "dense"), await latents(engine, "half"))


async def test_request_with_caches_that_was_resumed_is_dense_first_and_apart_from_others(
    engine: JobEngine,
) -> None:
    settings = clip_input(attention="ras:0.5")
    await engine.admit("warm", settings)
    await engine.run_step(["warm"])
    await engine.admit("resumed", settings, await engine.snapshot("warm"))
    assert engine.phase("warm") != engine.phase("resumed"), "one runs half of its tokens, the other all"
    (outcome,) = await engine.run_step(["resumed"])
    assert isinstance(outcome, StepDone)
    assert (outcome.step, outcome.figures["sparsity"]) == (2, 0.0)


async def test_guidance_one_ignores_the_negative_prompt(engine: JobEngine) -> None:
    for job_id, negative in (("a", ""), ("b", "ugly and dark")):
        await engine.admit(job_id, clip_input(guidance_scale=1.0, negative_prompt=negative))
        await engine.run_step([job_id])
    assert torch.equal(await latents(engine, "a"), await latents(engine, "b"))


async def test_guidance_is_the_way_from_the_negative_prompt_to_the_prompt(engine: JobEngine) -> None:
    """Same text on both sides: nothing to be guided to, whatever the scale."""
    for job_id, scale in (("plain", 1.0), ("guided", 9.0)):
        await engine.admit(job_id, clip_input(guidance_scale=scale, prompt="ball", negative_prompt="ball"))
        await engine.run_step([job_id])
    torch.testing.assert_close(await latents(engine, "plain"), await latents(engine, "guided"), atol=1e-4, rtol=1e-4)


async def test_step_is_the_samplers_with_noise_of_seed_and_step(engine: JobEngine) -> None:
    """Written out by hand, for the second step of three."""
    settings = clip_input(num_steps=3, guidance_scale=4.0, negative_prompt="dark", prompt="a ball", seed=7)
    await engine.admit("job", settings)
    await engine.run_step(["job"])
    before = await latents(engine, "job")
    await engine.run_step(["job"])
    transformer, sampler = tiny_transformer(), make_sampler("euler_ancestral", 3)
    text, mask = encode_words(["dark", "a ball"])
    shown = sampler.scale_input(before, 1).repeat(2, 1, 1, 1, 1)
    timestep = torch.full((2,), sampler.timestep(1))
    without, with_prompt = transformer(shown, timestep, text, mask).split(1)
    assert (with_prompt - without).abs().max() > 0.01, "the text has a say"
    guided = without + 4.0 * (with_prompt - without)
    expected = sampler.step(before, guided, 1, step_generator(7, 1))
    torch.testing.assert_close(await latents(engine, "job"), expected, atol=1e-4, rtol=1e-4)


# -- failures --------------------------------------------------------------------------------------------------------


class Fussy(OpenSoraT2V):
    """Raises where another would compute with what is not a number."""

    def conditioning(self, timestep: Tensor, text: Tensor) -> Conditioning:
        if bool(text.isnan().any()):
            raise RuntimeError("out of memory, or so")
        return super().conditioning(timestep, text)


async def test_exception_in_a_batch_fails_the_guilty_one_only() -> None:
    torch.manual_seed(0)
    fussy = Fussy(tiny_config()).eval()
    engine = engine_with(transformers={"teacher": fussy, "student": fussy})
    await engine.start()
    for job_id, prompt in (("one", "a ball"), ("guilty", "a nan ball"), ("two", "a square")):
        await engine.admit(job_id, clip_input(prompt=prompt))
    outcomes = await engine.run_step(["one", "guilty", "two"])
    assert [type(outcome) for outcome in outcomes] == [StepDone, EngineFailed, StepDone]
    assert isinstance(outcomes[1], EngineFailed)
    assert "memory" not in outcomes[1].message, "nothing internal reaches a caller"
    assert (engine.stats.retried, engine.stats.failed, engine.stats.steps) == (3, 1, 2)
    await engine.admit("guilty alone", clip_input(prompt="a nan ball"))
    await engine.stop()


async def test_failed_step_leaves_the_request_as_it_was(engine: JobEngine) -> None:
    await engine.admit("bad", clip_input(prompt="nan"))
    before = await latents(engine, "bad")
    await engine.run_step(["bad"])
    assert torch.equal(await latents(engine, "bad"), before)


async def test_weights_that_cannot_be_loaded_are_an_engine_failure() -> None:
    def load_nothing() -> Job:
        raise FileNotFoundError("no such folder")

    engine = JobEngine(OPTIONS, load_nothing)
    with pytest.raises(EngineFailed, match="could not be loaded"):
        await engine.start()
    with pytest.raises(EngineFailed):
        engine.check_health()
    await engine.stop()


class Gate:
    """Calls pass while it is open; once ``shut``, they wait until it is opened again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._opened, self.entered = threading.Event(), threading.Event()
        self._opened.set()

    def shut(self) -> None:
        self._opened.clear()
        self.entered.clear()

    def open(self) -> None:
        self._opened.set()

    def __call__(self, *args: Any) -> Any:
        self.entered.set()
        self._opened.wait(30)
        return self._function(*args)


@pytest.mark.parametrize("call", ["text", "step", "decode"])
async def test_call_that_does_not_come_back_makes_the_engine_unhealthy(call: str) -> None:
    transformer = tiny_transformer()
    gates = {"text": Gate(encode_words), "step": Gate(transformer.patchify), "decode": Gate(decode_linearly)}
    transformer.patchify = gates["step"]  # type: ignore[method-assign, assignment]
    engine = engine_with(
        replace(OPTIONS, stuck_after_s=0.2),
        transformers={"teacher": transformer},
        encode_text=gates["text"],
        decode=gates["decode"],
    )
    await engine.start()
    for job_id in ("job", "done"):
        await engine.admit(job_id, clip_input(num_steps=1))
    await engine.run_step(["done"])
    gates[call].shut()
    calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "text": lambda: engine.admit("other", clip_input()),
        "step": lambda: engine.run_step(["job"]),
        "decode": lambda: engine.decode("done"),
    }
    running = asyncio.create_task(calls[call]())
    assert await asyncio.to_thread(gates[call].entered.wait, 10)

    def is_stuck() -> bool:
        try:
            engine.check_health()
        except EngineFailed as error:
            return "stuck" in str(error)
        return False

    await until(is_stuck)
    gates[call].open()
    await running
    engine.check_health()
    await engine.stop()


async def test_call_that_waits_when_the_engine_stops_fails_and_does_not_hang() -> None:
    engine = engine_with()
    await engine.start()
    await engine.admit("job", clip_input(num_steps=100))
    calls = [asyncio.ensure_future(engine.run_step(["job"])) for _ in range(50)]
    await asyncio.sleep(0)
    await engine.stop()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, list | EngineFailed) for answer in answers)
    assert any(isinstance(answer, EngineFailed) for answer in answers)


async def test_number_of_steps_that_the_sampler_cannot_do_is_refused(engine: JobEngine) -> None:
    with pytest.raises(InvalidRequest, match="a multiple of 4") as caught:
        await engine.admit("job", clip_input(sampler="consistency", num_steps=6))
    assert caught.value.param == "num_inference_steps"


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["dense", "adaspa:0.6", "ras:0.5"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("num_frames", [1, 9])
async def test_prediction_is_close_to_what_is_held(
    engine: JobEngine, attention: str, guidance_scale: float, num_frames: int
) -> None:
    settings = clip_input(attention=attention, guidance_scale=guidance_scale, num_frames=num_frames)
    predicted = predict(LIMITS.variant, num_frames, settings.point, text_tokens=words(settings.request.prompt))
    await engine.admit("job", settings)
    most = 0
    for _ in range(3):
        await engine.run_step(["job"])
        most = max(most, engine.held_bytes())
    assert most <= predicted.held_bytes <= HELD_FACTOR * most


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize(
    ("num_frames", "attention"),
    [
        (1, "dense"),
        (9, "dense"),
        (93, "dense"),
        (1, "tile:1:0"),
        (9, "tile:1:2"),
        (93, "tile:12:12"),
        (9, "adaspa:0.6"),
        (93, "adaspa:0.6"),
        (9, "ras:0.5"),
    ],
)
async def test_step_takes_no_more_than_was_predicted(num_frames: int, attention: str, guidance_scale: float) -> None:
    wanted = clip_input(guidance_scale=guidance_scale, num_frames=num_frames, attention=attention)
    predicted, peak = await predicted_and_peak_bytes([wanted])
    assert peak <= predicted <= ACTIVATION_FACTOR * peak, peak


async def test_packed_step_takes_no_more_than_was_predicted_for_each() -> None:
    wanted = [
        clip_input(guidance_scale=scale, num_frames=frames, attention=attention)
        for frames, scale, attention in ((93, 1.0, "dense"), (9, 3.0, "tile:1:2"), (93, 3.0, "tile:12:12"))
    ]
    predicted, peak = await predicted_and_peak_bytes(wanted)
    assert peak <= predicted <= ACTIVATION_FACTOR * peak, peak


async def predicted_and_peak_bytes(wanted: Sequence[JobInput]) -> tuple[int, int]:
    """Of two steps of all together, counted at every operation, in the thread that runs them."""
    limits = clip_limits(TINY, width=48, height=32, frame_counts=(1, 9, 93), latent_channels=4)
    engine = JobEngine(
        replace(OPTIONS, variant=limits.variant), lambda: VditRunner(tiny_networks(), limits.variant, RAS)
    )
    await engine.start()
    live = LiveBytes()
    whole = engine._run

    def counted(states: object) -> object:
        with live:
            return whole(states)  # type: ignore[arg-type]

    engine._run = counted  # type: ignore[method-assign, assignment]
    names = [f"job-{index}" for index in range(len(wanted))]
    for name, settings in zip(names, wanted, strict=True):
        await engine.admit(name, settings)
    assert len({engine.phase(name) for name in names}) == 1
    for _ in range(2):  # AdaSpa has searched, in the first
        assert all(isinstance(outcome, StepDone) for outcome in await engine.run_step(names))
    await engine.stop()
    memories = [
        predict(limits.variant, one.request.num_frames, one.point, text_tokens=words(one.request.prompt))
        for one in wanted
    ]
    return sum(one.activation_bytes + one.attention_bytes for one in memories), live.peak


async def test_nothing_refers_to_a_request_after_its_release(engine: JobEngine) -> None:
    await engine.admit("job", clip_input(attention="ras:0.5"))
    await engine.run_step(["job"])
    state = engine._held["job"].state
    tensors = [*state.cache["attention"].tensors(), state.cache["text"], state.kept["latents"]]
    watched = [weakref.ref(tensor) for tensor in tensors]
    del state, tensors
    engine.release("job")
    await engine.admit("next", clip_input())
    await engine.run_step(["next"])  # the thread lets go of its last call
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)
