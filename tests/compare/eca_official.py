"""Compare ECA-Net with the official code: same random weights and picture, logits, through the loader that serves.

Not part of the test suite, because it needs what is not ours to ship:

    git clone https://github.com/BangguWu/ECANet
    python tests/compare/eca_official.py ECANet
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from models.checkpoint import save_weights
from models.families.timm.family import resolve
from models.families.timm.network import build

KERNELS = ((3, 3, 3, 3), (3, 5, 5, 7), (5, 5, 5, 7))
"""By stage: the official default, the published ResNet-50, and what timm computes from the channels of a ResNet-50."""
DEPTHS = (18, 34, 50, 101, 152)
_CONFIG = {
    "num_classes": 1000,
    "model_args": {"block_args": {"attn_layer": "eca"}},
    "pretrained_cfg": {"input_size": [3, 224, 224], "license": "mit"},
}


def official(folder: Path) -> Any:
    """The official module. Its package is called ``models`` like ours, so it is imported under another name."""
    package = ModuleType("ecanet_official")
    package.__path__ = [str(folder / "models")]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.eca_resnet")


@torch.no_grad()
def difference(theirs: torch.nn.Module, depth: int, pictures: torch.Tensor) -> tuple[float, float]:
    """Largest difference of logits, and the largest logit, once our loader has read the official weights."""
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(state, folder)
        (folder / "config.json").write_text(json.dumps({"architecture": f"resnet{depth}", **_CONFIG}))
        ours = build(resolve("ecanet", folder)).double()
    expected = theirs.double()(pictures)
    return float((ours(pictures) - expected).abs().max()), float(expected.abs().max())


def random_network(module: Any, depth: int, kernels: tuple[int, ...]) -> torch.nn.Module:
    """An official network whose batch norms do something, as after training."""
    network: torch.nn.Module = getattr(module, f"eca_resnet{depth}")(k_size=list(kernels)).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.2, 0.7)  # small enough for 50 blocks to stay in range
            torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
            torch.nn.init.uniform_(layer.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network


def main(folder: Path) -> None:
    """Print the table."""
    torch.manual_seed(0)
    module, pictures = official(folder), torch.randn(1, 3, 224, 224, dtype=torch.float64)
    print("| network | kernel sizes by stage | largest difference of logits | largest logit |\n|---|---|---|---|")
    for depth in DEPTHS:
        for kernels in KERNELS:
            worst, scale = difference(random_network(module, depth, kernels), depth, pictures)
            print(f"| ECA-ResNet-{depth} | {', '.join(map(str, kernels))} | {worst:.1e} | {scale:.1f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
