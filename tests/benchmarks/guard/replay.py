"""A recorded answer sent through the served guard again, token by token, without a model: what it would have done.

Nothing of the guard is written twice: the watch, the monitor, the bound and the decision are those that serve. What a
replica does beside the answer is counted as if it had as many tokens to itself: the answer goes on while the purified
copy is asked about, a token each, and the tokens of both are paid for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from schedulers.guard.calibration import Expected, GuardCalibration
from schedulers.guard.conformal import p_value
from schedulers.guard.detectors import ALL, Layer
from schedulers.guard.stream import StreamMonitor
from schedulers.guard.text import Asked
from schedulers.guard.watch import Next, Watch
from schedulers.policies.guard import Rules, Verdict, combined
from tests.benchmarks.guard.corpus import MAX_TOKENS


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer as it would be without a guard. ``token_ids``: the end included, where there was one, as engines say
    it. ``p_screen``: of its pictures; None: not looked at. ``purified``: (tokens, whether it ended by itself) of the
    answer to a purified copy, up to the cap; None: nobody asked. ``squeeze``: how far the embedding moved."""

    asked: Asked
    token_ids: tuple[int, ...]
    log_p_ends: tuple[float, ...]
    is_ended: bool
    p_screen: float | None = None
    purified: tuple[int, bool] | None = None
    squeeze: float | None = None

    @property
    def length(self) -> int:
        """Tokens, with the end."""
        return len(self.token_ids)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the guard made of it. ``tokens``: of the answer; ``probe_tokens``: of the second look, 0 if there was none.
    ``is_glanced``: whether its embedding was looked at. ``suspect_at``: tokens after which it was first a suspect, None
    if never. ``p_values``: at the end of the answer as it would be *without* a guard; ``expected``: by its text."""

    verdict: Verdict
    tokens: int
    probe_tokens: int
    is_glanced: bool
    suspect_at: int | None
    p_values: Mapping[str, float] = field(default_factory=dict)
    expected: Expected

    @property
    def combined(self) -> float:
        """One p-value for the whole answer."""
        return combined(self.p_values)


def replayed(
    answered: Answered, calibration: GuardCalibration, layers: Collection[str] = ALL, rules: Rules | None = None
) -> Outcome:
    """Without ``purified`` a suspect stays one. ``layers``: those that are switched on."""
    rules = Rules() if rules is None else rules
    expected = calibration.expected(answered.asked, MAX_TOKENS)
    group = calibration.group(expected.group)

    def monitor() -> StreamMonitor:
        return StreamMonitor(
            group, expected.bound_tokens, calibration.special_ids, answered.asked.is_structured, layers
        )

    p_screen = {} if answered.p_screen is None or Layer.SCREEN not in layers else {"screen": answered.p_screen}
    can_confirm = Layer.CONFIRM in layers and answered.asked.num_images > 0 and expected.cap_tokens < MAX_TOKENS
    watch = Watch(
        rules,
        expected.cap_tokens,
        p_values=p_screen,
        monitor=monitor(),
        can_confirm=can_confirm,
        squeeze=group.squeeze if Layer.SQUEEZE in layers else (),
    )
    is_glanced, suspect_at = _run(watch, answered)
    whole = monitor()
    whole.push(answered.token_ids, answered.log_p_ends)
    p_squeeze: dict[str, float] = {}
    if group.squeeze and can_confirm and Layer.SQUEEZE in layers:
        is_seen = is_glanced and answered.squeeze is not None
        p_squeeze["squeeze"] = p_value(group.squeeze, answered.squeeze or 0.0) if is_seen else 1.0
    return Outcome(
        verdict=watch.verdict(),
        tokens=watch.num_tokens,
        probe_tokens=watch.num_probe_tokens,
        is_glanced=is_glanced,
        suspect_at=suspect_at,
        p_values=p_screen | p_squeeze | whole.p_values(),
        expected=expected,
    )


def _run(watch: Watch, answered: Answered) -> tuple[bool, int | None]:
    """Feed the answer until it ends, or is ended. Returns whether its embedding was looked at, and when it became a
    suspect. A distance that nobody has measured says nothing."""
    is_glanced, suspect_at, heard_at = False, None, math.inf
    for number, token in enumerate(answered.token_ids, 1):
        said = watch.push((token,), answered.log_p_ends[number - 1 : number], number == len(answered.token_ids))
        if said is Next.END:
            return is_glanced, suspect_at
        if said is Next.LOOK_TWICE and watch.wants_squeeze:
            is_glanced = True
            watch.squeezed([] if answered.squeeze is None else [answered.squeeze])
        if said is Next.LOOK_TWICE and watch.is_suspect and suspect_at is None:
            suspect_at = number
            if answered.purified is not None:
                heard_at = number + answered.purified[0]
        if number >= heard_at and answered.purified is not None:
            watch.looked(answered.purified[1], answered.purified[0])
            heard_at = math.inf
    if suspect_at is not None and math.isfinite(heard_at):
        watch.gave_up(len(answered.token_ids) - suspect_at)
    return is_glanced, suspect_at
