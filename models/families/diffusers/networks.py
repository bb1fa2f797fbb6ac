"""The components of a pipeline: read from a folder exactly, or made with random weights and written as one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ConfigMixin, ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.checkpoint import load_into, load_pretrained
from models.contract import LazyRef, Variant
from models.families.diffusers import pipelines
from models.families.diffusers.architecture import Architecture
from models.families.diffusers.tokenizers import make_tokenizer
from models.folder import MODEL_INDEX, safetensors_of


class Components(nn.Module):
    """``pipeline``: diffusers' modular pipeline with everything that all requests share."""

    def __init__(self, pipeline: Any, parts: Mapping[str, Any]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
        self.parts = dict(parts)
        self.pipeline = pipeline


def build(variant: Variant, device: str = "cpu", random_weights: bool = False, dtype: str = "float32") -> Components:
    """Read every component, or draw its weights.

    Raises: ValueError, OSError: weights that are missing or of another network.
    """
    architecture, kind = pipelines.of(variant), getattr(torch, dtype)
    parts: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, config in variant.config["components"].items():
            if name == "index":
                continue
            one = torch.float32 if name in architecture.in_float32 else kind
            if random_weights or variant.weights is None:
                part = _made(name, config, variant.weights, one)
            else:
                part = _read(config, variant.weights / name, one)
            parts[name] = part.requires_grad_(False).eval().to(device) if isinstance(part, nn.Module) else part
    return Components(_pipeline(architecture, variant, parts), parts)


def _pipeline(architecture: Architecture, variant: Variant, parts: Mapping[str, Any]) -> Any:
    pipeline = _named(architecture.modular)(blocks=_named(architecture.blocks)())
    index = variant.config["components"]["index"]
    settings = {spec.name: index[spec.name] for spec in pipeline.blocks.expected_configs if spec.name in index}
    pipeline.update_components(**parts, **settings)
    return pipeline


def _named(name: str) -> Any:
    """Of diffusers, or of our own module."""
    return LazyRef(name).load() if ":" in name else getattr(diffusers, name)


# -- reading ---------------------------------------------------------------------------------------------------------


def _class(name: str) -> Any:
    return getattr(diffusers, name, None) or getattr(transformers, name)


def _is(kind: Any, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _read(config: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> Any:
    kind = _class(config["_class_name"])
    if _is(kind, ModelMixin):
        return _read_network(kind, config, folder, dtype)
    if _is(kind, transformers.PreTrainedModel):
        return load_pretrained(kind, folder, dtype)
    return kind.from_pretrained(folder, local_files_only=True)


class _WithoutStorage(TorchFunctionMode):
    """Weights that will be read get no memory; buffers that a network computes are computed."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)


def _read_network(kind: Any, config: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> Any:
    with _WithoutStorage():
        network = kind.from_config(dict(config))
    files = safetensors_of(folder)
    if not files:
        raise ValueError(f"{folder} has no weights (*.safetensors)")
    kept = tuple(kind._keep_in_fp32_modules or ())
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= {name: tensor.to(_type_of(name, kept, dtype)) for name, tensor in _tensors(file).items()}
    load_into(network, weights)
    return network


def _type_of(name: str, kept: tuple[str, ...], dtype: torch.dtype) -> torch.dtype:
    """As diffusers has it: some modules of some networks compute in float32."""
    return torch.float32 if any(module in name.split(".") for module in kept) else dtype


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


# -- random weights --------------------------------------------------------------------------------------------------


def _made(name: str, config: Mapping[str, Any], folder: Path | None, dtype: torch.dtype) -> Any:
    """With random weights; tokenizers and the like are those of the folder, if there is one."""
    named = config["_class_name"]
    kind: Any = _class(named)
    if _is(kind, transformers.PreTrainedModel):
        settings = {key: value for key, value in config.items() if key != "_class_name"}
        return kind(kind.config_class.from_dict(settings)).to(dtype)
    if _is(kind, ModelMixin):
        return _cast(kind.from_config(dict(config)), dtype)
    if _is(kind, ConfigMixin):
        return kind.from_config(dict(config))
    if folder is not None:
        return kind.from_pretrained(folder / name, local_files_only=True)
    if "tokenizer" in name:
        return make_tokenizer(named)
    return kind(**{key: value for key, value in config.items() if key != "_class_name"})


def _cast(network: Any, dtype: torch.dtype) -> Any:
    kept = tuple(type(network)._keep_in_fp32_modules or ())
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.to(_type_of(name, kept, dtype))
    return network


def save(components: Components, variant: Variant, folder: Path) -> None:
    """Write a folder, as diffusers does and ``resolve`` and ``build`` read it."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": pipelines.of(variant).pipeline, **variant.config["components"]["index"]}
    for name, part in components.parts.items():
        part.save_pretrained(folder / name)
        library = type(part).__module__.partition(".")[0]
        index[name] = [library, variant.config["components"][name]["_class_name"]]
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2))
