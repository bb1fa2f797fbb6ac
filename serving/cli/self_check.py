"""One real request of each kind against the system that has just come up, through the same doors as any client's."""

from __future__ import annotations

import time
from collections.abc import Mapping

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from serving.cli.run_state import RunState
from serving.client.checks import TIMEOUT_S, Check, Target
from serving.client.exits import Exit
from serving.client.told import Failed
from serving.tasks.table import TASKS

_READY_WITHIN_S = 30.0


def check_every_surface(state: RunState, console: Console, *, is_open: bool) -> None:
    """Ask, and print what came back: the first model of each task. Where keys are needed, only what asks for none: the
    server holds their hashes alone.

    Raises: Failed: an answer did not come or was wrong; the system must not be announced as up.
    """
    with (
        httpx.Client(base_url=state.http_url, timeout=TIMEOUT_S) as http,
        grpc.insecure_channel(state.grpc_address) as channel,
    ):
        _run(_HEALTH, Target(http, channel), console)
        # Those that `vireo tenants` has made outlive a start.
        is_open = is_open and http.get("/v1/models").status_code != 401
        for task in TASKS if is_open else ():
            if task.checks is not None and (served := state.tasks.get(task.name)):
                _run(task.checks.load(), Target(http, channel, served[0]), console)


def _run(checks: Mapping[str, Check], target: Target, console: Console) -> None:
    for name, check in checks.items():
        started_s = time.perf_counter()
        try:
            answer = check(target)
        except Exception as error:
            raise Failed(f"self-check failed: {name}: {type(error).__name__}: {error}", Exit.FAILED) from error
        took_ms = 1e3 * (time.perf_counter() - started_s)
        console.print(f"  {name:<43} {answer:<22} {took_ms:6.1f} ms", markup=False, soft_wrap=True)


# -- health ----------------------------------------------------------------------------------------------------------


def _health_http(target: Target) -> str:
    """The gateway may learn a moment later than Serve that everything runs."""
    give_up_s = time.monotonic() + _READY_WITHIN_S
    while (answer := target.http.get("/v2/health/ready")).status_code == 503 and time.monotonic() < give_up_s:
        time.sleep(0.1)
    return str(answer.raise_for_status().status_code)


def _health_grpc(target: Target) -> str:
    answer = health_pb2_grpc.HealthStub(target.channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


_HEALTH: Mapping[str, Check] = {"GET /v2/health/ready": _health_http, "grpc.health.v1.Health/Check": _health_grpc}
