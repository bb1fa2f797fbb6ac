"""Published folders of Open-Sora-Plan v1.2 into our networks: config.json and safetensors, or a .bin.

Names must match exactly: what is missing or left over is refused by name, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.families.vdit.vae_config import CausalVaeConfig
from models.files import child, read_json

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"
_SHOWN = 5

M = TypeVar("M", bound=nn.Module)


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> OpenSoraT2V:
    """Read a transformer, frozen.

    Raises: ValueError: no config or weights there, or names or shapes that do not match; OSError: unreadable.
    """
    config = OpenSoraConfig.from_dict(read_config(folder))
    with torch.device("meta"):
        model = OpenSoraT2V(config)
    return _fill(model, folder, dtype)


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> CausalVae:
    """Read an autoencoder, frozen. Raises: as ``load_transformer``."""
    config = CausalVaeConfig.from_dict(read_config(folder))
    with torch.device("meta"):
        model = CausalVae(config)
    return _fill(model, folder, dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises: ValueError: there is none, or it is no JSON object."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}; give the folder of one network of a published checkpoint")
    return read_json(path)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: one safetensors file, shards with an index, or a .bin or .pth (weights only).

    Training checkpoints of the VAE hold ``ema_state_dict`` or ``state_dict`` around them; those are looked into.

    Raises: ValueError: no weights there.
    """
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        return {name: tensor for part in names for name, tensor in load_file(child(folder, part)).items()}
    single = folder / f"{WEIGHTS}.safetensors"
    if single.is_file():
        return load_file(single)
    for path in (folder / f"{WEIGHTS}.bin", *sorted(folder.glob("*.pth")), *sorted(folder.glob("*.ckpt"))):
        if path.is_file():
            return _unwrapped(torch.load(path, map_location="cpu", weights_only=True))
    raise ValueError(f"{folder} has no {WEIGHTS}.safetensors, no index of its shards and no {WEIGHTS}.bin")


def save_network(model: nn.Module, config: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that this module reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / f"{WEIGHTS}.safetensors")
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=1) + "\n", encoding="utf-8")


def _unwrapped(loaded: Any) -> dict[str, Tensor]:
    for key in ("ema_state_dict", "state_dict", "gen_model", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict) and loaded[key]:
            loaded = loaded[key]
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def _fill(model: M, folder: Path, dtype: torch.dtype) -> M:
    """Put the folder's weights into a network that was built on the meta device."""
    weights = {name: tensor.to(dtype) for name, tensor in read_weights(folder).items()}
    wanted = model.state_dict()
    _refuse(folder, "misses", wanted.keys() - weights.keys())
    _refuse(folder, "has, and this network does not,", weights.keys() - wanted.keys())
    wrong = [
        f"{name} {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if weights[name].shape != tensor.shape
    ]
    _refuse(folder, "has other shapes:", wrong)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _refuse(folder: Path, what: str, names: Iterable[str]) -> None:
    found = sorted(names)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(f"{folder.name} {what} {', '.join(found[:_SHOWN])}{more}; its config.json is of another model")
