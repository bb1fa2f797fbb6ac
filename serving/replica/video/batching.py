"""One denoising step of several requests in one batch.

Legend: B rows of the batch (R of each request, in order), C channels, S text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.samplers.base import step_generator
from serving.replica.video.attention_state import ModelCall
from serving.replica.video.request_state import Progress, RequestState


@torch.inference_mode()
def run_batch(states: Sequence[RequestState]) -> list[Progress]:
    """What each request has after its next step; nothing of ``progress`` is changed here.

    A batch has one phase, see ``RequestState.phase``; steps differ where the attention has no schedule.
    """
    scaled = [state.sampler.scale_input(state.progress.latents, state.progress.step) for state in states]
    latents = torch.cat([one for one, state in zip(scaled, states, strict=True) for _ in range(state.rows)])
    timesteps = [state.sampler.timestep(state.progress.step) for state in states for _ in range(state.rows)]
    text, mask = _joined_text(states)
    weights = states[0].weights
    call = ModelCall(
        transformer=weights.transformer,
        latents=latents.to(weights.dtype),
        timestep=torch.tensor(timesteps, device=latents.device),
        text=text,
        text_mask=mask,
        step=states[0].progress.step,
    )
    output = states[0].attention.forward(call, [state.attention for state in states])
    parts = torch.split(output.float(), [state.rows for state in states])
    return [_advance(state, rows) for state, rows in zip(states, parts, strict=True)]


def _joined_text(states: Sequence[RequestState]) -> tuple[Tensor, Tensor]:
    """Embeddings (B, S, C) and mask (B, S); shorter ones are padded and masked."""
    longest = max(state.text.shape[1] for state in states)
    pads = [longest - state.text.shape[1] for state in states]
    text = [F.pad(state.text, (0, 0, 0, pad)) for state, pad in zip(states, pads, strict=True)]
    mask = [F.pad(state.text_mask, (0, pad), value=False) for state, pad in zip(states, pads, strict=True)]
    return torch.cat(text), torch.cat(mask)


def _advance(state: RequestState, output: Tensor) -> Progress:
    """``output`` (R, C or more, t, h, w): what is more than the latents' channels is variance, and not used."""
    step, latents, _ = state.progress
    output = output[:, : latents.shape[1]]
    if state.rows == 2:
        output = output[:1] + state.settings.guidance_scale * (output[1:] - output[:1])
    generator = step_generator(state.settings.seed, step)
    clean = state.sampler.denoised(latents, output, step)
    return Progress(step + 1, state.sampler.step(latents, output, step, generator), clean)
