"""A device whose power is known, and the counter of it: noisy, updated now and then, in whole millijoules."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from schedulers.energy import EnergyAccount, Split, Window

STEP_S = 0.01


@dataclass(frozen=True)
class Ask:
    """A request: when it may start, how long it runs, and the watts that it adds while it does."""

    arrives_s: float
    work_s: float
    watts: float = 200.0


@dataclass
class Device:
    """Runs requests one after the other on a virtual clock. ``noise_w`` is white, ``update_s`` the counter's."""

    asks: Sequence[Ask]
    seed: int = 0
    idle_w: float = 60.0
    noise_w: float = 5.0
    update_s: float = 0.1
    idle_j: float = 0.0
    truth_j: dict[int, float] = field(default_factory=dict)
    counter_j: float = 0.0

    def run(self, until_s: float) -> Iterator[tuple[float, float, float, list[int]]]:
        """(now, counter, busy seconds so far, requests that ended in this step), every ``STEP_S``."""
        chance, waiting, left_s = random.Random(self.seed), sorted(range(len(self.asks)), key=self._arrival), {}
        true_j = work_s = 0.0
        running: int | None = None
        for step in range(round(until_s / STEP_S)):
            now_s, ended = step * STEP_S, []
            if running is None and waiting and self.asks[waiting[0]].arrives_s <= now_s:
                running = waiting.pop(0)
                left_s[running] = self.asks[running].work_s
            added_w = 0.0
            if running is not None:
                ran_s = min(STEP_S, left_s[running])
                added_w = self.asks[running].watts * ran_s / STEP_S
                self.truth_j[running] = self.truth_j.get(running, 0.0) + added_w * STEP_S
                work_s += ran_s
                left_s[running] -= ran_s
                if left_s[running] <= 1e-9:
                    ended.append(running)
                    running = None
            idle_w = self.idle_w + chance.gauss(0.0, self.noise_w)
            self.idle_j += idle_w * STEP_S
            true_j += (idle_w + added_w) * STEP_S
            if step % max(1, round(self.update_s / STEP_S)) == 0:
                self.counter_j = round(true_j, 3)
            yield now_s + STEP_S, self.counter_j, work_s, ended

    def _arrival(self, number: int) -> float:
        return self.asks[number].arrives_s


@dataclass
class Accounted:
    """What an account made of it."""

    said_j: dict[int, float | None] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)
    carried_j: float = 0.0

    @property
    def metered_j(self) -> float:
        return sum(split.metered_j for split in self.splits)

    @property
    def idle_j(self) -> float:
        return sum(split.idle_j for split in self.splits)

    @property
    def elsewhere_j(self) -> float:
        return sum(split.elsewhere_j for split in self.splits)

    @property
    def total_said_j(self) -> float:
        return sum(joules or 0.0 for joules in self.said_j.values())


def account_for(device: Device, until_s: float, *, window_s: float = 1.0, missing: Sequence[float] = ()) -> Accounted:
    """Windows of ``window_s``; the readings of the seconds in ``missing`` are not there."""
    account, done = EnergyAccount(), Accounted()
    last = (0.0, 0.0, 0.0)
    for now_s, joules, work_s, ended in device.run(until_s):
        for number in ended:
            done.said_j[number] = account.take(device.asks[number].work_s)
        if now_s - last[0] < window_s - 1e-9 or int(now_s) in missing:
            continue
        at_s, from_j, from_work_s = last
        last = (now_s, joules, work_s)
        grown_s = work_s - from_work_s
        window = Window(seconds=now_s - at_s, joules=joules - from_j, work_s=grown_s, is_idle=not grown_s)
        done.splits.append(account.close(window))
    done.carried_j = account.carried_j
    return done
