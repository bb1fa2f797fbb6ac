"""Every image classifier of timm, by name or from a folder. Free of torch: what timm knows is asked for once."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.contract import Family, LazyRef, Point, Source, Variant, Work
from models.files import peek_json
from models.folder import CONFIG
from models.io import PictureIO

_HERE = "models.families.timm"
_FITS = {"center": "crop", "squash": "squash", "border": "pad"}
_TIMEOUT_S = 300.0


def resolve(name: str, folder: Path | None = None) -> Variant:
    """The variant behind ``timm:name``: one of timm's names, with or without a tag, or what ``folder`` holds.

    A folder has ``config.json`` as timm and Hugging Face write it, which then decides, and ``model.safetensors``. One
    with weights alone belongs to the architecture ``name``.

    Raises: ValueError: timm has no such model, it is no classifier, or the folder cannot be read.
    """
    facts = _facts(name, None if folder is None else str(folder.resolve()))
    picture = facts["picture"]
    return Variant(
        id=f"timm:{name}",
        summary=f"{facts['config']['architecture']}, {facts['parameters'] / 1e6:.1f} M parameters, by timm",
        io=PictureIO(
            input_size=picture["size"],
            num_classes=picture["num_classes"],
            labels=None if picture["labels"] is None else tuple(picture["labels"]),
            resize_size=math.floor(picture["size"] / picture["crop_pct"]),
            fit=_FITS[picture["crop_mode"]],  # type: ignore[arg-type]
            interpolation=picture["interpolation"],
            mean=tuple(picture["mean"]),
            std=tuple(picture["std"]),
        ),
        config=facts["config"],
        source=Source(**facts["source"]),
        weights=folder,
    )


def recognise(folder: Path) -> str | None:
    """The architecture that ``config.json`` names as timm writes it, with the tag of its weights if they have one."""
    config = peek_json(folder / CONFIG)
    architecture, given = config.get("architecture"), config.get("pretrained_cfg")
    if not isinstance(architecture, str) or not isinstance(given, dict | None):
        return None
    tag = (given or {}).get("tag")
    return f"{architecture}.{tag}" if tag else architecture


@cache
def _facts(name: str, folder: str | None) -> Mapping[str, Any]:
    """What timm says. Asked in a process of its own where torch is not loaded yet: gateways never load it."""
    if "torch" in sys.modules:
        from models.families.timm.describe import describe

        return describe(name, folder)
    command = [sys.executable, "-m", f"{_HERE}.describe", name, *([folder] if folder else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout else {}
    if "facts" not in answer:
        raise ValueError(answer.get("error") or f"timm could not be asked about {name}: {done.stderr[-2000:]}")
    facts: Mapping[str, Any] = answer["facts"]
    return facts


def work(variant: Variant, request: object, point: Point) -> Work:
    """Of one picture, counted on the architecture without running it."""
    return Work({"macs": variant.config["macs"]}, bytes_held=variant.config["bytes_held"])


FAMILY = Family(
    name="timm",
    summary="any of timm's 1,200 image classifiers: ResNet, ECA-Net, ViT, ConvNeXt, Swin, EfficientNet, MambaOut, ...",
    tasks=("classify", "infer"),
    shape="unary",
    resolve=LazyRef(f"{_HERE}.family:resolve"),
    prepare=LazyRef("models.pictures:SquarePicture"),
    build=LazyRef(f"{_HERE}.network:build"),
    runner=LazyRef(f"{_HERE}.network:Classifier"),
    rename=LazyRef(f"{_HERE}.network:rename"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.family:work"),
    parts=MappingProxyType({"recognise": LazyRef(f"{_HERE}.family:recognise")}),
    examples=("test_resnet.r160_in1k", "test_vit.r160_in1k"),
)
