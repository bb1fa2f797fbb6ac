"""What timm knows about a model, as plain data: ``python -m models.families.timm.describe NAME [FOLDER]`` prints JSON.

Nothing is downloaded and no weights are read: the network is built on the meta device, and counted there.
"""

from __future__ import annotations

import difflib
import json
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from models.families.timm.library import timm

_SOURCE_KEYS = ("url", "file", "state_dict", "source", "hf_hub_id", "hf_hub_filename", "custom_load")
"""Of a configuration: where timm would fetch weights. We never do."""
_ORIGIN_KEYS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "label_names", "label_descriptions")


def describe(name: str, folder: str | None = None) -> dict[str, Any]:
    """Everything that a variant is made of; see ``family.resolve``.

    Raises: ValueError: no such model, or none that classifies pictures.
    """
    architecture, arguments, settings, is_own = _configuration(name, folder)
    network = build_meta(architecture, arguments, settings)
    channels, height, width = settings["input_size"]
    if not network.num_classes or channels != 3 or height != width:
        raise ValueError(
            f"timm:{name} is no classifier of square RGB pictures: it takes {channels}x{height}x{width} and has "
            f"{network.num_classes} classes"
        )
    macs, peak_bytes = _count(network, torch.empty(1, 3, height, width, device="meta"))
    return {
        "config": {
            "architecture": architecture,
            "arguments": arguments,
            "settings": {key: value for key, value in settings.items() if not key.startswith("label_")},
            "macs": macs,
            # Twice what is live: the scratch of convolutions cannot be seen from here.
            "bytes_held": 2 * peak_bytes,
        },
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "picture": {
            "size": height,
            "num_classes": network.num_classes,
            "labels": _labels(settings, network.num_classes, is_own),
            **{key: settings[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")},
        },
        "source": _source(settings),
    }


def build_meta(architecture: str, arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """The network on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return create(architecture, arguments, settings).eval()


def create(architecture: str, arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """The network as timm builds it, freshly initialised.

    Raises: ValueError: these arguments are not for this architecture.
    """
    try:
        return timm().create_model(architecture, pretrained_cfg=dict(settings), **arguments)
    except (RuntimeError, TypeError, AssertionError, KeyError) as error:
        raise ValueError(f"timm does not build {architecture} with {dict(arguments)}: {error}") from error


def _configuration(name: str, folder: str | None) -> tuple[str, dict[str, Any], dict[str, Any], bool]:
    """Architecture, arguments of its constructor, timm's settings, and whether they are the user's own."""
    if folder is not None and (Path(folder) / "config.json").is_file():
        return *_read_folder(folder), True
    _check_known(name)
    settings = _settings(name)
    if settings is None:
        raise ValueError(f"timm has no weights called {name}; it has {', '.join(_tagged(name))}")
    return name.split(".")[0], {}, settings, False


def _read_folder(folder: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    timm()
    from timm.models._hub import load_model_config_from_path

    try:
        given, architecture, arguments = load_model_config_from_path(folder)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder}/config.json is not as timm writes it: {error!r}") from error
    _check_known(architecture)
    settings = _settings(f"{architecture}.{given['tag']}") if given.get("tag") else None
    if settings is None:  # whose weights these are, only the folder can say
        defaults = _settings(architecture) or {}
        settings = {key: value for key, value in defaults.items() if key not in _ORIGIN_KEYS}
    return architecture, _plain(arguments), {**settings, **_plain(given)}


def _settings(name: str) -> dict[str, Any] | None:
    """timm's settings of an architecture or of one set of weights of it."""
    from timm.models import get_pretrained_cfg

    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:
        return None
    return None if found is None else _plain(found.to_dict())  # type: ignore[no-untyped-call]


def _check_known(name: str) -> None:
    if not timm().is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm().list_models(), 5)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise ValueError(f"timm {timm().__version__} has no model {name!r}{hint}")


def _tagged(name: str) -> list[str]:
    names: list[str] = timm().list_models(f"{name.split('.')[0]}.*", include_tags=True)
    return names


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that both ways of asking are equal."""
    kept = {key: value for key, value in settings.items() if key not in _SOURCE_KEYS}
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def _labels(settings: Mapping[str, Any], num_classes: int, is_own: bool) -> list[str] | None:
    """Names of the classes, where the folder or the data set that timm's weights were trained on says them."""
    names = settings.get("label_names")
    if names:
        described = settings.get("label_descriptions") or {}
        texts = [described.get(name, name) for name in names] if isinstance(described, dict) else list(described)
        return texts if len(texts) == num_classes else None
    if is_own:
        return None
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(num_classes)]


def _source(settings: Mapping[str, Any]) -> dict[str, str]:
    paper = settings.get("paper_ids") or ""
    return {
        "paper": paper if isinstance(paper, str) else ", ".join(paper),
        "url": settings.get("origin_url") or "",
        "licence": settings.get("license") or "none",
    }


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes of tensors that are alive at a time, parameters left out. Works on the meta device."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = [*network.parameters(), *network.buffers()]
        self._known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        for tensor in weights:
            self._known[tensor.untyped_storage()] = True
        self.live = self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._known:
                self._enter(tensor.untyped_storage())
        return out

    def _enter(self, storage: Any) -> None:
        self._known[storage] = True
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, storage.nbytes())

    def _leave(self, num_bytes: int) -> None:
        self.live -= num_bytes


@torch.no_grad()
def _count(network: nn.Module, picture: torch.Tensor) -> tuple[int, int]:
    """Multiply-accumulates of one forward pass, and the most bytes that it has alive."""
    flops, live = FlopCounterMode(display=False), _LiveBytes(network)
    with flops, live:
        network(picture)
    return flops.get_total_flops() // 2, live.peak + picture.untyped_storage().nbytes()


def _main(name: str, folder: str | None = None) -> None:
    try:
        answer: dict[str, Any] = {"facts": describe(name, folder)}
    except ValueError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:3])
