"""What an attack will take, before it is begun: two iterations, counted and timed."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.flop_counter import FlopCounterMode

from loadtest.adversarial.attack import Attack
from loadtest.adversarial.pictures import Case, stacked
from loadtest.adversarial.recipes import RECIPES
from loadtest.adversarial.runs import Plan
from loadtest.adversarial.victim import Victim

_COUNTED = 2


def estimate(plan: Plan, victim: Victim, chosen: Sequence[Case]) -> dict[str, float]:
    """Operations and CPU seconds of an iteration and a picture, with and without the look at its answer, and what the
    whole plan comes to where answers stay as long as they are."""
    attack = Attack(
        victim=victim,
        recipe=RECIPES[plan.attack],
        clean=stacked(chosen),
        prompts=[victim.prompt(case.question, *case.picture.shape[:2]) for case in chosen],
        seed=plan.seed,
        max_tokens=plan.cap,
        every=_COUNTED,
    )
    state = attack.begin()
    begun_s = state.cpu_s
    with FlopCounterMode(display=False) as counter:
        attack.advance(state, 10 * _COUNTED)
    blind_s = state.cpu_s - begun_s
    attack.advance(state, 10 * _COUNTED)
    looking_s = max(0.0, state.cpu_s - begun_s - 2 * blind_s)
    per_picture = len(chosen)
    whole_s = plan.iterations * blind_s + plan.iterations / plan.every * looking_s
    return {
        "gflop": counter.get_total_flops() / 1e9 / per_picture,
        "cpu_s": blind_s / per_picture,
        "look_cpu_s": looking_s / per_picture,
        "plan_cpu_s": whole_s / per_picture,
        "plan_j": whole_s * plan.watts / per_picture,
    }
