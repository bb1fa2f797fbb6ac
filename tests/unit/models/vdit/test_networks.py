"""A folder of weights in the engine: the clip of the plain pipeline."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load as load_tensors

from models.contract import Variant
from models.families.vdit.networks import load
from models.families.vdit.pipeline import VideoPipeline
from models.families.vdit.runner import VditRunner
from models.families.vdit.work import predict
from models.registry import find
from serving.errors import EngineFailed, InvalidRequest, PromptTooLong
from serving.replica.job.base import JobInput
from serving.replica.job.engine import EngineOptions, JobEngine
from tests.support.video_folders import write_checkpoint
from tests.support.video_models import clip_input

FAMILY = find("vdit-nano")[0]


def engine_of(variant: Variant) -> JobEngine:
    return JobEngine(
        EngineOptions(family=FAMILY, variant=FAMILY.part("found")(variant)), lambda: VditRunner(load(variant), variant)
    )


def settings(**changes: object) -> JobInput:
    values = {"num_frames": 29, "sampler": "ddim", "prompt": "a red circle moves right"}
    return clip_input(**{**values, **changes})


async def test_clip_is_that_of_the_plain_pipeline(tmp_path: Path) -> None:
    variant = write_checkpoint(tmp_path, "teacher")
    engine = engine_of(variant)
    await engine.start()
    wanted = settings(guidance_scale=4.0, seed=3)
    assert engine.work(wanted).bytes_held > 0
    await engine.admit("job", wanted)
    for _ in range(wanted.num_steps):
        await engine.run_step(["job"])
    outputs, picture = await asyncio.gather(engine.decode("job"), engine.preview("job"))
    frames = outputs["frames"]
    ours = load_tensors(await engine.snapshot("job"))["latents"]
    held, predicted = engine.held_bytes() - frames.nbytes, predict(variant, 29, wanted.point, text_tokens=6).held_bytes
    await engine.stop()
    pipeline = VideoPipeline.load(variant)
    latents = pipeline.generate(
        [wanted.request.prompt], frames=29, sampler="ddim", num_steps=4, guidance=4.0, seeds=[3]
    )
    assert (ours - latents).abs().max() <= 1e-4 * latents.abs().max(), "the engine leaves out padding of the text"
    assert np.abs(frames.astype(int) - pipeline.decode(latents).astype(int)).max() <= 1
    assert frames.shape == (29, 64, 64, 3)
    assert picture.shape == (1, 8, 8, 3)
    assert held <= predicted <= 1.1 * held


async def test_samplers_are_those_whose_weights_are_in_the_folder(tmp_path: Path) -> None:
    variant = write_checkpoint(tmp_path, "teacher")
    engine = engine_of(variant)
    with pytest.raises(InvalidRequest, match="sampler is 'consistency'"):
        engine.work(settings(sampler="consistency"))
    variant = write_checkpoint(tmp_path, "student")
    assert load(variant).transformers.keys() == {"teacher", "student"}


async def test_prompt_of_too_many_words_is_refused_with_the_number(tmp_path: Path) -> None:
    variant = write_checkpoint(tmp_path, "teacher")
    engine = engine_of(variant)
    await engine.start()
    await engine.admit("short", settings(prompt="red " * 23))
    with pytest.raises(PromptTooLong, match="25 tokens; limit is 24"):
        await engine.admit("long", settings(prompt="red " * 24))
    await engine.stop()


async def test_folder_of_another_model_is_an_engine_failure(tmp_path: Path) -> None:
    variant = write_checkpoint(tmp_path, "teacher")
    (tmp_path / "vae" / "config.json").unlink()
    engine = engine_of(variant)
    with pytest.raises(EngineFailed, match="could not be loaded"):
        await engine.start()
    await engine.stop()
