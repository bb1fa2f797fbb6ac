"""timm itself, and the official code of ECA-Net: same random weights and picture, through the loader that serves.

git clone https://github.com/BangguWu/ECANet
python -m models.testing timm --oracle ECANet
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.checkpoint import save_weights
from models.contract import Parity, Variant
from models.families.timm.family import resolve
from models.families.timm.library import timm
from models.families.timm.network import Classifier, build
from models.testing.parity import bare_package

KERNELS = ((3, 3, 3, 3), (3, 5, 5, 7), (5, 5, 5, 7))
"""By stage: the official default, the published ResNet-50, and what timm computes from the channels of a ResNet-50."""
DEPTHS = (18, 34, 50, 101, 152)
_CONFIG = {
    "num_classes": 1000,
    "model_args": {"block_args": {"attn_layer": "eca"}},
    "pretrained_cfg": {"input_size": [3, 224, 224], "license": "mit"},
}


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """See ``Family.oracle``."""
    if official is None:
        yield _with_timm(variant)
        return
    bare_package("ecanet_official", official / "models")
    module = importlib.import_module("ecanet_official.eca_resnet")
    pictures = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    for depth in DEPTHS:
        for kernels in KERNELS:
            theirs = _random_network(module, depth, kernels)
            ours = _through_our_loader(theirs, depth)
            case = f"ECA-ResNet-{depth}, kernels {', '.join(map(str, kernels))}"
            yield Parity(case, ours(pictures), theirs.double()(pictures), 1e-9)


def _with_timm(variant: Variant) -> Parity:
    """Probabilities of bytes, beside timm's model on the picture scaled by hand."""
    ours = build(variant, random_weights=True)
    theirs = timm().create_model(variant.config["architecture"], num_classes=variant.io.num_classes).eval()
    theirs.load_state_dict(ours.state_dict())
    side = variant.io.input_size
    picture = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scaled = (picture / 255 - torch.tensor(variant.io.mean)) / torch.tensor(variant.io.std)
    expected = theirs(scaled.permute(0, 3, 1, 2)).softmax(1)
    return Parity(variant.id, Classifier(ours, variant).forward(picture)["probabilities"], expected, 1e-5)


def _through_our_loader(theirs: nn.Module, depth: int) -> nn.Module:
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(state, folder)
        (folder / "config.json").write_text(json.dumps({"architecture": f"resnet{depth}", **_CONFIG}))
        ours: nn.Module = build(resolve("ecanet", folder)).double()
    return ours


def _random_network(module: Any, depth: int, kernels: tuple[int, ...]) -> nn.Module:
    """An official network whose batch norms do something, as after training."""
    network: nn.Module = getattr(module, f"eca_resnet{depth}")(k_size=list(kernels)).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.2, 0.7)  # small enough for 50 blocks to stay in range
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network
