"""The plain pipeline, diffusers' samplers, and the official code of Open-Sora-Plan v1.2.0 on same weights and noise.

    git clone --branch v1.2.0 https://github.com/PKU-YuanGroup/Open-Sora-Plan official
    pip install --no-deps einops diffusers==0.30.3
    python -m models.testing vdit --oracle official

Official modules import helpers for training, other devices, several ranks and reading videos, which take no part here;
empty stand-ins take their place.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.contract import Parity, Point, Variant
from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.networks import load
from models.families.vdit.pipeline import VideoPipeline
from models.families.vdit.runner import VditRunner
from models.families.vdit.transformer import OpenSoraT2V
from models.families.vdit.vae_config import CausalVaeConfig, VaeTiling
from models.families.vdit.vae_tiling import tiled_decode
from models.io import ClipRequest
from models.methods.samplers.make import make_sampler
from models.testing.parity import bare_package, stand_in

_TRANSFORMER = "opensora.models.diffusion.opensora"
_VAE = "opensora.models.causalvideovae"
SMALL = OpenSoraConfig(
    num_attention_heads=4, attention_head_dim=48, num_layers=3, cross_attention_dim=192, caption_channels=64,
    sample_size=(16, 24), sample_size_t=8, interpolation_scale_thw=(1.0, 1.5, 2.0),
)  # fmt: skip
CASES = {
    "720p scales": SMALL,
    "no scales": dataclasses.replace(SMALL, interpolation_scale_thw=(1.0, 1.0, 1.0)),
    "head dim 96": dataclasses.replace(SMALL, num_attention_heads=2, attention_head_dim=96),
}
GRIDS = ((2, 6, 8), (5, 6, 4), (8, 10, 6), (3, 2, 14))
"""Latent frames, rows, columns. Patches differ in number along all three axes: the official cache of angles is keyed by
length and forgets the scale, so two axes of one length get the first one's angles (1.6e-2 off at 2x4x6)."""
# The official constructor's own defaults: the first version of the VAE.
FIRST = {
    "attn_resolutions": (),
    "encoder_conv_in": "CausalConv3d",
    "encoder_attention": "AttnBlock3D",
    "encoder_resnet_blocks": ("ResnetBlock3D",) * 4,
    "encoder_spatial_downsample": ("SpatialDownsample2x",) * 3 + ("",),
    "encoder_temporal_downsample": ("", "TimeDownsample2x", "TimeDownsample2x", ""),
    "decoder_attention": "AttnBlock3D",
    "decoder_temporal_upsample": ("", "", "TimeUpsample2x", "TimeUpsample2x"),
}
CONFIGS = {
    "v1.2": CausalVaeConfig.published(),
    "v1.1": CausalVaeConfig(),
    "v1.0": CausalVaeConfig(**FIRST),  # type: ignore[arg-type]
    "v1.2, attention at 64 and 32": dataclasses.replace(CausalVaeConfig.published(), attn_resolutions=(64, 32)),
}
SIZES = ((1, 32, 32), (5, 32, 48), (9, 48, 24), (17, 40, 64))
TILED = ((25, 96, 64), (13, 72, 104), (45, 64, 56))


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """See ``Family.oracle``."""
    if official is None:
        yield from _pipeline(variant)
        return
    yield from _samplers()
    warnings.simplefilter("ignore")  # the official sources have invalid escapes
    torch.manual_seed(0)
    yield from _transformers(_official_transformer(official))
    yield from _autoencoders(_official_vae(official))


def _pipeline(variant: Variant) -> Iterator[Parity]:
    """One clip slice by slice, which leaves out the padding of its text, and by the plain loop."""
    point: Point = {"num_inference_steps": 4, "sampler": "ddim", "guidance_scale": 3.0, "attention": "dense"}
    request = ClipRequest(prompt="a red circle", num_frames=variant.io.frame_counts[0])
    runner = VditRunner(load(variant), variant)
    state = runner.open(request, point, 3)
    while runner.remaining(state):
        runner.step([state])
    plain = VideoPipeline.load(variant)
    latents = plain.generate(
        [request.prompt], frames=request.num_frames, sampler="ddim", num_steps=4, guidance=3.0, seeds=[3]
    )
    yield Parity("latents", state.kept["latents"], latents, 1e-4 * float(latents.abs().max()))
    frames, expected = (torch.from_numpy(each) for each in (runner.close(state)["frames"], plain.decode(latents)))
    yield Parity("frames", frames, expected, 1.0)


def _samplers() -> Iterator[Parity]:
    """Whole runs with a made-up model, beside diffusers, which the official pipeline uses."""
    from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler

    for steps in (5, 20, 100):
        euler, ddim = EulerAncestralDiscreteScheduler(), DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        for name, theirs in (("euler_ancestral", euler), ("ddim", ddim)):
            theirs.set_timesteps(steps)
            expected, found = _run_both(theirs, make_sampler(name, steps))
            yield Parity(f"{name}, {steps} steps", found, expected, 1e-4 * max(1.0, float(expected.abs().max())))


def _run_both(theirs: Any, ours: Any) -> tuple[Tensor, Tensor]:
    """Both from the same noise; the noise of each step is drawn from generators of the same seed."""
    noise = torch.randn(2, 4, 3, 4, 4)
    expected, found = noise * theirs.init_noise_sigma, ours.initial(noise)
    for step, timestep in enumerate(theirs.timesteps):
        shown = theirs.scale_model_input(expected, timestep)
        keywords = {"generator": torch.Generator().manual_seed(step)} if hasattr(theirs, "sigmas") else {}
        expected = theirs.step(_made_up(shown, float(timestep)), timestep, expected, **keywords).prev_sample
        output = _made_up(ours.scale_input(found, step), ours.timestep(step))
        found = ours.step(found, output, step, torch.Generator().manual_seed(step))
    return expected, found


def _made_up(latents: Tensor, timestep: float) -> Tensor:
    """Something that depends on latents and timestep, as a model's output does."""
    return torch.tanh(latents * (0.5 + timestep / 1000)) + 0.1 * torch.sin(latents)


def _official_transformer(checkout: Path) -> Any:
    """The official transformer's module."""
    for name in ("opensora", "opensora.utils", "opensora.models", "opensora.models.diffusion", _TRANSFORMER):
        bare_package(name, checkout / name.replace(".", "/"))
    stand_in(
        "opensora.utils.parallel_states",
        get_sequence_parallel_state=lambda: False,
        nccl_info=types.SimpleNamespace(world_size=1),
    )
    stand_in("opensora.utils.communications", all_to_all_SBH=None)
    stand_in(
        "opensora.utils.utils",
        to_2tuple=lambda value: tuple(value) if isinstance(value, list | tuple) else (value, value),
    )
    stand_in("diffusers.models.transformer_2d", Transformer2DModelOutput=types.SimpleNamespace)
    return importlib.import_module(f"{_TRANSFORMER}.modeling_opensora")


def _transformers(official: Any) -> Iterator[Parity]:
    for name, config in CASES.items():
        for grid in GRIDS:
            theirs, ours = _build_pair(official, config)
            latents, timestep, text, mask = _inputs(config, grid)
            expected = theirs(
                latents, timestep, text[:, None], encoder_attention_mask=mask[:, None].float(),
                attention_mask=torch.ones(len(latents), *grid), return_dict=False,
            )[0]  # fmt: skip
            shape = "x".join(map(str, grid))
            yield Parity(f"transformer, {name}, {shape}", ours(latents, timestep, text, mask), expected)


def _build_pair(official: Any, config: OpenSoraConfig) -> tuple[nn.Module, OpenSoraT2V]:
    """Theirs with random weights, ours with the same; names must be the same, too."""
    scales = {f"interpolation_scale_{axis}": config.interpolation_scale_thw[i] for i, axis in enumerate("thw")}
    theirs = official.OpenSoraT2V(
        num_attention_heads=config.num_attention_heads, attention_head_dim=config.attention_head_dim,
        in_channels=4, out_channels=4, num_layers=config.num_layers, cross_attention_dim=config.cross_attention_dim,
        attention_bias=True, sample_size=config.sample_size, sample_size_t=config.sample_size_t, patch_size=2,
        patch_size_t=1, activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False,
        norm_eps=1e-6, caption_channels=config.caption_channels, attention_mode="math", use_rope=True, **scales,
    ).eval()  # fmt: skip
    ours = OpenSoraT2V(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.06)
    weights = {name: tensor for name, tensor in theirs.state_dict().items() if "pos_embed.pos" not in name}
    ours.load_state_dict(weights)
    return theirs, ours


def _inputs(config: OpenSoraConfig, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two samples of different timesteps and lengths of text."""
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    latents = torch.randn(2, 4, *grid)
    return latents, torch.tensor([17, 903]), torch.randn(2, 9, config.caption_channels), mask


def _official_vae(checkout: Path) -> Any:
    """The official class, without the start-up code of its packages and the libraries that it does not need here."""
    for name in ("opensora", "opensora.models", _VAE, f"{_VAE}.model", f"{_VAE}.model.causal_vae"):
        bare_package(name, checkout / name.replace(".", "/"))
    stand_in("diffusers", ModelMixin=nn.Module, ConfigMixin=object)
    stand_in("diffusers.configuration_utils", ConfigMixin=object, register_to_config=lambda function: function)
    stand_in("diffusers.models")
    stand_in("diffusers.models.modeling_utils", ModelMixin=nn.Module)
    for name in ("pytorch_lightning", "torchvision", "pytorchvideo", f"{_VAE}.eval", f"{_VAE}.utils"):
        stand_in(name)
    stand_in("decord", VideoReader=None, cpu=None)
    stand_in("pytorchvideo.transforms", ShortSideScale=None)
    stand_in("torchvision.io", read_video=None)
    stand_in("torchvision.transforms", Lambda=None, Compose=None)
    stand_in("torchvision.transforms._transforms_video", CenterCropVideo=None)
    stand_in(f"{_VAE}.eval.cal_psnr", calculate_psnr=None)
    stand_in(f"{_VAE}.utils.utils", custom_to_video=None)
    return importlib.import_module(f"{_VAE}.model.causal_vae.modeling_causalvae").CausalVAEModel


def _official_arguments(config: CausalVaeConfig) -> dict[str, Any]:
    """Constructor arguments: the fields of the published config.json."""
    ours = {"norm_num_groups", "scale_factor"}
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ours}


def _autoencoders(official: Any) -> Iterator[Parity]:
    """A hidden size of 32: a multiple of the official 32 groups. Names and shapes are compared at the published one."""
    for name, published in CONFIGS.items():
        with torch.device("meta"):
            theirs, ours = official(**_official_arguments(published)).state_dict(), CausalVae(published).state_dict()
        assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}, name
        config = dataclasses.replace(published, hidden_size=32)
        their_vae = official(**_official_arguments(config)).eval()
        _randomise(their_vae, seed=1)
        our_vae = CausalVae(config).eval()
        our_vae.load_state_dict(their_vae.state_dict())
        for size in SIZES:
            yield from _coded(their_vae, our_vae, f"VAE {name}, {'x'.join(map(str, size))}", size)
        for size in TILED:
            yield _tiled(their_vae, our_vae, f"VAE {name}, {'x'.join(map(str, size))}, tiled", size)


def _coded(theirs: Any, ours: CausalVae, case: str, size: tuple[int, int, int]) -> Iterator[Parity]:
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(sum(size))) * 2 - 1
    expected, found = theirs.encode(pixels), ours.encode(pixels)
    yield Parity(f"{case}, mean", found.mean, expected.mean)
    yield Parity(f"{case}, log-variance", found.logvar, expected.logvar)
    yield Parity(f"{case}, decoded", ours.decode(expected.mode()), theirs.decode(expected.mode()))


def _tiled(theirs: Any, ours: CausalVae, case: str, size: tuple[int, int, int]) -> Parity:
    """Tiles of 64 pixels and 4 latent frames."""
    theirs.tile_sample_min_size, theirs.tile_latent_min_size, theirs.tile_latent_min_size_t = 64, 8, 4
    latents = torch.randn(1, 4, *ours.config.latent_grid(*size), generator=torch.Generator().manual_seed(sum(size)))
    theirs.enable_tiling()
    expected = theirs.decode(latents)
    theirs.disable_tiling()
    return Parity(case, tiled_decode(ours, latents, VaeTiling(side_px=64, latent_frames=4)), expected)


def _randomise(model: nn.Module, seed: int) -> None:
    """Random values everywhere, also where training starts from zeros and ones, so that nothing hides."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1, generator=generator)
        elif name.endswith("mix_factor"):
            parameter.data.normal_(0, 1.0, generator=generator)
        else:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
