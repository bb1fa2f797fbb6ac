"""The plain network, and the official code: same random weights and inputs, logits of all four exits.

The official code needs timm and torchvision of its time, of which only pure-Python modules are used; the start-up code
of these packages, which needs compiled operators, is skipped:

    git clone https://github.com/LeapLabTHU/Dynamic_Perceiver official
    pip download --no-deps timm==0.5.4 torchvision==0.13.1     # unpack both wheels into official/libraries
    pip install einops
    python -m models.testing dyn-perceiver --oracle official
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from models.checkpoint import load_into
from models.contract import Parity, Variant
from models.families.dyn_perceiver.folding import folded
from models.families.dyn_perceiver.load import build_meta, load_model
from models.registry import find
from models.testing.parity import bare_package

# Constructor arguments: the commands of the official README.
FLAGS = {"SA_widening_factor": 4, "spatial_reduction": True}
VARIANTS = {
    "dyn-perceiver-regnety-800mf": ("dyn_perceiver_regnet", "reg800m_perceiver_t128", [1, 1, 1, 2]),
    "dyn-perceiver-resnet50-x0375": ("dyn_perceiver_resnet", "resnet50_0375_perceiver_t128", [1, 1, 1, 1]),
    "dyn-perceiver-mobilenetv3-x075": ("dyn_perceiver_mobilenet_v3", "mobilenetV3_0x75_perceiver_t128", [1, 1, 1, 3]),
}


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    """See ``Family.oracle``."""
    if official is None:
        plain, served = (load_model(variant, fold=fold) for fold in (False, True))
        yield from _exits(variant.id, served, plain, variant.io.input_size)
        return
    _import_paths(official, official / "libraries")
    for model_id in VARIANTS:
        theirs = _build_official(model_id)
        _randomise(theirs, seed=1)
        ours = build_meta(find(model_id)[1])
        load_into(ours, theirs.state_dict())  # fails unless every name and shape agrees
        yield from _exits(model_id, ours.eval(), theirs, 224)
        yield from _exits(f"{model_id}, folded", folded(ours), theirs, 224)


def _exits(case: str, ours: nn.Module, theirs: nn.Module, side: int) -> Iterator[Parity]:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for number, (found, expected) in enumerate(zip(ours(images), theirs(images), strict=True), start=1):
        yield Parity(f"{case}, exit {number}", found, expected)


def _import_paths(official: Path, libraries: Path) -> None:
    """Make the official modules importable without running the start-up code of their packages."""
    for name in ("timm", "timm.data", "timm.models", "torchvision", "torchvision.ops", "torchvision.models"):
        bare_package(name, libraries / name.replace(".", "/"))
    vars(sys.modules["timm"])["__version__"] = "0.5.4"
    constants = importlib.import_module("timm.data.constants")
    vars(sys.modules["timm.data"]).update({k: v for k, v in vars(constants).items() if k.startswith("IMAGENET")})
    bare_package("official_models", official / "models")


def _build_official(model_id: str) -> nn.Module:
    """Construct the official model, in a scratch folder and quietly: its constructor prints and writes a file."""
    module_name, function, depth_factor = VARIANTS[model_id]
    module = importlib.import_module(f"official_models.{module_name}")
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(scratch)
        try:
            model: nn.Module = getattr(module, function)(depth_factor=depth_factor, **FLAGS)
        finally:
            os.chdir(here)
    return model.eval()


@torch.no_grad()
def _randomise(model: nn.Module, seed: int) -> None:
    """Random values everywhere, also where training starts from zeros and ones, so that nothing hides."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1, generator)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator)  # type: ignore[arg-type]
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.1, generator=generator)
    for name, parameter in model.named_parameters():
        if name == "latent" or name.endswith("relative_position_bias"):
            parameter.normal_(0, 0.5, generator=generator)
