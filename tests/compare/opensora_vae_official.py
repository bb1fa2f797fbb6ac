"""Compare the CausalVAE with the official code of Open-Sora-Plan v1.2.0: same random weights, latents and pixels.

Not part of the test suite, because it needs things that are not ours to ship:

    git clone --branch v1.2.0 https://github.com/PKU-YuanGroup/Open-Sora-Plan official
    pip install einops
    python -m tests.compare.opensora_vae_official official

The official module imports libraries for training and for reading videos, which take no part in encoding and decoding;
empty stand-ins take their place.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.vae_config import CausalVaeConfig
from models.families.vdit.vae_tiling import VaeTiling, tiled_decode
from tests.compare.dyn_perceiver_official import bare_package, commit_of, gap

BASE = "opensora.models.causalvideovae"
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


def main() -> None:
    """Print one Markdown row per config and size; exit status 1 if a difference is above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, help="checkout of the official repository")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--width", type=int, default=32, help="hidden size: a multiple of the official 32 groups")
    args = parser.parse_args()
    official = import_official(args.official)
    print(f"official code at {commit_of(args.official)}, torch {torch.__version__}, fp32 on the CPU")
    for name, config in CONFIGS.items():
        print_published(official, name, config)
    print("| config | frames x height x width | largest latent, pixel | mean | log-variance | decode | tiled decode |")
    print("|---|---|---|---|---|---|---|")
    worst = max(compare(official, name, config, args.width) for name, config in CONFIGS.items())
    sys.exit(0 if worst <= args.tolerance else f"difference {worst:.2e} exceeds {args.tolerance:.0e}")


def import_official(checkout: Path) -> Any:
    """The official class, without the start-up code of its packages and the libraries that it does not need here."""
    for name in ("opensora", "opensora.models", BASE, f"{BASE}.model", f"{BASE}.model.causal_vae"):
        bare_package(name, checkout / name.replace(".", "/"))
    stand_in("diffusers", ModelMixin=nn.Module, ConfigMixin=object)
    stand_in("diffusers.configuration_utils", ConfigMixin=object, register_to_config=lambda function: function)
    stand_in("diffusers.models")
    stand_in("diffusers.models.modeling_utils", ModelMixin=nn.Module)
    for name in ("pytorch_lightning", "torchvision", "pytorchvideo", f"{BASE}.eval", f"{BASE}.utils"):
        stand_in(name)
    stand_in("decord", VideoReader=None, cpu=None)
    stand_in("pytorchvideo.transforms", ShortSideScale=None)
    stand_in("torchvision.io", read_video=None)
    stand_in("torchvision.transforms", Lambda=None, Compose=None)
    stand_in("torchvision.transforms._transforms_video", CenterCropVideo=None)
    stand_in(f"{BASE}.eval.cal_psnr", calculate_psnr=None)
    stand_in(f"{BASE}.utils.utils", custom_to_video=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the official sources have invalid escapes
        return importlib.import_module(f"{BASE}.model.causal_vae.modeling_causalvae").CausalVAEModel


def stand_in(name: str, **attributes: Any) -> None:
    """Register an empty module under ``name``."""
    module = types.ModuleType(name)
    module.__path__ = []
    vars(module).update(attributes)
    sys.modules[name] = module


def official_arguments(config: CausalVaeConfig) -> dict[str, Any]:
    """Constructor arguments: the fields of the published config.json."""
    ours = {"norm_num_groups", "scale_factor"}
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in ours}


def print_published(official: Any, name: str, config: CausalVaeConfig) -> None:
    """Names and shapes at the published width, without memory for them."""
    with torch.device("meta"):
        theirs, ours = official(**official_arguments(config)).state_dict(), CausalVae(config).state_dict()
    same = {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}
    count = sum(value.numel() for value in theirs.values())
    print(f"{name}: {len(theirs)} tensors, {count} parameters, names and shapes {'agree' if same else 'DIFFER'}")
    if not same:
        raise SystemExit(f"{name}: {sorted(theirs.keys() ^ ours.keys())[:8]}")


@torch.inference_mode()
def compare(official: Any, name: str, config: CausalVaeConfig, width: int) -> float:
    """Print the rows of one config and return the largest difference."""
    config = dataclasses.replace(config, hidden_size=width)
    theirs = official(**official_arguments(config)).eval()
    randomise(theirs, seed=1)
    ours = CausalVae(config).eval()
    ours.load_state_dict(theirs.state_dict())
    worst = max(compare_size(theirs, ours, name, size) for size in SIZES)
    return max(worst, *(compare_tiled(theirs, ours, name, size) for size in TILED))


def compare_size(theirs: Any, ours: CausalVae, name: str, size: tuple[int, int, int]) -> float:
    """Encode pixels and decode what the official encoder made of them."""
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(sum(size))) * 2 - 1
    expected, found = theirs.encode(pixels), ours.encode(pixels)
    clip = theirs.decode(expected.mode())
    gaps = (gap(found.mean, expected.mean), gap(found.logvar, expected.logvar))
    decoded = gap(ours.decode(expected.mode()), clip)
    cells = " | ".join(f"{value:.1e}" for value in (*gaps, decoded))
    print(f"| {name} | {'x'.join(map(str, size))} | {largest(expected.mean, clip)} | {cells} | |", flush=True)
    return max(*gaps, decoded)


def compare_tiled(theirs: Any, ours: CausalVae, name: str, size: tuple[int, int, int]) -> float:
    """Decode in tiles of 64 pixels and 4 latent frames."""
    tiling = VaeTiling(side_px=64, latent_frames=4)
    theirs.tile_sample_min_size, theirs.tile_latent_min_size, theirs.tile_latent_min_size_t = 64, 8, 4
    grid = ours.config.latent_grid(*size)
    latents = torch.randn(1, 4, *grid, generator=torch.Generator().manual_seed(sum(size)))
    theirs.enable_tiling()
    expected = theirs.decode(latents)
    theirs.disable_tiling()
    found = gap(tiled_decode(ours, latents, tiling), expected)
    print(f"| {name} | {'x'.join(map(str, size))} | {largest(latents, expected)} | | | | {found:.1e} |", flush=True)
    return found


def largest(latents: Tensor, clip: Tensor) -> str:
    """Largest magnitudes, which differences are to be seen against."""
    return f"{float(latents.abs().max()):.1f}, {float(clip.abs().max()):.1f}"


def randomise(model: nn.Module, seed: int) -> None:
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


if __name__ == "__main__":
    main()
