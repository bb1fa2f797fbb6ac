"""A folder as diffusers writes it, read without torch and without diffusers: JSON, headers of weights, its licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.families.diffusers.architecture import Architecture, Configs
from models.files import child, heads, read_json, read_network_config
from models.folder import MODEL_INDEX

_LIBRARIES = ("diffusers", "transformers")
_CONFIG_FILES = ("config.json", "scheduler_config.json", "guider_config.json", "preprocessor_config.json")
_TOKENIZER_FILE = "tokenizer_config.json"
"""Not of a network: a text without limit has 10^30 tokens there."""
_OF_A_UNET = "down_blocks.0.resnets.0.conv1.weight"
"""A tensor of every UNet that diffusers writes."""


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
            found[name] = {**_config_of(child(folder, name)), "_class_name": kind}
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
    for path in (folder / name for name in _CONFIG_FILES):
        if path.is_file():
            return read_network_config(path)
    return read_json(folder / _TOKENIZER_FILE) if (folder / _TOKENIZER_FILE).is_file() else {}


def _refuse(folder: Path, configs: Configs) -> None:
    for name, config in configs.items():
        if quantised := config.get("quantization_config"):
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
            raise ValueError(f"{folder}: {name} is quantised ({method}); give weights in float32, bfloat16 or float16")
        if config.get("auto_map"):
            raise ValueError(f"{folder}: {name} needs code that the folder brings (auto_map); it is not run")


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
