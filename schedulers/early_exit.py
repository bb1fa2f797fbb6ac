"""The early-exit policy."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from schedulers.cost import CostModel
from schedulers.fair_queue import FairQueue
from schedulers.machine import Batch, Machine, PolicyConfig, Sample
from schedulers.ordered_queue import OrderedQueue
from schedulers.types import Priority, RejectReason


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExitConfig(PolicyConfig):
    max_age_s: float = 10.0
    rule: str = "slack"
    entry_reserve: float = 0.0
    slack_factor: float = 1.0
    fit: str = "rate"
    order: str = "edf"
    priority_weights: tuple[float, float, float] = (0.25, 1.0, 4.0)


class EarlyExitScheduler(Machine):
    def __init__(self, cost_model: CostModel, config: EarlyExitConfig | None = None) -> None:
        config = config or EarlyExitConfig()
        super().__init__(cost_model, config)
        self._config = config
        self._fresh: FairQueue[Sample] = FairQueue()
        self._deep: list[OrderedQueue[tuple[tuple[float, int], Sample]]] = [
            OrderedQueue() for _ in range(self._num_stages)
        ]
        self._ages: deque[tuple[float, Sample]] = deque()
        self._total = 0

    def _enqueue(self, sample: Sample) -> None:
        charge_s = self._charge_s(sample)
        if self._total >= self._config.max_waiting:
            if not self._fresh or self._fresh.next_tag(sample.tenant, charge_s) >= self._fresh.last_tag():
                self._reject(sample, RejectReason.QUEUE_FULL)
                return
            victim = self._fresh.least_urgent()
            self._dequeue(victim)
            self._reject(victim, RejectReason.QUEUE_FULL)
        sample.is_waiting = True
        self._fresh.add(sample, charge_s)
        self._ages.append((self._now_s, sample))
        self._total += 1

    def _charge_s(self, sample: Sample) -> float:
        B = self._config.max_batch
        tot = 0.0
        f = 1.0
        for k in range(self._num_stages):
            tot += f * self._cost.batch_s(k, B)
            if sample.thresholds[k] < 1e8:
                f *= 1 - self._exit_rates[k]
        return tot / B / self._config.priority_weights[sample.priority]

    def _dequeue(self, sample: Sample) -> None:
        if sample.stage == 0:
            self._fresh.remove(sample)
        else:
            self._deep[sample.stage].remove((self._deep_key(sample), sample))
        self._total -= 1

    def _deep_key(self, s: Sample) -> tuple[float, int]:
        return (s.deadline_s, s.order[2])

    def _continue(self, batch: Batch, survivors: list[Sample]) -> None:
        stage = survivors[0].stage
        q = self._deep[stage]
        now = self._now_s
        c1 = self._cost.batch_s(stage, 1)
        for s in survivors:
            if s.deadline_s < now + c1:
                self._give_up(s)
                continue
            s.is_waiting = True
            s.enqueued_s = now
            q.add((self._deep_key(s), s))
            self._ages.append((now, s))
            self._total += 1
            self._set_timer(s)

    def _num_waiting(self) -> int:
        return self._total

    def _waiting(self) -> Iterator[Sample]:
        yield from self._fresh
        for q in self._deep:
            for _, s in q:
                yield s

    def _stage_counts(self) -> Iterable[int]:
        return (len(self._fresh), *(len(q) for q in self._deep[1:]))

    def _start(self) -> None:
        while self._total and len(self._running) < self._config.num_executors:
            stage, forced = self._pick()
            samples = self._form(stage, forced)
            if samples:
                self._run(samples, stage)

    def _pick(self) -> tuple[int, Sample | None]:
        now = self._now_s
        ages = self._ages
        while ages and not (ages[0][1].is_waiting and ages[0][1].enqueued_s == ages[0][0]):
            ages.popleft()
        if ages and now - ages[0][0] > self._config.max_age_s:
            return ages[0][1].stage, ages[0][1]
        counts = list(self._stage_counts())
        st = [k for k in range(self._num_stages) if counts[k]]
        if len(st) == 1:
            return st[0], None
        rule = self._config.rule
        B = self._config.max_batch
        cost = self._cost.batch_s
        if rule == "deepest":
            return st[-1], None
        if rule == "shallowest":
            return st[0], None

        def head(k: int) -> Sample:
            return self._fresh.first() if k == 0 else self._deep[k].first()[1]

        if rule == "edf":
            return min(st, key=lambda k: (head(k).deadline_s, -k)), None
        if rule == "oldest":
            return min(st, key=lambda k: (head(k).arrived_s, -k)), None
        b = {k: min(B, counts[k]) for k in st}
        c = {k: cost(k, b[k]) for k in st}
        eff = {k: b[k] / c[k] * cost(k, B) / B for k in st}
        if rule == "fullest":
            return max(st, key=lambda k: (eff[k], k)), None
        if rule == "rate":  # completions per second, myopic
            return max(st, key=lambda k: (self._exit_rates[k] * b[k] / c[k], k)), None
        if rule == "index":  # best completions per second over stopping stages

            def idx(k: int) -> float:
                n, t, done, best = float(b[k]), 0.0, 0.0, 0.0
                for m in range(k, self._num_stages):
                    size = min(B, max(b[k], counts[m])) if m > k else b[k]
                    t += n * cost(m, size) / size
                    done += n * self._exit_rates[m]
                    n *= 1 - self._exit_rates[m]
                    best = max(best, done / t)
                return best

            return max(st, key=lambda k: (idx(k), k)), None
        if rule == "slack":
            # remaining pessimistic path
            later = 0.0
            rem = {}
            for k in range(self._num_stages - 1, -1, -1):
                later += cost(k, max(1, min(B, counts[k])))
                rem[k] = later
            k_eff = max(st, key=lambda k: (eff[k], k))
            urgent = [
                k for k in st if k != k_eff and head(k).deadline_s - now - rem[k] * self._config.slack_factor < c[k_eff]
            ]
            if urgent:
                urgent.append(k_eff)
                return min(urgent, key=lambda k: (head(k).deadline_s - now - rem[k], -k)), None
            return k_eff, None
        if rule == "deepslack":  # deepest unless inefficient and not urgent
            for k in reversed(st):
                if k == st[0]:
                    return k, None
                alt = max(c[j] for j in st if j != k)
                if eff[k] >= self._config.slack_factor or head(k).deadline_s - now - c[k] < alt * 2:
                    return k, None
            return st[0], None
        raise ValueError(rule)

    def _take_from(self, stage: int, n: int) -> list[Sample]:
        if stage == 0:
            return self._fresh.take(n)
        return [e[1] for e in self._deep[stage].take(n)]

    def _form(self, stage: int, forced: Sample | None) -> list[Sample]:
        cfg = self._config
        B = cfg.max_batch
        n = len(self._fresh) if stage == 0 else len(self._deep[stage])
        b = min(n, B)
        head = []
        if forced is not None:
            self._dequeue(forced)
            head = [forced]
            b -= 1
        else:
            pass
        samples = self._take_from(stage, b)
        self._total -= len(samples)
        samples = head + samples
        cost = self._cost.batch_s
        now = self._now_s
        end = now + cost(stage, len(samples))
        if stage == 0 and cfg.entry_reserve and n > B:
            later, f = 0.0, 1.0
            for k in range(1, self._num_stages):
                later += cost(k, B)
            end += cfg.entry_reserve * later
            keep = []
            m = len(samples)
            while True:
                for s in samples:
                    if s.deadline_s < end:
                        s.is_waiting = False
                        self._give_up(s)
                    else:
                        keep.append(s)
                if len(keep) >= B or not len(self._fresh):
                    break
                samples = self._take_from(0, B - len(keep))
                self._total -= len(samples)
            return keep
        if any(s.deadline_s < end for s in samples):
            return self._fit(stage, samples)
        return samples

    def _fit(self, stage: int, samples: list[Sample]) -> list[Sample]:
        cost = self._cost.batch_s
        now = self._now_s
        c1 = cost(stage, 1)
        ok = []
        for s in samples:
            if s.deadline_s < now + c1:
                s.is_waiting = False
                self._give_up(s)
            else:
                ok.append(s)
        if not ok:
            return ok
        ok.sort(key=lambda s: s.deadline_s)
        m = len(ok)
        best = (-1.0, 0, 0)
        mode = self._config.fit
        for d in range(m):
            slack = ok[d].deadline_s - now
            bb = m - d
            while bb > 1 and cost(stage, bb) > slack:
                bb -= 1
            r = bb / cost(stage, bb)
            if mode == "drop" and bb < m - d:
                continue
            if mode == "shrink" and d > 0:
                break
            if r > best[0] * 1.0001:
                best = (r, d, bb)
            if d == 0 and mode == "rate" and bb < m:
                if self._total == 0 and ok[bb].deadline_s >= now + cost(stage, bb) + cost(stage, m - bb):
                    break
            if bb == m - d:
                break
        _, d, bb = best
        for s in ok[:d]:
            s.is_waiting = False
            self._give_up(s)
        for s in ok[d + bb :]:
            if stage == 0:
                self._fresh.add(s, 0.0)
            else:
                self._deep[stage].add((self._deep_key(s), s))
            self._total += 1
        return ok[d : d + bb]
