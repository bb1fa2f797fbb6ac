"""NVIDIA's counter of the energy of whole GPUs: millijoules since the driver was loaded, Volta and later.

Differences of this counter, and no sums of power samples: on some GPUs the power that NVML shows covers a part of the
time only.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from serving.energy.meter import NoMeter, Reading

_log = structlog.get_logger(__name__)


class NvmlMeter:
    """The sum over GPUs. ``nvml``: the module ``pynvml``, or a stand-in."""

    source = "nvml"
    own_idle = 1.0

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml = nvml
        self._handles = handles
        self._is_silent = False

    def read(self) -> Reading | None:
        """See ``Meter``."""
        try:
            millijoules = [self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles]
        except self._nvml.NVMLError as error:
            if not self._is_silent:
                _log.warning("NVML gives no reading", error=str(error))
            self._is_silent = True
            return None
        self._is_silent = False
        return Reading(sum(millijoules) / 1e3)


def open_nvml(variables: Mapping[str, str] = os.environ, module: str = "pynvml") -> NvmlMeter:
    """The meter of the GPUs that this process sees (``CUDA_VISIBLE_DEVICES``).

    Raises: NoMeter.
    """
    try:
        nvml = importlib.import_module(module)
    except ImportError:
        raise NoMeter("the package nvidia-ml-py is not installed") from None
    try:
        nvml.nvmlInit()
        handles = [_handle(nvml, name) for name in _visible(nvml, variables)]
        meter = NvmlMeter(nvml, handles)
        for handle in handles:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        raise NoMeter(f"NVML: {error}") from None
    if not handles:
        raise NoMeter("no GPU is visible to this process")
    return meter


def _visible(nvml: Any, variables: Mapping[str, str]) -> list[str]:
    named = variables.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [name.strip() for name in named.split(",") if name.strip()]


def _handle(nvml: Any, name: str) -> Any:
    """Of an index or a UUID."""
    if name.startswith("MIG"):
        raise NoMeter(f"{name} is a part of a GPU: its counter is of the whole GPU, which others share")
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)
