"""A pool of decode workers behind one awaitable: bytes in, a model's input out, and nobody else hurt.

    prepare(data)  --header says tiny-->  decode here, well under a millisecond
                   --otherwise------->  wait for a free worker (bounded queue) -> exchange -> release

Tenants share the workers by seconds of decoding (``schedulers.shared_slots``), and what is predicted to take long never
gets the last free one: a decode is not interrupted, so that is what keeps a flood of dear images from holding up
everybody else. Every second that a worker is held for an image is charged to its tenant, however the image ends.

A worker that is stuck is killed at ``limits.decode_timeout_s``; one that dies fails the image it had; both are
replaced. None of the pools in the standard library can do that: they break as a whole when one process is killed.
Callers talk to their worker themselves: there is no dispatcher task, so a call costs one round trip on a socket.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from schedulers.fair_queue import EQUAL, Weights
from schedulers.shared_slots import SharedSlots, Turn
from serving.domain import Pixels
from serving.errors import BackendError, DecodeTimeout, Draining, InvalidImage, QueueFull, ServingError
from serving.media import prepare, wire
from serving.media.header import ImageHeader, predict_pixels_s, predict_s
from serving.media.limits import MediaBudget, MediaLimits
from serving.media.prepare import PreparedImage, Processor, ProcessorFactory
from serving.media.probe import is_tiny, probe
from serving.media.processors import one_tile
from serving.media.worker import WorkerConfig
from serving.media.worker_process import WorkerGone, WorkerProcess
from serving.telemetry.events import ImageDecoded, Sink, ignore

TileCounter: TypeAlias = Callable[[str, int, int, int | None], int]
"""(model id, width, height, most tiles) to tiles; see ``serving.media.processors.Processors.count_tiles``."""
_Exchange: TypeAlias = "asyncio.Task[tuple[wire.ReplyHeader, wire.Payload]]"

_START_TIMEOUT_S = 30.0
_MAX_BACKOFF_S = 5.0
_CANCEL_GRACE_S = 0.1
"""How long a worker may finish a job that nobody waits for: about what starting another one costs."""
_SHORT_S = 0.1
"""What is predicted to take longer never gets the last free worker."""


class Caller(NamedTuple):
    """On whose account an image is decoded. ``rank``: among the images of one tenant the smallest goes first."""

    tenant: str = ""
    rank: int = 0


NOBODY = Caller()


class DecodeAccount(Protocol):
    """Where decoding is paid for: ``serving.stores.results.ResultStore``."""

    def hold_decode(self, tenant: str, predicted_s: float) -> None:
        """Set so many seconds aside, locally. Raises: QuotaExceeded: the account is empty; nothing was set aside."""
        ...

    def charge_decode(self, tenant: str, predicted_s: float, used_s: float) -> None:
        """Free what was set aside and charge what was used. Once per hold."""
        ...


class NoAccount:
    """Decoding is free."""

    def hold_decode(self, tenant: str, predicted_s: float) -> None:
        """Allow."""

    def charge_decode(self, tenant: str, predicted_s: float, used_s: float) -> None:
        """Ignore."""


class _Wait(Turn):
    """A call that waits for a worker."""

    def __init__(self, caller: Caller, predicted_s: float) -> None:
        super().__init__(caller.tenant, caller.rank, predicted_s)
        self.worker: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()


class _Job(NamedTuple):
    """What a worker does now."""

    worker: WorkerProcess
    wait: _Wait
    started_s: float


@dataclass(slots=True)
class MediaStats:
    """Counters since the start, for metrics."""

    decoded_in_place: int = 0
    decoded_in_workers: int = 0
    refused: int = 0
    timeouts: int = 0
    crashes: int = 0
    cancelled: int = 0
    replaced_workers: int = 0


class MediaPool:
    """Decode workers of one process. Use from one event loop.

    ``num_workers`` processes; at most ``max_queue`` calls wait for one, each at most ``queue_timeout_s``. With one
    worker alone nothing is kept free for others. ``worker_memory_bytes`` bounds the address space of each worker
    (RLIMIT_AS).
    """

    def __init__(
        self,
        limits: MediaLimits,
        num_workers: int,
        processor_factory: ProcessorFactory,
        *,
        tile_counter: TileCounter = one_tile,
        max_queue: int = 256,
        queue_timeout_s: float = 10.0,
        worker_memory_bytes: int = 1 << 30,
        account: DecodeAccount | None = None,
        tell: Sink = ignore,
        weights: Weights = EQUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if num_workers < 1 or max_queue < 0:
            raise ValueError(f"num_workers {num_workers} and max_queue {max_queue} must be at least 1 and 0")
        self.limits = limits
        self.stats = MediaStats()
        self._num_workers = num_workers
        self._factory = processor_factory
        self._count_tiles = tile_counter
        self._max_queue = max_queue
        self._account = account or NoAccount()
        self._tell = tell
        self._clock = clock
        self._queue_timeout_s = queue_timeout_s
        self._config = WorkerConfig(limits, processor_factory, worker_memory_bytes)
        self._free: list[WorkerProcess] = []
        self._waiting: SharedSlots[_Wait] = SharedSlots(max_queue, weights)
        self._processors: dict[tuple[str, int | None], Processor] = {}
        self._exchanges: dict[_Exchange, _Job] = {}
        self._starts: set[asyncio.Task[None]] = set()
        self._spawner: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Start every worker and wait until all are ready.

        Raises:
            WorkerGone: a worker does not start; the others are stopped again.
        """
        self._spawner = ThreadPoolExecutor(1, "media-spawner")
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._num_workers):
                    group.create_task(self._start_worker())
        except BaseExceptionGroup as errors:
            await self.stop()
            raise errors.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Refuse what waits, kill the workers, wait until they are gone. Idempotent.

        Jobs in flight end in ``Draining``; drain before stopping to avoid that.
        """
        spawner, self._spawner = self._spawner, None
        if spawner is None:
            return
        for wait in list(self._waiting):
            self._refuse(wait, _draining())
        for start in self._starts:
            start.cancel()
        for job in self._exchanges.values():
            job.worker.signal_kill()
        if unfinished := {*self._starts, *self._exchanges}:
            await asyncio.wait(unfinished)
        for worker in self._free:
            worker.kill()
        self._free.clear()
        await asyncio.to_thread(spawner.shutdown)

    @property
    def worker_pids(self) -> list[int]:
        """Processes alive now."""
        return [worker.pid for worker in (*self._free, *(job.worker for job in self._exchanges.values()))]

    @property
    def num_waiting(self) -> int:
        """Calls that wait for a worker."""
        return len(self._waiting)

    async def prepare(
        self,
        data: bytes,
        model_id: str,
        budget: MediaBudget | None = None,
        caller: Caller = NOBODY,
        max_tiles: int | None = None,
    ) -> PreparedImage:
        """Turn one untrusted file into the input of ``model_id``, in no more than ``max_tiles`` tiles.

        ``budget`` is charged with the pixels that the header claims and with their tiles, before they are decoded;
        the account of ``caller`` with the seconds that it took, whatever comes of it.

        Raises:
            InvalidImage and its kinds: this image is refused, or crashed the decoder, or took too long.
            QuotaExceeded: the account is empty.
            QueueFull: too many images wait already.
            Draining: the pool is stopping.
        """
        try:
            header = probe(data, self.limits)
            self._charge(budget, header.width * header.height, self.count_tiles(model_id, header, max_tiles))
            return await self._prepare(data, model_id, header, caller, max_tiles)
        except InvalidImage:
            self.stats.refused += 1
            raise

    async def _prepare(
        self, data: bytes, model_id: str, header: ImageHeader, caller: Caller, max_tiles: int | None
    ) -> PreparedImage:
        wait = _Wait(caller, predict_s(header, len(data)))
        if is_tiny(header, len(data), self.limits):
            run = lambda p: prepare.prepare_encoded(data, self.limits, p, header)  # noqa: E731
            return self._in_place(run, (model_id, max_tiles), wait)
        head = wire.pack_request(wire.Kind.ENCODED, model_id, len(data), max_tiles=max_tiles)
        return await self._submit(head, data, wait)

    async def prepare_pixels(
        self, rgb: Pixels, model_id: str, budget: MediaBudget | None = None, caller: Caller = NOBODY
    ) -> PreparedImage:
        """The same for pixels that came decoded: uint8 (H, W, 3). Same limits, same hash as in a lossless file.

        Raises:
            InvalidImage, ImageTooLarge, QuotaExceeded, QueueFull, Draining: as ``prepare``.
        """
        try:
            prepare.check_pixels(rgb, self.limits)
            self._charge(budget, rgb.shape[0] * rgb.shape[1], self._count(model_id, rgb.shape[1], rgb.shape[0], None))
        except InvalidImage:
            self.stats.refused += 1
            raise
        wait = _Wait(caller, predict_pixels_s(rgb.shape[0] * rgb.shape[1]))
        if rgb.shape[0] * rgb.shape[1] <= self.limits.tiny_pixels:
            return self._in_place(lambda p: prepare.prepare_pixels(rgb, self.limits, p), (model_id, None), wait)
        payload = rgb.tobytes()
        head = wire.pack_request(wire.Kind.PIXELS, model_id, len(payload), rgb.shape[0], rgb.shape[1])
        return await self._submit(head, payload, wait)

    def count_tiles(self, model_id: str, header: ImageHeader, max_tiles: int | None) -> int:
        """Tiles that ``prepare`` cuts a file into. Raises: InvalidImage: the model does not take such an image."""
        return self._count(model_id, header.width, header.height, max_tiles)

    def _count(self, model_id: str, width: int, height: int, max_tiles: int | None) -> int:
        try:
            return self._count_tiles(model_id, width, height, max_tiles)
        except ValueError as error:
            raise InvalidImage(str(error)) from None

    def _charge(self, budget: MediaBudget | None, num_pixels: int, num_tiles: int) -> None:
        if budget is not None:
            budget.add_pixels(num_pixels)
            budget.add_tiles(num_tiles)

    def _in_place(
        self, run: Callable[[Processor], PreparedImage], wanted: tuple[str, int | None], wait: _Wait
    ) -> PreparedImage:
        self._account.hold_decode(wait.tenant, wait.predicted_s)
        started_s = self._clock()
        try:
            image = run(self._processor(*wanted))
        except ServingError:
            raise
        except Exception as error:
            raise _failed() from error
        finally:
            self._pay(wait, self._clock() - started_s)
        self.stats.decoded_in_place += 1
        return image

    async def _submit(self, head: bytes, payload: bytes, wait: _Wait) -> PreparedImage:
        worker = await self._acquire(wait)
        exchange: _Exchange = asyncio.get_running_loop().create_task(worker.exchange(head, payload))
        self._exchanges[exchange] = _Job(worker, wait, self._clock())
        exchange.add_done_callback(self._settle)
        try:
            async with asyncio.timeout(self.limits.decode_timeout_s):
                reply, body = await asyncio.shield(exchange)
        except TimeoutError:
            worker.signal_kill()
            self.stats.timeouts += 1
            raise DecodeTimeout(
                f"image took longer to decode than {self.limits.decode_timeout_s:g} s, the limit; re-encode it"
            ) from None
        except asyncio.CancelledError:
            self._abandon(exchange)
            raise
        except (WorkerGone, wire.ProtocolError) as error:
            raise self._explain(error) from None
        return self._unpack(reply, body)

    def _abandon(self, exchange: _Exchange) -> None:
        """The caller went away: the worker may finish what it has begun, if that is soon."""
        self.stats.cancelled += 1
        job = self._exchanges.get(exchange)
        if job is not None:
            timer = asyncio.get_running_loop().call_later(_CANCEL_GRACE_S, job.worker.signal_kill)
            exchange.add_done_callback(lambda _: timer.cancel())

    def _explain(self, error: WorkerGone | wire.ProtocolError) -> ServingError:
        if self._spawner is None:
            return _draining()
        self.stats.crashes += 1
        if isinstance(error, WorkerGone) and error.exit_code == -signal.SIGKILL:
            return BackendError("the decoder of this image was killed from outside; send the request again")
        return InvalidImage("image crashed the decoder; re-encode it. Other images are not affected")

    def _unpack(self, reply: wire.ReplyHeader, body: wire.Payload) -> PreparedImage:
        if reply.is_ok:
            self.stats.decoded_in_workers += 1
            return reply.to_image(body)
        raise reply.to_error(body) or _failed()

    def _processor(self, model_id: str, max_tiles: int | None) -> Processor:
        wanted = model_id, max_tiles
        if wanted not in self._processors:
            self._processors[wanted] = self._factory(model_id, max_tiles)
        return self._processors[wanted]

    # -- who has which worker ----------------------------------------------------------------------------------------

    async def _acquire(self, wait: _Wait) -> WorkerProcess:
        if self._spawner is None:
            raise _draining()
        self._account.hold_decode(wait.tenant, wait.predicted_s)
        refused = self._waiting.add(wait, num_free=len(self._free))
        if refused is not None:
            self._refuse(refused, _queue_full(f"{self._max_queue} images wait to be decoded, the limit"))
        self._hand_out()
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                return await wait.worker
        except BaseException as error:
            self._give_up(wait)
            if isinstance(error, TimeoutError):
                raise _queue_full(f"no decoder was free for {self._queue_timeout_s:g} s, the limit") from None
            raise

    def _refuse(self, wait: _Wait, error: ServingError) -> None:
        self._waiting.remove(wait)
        if not wait.worker.done():
            wait.worker.set_exception(error)

    def _give_up(self, wait: _Wait) -> None:
        """No worker, or no more use for it."""
        self._pay(wait, 0.0)
        self._waiting.remove(wait)
        if wait.worker.done() and not wait.worker.cancelled() and wait.worker.exception() is None:
            # It was handed over in the very step that the caller gave up in.
            self._waiting.finish(wait, 0.0)
            self._release(wait.worker.result())

    def _release(self, worker: WorkerProcess) -> None:
        self._free.append(worker)
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free workers to those who wait, in the order in which tenants share them."""
        while self._free:
            is_reserved = len(self._free) == 1 and self._num_workers > 1
            wait = self._waiting.take(_SHORT_S if is_reserved else math.inf)
            if wait is None:
                return
            if wait.worker.done():  # its caller is about to say that it has given up
                self._waiting.finish(wait, 0.0)
            else:
                wait.worker.set_result(self._free.pop())

    def _settle(self, exchange: _Exchange) -> None:
        """An exchange is over, whoever may still wait for it: it is paid for, and its worker is free, or of no use."""
        job = self._exchanges.pop(exchange)
        used_s = max(0.0, self._clock() - job.started_s)
        self._waiting.finish(job.wait, used_s)
        self._pay(job.wait, used_s)
        if exchange.cancelled() or exchange.exception() is not None or not job.worker.is_alive:
            self._replace(job.worker)
        else:
            self._release(job.worker)

    def _pay(self, wait: _Wait, used_s: float) -> None:
        """Once for everything that was set aside."""
        self._account.charge_decode(wait.tenant, wait.predicted_s, used_s)
        self._tell(ImageDecoded(wait.tenant, used_s))

    def _worker_exited(self, worker: WorkerProcess) -> None:
        """A process ended. For a busy one the exchange ends too, and with it comes ``_settle``."""
        if worker in self._free:
            self._free.remove(worker)
            self._replace(worker)

    def _replace(self, worker: WorkerProcess) -> None:
        worker.kill()
        if self._spawner is not None:
            self.stats.replaced_workers += 1
            task = asyncio.get_running_loop().create_task(self._start_replacement())
            self._starts.add(task)
            task.add_done_callback(self._starts.discard)

    async def _start_replacement(self) -> None:
        backoff_s = 0.1
        while True:
            try:
                return await self._start_worker()
            except WorkerGone:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    async def _start_worker(self) -> None:
        if self._spawner is not None:
            self._release(await WorkerProcess.start(self._config, self._spawner, self._worker_exited, _START_TIMEOUT_S))


def _queue_full(why: str) -> QueueFull:
    return QueueFull(f"{why}; retry later", retry_after_s=1.0)


def _draining() -> Draining:
    return Draining("this replica is stopping; retry on another one", retry_after_s=1.0)


def _failed() -> BackendError:
    return BackendError("preparing the image failed on our side; send the request again, or report it")
