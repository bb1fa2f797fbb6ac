"""timm, imported whether or not torchvision is installed (docs/decisions/0020).

Its models need two small things of torchvision's: one class, for freezing batch norms while training, and through
``timm.data`` the mean and deviation of ImageNet, which lie beside its data loaders. Without torchvision they are
given to timm while it is imported, and to nobody else: nothing called torchvision is ever in ``sys.modules``, where
transformers, in this thread or another, would take it for the real one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

_WANTED = b"from torchvision.ops.misc import FrozenBatchNorm2d"
_ONE_AT_A_TIME = threading.Lock()


class FrozenBatchNorm2d(nn.Module):
    """What timm's modules take for torchvision's class of this name. No classifier has one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError("frozen batch norms are torchvision's; install it to train with them")


_GIVEN = f"from {__name__} import {FrozenBatchNorm2d.__name__}".encode()


def timm() -> ModuleType:
    """The library, with all of its models registered. Takes one to two seconds the first time."""
    with _ONE_AT_A_TIME:
        return _imported()


@cache
def _imported() -> ModuleType:
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    finder = _WithoutTorchvision()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("timm")
    finally:
        sys.meta_path.remove(finder)


class _WithoutTorchvision(MetaPathFinder):
    """Finds timm's modules, as importing without it would, and changes two things about them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("timm."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return spec
        origin = Path(spec.origin)
        if fullname == "timm.data":
            return importlib.util.spec_from_file_location(
                fullname, origin.with_name("constants.py"), submodule_search_locations=[str(origin.parent)]
            )
        if origin.suffix == ".py" and _WANTED in origin.read_bytes():
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    """Reads a module that wants torchvision's class with ours in its place; keeps no byte code of it."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).replace(_WANTED, _GIVEN)
        return compile(source, self.path, "exec", dont_inherit=True)
