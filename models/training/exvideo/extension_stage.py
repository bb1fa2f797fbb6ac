"""Trains the extension alone, from the weights of a folder: what it has learnt is kept, the rest of the folder stays.

    python -m models.training.exvideo.extension_stage --from models/checkpoints/exvideo-nano --out .cache/exvideo-nano

``--out`` becomes a folder that can be served. An interrupted run goes on there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from models.training import calibration
from models.training.exvideo import denoiser, export, latents
from models.training.exvideo.denoiser import Windows
from models.training.exvideo.train import LOG_FILE, WORK_FOLDER, Plans
from models.training.stages import records


def main() -> None:
    """Command line."""
    usual = Plans()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder with weights to begin from")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=usual.extension.steps)
    parser.add_argument("--lr", type=float, default=usual.extension.lr)
    parser.add_argument("--clips", type=int, default=usual.long_clips)
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    plan = replace(usual.extension, steps=args.steps, lr=args.lr, seed=args.seed)
    work = args.out / WORK_FOLDER
    if not work.is_dir():
        shutil.copytree(args.source, args.out, dirs_exist_ok=True)
        work.mkdir()
    with calibration.threads(1):
        parts = export.load_parts(args.source, is_extended=True)
        parts.unet.train().requires_grad_(False)
        for parameter in denoiser.temporal_parameters(parts.unet):
            parameter.requires_grad_(True)
        for frozen in (parts.vae, parts.encoder):
            frozen.requires_grad_(False)
        stored, scenes = latents.make(work, parts.vae, args.clips, is_long=True)
        windows = Windows(stored, scenes, parts.vae, parts.encoder, is_long=True)
        extended = denoiser.train(work, windows, parts.unet, plan, _tell)
    export.save_overlay(args.out, extended)
    export.save_statistics(args.out, stored * parts.vae.config.scaling_factor)
    log = json.loads((args.source / LOG_FILE).read_text("utf-8"))
    before = log["extension"][-1]["step"]
    log["extension"] += [{**one, "step": before + one["step"]} for one in records(work, plan.name)]
    (args.out / LOG_FILE).write_text(json.dumps(log, indent=0, allow_nan=False) + "\n", encoding="utf-8")


def _tell(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{done}/{total} steps", flush=True)


if __name__ == "__main__":
    main()
