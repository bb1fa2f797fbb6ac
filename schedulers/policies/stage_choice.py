"""Which stage to run next, and which of the samples that were picked for it: two pure functions.

Both ask what an engine second buys. A batch has a fixed cost, so a stage whose batch would be nearly full is cheap per
sample; waiting for that is free until a deadline comes near (docs/scheduler.md compares the rules that were tried).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from schedulers.cost import CostModel

#: A stage at which samples wait: (stage; how many of those may share its next batch; when the one that would be taken
#: first is due). A plain tuple, as the next one.
StageView: TypeAlias = tuple[int, int, float]
#: What running a stage now means: (efficiency, 1 = as good as a full batch; stage; samples; batch seconds; slack of the
#: head in seconds). A plain tuple: a decision makes four, and building named ones takes a tenth of its time.
_Offer: TypeAlias = tuple[float, int, int, float, float]


#: How much more of the engine may be wasted on those that are due at once.
_HURRY = 3.0


def choose_stage(
    views: Sequence[StageView], now_s: float, cost: CostModel, exit_rates: Sequence[float], max_batch: int
) -> int:
    """The stage to run now, among ``views`` (ascending, at least one).

    With less than half a batch of new samples, the stage that answers most samples per second: load is light, and
    latency is what is left to win. Otherwise the stage whose batch uses the engine best. The deeper one of equals.

    Another stage goes first if its head would else start too late to get through all remaining stages; of several,
    the one with the least slack. Under a backlog its batch must be worth it: the engine time that a half-empty batch
    wastes must not exceed what as many samples cost in full batches, or ``_HURRY`` times that if its head is due
    at once (of a tenant that has not made the backlog: ``exits``).
    """
    if len(views) == 1:
        return views[0][0]
    offers = _offers(views, now_s, cost, max_batch)
    num_new = views[0][1] if views[0][0] == 0 else 0
    if 2 * num_new < max_batch:
        best = max(offers, key=lambda offer: (exit_rates[offer[1]] * offer[2] / offer[3], offer[1]))
    else:
        best = max(offers)
    best_batch_s = best[3]
    urgent = [offer for offer in offers if offer[4] < best_batch_s and offer is not best]
    if urgent and num_new > max_batch:
        worth_s = sample_s(cost, exit_rates, max_batch)
        hurried = {stage for stage, _, due_s in views if due_s <= now_s}
        urgent = [
            offer
            for offer in urgent
            if offer[2] * worth_s * (_HURRY if offer[1] in hurried else 1.0) >= offer[3] * (1.0 - offer[0])
        ]
    if not urgent:
        return best[1]
    return min((*urgent, best), key=lambda offer: (offer[4], -offer[1]))[1]


def sample_s(cost: CostModel, exit_rates: Sequence[float], max_batch: int) -> float:
    """Expected engine seconds of one new sample until it leaves, in full batches."""
    total_s, share = 0.0, 1.0
    for stage, exit_rate in enumerate(exit_rates):
        total_s += share * cost.batch_s(stage, max_batch)
        share *= 1.0 - exit_rate
    return total_s / max_batch


def fit_batch(
    deadlines_s: Sequence[float], now_s: float, batch_s: Callable[[int], float], others_wait: bool
) -> tuple[int, int]:
    """Split candidates of which some would be late in one batch: ``(d, n)`` = give up the first d, run the next n.

    ``deadlines_s`` ascend and each could be met by running alone now; ``batch_s(n)`` does not fall with n. The rest
    goes back to its queue. Nobody is given up if a smaller batch now and the rest right after it meets every deadline
    and nobody else waits. Otherwise the split that answers most samples in time per second wins.
    """
    num_candidates = len(deadlines_s)
    first = _largest_batch(deadlines_s[0] - now_s, num_candidates, batch_s)
    rest = num_candidates - first
    if not rest:
        return 0, first
    if not others_wait and deadlines_s[first] >= now_s + batch_s(first) + batch_s(rest):
        return 0, first
    best_rate, best = first / batch_s(first), (0, first)
    for num_given_up in range(1, num_candidates):
        rest = num_candidates - num_given_up
        fits = _largest_batch(deadlines_s[num_given_up] - now_s, rest, batch_s)
        if fits / batch_s(fits) > best_rate:
            best_rate, best = fits / batch_s(fits), (num_given_up, fits)
        if fits == rest:
            break
    return best


def _offers(views: Sequence[StageView], now_s: float, cost: CostModel, max_batch: int) -> list[_Offer]:
    batch_cost, offers, path_s = cost.batch_s, [], 0.0
    at = len(views) - 1
    for stage in range(cost.num_priced - 1, -1, -1):
        if at < 0 or views[at][0] != stage:
            path_s += batch_cost(stage, 1)
            continue
        _, num_waiting, head_deadline_s = views[at]
        at -= 1
        size = num_waiting if num_waiting < max_batch else max_batch
        batch_s = batch_cost(stage, size)
        #: Seconds through this and all later stages, in batches of the size that waits there now.
        path_s += batch_s
        efficiency = 1.0 if size == max_batch else size * batch_cost(stage, max_batch) / (batch_s * max_batch)
        offers.append((efficiency, stage, size, batch_s, head_deadline_s - now_s - path_s))
    return offers


def _largest_batch(slack_s: float, max_samples: int, batch_s: Callable[[int], float]) -> int:
    """Largest n in 1..max_samples with ``batch_s(n) <= slack_s``; 1 if there is none."""
    low, high = 1, max_samples
    while low < high:
        middle = (low + high + 1) // 2
        if batch_s(middle) <= slack_s:
            low = middle
        else:
            high = middle - 1
    return low
