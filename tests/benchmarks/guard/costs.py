"""What attacks cost in tokens and joules, without and with the guard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from loadtest.adversarial.figures import ratio_of_means, share
from loadtest.adversarial.runs import Record
from schedulers.policies.guard import Action
from tests.benchmarks.guard.corpus import MAX_TOKENS
from tests.benchmarks.guard.judged import CAMPS, Judged, attacks_of, camp_of, counted, records_of


def joules_of(records: Sequence[Record]) -> tuple[float, float]:
    """(of a request without a token, of a token): by the least squares of *relative* errors over the clean and attacked
    answers that the attackers timed, each alone, in CPU seconds times watts. Absolute ones would be those of the
    longest answers alone."""
    timed = [pair for one in records for pair in ((one.clean_length, one.clean_j), (one.length, one.victim_j))]
    lengths, joules = np.array([pair for pair in timed if pair[1] > 0.0], np.float64).reshape(-1, 2).T
    if not len(joules):
        return 0.0, 0.0
    rows = np.stack([np.ones(len(lengths)), lengths], 1) / joules[:, None]
    fixed, each = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    return max(0.0, float(fixed)), max(0.0, float(each))


def energy(attacked: Sequence[Judged], joules: tuple[float, float]) -> Iterable[dict[str, Any]]:
    """Lengths and joules over those of the clean pictures, without and with a guard: of each attack, then of all static
    and of all adaptive ones.

    A second look costs a request and its tokens. A look at the embedding is charged as a whole request without a token,
    which is more than the pass of the vision tower that it takes.
    """
    judged = counted(attacked)
    for attack in attacks_of(judged):
        chosen, paid = ([one for one in which if one.subject.kind == attack] for which in (judged, attacked))
        yield _row(attack, chosen, paid, joules)
    for camp in CAMPS[:2]:
        chosen, paid = ([one for one in which if camp_of(one.subject.kind) == camp] for which in (judged, attacked))
        if chosen:
            yield _row(f"all {camp}", chosen, paid, joules)


def _row(attack: str, chosen: Sequence[Judged], paid: Sequence[Judged], joules: tuple[float, float]) -> dict[str, Any]:
    """``paid``: with the pictures that a shared perturbation was made on, which cost the attacker, too."""
    fixed, each = joules
    records = records_of(chosen)
    clean, open_ = [float(one.clean_length) for one in records], [float(one.length) for one in records]
    guarded = [float(one.tokens) for one in chosen]
    caps = [float(one.outcome.expected.cap_tokens) for one in chosen]
    clean_j, open_j = ([fixed + each * tokens for tokens in which] for which in (clean, open_))
    guarded_j = [
        fixed * (1 + (one.outcome.probe_tokens > 0) + one.outcome.is_glanced) + each * one.tokens for one in chosen
    ]
    return {
        "attack": attack,
        "num": len(chosen),
        "clean_tokens": float(np.mean(clean)),
        "tokens": float(np.mean(open_)),
        "guarded_tokens": float(np.mean(guarded)),
        "length": ratio_of_means(open_, clean),
        "guarded_length": ratio_of_means(guarded, clean),
        "most_length": ratio_of_means([MAX_TOKENS + cap for cap in caps], clean),
        "energy": ratio_of_means(open_j, clean_j),
        "guarded_energy": ratio_of_means(guarded_j, clean_j),
        "capped": share([one.outcome.verdict.action is Action.CAPPED for one in chosen]),
        "cap_over_clean": float(np.mean(caps) / np.mean(clean)),
        "attacker_j": float(np.mean([record.attacker_j for record in records_of(paid)])),
        "saved_j": float(np.mean(np.array(open_j) - np.array(guarded_j))),
    }
