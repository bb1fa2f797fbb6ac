"""Pictures as jobs: each slice encodes prompts, denoises once, or decodes a picture, for several requests together.

Rows of a state are its pictures; row r has the seed of the request plus r. Legend: B rows of all states, C channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import LCMScheduler
from torch import Tensor

from models.contract import Figures, JobState, Phase, Point, Variant
from models.families.nitrofusion.networks import Networks
from models.io import ImageRequest
from models.prompt_tokens import TooManyTokens

_ORIGINAL_STEPS = 4
"""As NitroFusion has it. All else is a default of diffusers, not read from the folder: SDXL's betas are the same."""


class NitroRunner:
    """A ``Job``. ``kept``: the step and the latents (rows, C, h, w). ``cache``: ``text`` (1, 77, C) and ``pooled``
    (1, C) of the prompt, and ``pictures``, those that have been decoded."""

    def __init__(self, networks: Networks, variant: Variant) -> None:
        self._networks = networks
        self._shift: int = variant.config["shift"]
        self._factor = 2 ** (len(networks.vae.config.block_out_channels) - 1)

    def open(self, request: ImageRequest, point: Point, seed: int) -> JobState:
        """Draw the noise, on the CPU: the same on every device. Raises: TooManyTokens."""
        try:
            self._networks.ids(request.prompt)
        except ValueError as error:
            raise TooManyTokens("prompt", str(error)) from None
        height, width = request.height // self._factor, request.width // self._factor
        shape = (1, self._networks.unet.config.in_channels, height, width)
        noise = [
            torch.randn(shape, generator=generator, dtype=self._networks.unet.dtype)
            for generator in _generators(seed, request.count)
        ]
        latents = torch.cat(noise).to(self._networks.unet.device)
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "latents": latents})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        """Prompt, steps, and the pictures to decode: one at a time, since at 1024x1024 each takes gigabytes."""
        steps = int(state.point["num_inference_steps"]) - state.kept["step"]
        left: dict[Phase, int] = {
            "condition": int(steps > 0 and "text" not in state.cache),
            "denoise": steps,
            "decode": state.request.count - len(state.cache.get("pictures", ())),
        }
        return {phase: count for phase, count in left.items() if count}

    def group_key(self, state: JobState) -> Hashable:
        """Size and phase: the network takes a step of its own for each row."""
        return next(iter(self.remaining(state)), None), state.request.width, state.request.height

    @torch.inference_mode()
    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        """One slice of the phase that all of them are in."""
        phase = next(iter(self.remaining(states[0])))
        if phase == "denoise":
            return self._denoise(states)
        for state in states:
            (self._condition if phase == "condition" else self._decode)(state)
        return [{} for _ in states]

    def close(self, state: JobState) -> Mapping[str, Any]:
        """``image``: uint8 RGB (rows, height, width, 3)."""
        return {"image": np.stack(state.cache["pictures"])}

    # -- slices ------------------------------------------------------------------------------------------------------

    def _condition(self, state: JobState) -> None:
        text, pooled = self._networks.encode(self._networks.ids(state.request.prompt))
        state.cache |= {"text": text, "pooled": pooled}

    def _denoise(self, states: Sequence[JobState]) -> list[Figures | None]:
        """Nothing of a state changes before all have come out."""
        counts = [len(state.kept["latents"]) for state in states]
        schedulers = [self._scheduler_at(state) for state in states]
        times = [
            self._shifted(scheduler)[state.kept["step"]] for scheduler, state in zip(schedulers, states, strict=True)
        ]
        parts = torch.split(self._predict(states, counts, times), counts)
        after = [
            scheduler.step(part, time, state.kept["latents"], generator=self._noise_of(state)).prev_sample
            for scheduler, time, state, part in zip(schedulers, times, states, parts, strict=True)
        ]
        return [_accept(state, latents) for state, latents in zip(states, after, strict=True)]

    def _predict(self, states: Sequence[JobState], counts: list[int], times: Sequence[Tensor]) -> Tensor:
        rows = list(zip(states, counts, strict=True))
        latents = torch.cat([state.kept["latents"] for state in states])
        text = torch.cat([state.cache["text"].expand(count, -1, -1) for state, count in rows])
        pooled = torch.cat([state.cache["pooled"].expand(count, -1) for state, count in rows])
        size = (states[0].request.height, states[0].request.width)
        sizes = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=text.device).expand(len(text), -1)
        output: Tensor = self._networks.unet(
            latents,
            torch.cat([time.expand(count) for time, count in zip(times, counts, strict=True)]).to(latents.device),
            encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return output

    def _decode(self, state: JobState) -> None:
        """The next picture."""
        vae, done = self._networks.vae, state.cache.get("pictures", [])
        latents = state.kept["latents"][len(done) : len(done) + 1].float() / vae.config.scaling_factor
        picture = (vae.decode(latents, return_dict=False)[0][0] * 0.5 + 0.5).clamp(0, 1)
        state.cache["pictures"] = [*done, (picture * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()]

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _scheduler_at(self, state: JobState) -> LCMScheduler:
        """A new one: it has a state of its own, which here is the step alone."""
        scheduler = LCMScheduler(original_inference_steps=_ORIGINAL_STEPS)
        scheduler.set_timesteps(int(state.point["num_inference_steps"]))
        scheduler.set_begin_index(state.kept["step"])
        return scheduler

    def _shifted(self, scheduler: LCMScheduler) -> Tensor:
        """Times as the network and the step are told them; noise is added for the times that are not shifted."""
        shifted: Tensor = (scheduler.timesteps * self._shift / scheduler.config.num_train_timesteps).long()
        return shifted

    def _noise_of(self, state: JobState) -> list[torch.Generator]:
        """Generators of the rows, as they are after what earlier steps have drawn."""
        latents, generators = state.kept["latents"], _generators(state.seed, state.request.count)
        for generator in generators:
            for _ in range(state.kept["step"] + 1):
                torch.randn((1, *latents.shape[1:]), generator=generator, dtype=latents.dtype)
        return generators


def _generators(seed: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(count)]


def _accept(state: JobState, latents: Tensor) -> Figures | None:
    if not bool(torch.isfinite(latents).all()):
        return None
    state.kept = {"step": state.kept["step"] + 1, "latents": latents}
    return {}
