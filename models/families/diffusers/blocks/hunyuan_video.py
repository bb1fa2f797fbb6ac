"""HunyuanVideo 1.5 from a first frame: diffusers' own blocks in another order.

In diffusers 0.42.1 the block that draws the noise writes zeros over what the image encoder has made of the picture, so
that the modular pipeline looks at none. Here the picture is encoded after it. The classic pipeline does look at it.
"""

from __future__ import annotations

from typing import ClassVar

from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.hunyuan_video1_5.before_denoise import (
    HunyuanVideo15Image2VideoPrepareLatentsStep,
    HunyuanVideo15PrepareLatentsStep,
    HunyuanVideo15SetTimestepsStep,
    HunyuanVideo15TextInputStep,
)
from diffusers.modular_pipelines.hunyuan_video1_5.decoders import HunyuanVideo15VaeDecoderStep
from diffusers.modular_pipelines.hunyuan_video1_5.denoise import HunyuanVideo15Image2VideoDenoiseStep
from diffusers.modular_pipelines.hunyuan_video1_5.encoders import (
    HunyuanVideo15ImageEncoderStep,
    HunyuanVideo15TextEncoderStep,
    HunyuanVideo15VaeEncoderStep,
)


class ImageToVideoBlocks(SequentialPipelineBlocks):  # type: ignore[misc]  # diffusers is not typed
    """Prompt, noise, picture, steps, frames."""

    model_name = "hunyuan-video-1.5"
    block_classes: ClassVar = [
        HunyuanVideo15TextEncoderStep,
        HunyuanVideo15TextInputStep,
        HunyuanVideo15SetTimestepsStep,
        HunyuanVideo15PrepareLatentsStep,
        HunyuanVideo15VaeEncoderStep,
        HunyuanVideo15ImageEncoderStep,
        HunyuanVideo15Image2VideoPrepareLatentsStep,
        HunyuanVideo15Image2VideoDenoiseStep,
        HunyuanVideo15VaeDecoderStep,
    ]
    block_names: ClassVar = [
        "text_encoder",
        "input",
        "set_timesteps",
        "prepare_latents",
        "vae_encoder",
        "image_encoder",
        "prepare_i2v_latents",
        "denoise",
        "decode",
    ]
