"""From a model id to a model that is ready to run."""

from __future__ import annotations

import torch

from models.checkpoint import load_into, read_weights
from models.families.dyn_perceiver.config import config_for
from models.families.dyn_perceiver.folding import folded
from models.families.dyn_perceiver.model import DynPerceiver
from models.registry import ModelSpec


def build_meta(spec: ModelSpec) -> DynPerceiver:
    """The architecture on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return DynPerceiver(config_for(spec.variant))


def load_model(
    spec: ModelSpec, device: str | torch.device = "cpu", *, fold: bool = True, random_weights: bool = False
) -> DynPerceiver:
    """Build the model, load its checkpoint, fold batch norms (``fold``), move it to ``device``, eval mode.

    ``random_weights`` skips the checkpoint (seed 0), for speed measurements at full size.

    Raises:
        ValueError: no checkpoint is known or it does not fit; the message says which command makes one.
    """
    model = random_model(spec) if random_weights else _from_checkpoint(spec)
    model = model.eval().requires_grad_(False)
    if fold:
        model = folded(model)
    model.to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return model


def random_model(spec: ModelSpec, seed: int = 0) -> DynPerceiver:
    """Freshly initialised weights, the same for the same seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DynPerceiver(config_for(spec.variant))


def _from_checkpoint(spec: ModelSpec) -> DynPerceiver:
    if spec.checkpoint_dir is None:
        raise ValueError(
            f"{spec.id} ships without weights; convert the official ones with "
            f"'vireo convert dyn-perceiver SRC.pth --model {spec.id} --out DIR' and point the configuration at DIR"
        )
    model = build_meta(spec)
    load_into(model, read_weights(spec.checkpoint_dir))
    return model
