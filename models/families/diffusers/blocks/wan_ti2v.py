"""Wan 2.2 TI2V-5B, which diffusers' modular pipelines do not have: a time for each token, and a first frame that stays.

As the classic pipelines with ``expand_timesteps`` do it. There the first frame's latents are put into the network's
input at each step and into the result; here they are put back into the latents after each step, which is the same,
since a scheduler takes each number by itself. Legend: B rows, C channels, F latent frames, L tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines import SequentialPipelineBlocks, WanModularPipeline
from diffusers.modular_pipelines.modular_pipeline import BlockState, ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.modular_pipelines.wan.before_denoise import (
    WanPrepareLatentsStep,
    WanSetTimestepsStep,
    WanTextInputStep,
)
from diffusers.modular_pipelines.wan.decoders import WanVaeDecoderStep
from diffusers.modular_pipelines.wan.denoise import (
    WanDenoiseLoopWrapper,
    WanLoopAfterDenoiser,
    WanLoopBeforeDenoiser,
    WanLoopDenoiser,
)
from diffusers.modular_pipelines.wan.encoders import WanTextEncoderStep
from diffusers.video_processor import VideoProcessor
from torch import Tensor

_FIRST_FRAME = InputParam("first_frame", description="Latents of the first frame, (B, C, 1, h, w), or None.")


class WanTextImageModularPipeline(WanModularPipeline):  # type: ignore[misc]  # diffusers is not typed
    """Components of one folder, with an autoencoder that may pack pixels before it halves them."""

    @property
    def vae_scale_factor_spatial(self) -> int:
        """Pixels of a side for one of latents."""
        return int(super().vae_scale_factor_spatial * (self.vae.config.patch_size or 1))


def token_times(time: Tensor, latents: Tensor, patch: tuple[int, int, int], *, is_begun: bool) -> Tensor:
    """A step's time for each token: (B, L) in float32, and 0 for the tokens of a first frame that is given."""
    rows, _, frames, height, width = latents.shape
    times = torch.ones(frames, height // patch[1], width // patch[2], device=latents.device) * time
    times[: int(is_begun)] = 0
    return times.flatten().expand(rows, -1)


def with_first_frame(latents: Tensor, first_frame: Tensor | None) -> Tensor:
    """Latents (B, C, F, h, w) that begin with the frame, where one is given."""
    return latents if first_frame is None else torch.cat([first_frame, latents[:, :, 1:]], dim=2)


class FirstFrameStep(ModularPipelineBlocks):  # type: ignore[misc]
    """Encode the picture, if there is one, and let the noise begin with it."""

    model_name = "wan"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """What encodes it."""
        processor = ComponentSpec(
            "video_processor",
            VideoProcessor,
            config=FrozenDict({"vae_scale_factor": 8}),
            default_creation_method="from_config",
        )
        return [ComponentSpec("vae", AutoencoderKLWan), processor]

    @property
    def inputs(self) -> list[InputParam]:
        """The picture, and the size of the clip."""
        return [InputParam("image"), InputParam("height"), InputParam("width"), InputParam("latents", required=True)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The frame in latents, and latents that begin with it."""
        return [OutputParam("first_frame"), OutputParam("latents")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Draws nothing."""
        block_state = self.get_block_state(state)
        latents, picture = block_state.latents, block_state.image
        block_state.first_frame = None
        if picture is not None:
            pixels = components.video_processor.preprocess(picture, height=block_state.height, width=block_state.width)
            encoded = _encoded(components.vae, pixels.unsqueeze(2).to(latents))
            block_state.first_frame = encoded.expand(len(latents), -1, -1, -1, -1)
        block_state.latents = with_first_frame(latents, block_state.first_frame)
        self.set_block_state(state, block_state)
        return components, state


def _encoded(vae: Any, pixels: Tensor) -> Tensor:
    """What the autoencoder makes of a frame (1, 3, 1, H, W), as latents are: (1, C, 1, h, w)."""
    latents: Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().to(pixels)
    mean, deviation = (
        torch.tensor(numbers).view(1, -1, 1, 1, 1).to(latents)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) * (1.0 / deviation)


class TokenTimesDenoiser(WanLoopDenoiser):  # type: ignore[misc]
    """As Wan's, but that each token has a time of its own."""

    @property
    def inputs(self) -> list[InputParam]:
        """And whether there is a first frame."""
        return [*super().inputs, _FIRST_FRAME]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int, t: Tensor) -> tuple[Any, BlockState]:
        """Predict, with guidance."""
        guider, network, latents = components.guider, components.transformer, block_state.latent_model_input
        times = token_times(t, latents, network.config.patch_size, is_begun=block_state.first_frame is not None)
        guider.set_state(step=i, num_inference_steps=block_state.num_inference_steps, timestep=t)
        branches = guider.prepare_inputs_from_block_state(block_state, self._guider_input_fields)
        for branch in branches:
            guider.prepare_models(network)
            branch.noise_pred = network(
                hidden_states=latents,
                timestep=times,
                encoder_hidden_states=branch.encoder_hidden_states.to(latents.dtype),
                attention_kwargs=block_state.attention_kwargs,
                return_dict=False,
            )[0]
            guider.cleanup_models(network)
        block_state.noise_pred = guider(branches)[0]
        return components, block_state


class FirstFrameStays(WanLoopAfterDenoiser):  # type: ignore[misc]
    """As Wan's, but that the first frame is put back."""

    @property
    def inputs(self) -> list[InputParam]:
        """The frame."""
        return [_FIRST_FRAME]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int, t: Tensor) -> tuple[Any, BlockState]:
        """A step of the scheduler."""
        components, block_state = super().__call__(components, block_state, i=i, t=t)
        block_state.latents = with_first_frame(block_state.latents, block_state.first_frame)
        return components, block_state


class DenoiseStep(WanDenoiseLoopWrapper):  # type: ignore[misc]
    """The loop."""

    block_classes: ClassVar = [WanLoopBeforeDenoiser, TokenTimesDenoiser, FirstFrameStays]
    block_names: ClassVar = ["before_denoiser", "denoiser", "after_denoiser"]


class TextImageToVideoBlocks(SequentialPipelineBlocks):  # type: ignore[misc]
    """Prompt, noise, picture if there is one, steps, frames."""

    model_name = "wan"
    block_classes: ClassVar = [
        WanTextEncoderStep,
        WanTextInputStep,
        WanSetTimestepsStep,
        WanPrepareLatentsStep,
        FirstFrameStep,
        DenoiseStep,
        WanVaeDecoderStep,
    ]
    block_names: ClassVar = [
        "text_encoder",
        "input",
        "set_timesteps",
        "prepare_latents",
        "first_frame",
        "denoise",
        "decode",
    ]
