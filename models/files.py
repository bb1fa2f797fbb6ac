"""Files that somebody else wrote, read within bounds: JSON, the heads of safetensors, a licence. Free of torch.

A folder of weights is downloaded more often than written. Whatever its files say, reading one ends in a value or in a
ValueError that names the file: it takes no more memory than the bounds below, leads to no file elsewhere, and runs no
code.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

_MAX_JSON_BYTES = 64 << 20
_MAX_HEAD_BYTES = 100 << 20
"""As the safetensors library itself has it."""
_MAX_README_CHARS = 1 << 16
_MAX_WHOLE = 2**31 - 1
_MAX_FLOAT = 3.5e38
"""A little more than float32 has."""
_MAX_LAYERS = 1024
_COUNTS_LAYERS = re.compile("layer|block")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: ValueError: there is none, or it is too large or too deep."""
    if path.is_file() and (size := path.stat().st_size) > _MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes; the limit for JSON is {_MAX_JSON_BYTES}")
    try:
        if not path.is_file():  # what never ends, such as a pipe, is none
            raise FileNotFoundError
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds no JSON object")
    return read


def peek_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        return read_json(path)
    except ValueError:
        return {}


def read_network_config(path: Path) -> dict[str, Any]:
    """A JSON object whose numbers a network can have: from them sizes are reckoned, and loops counted.

    Raises: ValueError: as ``read_json``, or a number that is out of all proportion.
    """
    config = read_json(path)
    for name, number in _numbers(config):
        most: float = _MAX_FLOAT if isinstance(number, float) else _MAX_WHOLE
        if isinstance(number, int) and _COUNTS_LAYERS.search(name) and "channels" not in name:
            most = _MAX_LAYERS
        if name == "lambda_min_clipped" and number == -inf:
            continue  # as diffusers' DPM-Solver has it, unless told otherwise
        if not isfinite(number) or abs(number) > most:
            raise ValueError(f"{path}: {name} is {number:.3g}; no network here has more than {most:.3g}")
    return config


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, each) for each in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def child(folder: Path, name: object) -> Path:
    """What a file of the folder names as lying in it. Raises: ValueError: it would lie elsewhere."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"a file in {folder} names {str(name)[:80]!r}, which is no plain file name")
    return folder / name


@contextmanager
def told_of(folder: Path, owner: str) -> Iterator[None]:
    """While code that counts on its types works on what a folder says.

    Raises: ValueError: it says something else.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        words = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{folder}: its files do not say what {owner} needs to know of a folder ({words})") from error


class Head(NamedTuple):
    """What a safetensors file says of one of its tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def heads(path: Path) -> list[Head]:
    """Of all tensors of a safetensors file. No weights are read.

    Raises: ValueError: a file that is missing or damaged.
    """
    try:
        if not path.is_file():  # what never ends, such as a pipe, is none
            raise FileNotFoundError
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEAD_BYTES, path.stat().st_size):
                raise ValueError(f"its head has {length} bytes")
            read = json.loads(file.read(length))
        return [_head(name, tensor) for name, tensor in read.items() if name != "__metadata__"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ValueError(f"{path} is missing or damaged ({type(error).__name__}); write it again") from None


def _head(name: str, tensor: Mapping[str, Any]) -> Head:
    shape = tuple(tensor["shape"])
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return Head(name, str(tensor["dtype"]), shape)


def licence_of(folder: Path) -> str:
    """As the metadata at the head of its README say; "none" where nothing is said."""
    path = folder / "README.md"
    if not path.is_file():
        return "none"
    try:
        with path.open(encoding="utf-8", errors="replace") as readme:
            text = readme.read(_MAX_README_CHARS)
    except OSError:
        return "none"
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    fields = dict(re.findall(r"^(license(?:_name)?): *['\"]?([\w.+-]+)", head[1], re.MULTILINE)) if head else {}
    licence = fields.get("license", "none")
    return str(fields.get("license_name", licence) if licence == "other" else licence)
