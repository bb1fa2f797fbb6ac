"""The gateway's half of the transport: starts choices on replicas and hands out what the replicas' streams bring.

    start(choices, listener) -> sent   one call to the replica that the router picks; the deltas of all calls to one
    listener.hear(index, item)         replica come on one stream (serving.replica.chat.hub says why)
    sent.close(settle)                 frees what runs, at once; settle(spent) when the replica has said what it took

A session is a call whose stream may carry the deltas of other calls, too. When it breaks, everything that it carried is
lost with it, and every listener hears so once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import structlog
from ray.serve.handle import DeploymentHandle

from serving.delivery.pipeline import is_cancelled_itself, is_replica_lost
from serving.delivery.stream.wire import Accepted, ChoiceStart, Delta, Failure, Frame, Item
from serving.energy.meter import ESTIMATE
from serving.energy.spent import Spent, total
from serving.errors import BackendError, EngineFailed, ReplicaLost, ServingError

_log = structlog.get_logger(__name__)
_GIVE_UP_S = 1.0
"""How long a call that nobody wants any more may look for a replica."""
_CANCEL_TIMEOUT_S = 5.0


class OpenCall(Protocol):
    """A streaming call on its way, as Ray's ``DeploymentResponseGenerator``."""

    def __aiter__(self) -> AsyncIterator[Frame]:
        """The frames."""

    def cancel(self) -> None:
        """Stop it where it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What the router needs to know. ``key``: the first image's, empty if there is none. ``avoid``: replica ids."""

    key: str = ""
    predicted_s: float = 0.0
    avoid: tuple[str, ...] = ()


class ReplicaCalls(Protocol):
    """The calls to one deployment of chat replicas."""

    def open(self, gateway: str, session: int, starts: list[ChoiceStart], route: Route) -> OpenCall:
        """Call ``ChoiceHub.open`` of the replica that the router picks."""
        ...

    async def cancel(self, replica_id: str, gateway: str, ids: list[int]) -> Mapping[int, Spent]:
        """Call ``ChoiceHub.cancel`` of that replica."""
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Whether the replica, and not the request, failed: then another one may answer."""
        ...


class HandleCalls:
    """``ReplicaCalls`` on a handle of ``serving.replica.chat.deployment.Vlm``. Keyword arguments are for the router."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._open = handle.options(stream=True).open
        self._cancel = handle.cancel

    def open(self, gateway: str, session: int, starts: list[ChoiceStart], route: Route) -> OpenCall:
        """See ``ReplicaCalls``."""
        call = self._open.remote(
            gateway, session, starts, key=route.key, predicted_s=route.predicted_s, avoid=route.avoid
        )
        return cast(OpenCall, call)

    async def cancel(self, replica_id: str, gateway: str, ids: list[int]) -> Mapping[int, Spent]:
        """See ``ReplicaCalls``."""
        return cast(Mapping[int, Spent], await self._cancel.remote(gateway, ids, replica=replica_id))

    def is_lost(self, error: BaseException) -> bool:
        """See ``ReplicaCalls``."""
        return is_replica_lost(error)


@dataclass(eq=False, slots=True)
class _Session:
    """A call, while it is open. ``carried``: choices whose deltas come on its stream."""

    number: int
    carried: set[int] = field(default_factory=set)


class Listener(Protocol):
    """Who made a request, and is told what becomes of it: by plain calls, so that nothing waits on the way."""

    def hear(self, index: int, item: Item) -> None:
        """A choice has said something. ``index``: its place in what ``start`` was given."""

    def fail(self, error: ServingError) -> None:
        """Nothing more will come."""


class SentChoices:
    """The choices of one request on their replica: which are open, and what they took."""

    def __init__(self, links: ChatLinks, ids: Sequence[int], listener: Listener) -> None:
        self.replica_id: str | None = None
        """Where the choices run; None until a replica has accepted them."""
        self.energy_source = ESTIMATE
        """Where its joules come from."""
        self.call: OpenCall | None = None
        self._links = links
        self._listener = listener
        self._index = {number: index for index, number in enumerate(ids)}
        self._open = set(ids)
        self._spent: dict[int, Spent] = {}
        self._settle: Callable[[Spent], None] | None = None
        self._is_over = asyncio.Event()
        self._is_closed = False

    @property
    def spent(self) -> Spent:
        """What all choices took, as far as the replica has said."""
        return total(self._spent.values())

    def close(self, settle: Callable[[Spent], None]) -> None:
        """End the choices that have not ended; nothing more is told. ``settle`` is called once, with what all have
        taken: at once if all have ended, else when the replica has answered, or is given up."""
        if self._is_closed:
            raise RuntimeError("choices are closed once")
        self._is_closed, self._settle = True, settle
        if self._open:
            self._links.release(self)
        self._settle_if_over()

    # -- for ChatLinks -----------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether nobody listens any more."""
        return self._is_closed

    @property
    def open_ids(self) -> Collection[int]:
        """Choices that have not ended."""
        return self._open

    def put(self, item: Item, ends: bool) -> None:
        """An item came; ``ends``: it is the choice's last."""
        used_s = item.used_s if isinstance(item, Failure) else item.prefill_s + item.decode_s
        self._spent[item.id] = Spent(used_s, item.joules, self.energy_source)
        if ends:
            self.end([item.id])
        if not self._is_closed:
            self._listener.hear(self._index[item.id], item)

    def fail(self, error: ServingError) -> None:
        """Nothing more will be heard of any."""
        if not self._is_closed:
            self._listener.fail(error)

    def took(self, spent: Mapping[int, Spent]) -> None:
        """The replica has ended choices, and says what they took."""
        self._spent.update(spent)
        self.end(spent)

    def end(self, ids: Collection[int]) -> None:
        """Nothing more will be heard of these."""
        self._open.difference_update(ids)
        self._settle_if_over()

    async def ended(self) -> None:
        """Wait until nothing more will be heard of any."""
        await self._is_over.wait()

    def _settle_if_over(self) -> None:
        if self._open:
            return
        self._is_over.set()
        if self._settle is not None:
            settle, self._settle = self._settle, None
            settle(self.spent)


class ChatLinks:
    """One per chat model and gateway. Use from one event loop; ``stop`` when done."""

    def __init__(self, calls: ReplicaCalls, gateway: str) -> None:
        self._calls = calls
        self._gateway = gateway
        self._ids = itertools.count(1)
        self._session_numbers = itertools.count(1)
        self._sessions: dict[int, _Session] = {}
        self._sent: dict[int, tuple[SentChoices, _Session | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def num_open(self) -> int:
        """Choices that somebody listens to and that have not ended."""
        return sum(not sent.is_closed for sent, _ in self._sent.values())

    def start(self, choices: Sequence[ChoiceStart], route: Route, listener: Listener) -> SentChoices:
        """Send choices to one replica; they get their ids here. Returns at once; whatever comes of it, the listener
        hears later."""
        starts = [self._numbered(choice) for choice in choices]
        sent = SentChoices(self, [start.id for start in starts], listener)
        self._sent.update((start.id, (sent, None)) for start in starts)
        session = _Session(next(self._session_numbers))
        self._sessions[session.number] = session
        self._later(self._carry(session, sent, starts, route))
        return sent

    def _numbered(self, choice: ChoiceStart) -> ChoiceStart:
        number = next(self._ids)
        return choice._replace(id=number, request=choice.request._replace(request_id=f"{self._gateway}-{number}"))

    async def stop(self) -> None:
        """Break every call off."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def release(self, sent: SentChoices) -> None:
        """``sent`` is closed: end what it still has."""
        if sent.replica_id is None:
            asyncio.get_running_loop().call_later(_GIVE_UP_S, _give_up, sent)
        else:
            self._cancel(sent.replica_id, sent)

    # -- one call ----------------------------------------------------------------------------------------------------

    async def _carry(self, session: _Session, sent: SentChoices, starts: list[ChoiceStart], route: Route) -> None:
        """Nobody is left waiting, whatever becomes of the call."""
        error: ServingError = _lost()
        try:
            call = self._calls.open(self._gateway, session.number, starts, route)
            sent.call = call
            async for frame in call:
                if isinstance(frame, Accepted):
                    self._accepted(frame, sent)
                else:
                    self._deliver(frame)
        except asyncio.CancelledError:
            if is_cancelled_itself():
                raise
        except Exception as failure:
            error = self._failed(failure)
        finally:
            del self._sessions[session.number]
            if sent.replica_id is None:
                self._fail(sent, error)
            for number in tuple(session.carried):
                if (entry := self._sent.get(number)) is not None:
                    self._fail(entry[0], error)

    def _failed(self, failure: Exception) -> ServingError:
        if isinstance(failure, ServingError):
            return failure
        if self._calls.is_lost(failure):
            _log.warning("chat replica lost", error=type(failure).__name__, num_open=self.num_open)
            return _lost()
        _log.error("chat call failed", exc_info=failure)
        return EngineFailed("the model's server failed on this request; retry")

    def _accepted(self, frame: Accepted, sent: SentChoices) -> None:
        sent.replica_id, sent.energy_source = frame.replica_id, frame.energy_source
        carrier = self._sessions.get(frame.session)
        if carrier is None:  # its stream broke while this answer was on its way
            self._fail(sent, _lost())
            return
        for number in sent.open_ids:
            self._sent[number] = (sent, carrier)
            carrier.carried.add(number)
        if sent.is_closed:
            self._cancel(frame.replica_id, sent)

    def _deliver(self, items: list[Item]) -> None:
        for item in items:
            entry = self._sent.get(item.id)
            if entry is None:  # cancelled meanwhile
                continue
            ends = not isinstance(item, Delta) or item.finish_reason is not None
            if ends:
                self._forget(item.id)
            entry[0].put(item, ends)

    def _fail(self, sent: SentChoices, error: ServingError) -> None:
        self._end(sent, tuple(sent.open_ids))
        sent.fail(error)

    def _end(self, sent: SentChoices, ids: Collection[int]) -> None:
        for number in ids:
            self._forget(number)
        sent.end(ids)

    def _forget(self, number: int) -> None:
        _, session = self._sent.pop(number, (None, None))
        if session is not None:
            session.carried.discard(number)

    # -- cancelling --------------------------------------------------------------------------------------------------

    def _cancel(self, replica_id: str, sent: SentChoices) -> None:
        self._later(self._send_cancel(replica_id, sent))

    async def _send_cancel(self, replica_id: str, sent: SentChoices) -> None:
        """What the replica does not know any more has ended by itself: its last item is on its way."""
        ids = list(sent.open_ids)
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                spent = await self._calls.cancel(replica_id, self._gateway, ids)
                sent.took(spent)
                self._end(sent, tuple(spent))
                await sent.ended()
        except Exception as error:  # the replica is gone or hangs; its deadline ends what it still has
            _log.warning("cancel failed", replica_id=replica_id, error=type(error).__name__)
        finally:
            self._end(sent, ids)

    def _later(self, work: Coroutine[None, None, None]) -> None:
        # A context of its own: Ray cancels the calls made in the context of a request that goes away, and a stream also
        # belongs to other requests.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _give_up(sent: SentChoices) -> None:
    """End a call that has found no replica in time. One that has may carry the deltas of others."""
    if sent.replica_id is None and sent.call is not None:
        sent.call.cancel()


def _lost() -> BackendError:
    return ReplicaLost("the replica that ran this request is gone; retry")
