"""The gateway's half of the guard: what a chat's text and pictures let expect, and what is made of how it ended.

Before a chat with images goes to a replica, its text alone says how long a benign answer is (``schedulers.guard``), and
its pictures how strange they look and whether they are known (``serving.guard.pictures``). Out of that comes an order
for the replica, which watches the answer, and a first verdict: a suspect goes after its tenant's other requests, and
what was caught before is capped from the start. When the answer has ended, the graver of the two verdicts is told, what
was confirmed is kept, and, from tenants that are trusted, the bound on lengths is learnt. All of that is for requests
that are generated: an answer from the cache costs nothing, and has the verdict of the request that made it.

What the sender itself asks for is no sign of an attack: with ``ignore_eos`` an answer has no end that a picture could
put off, so nobody watches it, and no bound or cap is lower than ``min_tokens``. Its cap and its price are as ever.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from schedulers.guard.calibration import GuardCalibration
from schedulers.guard.conformal import LEVEL, AdaptiveLevel
from schedulers.guard.detectors import ALL, ON_TOKENS, Layer
from schedulers.guard.text import Asked
from schedulers.policies.guard import Action, Evidence, Mode, Rules, Verdict, decide, goes_last, graver
from serving.config import GuardSettings
from serving.delivery.stream.generation import Ended
from serving.delivery.stream.wire import FinishReason, GuardOrder
from serving.domain import RANKS, GuardBlock
from serving.guard.pictures import Looked, Pictures
from serving.media.prepare import PreparedImage
from serving.telemetry.events import ChatGuarded, GuardConfirmed, GuardKept, GuardLevelMoved, Sink, ignore

LAST_RANK = max(RANKS.values()) + 1
"""After all that its tenant asks for."""


class Asking(NamedTuple):
    """A chat that is about to be generated. ``max_tokens``, ``min_tokens``: of each answer; ``is_sampled``: it is
    drawn."""

    request_id: str
    tenant: str
    model: str
    asked: Asked
    max_tokens: int
    min_tokens: int = 0
    ignores_eos: bool = False
    is_sampled: bool = False


@dataclass(slots=True)
class _Model:
    """What benign answers of a model are like, and the level of each group that traffic has led to."""

    calibration: GuardCalibration
    levels: defaultdict[str, AdaptiveLevel]

    def level(self, group: str) -> float:
        return self.levels[group].level


class ChatGuard:
    """Of all chat models of a gateway: ``models`` are those that have been calibrated; the others are let pass. Use
    from one event loop; ``stop`` when done.

    ``modes``, ``trusted``: of tenants; one that is not there is guarded and not trusted.
    """

    def __init__(
        self,
        models: Mapping[str, GuardCalibration],
        settings: GuardSettings,
        pictures: Pictures | None = None,
        *,
        modes: Mapping[str, str] = MappingProxyType({}),
        trusted: Mapping[str, bool] = MappingProxyType({}),
        tell: Sink = ignore,
    ) -> None:
        def start() -> AdaptiveLevel:
            return AdaptiveLevel(target=LEVEL, level=LEVEL, step=settings.learning_rate)

        self._models = {name: _Model(calibration, defaultdict(start)) for name, calibration in models.items()}
        self._settings = settings
        self._layers = tuple(layer for layer in ALL if getattr(settings, layer))
        self._pictures = pictures
        self._modes = modes
        self._trusted = trusted
        self._tell = tell
        self._background: set[asyncio.Task[Any]] = set()

    async def stop(self) -> None:
        """Finish what is being kept, which the timeouts of Redis bound, and close the connection."""
        if self._background:
            await asyncio.wait(self._background)
        if self._pictures is not None:
            await self._pictures.stop()

    def mode(self, tenant: str) -> Mode:
        """What it may do to a tenant."""
        return Mode(self._modes.get(tenant, Mode.ENFORCE))

    def told(self, tenant: str, verdict: Verdict | None) -> GuardBlock:
        """As answers to a tenant say it. ``verdict``: None where nobody looked."""
        if verdict is None or self.mode(tenant) is Mode.OFF:
            return {}
        return {"score": verdict.score, "action": str(verdict.action), "reasons": list(verdict.reasons)}

    def second_look_tokens(self, asking: Asking) -> int:
        """Tokens that a second look at each answer may take, besides reading the prompt again: its cap. 0 where nobody
        will look twice: who asks for length is not looked at, nor one that could not be ended earlier."""
        model, mode = self._models.get(asking.model), self.mode(asking.tenant)
        if (
            model is None
            or mode is not Mode.ENFORCE
            or not asking.asked.num_images
            or Layer.CONFIRM not in self._layers
        ):
            return 0
        cap = model.calibration.expected(asking.asked, asking.max_tokens).cap_tokens
        return 0 if asking.ignores_eos or asking.min_tokens or cap >= asking.max_tokens else cap

    async def examine(self, asking: Asking, images: Sequence[PreparedImage]) -> MaybeWatched:
        """Look at it before it is generated."""
        model, mode = self._models.get(asking.model), self.mode(asking.tenant)
        if model is None or mode is Mode.OFF or not images or not self._layers:
            return UNWATCHED
        looked = Looked()
        if self._pictures is not None:
            looked = await self._pictures.look(asking.model, model.calibration.checkpoint_sha256, asking.tenant, images)
        rules = Rules(mode=mode, watch_at=self._settings.watch_at, suspect_at=self._settings.suspect_at)
        order = self._order(asking, model, rules, looked)
        return Watched(self, asking, looked, order, decide(_evidence(order, looked), rules))

    def _order(self, asking: Asking, model: _Model, rules: Rules, looked: Looked) -> GuardOrder:
        expected = model.calibration.expected(asking.asked, asking.max_tokens, model.level)
        watched = () if asking.ignores_eos else tuple(layer for layer in self._layers if layer not in _AT_THE_GATEWAY)
        return GuardOrder(
            mode=str(rules.mode),
            group=expected.group,
            bound_tokens=max(expected.bound_tokens, asking.min_tokens),
            cap_tokens=max(expected.cap_tokens, asking.min_tokens),
            p_values={} if looked.p is None else {str(Layer.SCREEN): looked.p},
            watch_at=rules.watch_at,
            suspect_at=rules.suspect_at,
            layers=watched,
            is_capped=looked.is_replay and not asking.ignores_eos,
        )

    # -- when it has ended -------------------------------------------------------------------------------------------

    def ended(self, watched: Watched, verdict: Verdict, choices: Sequence[Ended], *, is_whole: bool) -> None:
        """Tell, keep, learn: the latter from whole requests, since of others the short answers have ended."""
        asking = watched.asking
        self._tell(ChatGuarded(asking.model, asking.tenant, watched.order.mode, str(verdict.action), verdict.reasons))
        for choice in choices:
            if (said := choice.guard) is not None and (said.is_confirmed is not None or said.probe_tokens):
                self._tell(GuardConfirmed(asking.model, said.is_confirmed, said.probe_tokens))
        is_trusted = self._trusted.get(asking.tenant, False)
        if is_trusted and is_whole and verdict.action is not Action.CAPPED and not asking.ignores_eos:
            self._learn(watched, choices)
        confirmed = [choice for choice in choices if choice.guard is not None and choice.guard.is_confirmed]
        if verdict.action is Action.CAPPED and confirmed and watched.order.mode == Mode.ENFORCE:
            self._in_background(watched, verdict, max(choice.num_tokens for choice in confirmed))

    def _learn(self, watched: Watched, choices: Sequence[Ended]) -> None:
        """Of an answer that had to end, it is not known whether it would have exceeded its bound."""
        model, group, bound = self._models[watched.asking.model], watched.order.group, watched.order.bound_tokens
        for choice in choices:
            is_exceeded = choice.num_tokens > bound
            if is_exceeded or choice.finish_reason is FinishReason.STOP:
                model.levels[group] = model.levels[group].after(is_exceeded)
        self._tell(GuardLevelMoved(watched.asking.model, group, model.level(group)))

    def _in_background(self, watched: Watched, verdict: Verdict, num_tokens: int) -> None:
        task = asyncio.get_running_loop().create_task(self._keep(watched, verdict, num_tokens))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _keep(self, watched: Watched, verdict: Verdict, num_tokens: int) -> None:
        asking, subject = watched.asking, watched.looked.subject
        if self._pictures is None or subject is None:
            return
        is_kept = await self._pictures.keep(
            subject,
            asking.tenant,
            model=asking.model,
            checkpoint=self._models[asking.model].calibration.checkpoint_sha256,
            is_sampled=asking.is_sampled,
            score=verdict.score,
            reasons=verdict.reasons,
            num_tokens=num_tokens,
            request_id=asking.request_id,
        )
        self._tell(GuardKept(asking.model, is_kept))


_AT_THE_GATEWAY = (str(Layer.SCREEN), str(Layer.REPLAY))


def _evidence(order: GuardOrder, looked: Looked) -> Evidence:
    """Those of the answer count from the start, as saying nothing: who is no suspect when all have spoken should be
    none when only the first has."""
    silent = {layer: 1.0 for layer in order.layers if layer in (*ON_TOKENS, str(Layer.SQUEEZE))}
    p_values = silent | dict(order.p_values) if order.p_values else {}
    return Evidence(p_values=p_values, is_replay=order.is_capped, is_stream=looked.is_stream)


@dataclass(slots=True)
class Watched:
    """A chat under guard. ``entry``: the verdict before its answer began."""

    guard: ChatGuard = field(repr=False)
    asking: Asking
    looked: Looked
    order: GuardOrder
    entry: Verdict
    _is_over: bool = False

    def rank(self, rank: int) -> int:
        """Its place among its tenant's requests; ``rank``: that of its priority."""
        return LAST_RANK if self.order.mode == Mode.ENFORCE and goes_last(self.entry.action) else rank

    def end(self, choices: Sequence[Ended]) -> Verdict:
        """Its choices have all ended: what is said of them. Call once."""
        return self._end(choices, is_whole=True)

    def leave(self, choices: Sequence[Ended]) -> None:
        """Nothing more will be heard of it; ``choices``: that have ended. Does nothing after ``end``."""
        if choices and not self._is_over:
            self._end(choices, is_whole=False)

    def has_cut(self, choices: Sequence[Ended]) -> bool:
        """Whether the guard ended one of them before its own limit."""
        return self.order.mode == Mode.ENFORCE and any(
            choice.finish_reason is FinishReason.LENGTH and choice.num_tokens < self.asking.max_tokens
            for choice in choices
        )

    def _end(self, choices: Sequence[Ended], *, is_whole: bool) -> Verdict:
        self._is_over = True
        verdict = self.entry
        for choice in choices:
            if (said := choice.guard) is not None:
                verdict = graver(verdict, Verdict(Action(said.action), said.score, said.reasons))
        self.guard.ended(self, verdict, choices, is_whole=is_whole)
        return verdict


class Unwatched:
    """A chat that nobody watches."""

    order: None = None

    def rank(self, rank: int) -> int:
        """As it is."""
        return rank

    def end(self, choices: Sequence[Ended]) -> None:
        """Nothing is said."""

    def leave(self, choices: Sequence[Ended]) -> None:
        """Nothing is said."""

    def has_cut(self, choices: Sequence[Ended]) -> bool:
        """Nobody did."""
        return False


UNWATCHED: Final = Unwatched()
MaybeWatched: TypeAlias = Watched | Unwatched
