"""A classifier of timm as the host runs it: bytes in, probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import load_into, read_weights
from models.contract import Point, Variant
from models.families.timm.describe import create
from models.layers.pixels import Normalise, check_pictures


def build(variant: Variant, device: str | torch.device = "cpu", *, random_weights: bool = False) -> Any:
    """The network with the weights of ``variant.weights``, or with random ones (seed 0) where that is asked for.

    Raises: ValueError: there are no weights, or they do not fit.
    """
    config = variant.config
    if variant.weights is None and not random_weights:
        raise ValueError(
            f"{variant.id} comes without weights, and none are downloaded; give a folder with model.safetensors "
            f"({variant.id}=FOLDER), or ask for random_weights to measure speed alone"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create(config["architecture"], config["arguments"], config["settings"])
    if variant.weights is not None and not random_weights:
        weights = {ours: tensor for name, tensor in read_weights(variant.weights).items() if (ours := rename(name))}
        fit_kernels(network, weights)
        load_into(network, weights)
    return network.eval().requires_grad_(False).to(device)


def rename(name: str) -> str | None:
    """timm's name of a parameter, from a checkpoint of timm's or of ECA-Net's official code."""
    return name.removeprefix("module.").replace(".eca.conv.", ".se.conv.")


def fit_kernels(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the 1-d convolutions of channel attention the kernel sizes of the weights.

    timm computes them from the number of channels; ECA-Net's own checkpoints have others, stage by stage.
    """
    for name, module in network.named_modules():
        kernel = weights.get(f"{name}.weight")
        if isinstance(module, nn.Conv1d) and kernel is not None and kernel.shape != module.weight.shape:
            size = kernel.shape[-1]
            if kernel.shape == (1, 1, size) and size % 2:
                parent, _, child = name.rpartition(".")
                fitted = nn.Conv1d(1, 1, size, padding=size // 2, bias=module.bias is not None)
                setattr(network.get_submodule(parent), child, fitted)


class Classifier:
    """See ``models.contract.Unary``."""

    def __init__(self, network: nn.Module, variant: Variant) -> None:
        self.device = next(network.parameters()).device
        self._network = network
        self._side = variant.io.input_size
        self._normalise = Normalise(variant.io, self.device)

    @torch.inference_mode()
    def forward(self, batch: Any, points: Sequence[Point] = ()) -> Mapping[str, Tensor]:
        """uint8 pictures (B, S, S, 3) to probabilities (B, classes).

        Raises: ValueError: wrong dtype or shape.
        """
        pictures = check_pictures(torch.as_tensor(batch), self._side).to(self.device)
        scores = self._network(self._normalise(pictures).permute(0, 3, 1, 2))
        return {"probabilities": torch.softmax(scores.float(), 1)}
