"""What travels between a gateway and a chat replica. Plain and named tuples: the cheapest things to pickle.

    gateway -> replica   open(gateway, session, starts)    one streaming call per request
    replica -> gateway   the first frame: Accepted; then, if no stream of this gateway was open, the deltas of ALL its
                         choices: the first token and the end at once, the rest in frames 20 ms apart, until
                         there has been nothing to say for a while
    gateway -> replica   cancel(gateway, ids) -> what each has taken

Deadlines travel as seconds remaining, because monotonic clocks of two nodes have nothing in common.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from serving.energy.meter import ESTIMATE
from serving.errors import ServingError


class FinishReason(StrEnum):
    """Why a choice ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability, and the likeliest alternatives as (token text, log-probability)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """More text of choice ``index``: one token when the stream is slow, several when they were ready together."""

    index: int
    text: str
    num_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    num_prompt_tokens: int = 0


Tiles = npt.NDArray[np.uint8]
"""uint8 RGB, shape (T, S, S, 3): the thumbnail first if there is more than one tile, then the grid row by row."""


class EngineImage(NamedTuple):
    """One image, cut into tiles by the gateway. ``key``: the server's own content hash, hex, with the tenant in it."""

    key: str
    tiles: Tiles
    grid: tuple[int, int]
    """(rows, columns) of the tiles without the thumbnail."""


class EngineRequest(NamedTuple):
    """One choice to generate. Built by the gateway; nothing in it comes from a client unchecked.

    ``prompt_token_ids`` has exactly one image token per image; the engine expands it. ``min_tokens``: see ``Sampling``;
    at most ``max_tokens``.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    images: tuple[EngineImage, ...]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    json_schema: str | None
    logprobs: int | None
    logit_bias: Mapping[int, float]
    cache_salt: str
    """Hex, derived from the tenant: no prefix or image is shared between tenants."""
    min_tokens: int = 0
    ignore_eos: bool = False
    tells_ends: bool = False
    """Whether the replica's guard wants to hear how probable the end was. Gateways leave it alone."""


class GuardOrder(NamedTuple):
    """What the gateway's guard wants of the replica for one choice.

    ``group``: of benign answers it is compared with (``schedulers.guard``). ``bound_tokens``: of its text alone.
    ``cap_tokens``: where it ends if it is confirmed, or at once if ``is_capped``. ``p_values``: what the gateway has
    seen. ``watch_at``, ``suspect_at``: see ``schedulers.policies.guard.Rules``. ``layers``: those that are switched on.
    """

    mode: str
    group: str
    bound_tokens: int
    cap_tokens: int
    p_values: Mapping[str, float]
    watch_at: float
    suspect_at: float
    layers: tuple[str, ...]
    is_capped: bool = False


class GuardSaid(NamedTuple):
    """What the replica's guard found, said with the last delta. ``action``: that was taken, or in mode ``observe``
    would have been. ``is_confirmed``: None if nobody looked twice. ``probe_tokens`` and ``probe_s``, busy seconds, are
    what looking twice took; the choice's ``decode_s`` and joules have them in."""

    action: str
    score: float
    reasons: tuple[str, ...]
    p_values: Mapping[str, float]
    is_confirmed: bool | None = None
    probe_tokens: int = 0
    probe_s: float = 0.0


class ChoiceStart(NamedTuple):
    """One choice to generate. ``id`` is the gateway's own number for it, never used twice."""

    id: int
    request: EngineRequest
    remaining_s: float
    predicted_s: float
    """Busy seconds that it is expected to take, for the router."""
    is_streamed: bool
    """False: one delta at the end is all that the gateway wants."""
    tenant: str
    """Tenants share the replica's slots."""
    rank: int
    """Among the choices of one tenant 0 goes first."""
    traceparent: str = ""
    elsewhere_j: float = 0.0
    """Joules that other models served its tenant since the last choice that said so (``schedulers.elsewhere``)."""
    guard: GuardOrder | None = None
    """None: nobody watches it."""


class Accepted(NamedTuple):
    """The first frame of every call. ``session`` is that of the call whose stream carries this call's deltas,
    ``energy_source`` where the joules of this replica come from."""

    replica_id: str
    session: int
    energy_source: str = ESTIMATE


class Delta(NamedTuple):
    """What was added to a choice. The cost fields count from the start of the choice."""

    id: int
    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    queue_s: float
    prefill_s: float
    """The choice's share of the replica's busy time until its first token."""
    decode_s: float
    """The same from then on; in the last delta, with what the guard took to look twice."""
    answer_s: float
    """Time since its first token."""
    joules: float | None = None
    """Of a choice that ends here, ``Accepted.energy_source`` says; None: nothing."""
    guard: GuardSaid | None = None
    """Of a choice that ends here and was watched."""


class Failure(NamedTuple):
    """A choice ended in an error, after so many busy seconds and joules."""

    id: int
    error: ServingError
    used_s: float
    joules: float | None = None


Item: TypeAlias = Delta | Failure
Frame: TypeAlias = Accepted | list[Item]


# -- which images a replica has seen: what the request router gets, in a few bytes each ------------------------------

MAX_HELD = 512


def mark(key: str) -> int:
    """32 bits of an image's key (hex). Two images with the same mark cost a detour, nothing else."""
    return int(key[:8], 16)


class HeldImages:
    """The images seen last, at most ``max_held``."""

    def __init__(self, max_held: int = MAX_HELD) -> None:
        self._max_held = max_held
        self._marks: OrderedDict[int, None] = OrderedDict()

    def add(self, keys: Iterable[str]) -> None:
        """Images were sent to this replica."""
        for key in keys:
            number = mark(key)
            self._marks[number] = None
            self._marks.move_to_end(number)
        while len(self._marks) > self._max_held:
            self._marks.popitem(last=False)

    def marks(self) -> tuple[int, ...]:
        """The marks, oldest first."""
        return tuple(self._marks)
