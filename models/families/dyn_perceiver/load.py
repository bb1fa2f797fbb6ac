"""From a variant to a network that is ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch

from models.checkpoint import check_against, load_into, load_official, read_weights, save_weights
from models.contract import OnProgress, Variant
from models.families.dyn_perceiver.folding import folded
from models.families.dyn_perceiver.model import DynPerceiver


def build_meta(variant: Variant) -> DynPerceiver:
    """The architecture on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return DynPerceiver(variant.config["network"])


def load_model(
    variant: Variant, device: str | torch.device = "cpu", *, fold: bool = True, random_weights: bool = False
) -> DynPerceiver:
    """Build the network, load its checkpoint, fold batch norms (``fold``), move it to ``device``, eval mode.

    ``random_weights`` skips the checkpoint (seed 0), for speed measurements at full size.

    Raises:
        ValueError: no checkpoint is known or it does not fit; the message says which command makes one.
    """
    model = random_model(variant) if random_weights else _from_checkpoint(variant)
    model = model.eval().requires_grad_(False)
    if fold:
        model = folded(model)
    model.to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return model


def random_model(variant: Variant, seed: int = 0) -> DynPerceiver:
    """Freshly initialised weights, the same for the same seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DynPerceiver(variant.config["network"])


def convert(
    variant: Variant,
    source: Annotated[Path, "Published checkpoint (.pth)."],
    *,
    out: Annotated[Path, "Folder for model.safetensors."],
    ema: Annotated[bool, "Take the averaged weights where the file has both."] = True,
    on_progress: OnProgress,
) -> list[str]:
    """Convert a published checkpoint to safetensors. The file is read without running code that it may contain, and
    every name and shape is checked.

    Raises: ValueError: see ``load_official``, ``check_against``.
    """
    if not source.is_file():
        raise ValueError(f"{source} is not a file; pass the downloaded checkpoint")
    state = load_official(source, prefer_ema=ema)
    check_against(build_meta(variant), state)
    path = save_weights(state, out, {"model": variant.id, "source": source.name})
    on_progress("tensors", len(state), len(state))
    return [f"{len(state)} tensors written to {path}"]


def _from_checkpoint(variant: Variant) -> DynPerceiver:
    if variant.weights is None:
        raise ValueError(
            f"{variant.id} ships without weights; convert the official ones with "
            f"'vireo convert dyn-perceiver SRC.pth --model {variant.id} --out DIR --accept-licence' and point the "
            "configuration at DIR"
        )
    model = build_meta(variant)
    load_into(model, read_weights(variant.weights))
    return model
