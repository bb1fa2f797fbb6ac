"""What a job's state keeps, as bytes and back: a safetensors file whose metadata has the plain values.

Layout (safetensors format): 8 bytes, little-endian length of the header; the header, JSON, whose ``__metadata__`` maps
strings to strings; the tensors. Arrays of numpy and tensors of torch are written alike; what is read back has the kind,
the device and the shape of what a fresh state has.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError

from serving.errors import EngineFailed

_MAX_HEADER_BYTES = 1 << 20


def take_snapshot(kept: Mapping[str, Any], step: int) -> bytes:
    """``step``: of those that a scheduler deals out, how many are done."""
    values = {name: value for name, value in kept.items() if not hasattr(value, "nbytes")}
    tensors = {name: _plain(value) for name, value in kept.items() if hasattr(value, "nbytes")}
    written: bytes = _library(tensors).save(tensors, {"step": str(step), "values": json.dumps(values)})
    return written


def restored(fresh: Mapping[str, Any], snapshot: bytes) -> dict[str, Any]:
    """What was kept, in place of what a state of the same request has kept at its start.

    Raises: EngineFailed: unreadable, or of another request.
    """
    own = {name: value for name, value in fresh.items() if hasattr(value, "nbytes")}
    try:
        values, tensors = json.loads(_metadata(snapshot)["values"]), _library(own).load(snapshot)
    except (ValueError, KeyError, SafetensorError):
        raise EngineFailed("the checkpoint of this request cannot be read; start it again") from None
    is_alike = fresh.keys() == values.keys() | tensors.keys() and all(
        tuple(own[name].shape) == tuple(tensor.shape) for name, tensor in tensors.items()
    )
    if not is_alike or any(type(fresh[name]) is not type(value) for name, value in values.items()):
        raise EngineFailed("the checkpoint is of another request; start it again")
    return {**values, **{name: _like(own[name], tensor) for name, tensor in tensors.items()}}


def snapshot_step(snapshot: bytes) -> int:
    """Steps that had been done when the snapshot was taken.

    Raises: ValueError: it is no snapshot.
    """
    try:
        return int(_metadata(snapshot)["step"])
    except KeyError:
        raise ValueError("not a snapshot: it does not say its step") from None


def _metadata(snapshot: bytes) -> dict[str, str]:
    """Raises: ValueError: it is no snapshot."""
    try:
        (length,) = struct.unpack_from("<Q", snapshot)
        if length > min(_MAX_HEADER_BYTES, len(snapshot) - 8):
            raise ValueError(f"header of {length} bytes in {len(snapshot)}")
        metadata = json.loads(snapshot[8 : 8 + length])["__metadata__"]
        return {str(name): str(value) for name, value in metadata.items()}
    except (struct.error, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a snapshot of a job: {error}") from None


def _library(arrays: Mapping[str, Any]) -> ModuleType:
    """That of safetensors for these; a state without torch does not import it."""
    if all(isinstance(array, np.ndarray) for array in arrays.values()):
        import safetensors.numpy

        return safetensors.numpy
    import safetensors.torch

    return safetensors.torch


def _plain(array: Any) -> Any:
    """Copied, for safetensors takes no two names for one storage."""
    return array if isinstance(array, np.ndarray) else array.detach().to("cpu", copy=True).contiguous()


def _like(own: Any, array: Any) -> Any:
    return array if isinstance(own, np.ndarray) else array.to(own)
