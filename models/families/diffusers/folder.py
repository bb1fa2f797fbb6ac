"""A folder as diffusers writes it, read without torch and without diffusers: JSON, headers of weights, its licence."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from models.families.diffusers.architecture import Architecture, Configs

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_CONFIG_FILES = (
    "config.json",
    "scheduler_config.json",
    "guider_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
)
_MAX_HEADER_BYTES = 100 << 20
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


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
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} has no {INDEX}; give a folder as diffusers writes it (save_pretrained)")
    return read_json(folder / INDEX)


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
            raise ValueError(f"{folder}: {architecture.pipeline} needs {name}, which {INDEX} does not name")
        if (kind := named[name][1]) not in kinds:
            known = ", ".join(filter(None, kinds))
            raise ValueError(f"{folder}: {name} is {kind}; {architecture.pipeline} can be run here with {known}")
        if not (folder / name).is_dir():
            raise ValueError(f"{folder}: the folder {name} is missing, which {INDEX} names")
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


def weight_bytes(folder: Path, component: str) -> dict[str, int]:
    """Bytes of a component's weights by their type, counted from the headers of its safetensors files; empty where it
    has none. Raises: ValueError: weights in another format, or a damaged header."""
    counted: Counter[str] = Counter()
    files = weight_files(folder / component)
    others = [path for path in (folder / component).glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if others and not files:
        raise ValueError(f"{others[0]} is a pickle, which may run code; give {component} as safetensors")
    for file in files:
        for tensor in _header(file).values():
            kind = str(tensor.get("dtype", ""))
            counted[kind] += prod(tensor.get("shape", ())) * _BYTES.get(kind, 1)
    return dict(counted)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a component: those its index names, or its one file; of several precisions, the first whole
    one."""
    indices = sorted(folder.glob("*.safetensors.index*.json"))
    if indices:
        return sorted({folder / str(name) for name in read_json(indices[0]).get("weight_map", {}).values()})
    files = sorted(folder.glob("*.safetensors"), key=lambda path: (len(path.suffixes), path.name))
    return files[:1]


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, struct.error, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged ({error})") from None
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def licence_of(folder: Path) -> str:
    """As the metadata at the head of its README say; "none" where nothing is said."""
    readme = folder / "README.md"
    text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    fields = dict(re.findall(r"^(license(?:_name)?): *['\"]?([\w.+-]+)", head[1], re.MULTILINE)) if head else {}
    licence = fields.get("license", "none")
    return str(fields.get("license_name", licence) if licence == "other" else licence)
