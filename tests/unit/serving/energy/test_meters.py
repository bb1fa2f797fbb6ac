"""Meters over made-up sysfs folders and a made-up pynvml: no hardware is asked."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from serving.energy import cpu_time
from serving.energy.cpu_time import TreeCpuTime, machine_cpu_s
from serving.energy.estimate import EstimateMeter
from serving.energy.meter import NoMeter
from serving.energy.nvml import open_nvml
from serving.energy.rapl import RaplMeter, open_rapl
from serving.energy.replay import ReplayMeter, load
from serving.errors import ConfigError
from tests.support.waiting import wait_until

RANGE_UJ = 262_143_328_850


@dataclass
class Powercap:
    """A folder like /sys/class/powercap of one package with everything in it."""

    root: Path

    def zone(self, place: str, name: str, energy_uj: int) -> None:
        folder = self.root / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (folder / "energy_uj").write_text(f"{energy_uj}\n")

    def set(self, place: str, energy_uj: int) -> None:
        (self.root / place / "energy_uj").write_text(f"{energy_uj}\n")


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    made = Powercap(tmp_path / "powercap")
    made.zone("intel-rapl:0", "package-0", 1_000_000)
    made.zone("intel-rapl:0:0", "core", 900_000)
    made.zone("intel-rapl:0:1", "uncore", 50_000)
    made.zone("intel-rapl:0:2", "dram", 500_000)
    made.zone("intel-rapl:1", "psys", 9_000_000)
    made.zone("intel-rapl-mmio:0", "package-0", 1_000_000)
    return made


def joules(meter: Any) -> float:
    reading = meter.read()
    assert reading is not None
    return float(reading.joules)


def test_packages_and_dram_are_added_up_and_parts_of_them_are_not(powercap: Powercap) -> None:
    meter = open_rapl(time.monotonic, powercap=powercap.root)
    assert sorted(zone.name for zone in meter.zones) == ["dram", "package-0"]
    for place in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:2", "intel-rapl:1", "intel-rapl-mmio:0"):
        powercap.set(place, 20_000_000)
    assert joules(meter) == pytest.approx(19.0 + 19.5)


def test_every_zone_wraps_by_itself(powercap: Powercap) -> None:
    meter = open_rapl(time.monotonic, powercap=powercap.root)
    powercap.set("intel-rapl:0", RANGE_UJ - 1_000_000)
    before_j = joules(meter)
    powercap.set("intel-rapl:0", 2_000_000)
    assert joules(meter) - before_j == pytest.approx(3.0)
    powercap.set("intel-rapl:0:2", 1_500_000)
    assert joules(meter) - before_j == pytest.approx(4.0)


def test_a_zone_that_cannot_be_read_is_no_reading_and_loses_nothing(powercap: Powercap) -> None:
    meter = open_rapl(time.monotonic, powercap=powercap.root)
    first_j = joules(meter)
    (powercap.root / "intel-rapl:0" / "energy_uj").rename(powercap.root / "away")
    assert meter.read() is None
    (powercap.root / "away").rename(powercap.root / "intel-rapl:0" / "energy_uj")
    powercap.set("intel-rapl:0", 3_000_000)
    assert joules(meter) - first_j == pytest.approx(2.0)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoMeter, match="virtual machines"):
        open_rapl(time.monotonic, powercap=tmp_path)


def test_counters_that_root_alone_may_read_say_what_to_do(powercap: Powercap, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.read_text

    def read_text(path: Path, *arguments: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(NoMeter, match=r"energy_uj may not be read: allow it with chmod"):
        open_rapl(time.monotonic, powercap=powercap.root)


def test_a_replica_has_its_part_of_the_processors_of_all(powercap: Powercap) -> None:
    zones = open_rapl(time.monotonic, powercap=powercap.root).zones
    now = {"own": 0.0, "all": 0.0, "at": 0.0}
    meter = RaplMeter(
        zones, num_cpus=4, own_s=lambda: now["own"], all_s=lambda: now["all"], clock=lambda: now["at"], own_idle=0.25
    )
    now.update(own=0.5, all=2.0, at=1.0)
    busy = meter.read()
    now.update(own=0.51, all=2.1, at=2.0)
    quiet = meter.read()
    assert busy is not None
    assert quiet is not None
    assert (busy.own, busy.is_idle) == (0.25, False)
    assert (quiet.own, quiet.is_idle) == (pytest.approx(0.1), True)


def test_without_the_seconds_of_the_machine_there_is_no_reading(powercap: Powercap) -> None:
    all_s = iter([0.0, OSError(errno.EMFILE, "Too many open files"), 1.0])

    def asked() -> float:
        one = next(all_s)
        if isinstance(one, OSError):
            raise one
        return one

    zones = open_rapl(time.monotonic, powercap=powercap.root).zones
    meter = RaplMeter(zones, num_cpus=4, own_s=lambda: 0.0, all_s=asked, clock=time.monotonic)
    assert meter.read() is None
    assert meter.read() is not None


class NvmlError(Exception):
    pass


@dataclass
class FakeNvml:
    """Counters in millijoules, by index; UUIDs are ``GPU-<index>``."""

    millijoules: list[int]
    is_away: bool = False
    asked: list[str] = field(default_factory=list)
    NVMLError: type[Exception] = NvmlError

    def nvmlInit(self) -> None:
        if self.is_away:
            raise NvmlError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        self.asked.append(uuid)
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if self.millijoules[handle] < 0:
            raise NvmlError("Not Supported")
        return self.millijoules[handle]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeNvml], FakeNvml]:
    def put(fake: FakeNvml) -> FakeNvml:
        module = ModuleType("pynvml_fake")
        for name in dir(fake):
            if name.startswith(("nvml", "NVML")):
                setattr(module, name, getattr(fake, name))
        monkeypatch.setitem(sys.modules, "pynvml_fake", module)
        return fake

    return put


@pytest.mark.parametrize(
    ("visible", "joules_read"), [(None, 6.0), ("1", 2.0), ("0,2", 4.0), ("GPU-2", 3.0), ("GPU-0, GPU-1", 3.0)]
)
def test_gpus_that_the_process_sees_are_added_up(
    install: Callable[[FakeNvml], FakeNvml], visible: str | None, joules_read: float
) -> None:
    install(FakeNvml([1000, 2000, 3000]))
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert joules(open_nvml(variables, "pynvml_fake")) == joules_read


def test_a_gpu_that_stops_answering_is_no_reading(install: Callable[[FakeNvml], FakeNvml]) -> None:
    fake = install(FakeNvml([1000]))
    meter = open_nvml({}, "pynvml_fake")
    fake.millijoules[0] = -1
    assert meter.read() is None
    fake.millijoules[0] = 4000
    assert joules(meter) == 4.0


@pytest.mark.parametrize(
    ("fake", "visible", "message"),
    [
        (FakeNvml([], is_away=True), None, "Driver Not Loaded"),
        (FakeNvml([]), None, "no GPU"),
        (FakeNvml([5]), "", "no GPU"),
        (FakeNvml([-1]), None, "Not Supported"),
        (FakeNvml([5]), "MIG-7", "part of a GPU"),
    ],
)
def test_where_there_is_no_counter_of_gpus_it_says_why(
    install: Callable[[FakeNvml], FakeNvml], fake: FakeNvml, visible: str | None, message: str
) -> None:
    install(fake)
    with pytest.raises(NoMeter, match=message):
        open_nvml({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, "pynvml_fake")


def test_without_the_package_there_is_no_counter_of_gpus() -> None:
    with pytest.raises(NoMeter, match="nvidia-ml-py"):
        open_nvml({}, "no_such_pynvml")


def test_estimate_counts_cpu_seconds_of_this_process_and_of_those_it_started() -> None:
    clock = TreeCpuTime()
    meter = EstimateMeter(clock.read, 6.0)
    before_j, before_s = joules(meter), time.process_time()
    child = subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\ninput()"],
                             stdin=subprocess.PIPE)  # fmt: skip
    try:
        wait_until(lambda: joules(meter) - before_j >= 6.0 * 0.3, "the child's seconds are counted")
        reading = joules(meter)
    finally:
        child.communicate(b"\n")
    own_s = time.process_time() - before_s
    assert reading - before_j == pytest.approx(6.0 * (0.3 + own_s), rel=0.2)
    assert joules(meter) >= reading  # what it took stays counted


def refusing(_pid: int) -> list[int]:
    raise OSError(errno.EMFILE, "Too many open files")


def test_where_no_children_can_be_listed_those_that_are_known_count(monkeypatch: pytest.MonkeyPatch) -> None:
    burn = "import time\nwhile time.process_time() < {}: pass\nprint(flush=True)\ninput()\n"
    code = burn.format(0.2) + burn.format(0.4)
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        clock, own_s = TreeCpuTime(), time.process_time()
        before_s = clock.read()
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        with monkeypatch.context() as patched:
            patched.setattr(cpu_time, "_children", refusing)
            meanwhile_s = clock.read() - before_s
        after_s, own_s = clock.read() - before_s, time.process_time() - own_s
    finally:
        child.communicate(b"\n")
    assert meanwhile_s == pytest.approx(0.2 + own_s, abs=0.05)
    assert after_s == pytest.approx(0.2 + own_s, abs=0.05), "neither lost nor counted from its start"


def test_a_past_that_does_not_fit_into_the_time_since_the_last_reading_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = subprocess.Popen(["sleep", "60"])
    try:
        clock = TreeCpuTime(idle.pid)
        before_s = clock.read()
        assert time.process_time() > 0.5
        monkeypatch.setattr(cpu_time, "_children", lambda pid: [os.getpid()] if pid == idle.pid else [])
        assert clock.read() - before_s < 0.1
        burnt_s = time.process_time()
        while time.process_time() < burnt_s + 0.1:
            pass
        assert clock.read() - before_s == pytest.approx(0.1, abs=0.05), "from now on it counts"
    finally:
        idle.kill()
        idle.wait()


def test_cpu_seconds_of_the_machine_leave_out_idle_and_waiting(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(f"cpu  {ticks} {ticks} {ticks} 900 900 {ticks} {ticks} 0 0 0\ncpu0 1 2 3 4\n")
    assert machine_cpu_s(tmp_path) == 5.0
    assert machine_cpu_s() > 0.0


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_recording_is_played_back(tmp_path: Path) -> None:
    path = write(
        tmp_path / "one.jsonl",
        '{"source": "nvml", "note": "made up"}',
        '{"at_s": 10.0, "joules": 5.0}',
        '{"at_s": 11.0, "joules": 7.5}',
        '{"at_s": 12.0, "joules": null}',
        '{"at_s": 13.0, "joules": 9.0}',
    )
    now = [100.0]
    meter = ReplayMeter(load(path), lambda: now[0])
    read = []
    for at_s in (100.0, 100.9, 101.0, 102.5, 103.0, 103.1):
        now[0] = at_s
        reading = meter.read()
        read.append(None if reading is None else reading.joules)
    assert read == [5.0, 5.0, 7.5, None, 9.0, None]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ['{"source": "nvml"}'],
        ['{"source": "nvml"}', "no json"],
        ['{"source": "nvml"}', '{"at_s": 1.0}'],
        ['{"source": "nvml"}', '{"at_s": 1.0, "joules": 1, "watts": 2}'],
        ['{"source": "nvml"}', '{"at_s": 1.0, "joules": 1}', '{"at_s": 1.0, "joules": 2}'],
    ],
)
def test_a_broken_recording_is_refused_by_name(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"broken\.jsonl"):
        load(write(tmp_path / "broken.jsonl", *lines))
