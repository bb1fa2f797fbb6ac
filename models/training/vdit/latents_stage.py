"""Second stage: rendered clips to latents, in shards, as long as it is let run.

    python -m models.training.vdit.latents_stage --out .cache/vdit-nano --shards 16

A shard is a safetensors file: ``latents`` float16 (N, 8, t, 8, 8), scaled to unit variance, with the prompts in its
metadata. Training of the transformer may read what is there while more is made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.vae_config import CausalVaeConfig
from models.training.vdit.clips import render
from models.training.vdit.nano import FRAMES
from models.training.vdit.scenes import sample_scene
from models.training.vdit.vae_stage import to_pixels

SHARD = 256


def load_vae(folder: Path) -> CausalVae:
    """The autoencoder of the first stage."""
    vae = CausalVae(CausalVaeConfig.from_dict(json.loads((folder / "vae.json").read_text())))
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    return vae.eval().requires_grad_(False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="number of the first shard; its seed, too")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--two", type=float, default=0.15, help="share of scenes with two objects")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vae = load_vae(args.out)
    for number in range(args.first, args.first + args.shards):
        write_shard(vae, args.out / f"latents-{args.frames}-{number:03d}.safetensors", number, args.frames, args.two)


@torch.inference_mode()
def write_shard(vae: CausalVae, path: Path, seed: int, frames: int, two: float) -> None:
    """Render, encode, write; under another name first, so that nobody reads half a file."""
    rng = np.random.default_rng(10_000 + seed)
    latents, prompts = [], []
    for _ in range(SHARD):
        scene = sample_scene(rng, two=two)
        pixels = to_pixels(torch.from_numpy(render(scene, frames, rng)))[None]
        latents.append((vae.encode(pixels).mode() * vae.config.scale_factor).half())
        prompts.append(scene.prompt())
    draft = path.with_suffix(".draft")
    save_file({"latents": torch.cat(latents)}, draft, metadata={"prompts": json.dumps(prompts)})
    draft.rename(path)
    print(path.name, flush=True)


def read_shards(folder: Path, frames: int) -> tuple[Tensor, list[str]]:
    """All latents of that length, float16 (N, 8, t, 8, 8), and their prompts."""
    latents, prompts = [], []
    for path in sorted(folder.glob(f"latents-{frames}-*.safetensors")):
        with safe_open(path, "pt") as file:
            latents.append(file.get_tensor("latents"))
            prompts += json.loads(file.metadata()["prompts"])
    return (torch.cat(latents) if latents else torch.empty(0)), prompts


if __name__ == "__main__":
    main()
