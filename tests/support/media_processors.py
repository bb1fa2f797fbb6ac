"""Processors for pool tests, chosen by "model id". Importable by name, so that a factory can be sent to a worker."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.registry import find
from serving.media.processors import Processors

Array = npt.NDArray[np.uint8]


def corner(rgb: Array) -> Array:
    """The top left 4 x 4 pixels."""
    return rgb[:4, :4]


def _sleep_forever(rgb: Array) -> Array:
    signal.pause()
    return rgb


def _sleep_a_little(rgb: Array) -> Array:
    time.sleep(0.02)
    return corner(rgb)


def _die(signal_number: int) -> Callable[[Array], Array]:
    def die(rgb: Array) -> Array:
        os.kill(os.getpid(), signal_number)
        signal.pause()
        return rgb

    return die


def _hog(rgb: Array) -> Array:
    return np.zeros((1 << 20, 1 << 12, 3), np.uint8)  # 12 GiB


def _report(rgb: Array) -> Array:
    """Facts about the worker, as pixels."""
    facts = [
        "torch" in sys.modules,
        "VIREO_TEST_SECRET" in os.environ,
        resource.getrlimit(resource.RLIMIT_AS)[0] == 1 << 30,
        os.nice(0),
        bool(sys.flags.safe_path),
    ]
    return np.array(facts, np.uint8).reshape(1, -1, 1).repeat(3, axis=2)


def _float(rgb: Array) -> Array:
    return rgb.astype(np.float32)  # type: ignore[return-value]  # a processor that breaks its contract


Grid = tuple[int, int]


def strips(rgb: Array) -> tuple[Array, Grid]:
    """A thumbnail (T, 4, 4, 3) of nothing, and the first two 4 x 4 squares, in one row."""
    squares = [np.zeros((4, 4, 3), np.uint8), rgb[:4, :4], rgb[:4, 4:8]]
    return np.stack(squares), (1, 2)


def _tiles_without_axis(rgb: Array) -> tuple[Array, Grid]:
    return rgb[:4, :4], (1, 1)


def _tiles_of_another_grid(rgb: Array) -> tuple[Array, Grid]:
    return strips(rgb)[0], (3, 3)


PROCESSORS: dict[str, Callable[[Array], Array | tuple[Array, Grid]]] = {
    "strips": strips,
    "flat tiles": _tiles_without_axis,
    "wrong grid": _tiles_of_another_grid,
    "corner": corner,
    "sleep": _sleep_forever,
    "nap": _sleep_a_little,
    "sigkill": _die(signal.SIGKILL),
    "sigsegv": _die(signal.SIGSEGV),
    "hog": _hog,
    "report": _report,
    "float": _float,
}


def make_processor(model_id: str, max_tiles: int | None = None) -> Callable[[Array], Array | tuple[Array, Grid]]:
    """The factory that pool tests inject."""
    return PROCESSORS[model_id]


def broken_factory(model_id: str, max_tiles: int | None = None) -> Callable[[Array], Array]:
    """A factory that always fails."""
    raise ValueError(f"secret internals of {model_id}")


def served_processors(*model_ids: str) -> Processors:
    """Those of real models, as a gateway resolves them."""
    found = {model_id: find(model_id) for model_id in model_ids}
    return Processors({model_id: (family.name, variant) for model_id, (family, variant) in found.items()})
