"""Which networks a folder of weights holds, by its small JSON files and the heads of its safetensors. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from models.files import child, heads, peek_json

MODEL_INDEX = "model_index.json"
"""Of a pipeline, as diffusers writes it."""
CONFIG = "config.json"
"""Of one network, as transformers, diffusers and timm write it."""
_SHOWN = 8
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "F4": 4}
"""Of a number, by its type as safetensors spells it; 8 for all others."""
_CASTS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that are read as the type that is served; others stay."""
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One network of a folder. ``name``: its own folder, "" where it has none. ``kind``: its class, "" where nothing
    says it. ``numbers``: of parameters, by their type as safetensors spells it; empty where the weights are pickles, of
    which nothing but the size is known. ``file_bytes``: of all its files."""

    name: str
    kind: str
    numbers: Mapping[str, int]
    file_bytes: int

    @property
    def parameters(self) -> int | None:
        """None where that is not known."""
        return sum(self.numbers.values()) or None

    def bytes_as(self, bytes_per_number: int) -> int:
        """Of memory, once its weights have the type that is served."""
        if not self.numbers:
            return self.file_bytes
        bits = {kind: 8 * bytes_per_number if kind in _CASTS else _BITS.get(kind, 8) for kind in self.numbers}
        return sum(count * bits[kind] for kind, count in self.numbers.items()) // 8


def pipeline_of(folder: Path) -> str | None:
    """The class of diffusers' pipeline that the folder is of."""
    name = peek_json(folder / MODEL_INDEX).get("_class_name")
    return name if isinstance(name, str) else None


def architectures_of(folder: Path) -> tuple[str, ...]:
    """What ``config.json`` names: classes of transformers, or an architecture of timm."""
    config = peek_json(folder / CONFIG)
    named = config.get("architectures") or [config.get("architecture")]
    return tuple(name for name in named if isinstance(name, str)) if isinstance(named, list) else ()


def seen_in(folder: Path) -> str:
    """In words, for whoever must find out why nobody recognises it."""
    seen = [f"{MODEL_INDEX} names {name}" for name in (pipeline_of(folder),) if name]
    seen += [f"{CONFIG} names {', '.join(names)}" for names in (architectures_of(folder),) if names]
    if seen:
        return "; ".join(seen)
    names = sorted(path.name for path in folder.iterdir())
    files = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "no files"
    return f"neither {MODEL_INDEX} nor {CONFIG} names a model; it has {files}"


def components_of(folder: Path, files: Mapping[str, Iterable[Path]] | None = None) -> tuple[Component, ...]:
    """The networks whose weights are in a folder: those that ``model_index.json`` names, or else the folder itself and
    each folder in it that has any. ``files``: those of a component, by its name, where they are not in its folder.

    Raises: ValueError: a file that is missing or damaged, or lies elsewhere.
    """
    index = peek_json(folder / MODEL_INDEX)
    kinds = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    own = () if index else ("",)  # what lies beside an index are other forms of the same
    found = {name: weight_files(child(folder, name) if name else folder) for name in (kinds or (*own, *inner))}
    found |= {name: list(paths) for name, paths in (files or {}).items()}
    return tuple(
        _component(name, kinds.get(name) or next(iter(architectures_of(folder / name)), ""), paths)
        for name, paths in found.items()
        if paths
    )


def weight_files(folder: Path) -> list[Path]:
    """Those that are read of a network's folder: what the index of its parts names, or its files without the name of
    a precision in theirs (``model.safetensors`` beside ``model.fp16.safetensors``), or pickles where nothing else is.

    Raises: ValueError: an index that names none, or one elsewhere.
    """
    if indices := sorted(folder.glob("*.safetensors.index.json")):
        named = peek_json(indices[0]).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise ValueError(f"{indices[0]} names no files; write the folder again")
        return sorted({child(folder, name) for name in named.values()})
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(path for path in folder.glob("*") if path.suffix in _PICKLES)
    fewest = min((len(path.suffixes) for path in files), default=0)
    return [path for path in files if len(path.suffixes) == fewest]


def safetensors_of(folder: Path) -> list[Path]:
    """The files that the weights of one component are read from; none where it has no weights.

    Raises: ValueError: weights in another format.
    """
    files = weight_files(folder)
    if pickles := [path for path in files if path.suffix != ".safetensors"]:
        raise ValueError(f"{pickles[0]} is a pickle, which may run code; give {folder.name} as safetensors")
    return files


def _component(name: str, kind: str, files: Iterable[Path]) -> Component:
    numbers: Counter[str] = Counter()
    size = 0
    for path in files:
        if path.suffix == ".safetensors":
            for _, dtype, shape in heads(path):
                numbers[dtype] += prod(shape)
        if not path.is_file():
            raise ValueError(f"{path} is missing; write it again")
        size += path.stat().st_size
    return Component(name=name, kind=str(kind), numbers=dict(numbers), file_bytes=size)
