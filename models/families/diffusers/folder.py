"""A folder as diffusers writes it, read without torch and without diffusers: JSON, headers of weights, its licence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.families.diffusers.architecture import Architecture, Configs
from models.folder import MODEL_INDEX, heads, weight_files

_LIBRARIES = ("diffusers", "transformers")
_CONFIG_FILES = (
    "config.json",
    "scheduler_config.json",
    "guider_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)
_OF_A_UNET = "down_blocks.0.resnets.0.conv1.weight"
"""A tensor of every UNet that diffusers writes."""


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises: ValueError: it cannot be read, or is none."""
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds no JSON object")
    return read


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's ``model_index.json``. Raises: ValueError: there is none."""
    if not (folder / MODEL_INDEX).is_file():
        raise ValueError(f"{folder} has no {MODEL_INDEX}; give a folder as diffusers writes it (save_pretrained)")
    return read_json(folder / MODEL_INDEX)


def components_of(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each component that the index names."""
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in index.items()
        if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2 and entry[1]
    }


def peek(folder: Path, index: Mapping[str, Any]) -> Configs:
    """The index, and the configuration of every component that it names and that can be read."""
    found: dict[str, Mapping[str, Any]] = {"index": index}
    for name, (_, kind) in components_of(index).items():
        with suppress(ValueError):
            found[name] = {**_config_of(folder / name), "_class_name": kind}
    return found


def read_configs(folder: Path, index: Mapping[str, Any], architecture: Architecture) -> Configs:
    """The configuration of every component that the pipeline takes, with its class.

    Raises: ValueError: what is missing, of a class that is not known, or not to be run; by name.
    """
    named = components_of(index)
    for name, (library, kind) in named.items():
        if library not in _LIBRARIES:
            raise ValueError(
                f"{folder}: {name} is {kind} of {library!r}, which is code that the folder brings; it is not run"
            )
    taken = {**architecture.components, "scheduler": architecture.schedulers}
    configs: dict[str, Mapping[str, Any]] = {"index": index}
    for name, kinds in taken.items():
        is_optional = "" in kinds
        if name not in named:
            if is_optional:
                continue
            raise ValueError(f"{folder}: {architecture.pipeline} needs {name}, which {MODEL_INDEX} does not name")
        if (kind := named[name][1]) not in kinds:
            known = ", ".join(filter(None, kinds))
            raise ValueError(f"{folder}: {name} is {kind}; {architecture.pipeline} can be run here with {known}")
        if not (folder / name).is_dir():
            raise ValueError(f"{folder}: the folder {name} is missing, which {MODEL_INDEX} names")
        configs[name] = {**_config_of(folder / name), "_class_name": kind}
    _refuse(folder, configs)
    return configs


def _config_of(folder: Path) -> dict[str, Any]:
    return next((read_json(folder / name) for name in _CONFIG_FILES if (folder / name).is_file()), {})


def _refuse(folder: Path, configs: Configs) -> None:
    for name, config in configs.items():
        if config.get("quantization_config"):
            method = dict(config["quantization_config"]).get("quant_method", "unknown")
            raise ValueError(f"{folder}: {name} is quantised ({method}); give weights in float32, bfloat16 or float16")
        if config.get("auto_map"):
            raise ValueError(f"{folder}: {name} needs code that the folder brings (auto_map); it is not run")


def safetensors_of(folder: Path) -> list[Path]:
    """The files that the weights of one component are read from; none where it has no weights.

    Raises: ValueError: weights in another format.
    """
    files = weight_files(folder)
    if pickles := [path for path in files if path.suffix != ".safetensors"]:
        raise ValueError(f"{pickles[0]} is a pickle, which may run code; give {folder.name} as safetensors")
    return files


def check_own_unet(folder: Path) -> None:
    """Pass a folder beside whose index no other UNet lies: somebody put it there to be run in place of the folder's
    own. Checkpoints in one file and adapters, which have other names of tensors, may lie there.

    Raises: ValueError: one does.
    """
    for path in sorted(folder.glob("*.safetensors")):
        if any(head.name == _OF_A_UNET for head in heads(path)):
            raise ValueError(
                f"{path} is a UNet beside the one in {folder / 'unet'}; to serve the folder without it, write "
                f"NAME=diffusers:NAME@{folder}"
            )


def licence_of(folder: Path) -> str:
    """As the metadata at the head of its README say; "none" where nothing is said."""
    readme = folder / "README.md"
    text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    fields = dict(re.findall(r"^(license(?:_name)?): *['\"]?([\w.+-]+)", head[1], re.MULTILINE)) if head else {}
    licence = fields.get("license", "none")
    return str(fields.get("license_name", licence) if licence == "other" else licence)
