"""Which meter a replica reads: what is configured, or with ``device`` the best that there is where it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from serving.config import ResolvedModel
from serving.energy.cpu_time import TreeCpuTime
from serving.energy.estimate import EstimateMeter
from serving.energy.meter import ESTIMATE, Meter, NoMeter, Reading
from serving.energy.nvml import open_nvml
from serving.energy.rapl import open_rapl
from serving.energy.replay import ReplayMeter, load
from serving.energy.replica import ReplicaEnergy
from serving.telemetry.events import Sink

_log = structlog.get_logger(__name__)
DEVICE = "device"
REPLAY = "replay:"


class AbsentMeter:
    """A meter that was asked for and is not here. It gives no reading, and answers no joules."""

    own_idle = 1.0

    def __init__(self, source: str) -> None:
        self.source = source

    def read(self) -> Reading | None:
        """Never there."""
        return None


def replica_energy(model: ResolvedModel[Any], wanted: str, tell: Sink, watts: float) -> ReplicaEnergy:
    """The meter and account of one replica, not running. ``wanted``: ``energy.meter`` of the settings. ``watts``: what
    a busy core or device of the model is said to take.

    Raises: ConfigError: a recording that cannot be read.
    """
    refused: dict[str, str] = {}
    meter = _opened(model, wanted, refused)
    of = None
    if meter is None:
        # The threads of this process say nothing about a device, nor about other ranks.
        of = "CPU seconds" if model.device == "cpu" and model.num_ranks == 1 else "busy seconds"
        meter = EstimateMeter(TreeCpuTime().read, watts) if of == "CPU seconds" else None
    energy = ReplicaEnergy(meter, watts=watts, model=model.id, tell=tell)
    say = _log.warning if isinstance(meter, AbsentMeter) else _log.info
    say(
        "energy meter", model=model.id, wanted=wanted, meter=energy.source, watts=watts, estimate_of=of, refused=refused
    )
    return energy


def _opened(model: ResolvedModel[Any], wanted: str, refused: dict[str, str]) -> Meter | None:
    """None: it is to be estimated. ``refused``: takes note of what is not here, and why."""
    if wanted.startswith(REPLAY):
        return ReplayMeter(load(Path(wanted.removeprefix(REPLAY))), time.monotonic)
    for kind in _kinds(model, wanted):
        try:
            return _OPEN[kind](model)
        except NoMeter as error:
            refused[kind] = str(error)
    return None if wanted in (DEVICE, ESTIMATE) else AbsentMeter(wanted)


def _kinds(model: ResolvedModel[Any], wanted: str) -> tuple[str, ...]:
    if wanted == DEVICE:
        return ("nvml",) if model.device == "cuda" else ("rapl",)
    return (wanted,) if wanted in _OPEN else ()


def _nvml(model: ResolvedModel[Any]) -> Meter:
    _check_alone(model)
    if model.gpus != int(model.gpus) or not model.gpus:
        raise NoMeter(f"{model.id} has {model.gpus:g} GPUs; the counter is of a whole one, which others may share")
    return open_nvml()


def _rapl(model: ResolvedModel[Any]) -> Meter:
    _check_alone(model)
    return open_rapl(time.monotonic, model.cpus)


def _check_alone(model: ResolvedModel[Any]) -> None:
    if model.num_ranks > 1:
        raise NoMeter(f"{model.id} runs on {model.num_ranks} ranks, and only the first reads a meter")


_OPEN: dict[str, Callable[[ResolvedModel[Any]], Meter]] = {"nvml": _nvml, "rapl": _rapl}
