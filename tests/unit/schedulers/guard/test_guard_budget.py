"""The budget holds whatever detectors say: 100,000 sequences of requests, tokens, second looks, faults and aborts.

What is charged is what was done: prompts that were read and tokens that were written, of the answer and of its second
look. What was reserved is the most that both may take: the prompt twice, a glance at the embedding, the answer's limit
and its cap.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from schedulers.admission import BucketLimits, Cost, full, reserve, settle
from schedulers.guard.calibration import Group
from schedulers.guard.stream import StreamMonitor
from schedulers.guard.watch import Next, Watch
from schedulers.policies.guard import Mode, Rules

NUM_SEQUENCES = 100_000
GROUP = Group(
    num=600,
    p95_tokens=6,
    residuals=tuple(i / 600 - 0.5 for i in range(600)),
    special_run=(1.0,) * 600,
    eos=(2.0,) * 600,
    eos_median=(-4.0,),
)
READ_J, WRITE_J, SEE_J = 0.25, 2.0, 3.0
"""Of a token that is read, of one that is written, and of a pass of the vision tower."""
DISTANCES = tuple(i / 1000 for i in range(999))


@dataclass(slots=True)
class Sequence:
    """One request, on an engine that keeps to ``max_tokens`` and to nothing else."""

    draw: random.Random
    mode: Mode
    num_prompt: int
    max_tokens: int
    cap: int
    may_look: bool
    is_replay: bool

    @property
    def limit(self) -> int:
        """What the engine is told."""
        return min(self.max_tokens, self.cap) if self.is_replay and self.mode is Mode.ENFORCE else self.max_tokens

    @property
    def most_j(self) -> float:
        looks = self.may_look and self.mode is Mode.ENFORCE
        return READ_J * self.num_prompt * (1 + looks) + WRITE_J * (self.limit + looks * self.cap) + looks * SEE_J

    def run(self) -> tuple[int, int, bool, float]:
        """Tokens of the answer and of the second look, whether it was ended, and joules."""
        draw = self.draw
        p_values = {"screen": draw.choice((1.0, 0.02, 0.009, 1e-4))}
        monitor = StreamMonitor(GROUP, draw.choice((1, 8, 1 << 30)), {0}) if draw.random() < 0.8 else None
        watch = Watch(
            Rules(mode=self.mode),
            self.cap,
            p_values=p_values,
            monitor=monitor,
            can_confirm=self.may_look,
            squeeze=DISTANCES if draw.random() < 0.5 else (),
            is_replay=self.is_replay,
        )
        joules, said, looked, looking = READ_J * self.num_prompt, 0, 0, False
        is_ended = False
        while said < self.limit and draw.random() > 0.04:  # an abort, a fault, a deadline
            num = min(draw.choice((1, 1, 1, 2, 5)), self.limit - said)
            said += num
            joules += WRITE_J * num
            is_last = said == self.limit or draw.random() < 0.03
            ends = [draw.choice((-1.0, -30.0)) for _ in range(num)] if draw.random() < 0.9 else None
            step = watch.push([draw.randrange(3) for _ in range(num)], ends, is_last)
            if is_last:
                break
            if step is Next.END:
                is_ended = True
                break
            if step is Next.LOOK_TWICE and not looking and not looked and draw.random() < 0.7:  # else no room
                if watch.wants_squeeze:
                    joules += SEE_J
                    watch.squeezed(draw.choice(([], [0.1], [5.0])))
                if watch.is_suspect:
                    looking = True
                    joules += READ_J * self.num_prompt
            if looking:
                more = min(draw.randrange(4), self.cap - looked)
                looked += more
                joules += WRITE_J * more
                event = draw.random()
                if looked == self.cap or event < 0.2:
                    watch.looked(event < 0.15, looked)
                    looking = False
                elif event < 0.3:
                    watch.gave_up(looked)
                    looking, looked = False, max(looked, 1)
        watch.verdict()
        return said, looked, is_ended, joules


def test_tokens_stay_within_their_limit_and_joules_within_their_reservation() -> None:
    draw = random.Random(16)
    limits = BucketLimits(joules_per_s=50.0, joules_burst=400.0, seconds_per_s=1e6, seconds_burst=1e6)
    bucket, now_s = full(limits, 0.0), 0.0
    num_run = num_ended = num_looked = 0
    for _ in range(NUM_SEQUENCES):
        now_s += draw.expovariate(1.0)
        max_tokens = draw.randint(1, 40)
        one = Sequence(
            draw,
            mode=draw.choice((Mode.ENFORCE, Mode.ENFORCE, Mode.OBSERVE, Mode.OFF)),
            num_prompt=draw.randint(1, 20),
            max_tokens=max_tokens,
            cap=draw.randint(1, max_tokens),
            may_look=draw.random() < 0.8,
            is_replay=draw.random() < 0.1,
        )
        cost = Cost(one.most_j, 0.0)
        bucket, refused = reserve(bucket, limits, cost, now_s)
        if refused is not None:
            continue
        said, looked, is_ended, joules = one.run()
        assert said <= one.limit <= one.max_tokens
        assert looked <= one.cap
        assert joules <= one.most_j
        assert one.mode is Mode.ENFORCE or (not is_ended and not looked)
        now_s += draw.random()
        bucket = settle(bucket, limits, cost, Cost(joules, 0.0), now_s)
        assert 0.0 <= bucket.joules <= limits.joules_burst, "no debt, so nobody got more than was refilled"
        num_run, num_ended, num_looked = num_run + 1, num_ended + is_ended, num_looked + (looked > 0)
    assert num_run > 0.5 * NUM_SEQUENCES
    assert num_ended > 1000, "detectors spoke"
    assert num_looked > 5000
