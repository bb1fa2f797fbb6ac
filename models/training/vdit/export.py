"""What training left behind to a checkpoint folder: float16 weights, one folder per network, published names.

    python -m models.training.vdit.export --out .cache/vdit-nano --to models/checkpoints/vdit-nano

The folder gets ``teacher``, ``student`` (if there is one), ``vae``, ``text_encoder`` with its tokenizer, and ``judge``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model

from models.families.vdit.loading import save_network
from models.families.vdit.vae_config import CausalVaeConfig
from models.training.vdit.dit_stage import TextToLatents
from models.training.vdit.latents_stage import load_vae
from models.training.vdit.nano import nano_transformer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that the stages wrote to")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    export(args.out, args.to)


def export(training: Path, checkpoint: Path) -> None:
    """Write all networks that are there.

    Raises: OSError: no autoencoder or no teacher yet.
    """
    export_vae(training, checkpoint / "vae")
    whole = TextToLatents()
    load_model(whole, training / "teacher.safetensors")
    config = nano_transformer().to_dict()
    save_network(whole.transformer, config, checkpoint / "teacher", torch.float16)
    whole.half()
    whole.text.save_pretrained(checkpoint / "text_encoder")
    whole.tokenizer.save_pretrained(checkpoint / "text_encoder")
    if (student := training / "student.safetensors").is_file():
        whole.transformer.load_state_dict(load_file(student))
        save_network(whole.transformer, config, checkpoint / "student", torch.float16)
    if (judge := training / "judge").is_dir():
        shutil.copytree(judge, checkpoint / "judge", dirs_exist_ok=True)


def export_vae(training: Path, folder: Path) -> None:
    """The autoencoder."""
    vae = load_vae(training)
    written = json.loads((training / "vae.json").read_text(encoding="utf-8"))
    CausalVaeConfig.from_dict(written)
    save_network(vae, written, folder, torch.float16)


if __name__ == "__main__":
    main()
