"""How many of our own frames and files lie between the socket and the model, for one picture over ``/v1/classify``.

``python -m tests.benchmarks.count_frames``: everything in one process, with the handle call as a task of its own. A
frame counts as open if it is called or awaited at the moment at which the runner is entered: those are what a request
goes through. Of what was entered and left again on the way, functions and files are counted besides.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, cast

import numpy as np

from models import registry
from models.contract import Variant
from schedulers.retry_budget import RetryBudget
from serving.config import ModelSettings, UnaryOptions, resolve_model
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.unary.dispatch import Dispatcher
from serving.delivery.unary.service import ServedModel, UnaryRequests
from serving.energy.replica import ReplicaEnergy
from serving.front.auth import Authenticator
from serving.gateway.http import build_http_app
from serving.limits import IngressLimits
from serving.media.limits import MediaLimits
from serving.media.prepare import PreparedImage
from serving.operating_points import points_of
from serving.replica.staged.deployment import Classifier
from serving.replica.staged.engine import load_engine
from serving.replica.staged.setup import build_driver
from serving.service import Service
from serving.telemetry.events import ignore
from tests.support.clients import GOOD_PNG, asgi
from tests.support.fake_service import FakeService, make_card

ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / name}/" for name in ("serving", "schedulers", "models"))
MODEL = "dyn-perceiver-nano"


class Trace:
    """What of ours was entered, and what is open when the model runs."""

    def __init__(self) -> None:
        self.entered: dict[CodeType, None] = {}
        self.open: list[CodeType] = []

    def profile(self, frame: Any, event: str, _: Any) -> None:
        """For ``sys.setprofile``: notes functions of ours until the model runs."""
        if event == "call" and not self.open and is_ours(frame.f_code):
            self.entered.setdefault(frame.f_code)

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The runner is entered: look at every task, from its outermost frame inwards, and at this thread."""
        if not self.open:
            tasks = sorted(asyncio.all_tasks(loop), key=lambda task: int(task.get_name().rpartition("-")[2]))
            waiting = [code for task in tasks for code in awaited(task.get_coro())]
            self.open = [code for code in (*waiting, *reversed(list(stack()))) if is_ours(code)]


def is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(OURS)


def awaited(waiter: Any) -> Iterator[CodeType]:
    while waiter is not None and hasattr(waiter, "cr_code"):
        yield waiter.cr_code
        waiter = waiter.cr_await


def stack() -> Iterator[CodeType]:
    frame: Any = sys._getframe(2)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


class Media:
    """Decodes nothing: that is over when the model runs."""

    limits = MediaLimits()

    async def prepare(self, data: bytes, *_: Any) -> PreparedImage:
        pixels = np.zeros((32, 32, 3), np.uint8)
        return PreparedImage(pixels=pixels, content_sha256=b"c" * 32, original_size=(32, 32), decode_ms=0.0, grid=None)


class Results:
    """Finds nothing and charges nobody."""

    async def admit(self, tenant: str, *_: object) -> None:
        pass

    def name(self, *_: Any, **__: Any) -> None:
        return None

    async def look_up(self, names: Sequence[object], *_: object) -> Any:
        reservation = SimpleNamespace(settle=lambda *_: None)
        return SimpleNamespace(found=(None,) * len(names), reservation=reservation)

    def put(self, *_: object) -> None:
        pass


class Replica(Classifier):
    """One that is not Serve's to take down."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


async def main() -> Trace:
    trace, loop = Trace(), asyncio.get_running_loop()
    family, variant = registry.find(MODEL)
    options = UnaryOptions()
    model = SimpleNamespace(
        id=MODEL, family=family.name, variant=variant, threads=1, device="cpu", options=options, knobs={}
    )
    replica = Replica.__new__(Replica)
    loaded = load_engine(cast(Any, model))
    replica._driver = driver = build_driver(
        cast(Any, model), loaded.engine, loaded.measured, ignore, energy=ReplicaEnergy(None, watts=6.0)
    )
    replica._calls = {}
    driver.start()
    runner = cast(Any, driver.engine)._runner
    run = runner.run

    def watched(*args: Any) -> Any:
        trace.stop(loop)
        return run(*args)

    runner.run = watched
    app = build_http_app(behind(replica, variant), Authenticator({}, True), IngressLimits(), None)
    body = json.dumps({"model": MODEL, "image": base64.b64encode(GOOD_PNG).decode()}).encode()
    ask = partial(asgi, app, "POST", "/v1/classify", body, {"content-type": "application/json"})
    threading.setprofile(trace.profile)
    sys.setprofile(trace.profile)
    reply = await ask()
    sys.setprofile(None)
    threading.setprofile(None)
    assert reply.status == 200, reply.body
    await driver.stop()
    return trace


def behind(replica: Replica, variant: Variant) -> Service:
    """The service of a gateway, to which the replica is one call away."""
    dispatcher = Dispatcher(
        send=lambda call_id, samples, _: cast(Any, asyncio.ensure_future(replica.run(samples, call_id))),
        leave=cast(Any, replica.leave),
        is_replica_lost=lambda error: False,
        max_calls_in_flight=1,
        num_replicas=1,
        retries=RetryBudget(1),
        model=MODEL,
    )
    points = points_of(resolve_model(ModelSettings(id=MODEL)))
    served = ServedModel(card=make_card(MODEL), points=points, dispatcher=dispatcher)
    pipeline = Pipeline(cast(Any, Results()), PipelineLimits(max_in_flight=8, default_deadline_s=60.0))
    none = FakeService(video_cards=())
    return Service(
        UnaryRequests({MODEL: served}, cast(Any, Media()), pipeline, max_images=8), none, none, none, none.files
    )


def show(trace: Trace) -> None:
    for code in trace.open:
        print(f"{Path(code.co_filename).relative_to(ROOT)!s:<44} {code.co_qualname}")
    for what, codes in (("open frames", trace.open), ("functions entered", [*trace.entered])):
        print(f"{what}: {len(codes)} in {len({code.co_filename for code in codes})} files")


if __name__ == "__main__":
    show(asyncio.run(main()))
