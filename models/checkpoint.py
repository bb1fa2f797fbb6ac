"""Weights in and out: official ``.pth`` files (safely), safetensors, and checks by name and shape."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.identity import WEIGHTS_FILE, checkpoint_sha256

__all__ = [
    "WEIGHTS_FILE",
    "check_against",
    "checkpoint_sha256",
    "load_into",
    "load_official",
    "load_pretrained",
    "read_weights",
    "save_weights",
]

_MAX_LISTED = 8


def load_official(path: Path, *, prefer_ema: bool = True) -> dict[str, Tensor]:
    """Read the weights out of a training checkpoint without running any code that it may contain.

    Accepts a bare state dict or a dict with ``model`` and, optionally, ``model_ema`` or ``ema`` (averaged weights,
    which the official commands evaluate; taken when ``prefer_ema``). A leading ``module.`` of every name is removed.

    Raises:
        ValueError: not a checkpoint, or one that needs arbitrary code to be loaded.
        FileNotFoundError: no such file.
    """
    try:
        with torch.serialization.safe_globals(_inert_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects beyond tensors and is not loaded, because unpickling them may run code; "
            f"re-save its state dict alone ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable PyTorch checkpoint: {_first_line(error)}") from error
    return _without_prefix(_weights_in(content, path, prefer_ema))


def save_weights(state: Mapping[str, Tensor], directory: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write ``model.safetensors`` into ``directory``, whole or not at all; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / WEIGHTS_FILE
    part = directory / f"{WEIGHTS_FILE}.part"
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, part, dict(metadata or {}))
    os.replace(part, target)
    return target


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``.

    Raises:
        ValueError: missing or damaged.
    """
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"no weights at {path}; train them (vireo train) or convert published ones (vireo convert)")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}; write it again") from error


def check_against(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with those of ``model`` (which may be on the meta device).

    Raises:
        ValueError: listing missing, unexpected and mis-shaped tensors.
    """
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    shared = expected.keys() & given.keys()
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "wrong shape": [f"{n} {given[n]} (need {expected[n]})" for n in sorted(shared) if given[n] != expected[n]],
    }
    found = [f"{len(names)} {what}: {_shortened(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"weights do not fit {type(model).__name__}: {'; '.join(found)}; check the model id")


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check, then give ``model`` these tensors (also when it was built on the meta device).

    Raises:
        ValueError: names or shapes differ.
    """
    check_against(model, state)
    model.load_state_dict(dict(state), strict=True, assign=True)


def load_pretrained(architecture: Any, folder: Path, dtype: torch.dtype, *, unused: tuple[str, ...] = ()) -> Any:
    """Read a folder of transformers into one of its classes, each tensor and no other; transformers itself fills what
    is missing with random numbers. ``unused``: prefixes of what a folder may hold besides. Nothing is fetched.

    Raises:
        OSError: no such folder, or no weights in it.
        ValueError: weights of another model.
    """
    model, told = architecture.from_pretrained(
        folder, local_files_only=True, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    told["unexpected_keys"] = [name for name in told["unexpected_keys"] if not name.startswith(unused)]
    if wrong := {kind: sorted(map(str, names))[:3] for kind, names in told.items() if names}:
        raise ValueError(f"{folder} does not hold a {architecture.__name__}: {wrong}")
    return model


def _inert_globals() -> list[Any]:
    """Plain data that official training scripts store beside the weights: their arguments and NumPy learning rates.

    Restoring these sets attributes or copies a number; nothing in them is called. A module path is given where
    checkpoints written with older NumPy name another one.
    """
    scalar = numpy.float64(0.0).__reduce__()[0]
    return [
        argparse.Namespace,
        numpy.dtype,
        type(numpy.dtype("float64")),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _weights_in(content: object, path: Path, prefer_ema: bool) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a state dict or a dict with 'model'")
    keys = ("model_ema", "ema", "model") if prefer_ema else ("model",)
    state = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    if not state or not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()):
        raise ValueError(f"{path} holds no state dict of tensors; its keys are {_shortened(sorted(map(str, content)))}")
    return dict(state)


def _without_prefix(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): t for name, t in state.items()}
    return state


def _shortened(names: list[str]) -> str:
    more = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
