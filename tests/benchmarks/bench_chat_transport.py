"""How text gets from a chat replica to its gateway: one stream per request, or one per gateway and replica.

    python -m tests.benchmarks.bench_chat_transport

Both sides are Ray Serve deployments with the throughput flags, in the same run, in alternation, around an engine
without a model: every running request gets a token every ``step`` milliseconds, all at the same moment, as from an
engine that batches. A client in the gateway's place reads the text; nothing else runs. Shown are tokens per second,
milliseconds of processor time of both processes per 1,000 tokens, and the time to the first token.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import psutil

from serving.delivery.stream.links import ChatLinks, Route
from serving.delivery.stream.wire import ChoiceStart, EngineImage, EngineRequest, Frame
from serving.replica.chat.base import EngineDelta, EngineStats, Say
from serving.replica.chat.hub import ChoiceHub
from tests.benchmarks.common import out_dir, parser_of, provenance
from tests.support.chat_replicas import Mailbox

_STREAMS = (1, 4, 16)


class SteppingEngine:
    """All requests get their next token at the same moment, as from one batched step."""

    max_model_len = 1 << 20

    def __init__(self) -> None:
        self.step_s = 0.0
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to free."""

    async def check_health(self) -> None:
        """Always well."""

    def stats(self) -> EngineStats:
        """Nothing is counted."""
        return EngineStats()

    @property
    def sees_apart(self) -> bool:
        """No."""
        return False

    async def image_distance(self, one: EngineImage, other: EngineImage) -> float | None:
        """There is no tower."""
        return None

    async def run(self, request: EngineRequest, say: Say) -> None:
        for number in range(request.max_tokens):
            await self._next_step()
            ends = number == request.max_tokens - 1
            say(EngineDelta(" word", (number,), "length" if ends else None, (), 0, 10))  # type: ignore[arg-type]

    async def _next_step(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._steps())
        await future

    async def _steps(self) -> None:
        while self._waiting:
            await asyncio.sleep(self.step_s)
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            await asyncio.sleep(0)  # let them ask for the next one


class BenchReplica:
    """A replica with both ways out."""

    def __init__(self) -> None:
        self._engine = SteppingEngine()
        self._hub = ChoiceHub(self._engine, "replica", max_running=64, max_waiting=64)

    async def set_step(self, step_s: float) -> int:
        self._engine.step_s = step_s
        return os.getpid()

    async def open(
        self, gateway: str, session: int, starts: list[ChoiceStart], key: str = ""
    ) -> AsyncGenerator[Frame, None]:
        async for frame in self._hub.open(gateway, session, starts):
            yield frame

    async def stream(self, request: EngineRequest) -> AsyncGenerator[tuple[Any, ...], None]:
        said: asyncio.Queue[EngineDelta] = asyncio.Queue()
        task = asyncio.create_task(self._engine.run(request, said.put_nowait))
        try:
            ends = False
            while not ends:
                delta = await said.get()
                ends = delta.finish_reason is not None
                yield (delta.text, len(delta.token_ids), delta.finish_reason)
        finally:
            task.cancel()


class BenchGateway:
    """Reads streams and counts. Runs as a deployment, so that its half is a Serve process, too."""

    def __init__(self, replica: Any) -> None:
        self._handle = replica
        self._streaming = replica.options(stream=True)
        self._links: ChatLinks | None = None

    async def measure(self, side: str, step_s: float, streams: int, tokens: int, repeats: int) -> dict[str, float]:
        if self._links is None:
            self._links = ChatLinks(_Calls(self._streaming), "gateway")
        replica = psutil.Process(await self._handle.set_step.remote(step_s))
        me = psutil.Process()
        read = self._multiplexed if side == "multiplexed" else self._per_request
        firsts: list[float] = []
        cpu_s = [_cpu_s(me), _cpu_s(replica)]
        started_s = time.perf_counter()
        counts = await asyncio.gather(*(self._client(read, tokens, repeats, firsts) for _ in range(streams)))
        wall_s = time.perf_counter() - started_s
        total = sum(counts)
        return {
            "tokens_per_s": total / wall_s,
            "gateway_cpu_ms_per_1000": (_cpu_s(me) - cpu_s[0]) / total * 1e6,
            "replica_cpu_ms_per_1000": (_cpu_s(replica) - cpu_s[1]) / total * 1e6,
            "first_ms": statistics.median(firsts) * 1e3,
        }

    async def _client(self, read: Any, tokens: int, repeats: int, firsts: list[float]) -> int:
        count = 0
        for _ in range(repeats):
            started_s = time.perf_counter()
            first = True
            async for num in read(_request(tokens)):
                if first:
                    firsts.append(time.perf_counter() - started_s)
                    first = False
                count += num
        return count

    async def _per_request(self, request: EngineRequest) -> AsyncIterator[int]:
        async for _text, num, _reason in self._streaming.stream.remote(request):
            yield num

    async def _multiplexed(self, request: EngineRequest) -> AsyncIterator[int]:
        assert self._links is not None
        mailbox = Mailbox(self._links, [ChoiceStart(0, request, 60.0, 0.0, True, "", 0)], Route())
        try:
            while mailbox.open_ids:
                for item in await mailbox.next():
                    yield item.num_tokens  # type: ignore[union-attr]
        finally:
            mailbox.close(lambda _: None)


class _Calls:
    """``ReplicaCalls`` on a handle."""

    def __init__(self, streaming: Any) -> None:
        self._streaming = streaming

    def open(self, gateway: str, session: int, starts: list[ChoiceStart], route: Route) -> Any:
        return self._streaming.open.remote(gateway, session, starts, key=route.key)

    async def cancel(self, replica_id: str, gateway: str, ids: list[int]) -> dict[int, float]:
        """Nothing is cancelled here."""
        return {}

    def is_lost(self, error: BaseException) -> bool:
        return False


def _request(tokens: int) -> EngineRequest:
    return EngineRequest("", tuple(range(20)), (), tokens, 0.0, 1.0, None, (), None, None, {}, "salt")


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[0.0, 4.0], help="between two tokens of a request")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds, tokens = (1, 50) if args.quick else (args.rounds, args.tokens)
    results = _run(args.step_ms, rounds, tokens)
    rows = [_summary(key, runs) for key, runs in results.items()]
    _print(rows)
    folder = out_dir(args)
    folder.mkdir(parents=True, exist_ok=True)
    content = {**provenance("chat-transport"), "tokens": tokens, "rounds": rounds, "rows": rows}
    (folder / "chat-transport.json").write_text(json.dumps(content, indent=2) + "\n")


def _run(steps_ms: list[float], rounds: int, tokens: int) -> dict[tuple[float, int, str], list[dict[str, float]]]:
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
    )
    import ray
    from ray import serve

    results: dict[tuple[float, int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="vt") as folder, asyncio.Runner() as runner:
        ray.init(
            address="local", num_cpus=8, include_dashboard=False, object_store_memory=128 << 20, _temp_dir=folder,
            _node_ip_address="127.0.0.1", log_to_driver=False,
        )  # fmt: skip
        try:
            handle = _deploy(serve)
            for step_ms in steps_ms:
                for key, runs in runner.run(_measure(handle, step_ms / 1e3, rounds, tokens)).items():
                    results[step_ms, *key] = runs
        finally:
            ray.shutdown()
    return results


async def _measure(
    handle: Any, step_s: float, rounds: int, tokens: int
) -> dict[tuple[int, str], list[dict[str, float]]]:
    results: dict[tuple[int, str], list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for streams in _STREAMS:
            for side in ("per request", "multiplexed"):
                # Short requests one after the other, as chat has them, for about the same time each.
                found = await handle.measure.remote(side, step_s, streams, tokens, 4)
                if number:  # the first round warms up
                    results.setdefault((streams, side), []).append(found)
    return results


def _deploy(serve: Any) -> Any:
    options = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 1}}
    options["logging_config"] = {"enable_access_log": False}
    replica = serve.deployment(**options)(BenchReplica).bind()
    app = serve.deployment(**options)(BenchGateway).bind(replica)
    return serve.run(app, name="transport", route_prefix=None)


def _summary(key: tuple[float, int, str], runs: list[dict[str, float]]) -> dict[str, Any]:
    step_ms, streams, side = key
    medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    return {"step_ms": step_ms, "streams": streams, "side": side, **medians}


def _print(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    print(" | ".join(f"{name:>12}" for name in names))
    for row in rows:
        print(" | ".join(f"{row[name]:>12}" for name in names))


if __name__ == "__main__":
    # Deployments are pickled by reference only when their module has a name that replicas can import.
    from tests.benchmarks import bench_chat_transport

    bench_chat_transport.main()
