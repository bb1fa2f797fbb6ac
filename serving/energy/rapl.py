"""The counters of Intel's and AMD's processors (RAPL), as Linux shows them in /sys/class/powercap.

Zones lie within zones: ``intel-rapl:0`` is a package, ``intel-rapl:0:0`` a part of it. Packages and DRAM are added up.
Core and uncore are parts of their package, and ``psys`` is the whole board with the packages in it: to add these would
count joules twice. Each counter wraps at its own ``max_energy_range_uj``.

A package serves everything that runs on the machine. A replica has the part of its CPU seconds in those of all, and, of
the idle power, the part of the processors that are reserved for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from serving.energy.cpu_time import TreeCpuTime, machine_cpu_s
from serving.energy.meter import NoMeter, Reading

_log = structlog.get_logger(__name__)
POWERCAP = Path("/sys/class/powercap")
_IDLE_SHARE = 0.05
"""A machine whose processors are busy for less of the time than this is idle."""


@dataclass(slots=True)
class Zone:
    """One counter, unwrapped. Raises: OSError, ValueError: it cannot be read."""

    folder: Path
    name: str
    range_uj: int
    last_uj: int
    total_uj: int = 0

    @classmethod
    def open(cls, folder: Path) -> Zone:
        """Begin at 0."""
        text = (folder / "name").read_text().strip()
        return cls(folder, text, int((folder / "max_energy_range_uj").read_text()), _energy_uj(folder))

    def read_uj(self) -> int:
        """Microjoules since it was opened. It has to be read more often than it wraps: every few minutes."""
        now_uj = _energy_uj(self.folder)
        grown_uj = now_uj - self.last_uj
        self.total_uj += grown_uj if grown_uj >= 0 else grown_uj + self.range_uj
        self.last_uj = now_uj
        return self.total_uj


def _energy_uj(folder: Path) -> int:
    return int((folder / "energy_uj").read_text())


class RaplMeter:
    """Packages and their DRAM. ``own_s`` and ``all_s``: CPU seconds of this replica and of the machine."""

    source = "rapl"

    def __init__(
        self,
        zones: list[Zone],
        *,
        own_idle: float = 1.0,
        num_cpus: int | None = None,
        own_s: Callable[[], float] | None = None,
        all_s: Callable[[], float] = machine_cpu_s,
        clock: Callable[[], float],
    ) -> None:
        self.zones = zones
        self.own_idle = own_idle
        self._num_cpus = num_cpus or os.cpu_count() or 1
        self._own_s = own_s or TreeCpuTime().read
        self._all_s = all_s
        self._clock = clock
        self._last = (self._own_s(), self._all_s(), clock())
        self._is_silent = False

    def read(self) -> Reading | None:
        """See ``Meter``."""
        try:
            total_uj = sum([zone.read_uj() for zone in self.zones])
            now = (self._own_s(), self._all_s(), self._clock())
        except (OSError, ValueError) as error:
            if not self._is_silent:
                _log.warning("RAPL gives no reading", error=str(error))
            self._is_silent = True
            return None
        self._is_silent = False
        before, self._last = self._last, now
        own_s, all_s, seconds = (now - then for now, then in zip(self._last, before, strict=True))
        share = min(1.0, own_s / all_s) if all_s > 0.0 else 0.0
        return Reading(total_uj / 1e6, share, all_s < _IDLE_SHARE * self._num_cpus * seconds)


def open_rapl(clock: Callable[[], float], cpus: float = 1.0, powercap: Path = POWERCAP) -> RaplMeter:
    """The meter of this machine, of which ``cpus`` processors are the replica's.

    Raises: NoMeter: there are no counters, as on most virtual machines, or root alone may read them.
    """
    folders = sorted(powercap.glob("*-rapl:*"))  # not those of -mmio, which are the same counters again
    zones: list[Zone] = []
    try:
        zones = [zone for zone in map(Zone.open, folders) if is_counted(zone.name)]
    except PermissionError as error:
        raise NoMeter(
            f"{error.filename} may not be read: allow it with chmod -R a+r on the energy_uj files of {powercap}"
        ) from None
    except (OSError, ValueError) as error:
        raise NoMeter(f"RAPL: {error}") from None
    if not zones:
        raise NoMeter(f"{powercap} has no package to read: most virtual machines have none")
    num_cpus = os.cpu_count() or 1
    return RaplMeter(zones, own_idle=min(1.0, cpus / num_cpus), num_cpus=num_cpus, clock=clock)


def is_counted(name: str) -> bool:
    """Of a zone's name: see the module."""
    return name.startswith("package") or name == "dram"
