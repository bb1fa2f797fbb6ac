"""diffusers' own pipeline on the same weights, and DiffSynth-Studio v1.1.0 (Apache-2.0), in which ExVideo came."""

from __future__ import annotations

import copy
import importlib
import io
import re
import sys
import types
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from models.contract import JobState, Parity, Variant
from models.families.exvideo.family import FAMILY, example
from models.families.exvideo.latents import (
    AnalyticInit,
    Decoding,
    as_bytes,
    decode_next,
    decoded,
    euler_step,
    normalised,
)
from models.families.exvideo.networks import Networks, build
from models.families.exvideo.overlap import by_windows
from models.families.exvideo.overlay import overlay_of
from models.families.exvideo.picture import CLIP_MEAN, CLIP_STD, clip_inputs
from models.families.exvideo.published import SCHEDULER
from models.families.exvideo.runner import ExVideoRunner
from models.families.exvideo.schedule import karras_sigmas
from models.families.exvideo.shapes import CHUNK, CHUNK_STRIDE, spans
from models.families.exvideo.unet import extend, extended_transformers
from models.testing.parity import bare_package, stand_in

_SIZES = ((64, 96), (300, 224), (576, 1024))
_DIVISOR = 10
"""DiffSynth's UNet has its widths written into it; ours and theirs are compared with a tenth of them."""
_SMALL = {
    "block_out_channels": (32, 64, 128, 128),
    "num_attention_heads": (1, 2, 4, 4),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 25,
}


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """With diffusers, what the pipeline makes of the same requests; then what DiffSynth has, if it is there."""
    networks = build(variant, random_weights=variant.weights is None)
    if not variant.config["positions"]:
        yield from _pipeline(networks, variant)
    else:
        yield from _first_weights(variant)
    yield from _late_start()
    if official is not None and variant.weights is None:
        yield from _diffsynth(official)


# -- diffusers -------------------------------------------------------------------------------------------------------


def _pipeline(networks: Networks, variant: Variant) -> Iterator[Parity]:
    """Three requests that share their slices as far as they can; the pipeline makes one after the other."""
    runner = ExVideoRunner(networks, variant)
    pipeline = StableVideoDiffusionPipeline(
        vae=networks.vae,
        image_encoder=networks.image_encoder,
        unet=networks.unet,
        scheduler=EulerDiscreteScheduler.from_config(variant.config["scheduler"]),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.set_progress_bar_config(disable=True)
    asked: tuple[dict[str, object], ...] = (
        {"num_inference_steps": 3},
        {"num_inference_steps": 5, "motion_bucket_id": 30, "noise_aug_strength": 0.2},
        {"num_inference_steps": 4, "guidance_scale": 1.0},
    )
    states = [
        runner.open(example(variant, np.random.default_rng(seed)), FAMILY.check_point(settings), seed)
        for seed, settings in enumerate(asked)
    ]
    while left := [state for state in states if runner.remaining(state)]:
        key = runner.group_key(left[0])
        runner.step([state for state in left if runner.group_key(state) == key])
    for state in states:
        case = ", ".join(f"{name}={state.point[name]}" for name in ("num_inference_steps", "guidance_scale"))
        yield Parity(f"latents, {case}", state.kept["latents"], _theirs(pipeline, state, "latent"), 1e-4)
        frames = [torch.from_numpy(np.array(frame)) for frame in _theirs(pipeline, state, "pil")[0]]
        yield Parity(
            f"frames (bytes), {case}", torch.from_numpy(runner.close(state)["frames"]), torch.stack(frames), 1.0
        )


def _theirs(pipeline: Any, state: JobState, output_type: str) -> Any:
    """What the pipeline makes of the same request."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the pipeline's scheduler, about numpy
        return _called(pipeline, state, output_type)


def _called(pipeline: Any, state: JobState, output_type: str) -> Any:
    request, point = state.request, state.point
    return pipeline(
        Image.open(io.BytesIO(request.picture)),
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=int(point["num_inference_steps"]),
        max_guidance_scale=float(point["guidance_scale"]),
        fps=request.fps,
        motion_bucket_id=int(point["motion_bucket_id"]),
        noise_aug_strength=float(point["noise_aug_strength"]),
        generator=torch.Generator().manual_seed(state.seed),
        output_type=output_type,
    ).frames


def _first_weights(variant: Variant) -> Iterator[Parity]:
    """Extended, and not yet trained: what the base makes, as long as the base was trained on."""
    config = variant.config["unet"]
    torch.manual_seed(0)
    plain = UNetSpatioTemporalConditionModel.from_config(config).eval()
    extended = extend(copy.deepcopy(plain), variant.config["positions"])
    inputs = _inputs(config["num_frames"], config["cross_attention_dim"])
    yield Parity("extended network with its first weights, beside SVD", extended(*inputs)[0], plain(*inputs)[0], 0.0)


def _inputs(frames: int, context: int, side: int = 16) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(1)
    sample = torch.randn(1, frames, 8, side, side, generator=draw)
    return (
        sample,
        torch.tensor(1.2),
        torch.randn(1, 1, context, generator=draw),
        torch.tensor([[29.0, 127.0, 0.02]]),
        False,
    )


def _late_start(sigma: float = 100.0, draws: int = 100_000) -> Iterator[Parity]:
    """Mean and variance of many starts. The published code hands mean and variance over in each other's place; what it
    makes of them is ``swapped``, and differs by little at such a level."""
    mean = torch.linspace(-2, 2, 8).view(1, 2, 2, 2)
    init = AnalyticInit(mean, 0.6)
    noise = torch.randn(draws, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    started = torch.cat([init.start(part[None], sigma)[0] for part in torch.split(noise, 1)])
    yield Parity("late start: mean of 100,000", started.mean(0), mean[0], 5 * sigma / draws**0.5)
    variance = started.var(0).mean() / (sigma**2 + 0.6)
    yield Parity("late start: variance of 100,000, relative", variance, torch.tensor(1.0), 0.01)
    swapped = torch.tensor(0.6) + noise[:8] * (sigma**2 + mean) ** 0.5
    yield Parity("late start beside the published code's", started[:8], swapped, float(mean.abs().max()) + 1.0)


# -- DiffSynth -------------------------------------------------------------------------------------------------------


def _diffsynth(official: Path) -> Iterator[Parity]:
    for name in ("", ".models", ".pipelines"):
        bare_package(f"diffsynth{name}", official / "diffsynth" / name.removeprefix("."))
    yield from _scheduler()
    yield from _preprocessing()
    yield from _networks(official)
    yield from _decoder(official)


def _scheduler(steps: int = 50) -> Iterator[Parity]:
    """One made-up prediction for each step. Theirs keeps latents divided by sqrt(sigma^2 + 1)."""
    theirs = importlib.import_module("diffsynth.schedulers.continuous_ode").ContinuousODEScheduler(steps)
    sigmas = [*karras_sigmas(steps, SCHEDULER["sigma_min"], SCHEDULER["sigma_max"]), 0.0]
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mine, other = noise * (sigmas[0] ** 2 + 1) ** 0.5, noise.clone()
    for step in range(steps):
        predicted = torch.sin(3 * mine / (sigmas[step] ** 2 + 1) ** 0.5 + step)
        other = theirs.step(torch.sin(3 * other + step), theirs.timesteps[step], other)
        mine, _ = euler_step(mine, predicted, sigmas[step], sigmas[step + 1])
    yield Parity("noise levels", torch.tensor(sigmas[:-1]) / theirs.sigmas, torch.ones(steps), 2e-6)
    yield Parity("sampler, 50 steps", mine, other, 2e-5)


def _preprocessing() -> Iterator[Parity]:
    stand_in("torchvision")
    stand_in("torchvision.transforms", GaussianBlur=object)
    models = sys.modules["diffsynth.models"]
    for name in ("ModelManager", "SVDImageEncoder", "SVDUNet", "SVDVAEEncoder", "SVDVAEDecoder"):
        setattr(models, name, object)
    pipeline = importlib.import_module("diffsynth.pipelines.svd_video")
    for height, width in _SIZES:
        draw = torch.Generator().manual_seed(height)
        pixels = torch.rand(1, 3, height, width, generator=draw) * 2 - 1
        scaled = (pipeline.SVDCLIPImageProcessor().resize_with_antialiasing(pixels, (224, 224)) + 1) / 2
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
        yield Parity(f"CLIP's input of {width}x{height}", clip_inputs(pixels), (scaled - mean) / std, 1e-4)
    latents = torch.randn(9, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, 9).view(
        -1, 1, 1, 1
    )
    theirs = pipeline.SVDVideoPipeline.post_process_latents(None, latents, contrast_enhance_scale=1.2)
    yield Parity("latents after sampling", normalised(latents[None], 1.2)[0], theirs, 1e-5)


def _networks(official: Path) -> Iterator[Parity]:
    """Weights of ours go to theirs by their own converter, and those of the extended blocks by the published names."""
    torch.manual_seed(0)
    plain = UNetSpatioTemporalConditionModel(**_SMALL).eval()
    module = _scaled_module(official, "svd_unet", "SVDUNet", _tenth)
    converted = module.SVDUNet.state_dict_converter().from_diffusers(plain.state_dict())
    sample, time, image, ids, _ = inputs = _inputs(12, 32)
    theirs = module.SVDUNet().eval()
    theirs.load_state_dict(converted)
    yield Parity("UNet, not extended", plain(*inputs)[0][0], theirs(sample[0], float(time), image[0], ids), 1e-4)
    tiled = theirs.tiled_forward(sample[0], float(time), image[0], ids, batch_time=5, stride_time=1)
    call = partial(_one, plain, time, image, ids)
    yield Parity("UNet in windows of 5 frames", by_windows(call, sample, 5)[0], tiled, 1e-4)
    extended = extend(plain, 128)
    for parameter in (p for name, p in extended.named_parameters() if ".pos_" in name):
        nn.init.normal_(parameter, std=0.05)
    theirs = module.SVDUNet(add_positional_conv=128).eval()
    told = theirs.load_state_dict({**converted, **overlay_of(extended)}, strict=False)
    yield Parity("names unknown to either", torch.tensor(sum(map(len, told))), torch.tensor(0), 0.0)
    yield Parity("UNet, extended", extended(*inputs)[0][0], theirs(sample[0], float(time), image[0], ids), 1e-4)
    inner = extended_transformers(extended)["mid_block.attentions.0"]
    hidden = torch.randn(12, 128, 4, 4, generator=torch.Generator().manual_seed(2))
    yield Parity(
        "temporal block, extended",
        _temporal(inner, hidden, image),
        theirs.blocks[83](hidden, None, image[0], [])[0],
        1e-5,
    )


def _one(unet: nn.Module, time: Tensor, image: Tensor, ids: Tensor, sample: Tensor) -> Tensor:
    output: Tensor = unet(sample, time, image, ids, return_dict=False)[0]
    return output


def _temporal(transformer: Any, hidden: Tensor, image: Tensor) -> Tensor:
    """The temporal branch of an extended transformer alone, (F, C, h, w) to the same: all else is made to pass."""
    bare = copy.deepcopy(transformer)
    for name in ("norm", "proj_in", "proj_out"):
        setattr(bare, name, nn.Identity())
    bare.transformer_blocks = nn.ModuleList([_Pass()])
    bare.time_mixer = _Temporal()
    frames = len(hidden)
    output: Tensor = bare(hidden, image.expand(frames, -1, -1), torch.zeros(1, frames), return_dict=False)[0] - hidden
    return output


class _Pass(nn.Module):
    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden


class _Temporal(nn.Module):
    def forward(self, x_spatial: Tensor, x_temporal: Tensor, **_: Any) -> Tensor:
        return x_temporal


def _decoder(official: Path) -> Iterator[Parity]:
    """Fourteen frames in pieces of eight. Pieces of a clip and the clip as a whole differ, in theirs as in ours."""
    torch.manual_seed(0)
    config = {"block_out_channels": (32, 64, 128, 128), "down_block_types": ("DownEncoderBlock2D",) * 4}
    vae = AutoencoderKLTemporalDecoder(**config, layers_per_block=2, latent_channels=4).eval()
    module = _scaled_module(official, "svd_vae_decoder", "SVDVAEDecoder", _quarter)
    theirs = module.SVDVAEDecoder().eval()
    theirs.load_state_dict(theirs.state_dict_converter().from_diffusers(vae.state_dict()))
    latents = torch.randn(1, 14, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    decoding = Decoding(torch.zeros(14, 32, 32, 3, dtype=torch.uint8))
    for _ in spans(14, CHUNK, CHUNK_STRIDE):
        decoding = decode_next(vae, latents, decoding)
    expected = as_bytes(theirs.decode_video(latents[0]).transpose(0, 1))
    yield Parity("frames (bytes), decoded in pieces", decoding.frames, expected, 1.0)
    whole = decoded(vae, latents[0, :CHUNK])
    yield Parity("pixels, one piece", whole, theirs(latents[0, :CHUNK].transpose(0, 1)).transpose(0, 1), 1e-4)


def _scaled_module(official: Path, name: str, kind: str, scaled: Any) -> types.ModuleType:
    """One of DiffSynth's modules with smaller numbers in the constructor of one class; nothing else is changed."""
    source = (official / "diffsynth" / "models" / f"{name}.py").read_text(encoding="utf-8")
    start = source.index(f"class {kind}(")
    stop = source.index("\n    def ", source.index("def __init__", start) + 1)
    module = types.ModuleType(f"diffsynth.models.{name}_scaled")
    module.__package__ = "diffsynth.models"
    exec(source[:start] + scaled(source[start:stop]) + source[stop:].replace("(-1, 768)", "(-1, 24)"), vars(module))
    return module


def _tenth(source: str) -> str:
    """Heads of 32 in place of 64; widths of a tenth; time ids of 3 times 8; a context of 32."""
    source = re.sub(r"\((5|10|20), 64,", lambda found: f"({int(found[1]) // 5}, 32,", source)
    for old, new in (("1024", "32"), ("256", "8"), ("768", "24")):
        source = re.sub(rf"\b{old}\b", new, source)
    return re.sub(r"\b(320|640|960|1280|1920|2560)\b", lambda found: str(int(found[1]) // _DIVISOR), source)


def _quarter(source: str) -> str:
    return re.sub(r"\b(128|256|512)\b", lambda found: str(int(found[1]) // 4), source)
