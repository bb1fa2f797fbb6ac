"""Compare Dynamic Perceiver with the official code: same random weights and inputs, logits of all four exits, FLOPs.

Not part of the test suite, because it needs things that are not ours to ship:

    git clone https://github.com/LeapLabTHU/Dynamic_Perceiver official
    pip download --no-deps timm==0.5.4 torchvision==0.13.1     # unpack both wheels into one folder, here "libs"
    pip install einops
    python tests/compare/dyn_perceiver_official.py official --libraries libs

The official code needs timm and torchvision of its time. Only pure-Python modules of them are used (layers, helpers,
registry); their packages' start-up code, which needs compiled operators, is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import load_into
from models.families.dyn_perceiver.flops import exit_flops
from models.families.dyn_perceiver.folding import folded
from models.families.dyn_perceiver.load import build_meta
from models.registry import find

# Constructor arguments: the commands of the official README.
FLAGS = {"SA_widening_factor": 4, "spatial_reduction": True}
VARIANTS = {
    "dyn-perceiver-regnety-800mf": ("dyn_perceiver_regnet", "reg800m_perceiver_t128", [1, 1, 1, 2]),
    "dyn-perceiver-resnet50-x0375": ("dyn_perceiver_resnet", "resnet50_0375_perceiver_t128", [1, 1, 1, 1]),
    "dyn-perceiver-mobilenetv3-x075": ("dyn_perceiver_mobilenet_v3", "mobilenetV3_0x75_perceiver_t128", [1, 1, 1, 3]),
}


def main() -> None:
    """Print one Markdown row per variant; exit status 1 if a difference is above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, help="checkout of the official repository")
    parser.add_argument("--libraries", type=Path, required=True, help="folder with timm/ and torchvision/ unpacked")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--inputs", type=int, default=3)
    args = parser.parse_args()
    import_paths(args.official, args.libraries)
    print(f"official code at {commit_of(args.official)}, torch {torch.__version__}")
    print("| variant | parameters (M) | largest logit | max abs difference, exits 1-4 | folded | MMACs, exits 1-4 |")
    print("|---|---|---|---|---|---|")
    worst = max(compare(model_id, args.inputs, args.batch) for model_id in VARIANTS)
    sys.exit(0 if worst <= args.tolerance else f"difference {worst:.2e} exceeds {args.tolerance:.0e}")


def import_paths(official: Path, libraries: Path) -> None:
    """Make the official modules importable without running the start-up code of their packages."""
    for name in ("timm", "timm.data", "timm.models", "torchvision", "torchvision.ops", "torchvision.models"):
        bare_package(name, libraries / name.replace(".", "/"))
    sys.modules["timm"].__version__ = "0.5.4"
    constants = importlib.import_module("timm.data.constants")
    vars(sys.modules["timm.data"]).update({k: v for k, v in vars(constants).items() if k.startswith("IMAGENET")})
    bare_package("official_models", official / "models")


def bare_package(name: str, folder: Path) -> None:
    """Register ``folder`` as a package without executing its ``__init__``."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing")
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)


def commit_of(checkout: Path) -> str:
    """Short commit hash, or a note that it is unknown."""
    done = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "an unknown commit (no git metadata)"


@torch.no_grad()
def compare(model_id: str, num_inputs: int, batch: int) -> float:
    """Print the row of one variant and return the largest difference of any logit."""
    theirs = build_official(model_id)
    randomise(theirs, seed=1)
    ours = build_meta(find(model_id)[1])
    load_into(ours, theirs.state_dict())  # fails unless every name and shape agrees
    ours.eval()
    fused = folded(ours)
    plain, fold, largest = [0.0] * 4, 0.0, 0.0
    for seed in range(num_inputs):
        images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
        expected = theirs(images)
        plain = [max(a, gap(x, y)) for a, x, y in zip(plain, ours(images), expected, strict=True)]
        fold = max(fold, *(gap(x, y) for x, y in zip(fused(images), expected, strict=True)))
        largest = max(largest, *(float(y.abs().max()) for y in expected))
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    counts = " / ".join(f"{count / 1e6:.1f}" for count in exit_flops(ours))
    gaps = " / ".join(f"{d:.1e}" for d in plain)
    print(f"| {model_id} | {millions:.2f} | {largest:.2f} | {gaps} | {fold:.1e} | {counts} |")
    report_official_flops(theirs)
    return max(*plain, fold)


def build_official(model_id: str) -> nn.Module:
    """Construct the official model, in a scratch folder and quietly: its constructor prints and writes a file."""
    module_name, function, depth_factor = VARIANTS[model_id]
    module = importlib.import_module(f"official_models.{module_name}")
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(scratch)
        try:
            model: nn.Module = getattr(module, function)(depth_factor=depth_factor, **FLAGS)
            model.official_flops = flops_file(Path(scratch))
        finally:
            os.chdir(here)
    return model.eval()


def flops_file(folder: Path) -> list[float] | None:
    """What the official constructor wrote, in units of 1e9; the ResNet variant writes nothing."""
    path = folder / "flops.txt"
    return [float(line) for line in path.read_text().split()] if path.is_file() else None


def report_official_flops(model: nn.Module) -> None:
    """Print the official counts below ours."""
    if model.official_flops:
        print(f"  official count, MMACs: {' / '.join(f'{1e3 * f:.1f}' for f in model.official_flops)}")


def randomise(model: nn.Module, seed: int) -> None:
    """Random values everywhere, also where training starts from zeros and ones, so that nothing hides."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
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


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference."""
    return float((ours - theirs).abs().max())


if __name__ == "__main__":
    main()
