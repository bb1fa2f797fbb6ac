"""What a replica tells its requests, on a clock of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.config import ModelSettings, resolve_model
from serving.energy import choose
from serving.energy.choose import replica_energy
from serving.energy.meter import Meter, NoMeter, Reading
from serving.energy.replay import ReplayMeter, load
from serving.energy.replica import STALE_S, ReplicaEnergy
from serving.telemetry.events import EnergyMetered, Event, ignore


class World:
    """A replica that runs slices, and its meter's recording."""

    def __init__(self, meter: Meter | None, watts: float = 6.0) -> None:
        self.now_s = 0.0
        self.told: list[EnergyMetered] = []
        self.meter = meter
        self.energy = ReplicaEnergy(meter, watts=watts, model="m", tell=self._hear, now=lambda: self.now_s)

    def _hear(self, event: Event) -> None:
        assert isinstance(event, EnergyMetered)
        self.told.append(event)

    def slice(self, seconds: float) -> float | None:
        number = self.energy.slices.enter(self.now_s)
        self.now_s += seconds
        self.energy.slices.leave(number, seconds)
        return self.energy.take(seconds)

    def look(self, at_s: float, joules: float | None) -> None:
        self.now_s = at_s
        self.energy.look(None if joules is None else Reading(joules))

    def total(self, part: str) -> float:
        return sum(getattr(event, part) for event in self.told)


class Named:
    """A meter that the test reads itself."""

    own_idle = 1.0

    def __init__(self, source: str) -> None:
        self.source = source

    def read(self) -> Reading | None:
        return None


def test_a_request_is_told_joules_once_a_window_was_measured() -> None:
    world = World(Named("nvml"))
    world.look(0.0, 1000.0)
    world.look(1.0, 1060.0)
    assert world.slice(0.5) is None
    world.look(2.0, 1170.0)
    assert world.slice(0.5) == pytest.approx(50.0, rel=0.01)
    assert world.energy.source == "nvml"
    world.look(3.0, 1280.0)
    assert world.total("metered_j") == 280.0
    assert world.total("idle_j") == pytest.approx(180.0)
    assert world.told[-1].carried_j == pytest.approx(0.0, abs=1.0)


def test_a_counter_that_falls_silent_answers_no_joules_and_comes_back_with_all_of_them() -> None:
    world = World(Named("nvml"))
    for second in range(4):
        world.look(float(second), 60.0 * second)
    world.slice(0.5)
    world.look(4.0, 290.0)
    for second in range(5, 16):
        world.look(float(second), None)
    assert world.now_s - 4.0 > STALE_S
    assert world.slice(0.1) is None
    world.look(17.0, 290.0 + 13 * 60.0 + 10.0)
    assert world.slice(0.5) == pytest.approx(50.0, rel=0.05)
    assert world.total("metered_j") == 290.0 + 13 * 60.0 + 10.0


def test_a_counter_that_began_anew_loses_one_window_only() -> None:
    world = World(Named("nvml"))
    for second in range(4):
        world.look(float(second), 5000.0 + 60.0 * second)
    world.look(4.0, 10.0)
    world.look(5.0, 70.0)
    assert world.total("metered_j") == 180.0 + 60.0


def test_the_estimate_says_what_is_declared_until_it_has_a_window() -> None:
    world = World(Named("estimate"), watts=6.0)
    assert world.slice(0.5) == 3.0
    busy = World(None, watts=6.0)
    assert (busy.energy.source, busy.slice(2.0)) == ("estimate", 12.0)


async def test_without_a_meter_joules_are_busy_seconds_times_watts() -> None:
    world = World(None, watts=7.0)
    await world.energy.run()  # there is nothing to read
    assert [world.slice(1.0), world.slice(0.5)] == [7.0, 3.5]
    assert world.told == []


def test_what_was_recorded_adds_up(tmp_path: Path) -> None:
    """A counter that goes up in steps of a quarter second, and gives nothing for three seconds."""
    lines: list[dict[str, Any]] = [{"source": "nvml", "note": "60 W idle, 100 W more while busy, made up"}]
    busy = [(float(second), float(second) + 0.6) for second in range(5, 95)]
    joules, at_s = 7000.0, 0.0
    while at_s <= 100.0:
        lines.append({"at_s": at_s, "joules": None if 50.0 <= at_s < 53.0 else round(joules, 3)})
        joules += 0.25 * 60.0 + 100.0 * sum(max(0.0, min(at_s + 0.25, to) - max(at_s, since)) for since, to in busy)
        at_s += 0.25
    path = tmp_path / "gpu.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    world = World(None)
    world.meter = meter = ReplayMeter(load(path), lambda: world.now_s)
    world.energy = ReplicaEnergy(meter, watts=1.0, model="m", tell=world._hear, now=lambda: world.now_s)
    said = []
    for second in range(100):
        world.now_s = float(second)
        world.energy.look(meter.read())
        if 5 <= second < 95:
            said.append(world.slice(0.6))
    world.now_s = 100.0
    world.energy.look(meter.read())
    known = [one for one in said if one is not None]
    assert len(known) >= 88
    assert sum(known) + world.total("idle_j") == pytest.approx(world.total("metered_j"), rel=0.02)
    assert world.total("metered_j") == pytest.approx(joules - 7000.0, rel=0.01)
    assert sum(known) / len(known) == pytest.approx(60.0, rel=0.02)


# -- which meter -----------------------------------------------------------------------------------------------------


def model(**settings: Any) -> Any:
    return resolve_model(ModelSettings(id="dyn-perceiver-nano", **settings))


def opened(wanted: str, **settings: Any) -> str:
    return replica_energy(model(**settings), wanted, ignore, 6.0).source


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which counters this machine has."""
    present = {"nvml": True, "rapl": True}

    def opener(kind: str) -> Any:
        def open_it(*_: Any) -> Meter:
            if not present[kind]:
                raise NoMeter(f"no {kind} here")
            return Named(kind)

        return open_it

    monkeypatch.setattr(choose, "open_nvml", opener("nvml"))
    monkeypatch.setattr(choose, "open_rapl", opener("rapl"))
    return present


def test_the_counter_of_the_device_is_taken_else_the_estimate(counters: dict[str, bool]) -> None:
    assert opened("device") == "rapl"
    assert opened("device", gpus=1.0) == "nvml"
    counters.update(nvml=False, rapl=False)
    assert opened("device") == opened("device", gpus=1.0) == "estimate"


def test_a_gpu_that_is_shared_has_no_counter_of_its_own(counters: dict[str, bool]) -> None:
    assert opened("device", gpus=0.5) == "estimate"


@pytest.mark.parametrize("kind", ["nvml", "rapl"])
def test_a_meter_that_was_asked_for_and_is_not_there_answers_nothing(counters: dict[str, bool], kind: str) -> None:
    counters[kind] = False
    energy = replica_energy(model(gpus=1.0), kind, ignore, 6.0)
    assert (energy.source, energy.take(1.0)) == (kind, None)


def test_the_estimate_can_be_asked_for(counters: dict[str, bool]) -> None:
    assert opened("estimate") == "estimate"


def test_a_replay_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"source": "nvml"}\n{"at_s": 0.0, "joules": 1.0}\n')
    assert opened(f"replay:{path}") == "replay"
