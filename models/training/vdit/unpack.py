"""A checkpoint folder back to what the stages of training leave behind: the way back from ``export``.

    python -m models.training.vdit.unpack models/checkpoints/vdit-nano --out .cache/vdit-nano

So the teacher can go on from weights that were shipped (``--resume``), when the folder that they were trained in is
gone. The student is not unpacked: it begins from the checkpoint itself (``distil_stage --begin-from``).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import save_model
from transformers import MT5EncoderModel

from models.families.vdit.loading import load_transformer, load_vae
from models.training.vdit.dit_stage import TextToLatents
from models.training.vdit.vae_stage import save


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder that the stages write to")
    args = parser.parse_args()
    unpack(args.checkpoint, args.out)


def unpack(checkpoint: Path, training: Path) -> None:
    """Write autoencoder, judge, and teacher with its text encoder.

    Raises: ValueError, OSError: a network is missing, or of another model.
    """
    training.mkdir(parents=True, exist_ok=True)
    save(load_vae(checkpoint / "vae"), training)
    shutil.copytree(checkpoint / "judge", training / "judge", dirs_exist_ok=True)
    whole = TextToLatents()
    whole.transformer.load_state_dict(load_transformer(checkpoint / "teacher").state_dict())
    text = MT5EncoderModel.from_pretrained(checkpoint / "text_encoder", dtype="float32")
    whole.text.load_state_dict(text.state_dict())
    save_model(whole, str(training / "teacher.safetensors"))  # knows that embeddings are shared


if __name__ == "__main__":
    main()
