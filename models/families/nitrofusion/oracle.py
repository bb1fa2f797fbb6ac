"""diffusers' own pipeline with the patched scheduler of NitroFusion's README (commit 75ce562, MIT) on same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline

from models.contract import JobState, Parity, Variant
from models.families.nitrofusion.networks import build
from models.families.nitrofusion.runner import NitroRunner
from models.io import ImageRequest

_PROMPTS = ("a red circle", "a blue square", "rain", "a red circle and a small blue square")


class TimestepShiftLCMScheduler(LCMScheduler):  # type: ignore[misc]
    """As NitroFusion's README has it."""

    timesteps: Any

    def __init__(self, *args: Any, shifted_timestep: int = 250, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_to_config(shifted_timestep=shifted_timestep)

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Shifted ones, for the pipeline to see."""
        super().set_timesteps(*args, **kwargs)
        self.origin_timesteps = self.timesteps.clone()
        self.shifted_timesteps = (
            self.timesteps * self.config.shifted_timestep / self.config.num_train_timesteps
        ).long()
        self.timesteps = self.shifted_timesteps

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        """A step of the schedule that is not shifted."""
        if self.step_index is None:
            self._init_step_index(timestep)
        self.timesteps = self.origin_timesteps
        output = super().step(model_output, timestep, sample, generator, return_dict)
        self.timesteps = self.shifted_timesteps
        return output


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """Four requests of one to four steps, with prompts and seeds of their own, together in each slice of ours; the
    pipeline makes one after the other. Then two pictures of one request."""
    networks = build(variant, random_weights=variant.weights is None)
    runner = NitroRunner(networks, variant)
    scheduler = TimestepShiftLCMScheduler(shifted_timestep=variant.config["shift"])
    scheduler.config.original_inference_steps = 4
    pipeline = StableDiffusionXLPipeline(
        vae=networks.vae,
        text_encoder=networks.clips[0],
        text_encoder_2=networks.clips[1],
        tokenizer=networks.tokenizers[0],
        tokenizer_2=networks.tokenizers[1],
        unet=networks.unet,
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    width, height = variant.io.size
    together = [
        runner.open(ImageRequest(width=width, height=height, prompt=prompt), {"num_inference_steps": steps}, 7 * steps)
        for steps, prompt in enumerate(_PROMPTS, start=1)
    ]
    other = ImageRequest(width=width, height=height // 2, prompt="rain", count=2)
    pair = runner.open(other, {"num_inference_steps": 4}, 3)
    for states, case in ((together, "beside others"), ([pair], "two of a request")):
        _finish(runner, states)
        for state in states:
            name = f"{state.point['num_inference_steps']} steps, {case}"
            ours = torch.from_numpy(runner.close(state)["image"])
            yield Parity(f"latents in {name}", state.kept["latents"], _theirs(pipeline, state, "latent"), 1e-5)
            theirs = [torch.from_numpy(np.array(each)) for each in _theirs(pipeline, state, "pil")]
            yield Parity(f"pictures in {name}", ours, torch.stack(theirs), 1.0)


def _theirs(pipeline: Any, state: JobState, output_type: str) -> Any:
    """What the pipeline makes of the same request."""
    request = state.request
    return pipeline(
        prompt=request.prompt,
        num_images_per_prompt=request.count,
        width=request.width,
        height=request.height,
        num_inference_steps=int(state.point["num_inference_steps"]),
        guidance_scale=0,
        generator=[torch.Generator().manual_seed(state.seed + row) for row in range(request.count)],
        output_type=output_type,
    ).images


def _finish(runner: NitroRunner, states: list[JobState]) -> None:
    while left := [state for state in states if runner.remaining(state)]:
        first = runner.group_key(left[0])
        runner.step([state for state in left if runner.group_key(state) == first])
