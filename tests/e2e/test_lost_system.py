"""What is not a replica dies: HAProxy, Serve's controller, a model for good, Ray's own processes.

The door opens again by itself, traffic goes on, a probe turns red for what is sick and for nothing else, and a
supervisor hears of what nobody can mend.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from vireo_pb.oip import open_inference_pb2 as oip

from serving.cli.parts import STAND_IN
from serving.client.exits import Exit
from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, UNARY, Door, Load, opened
from tests.support.clients import Ask
from tests.support.system import MODEL, ROOT, System, name_of, running_system
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CHECKPOINT = ROOT / "models" / "checkpoints" / MODEL
CHAT = "texthawk2-nano"
OIP = "inference.GRPCInferenceService"
SHUT = re.compile(r"transport: (Connect|Read|Write|RemoteProtocol)Error|UNAVAILABLE|503 not_ready")
"""How a call may fail that came just when HAProxy died: it may be sent again."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that can be taken away."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("lost") / "checkpoint"))


@pytest.fixture(scope="module")
def own(checkpoint: Path) -> Iterator[System]:
    """A system that only these tests hurt: a classifier and a chat model beside it."""
    models = ({"id": MODEL, "checkpoint_dir": str(checkpoint)}, {"id": CHAT, "options": {"engine": "fake"}})
    with running_system(models=models) as running:
        yield running


@pytest.fixture(scope="module")
def own_door(own: System) -> Iterator[Door]:
    with opened(own) as opened_door:
        yield opened_door


def parents(system: System) -> dict[int, str]:
    """Pid of each HAProxy and who has started it."""
    found = {process.pid: process.parent() for process in system.named("haproxy")}
    return {pid: "" if parent is None else parent.name() for pid, parent in found.items()}


def listeners(port: int) -> set[int | None]:
    found = psutil.net_connections("tcp")
    return {c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


def test_killed_haproxy_under_load_costs_no_more_than_the_calls_that_it_carried(
    own: System, own_door: Door, new_picture: Callable[[], Picture]
) -> None:
    wait_until(lambda: len(own.named("haproxy")) == 1, "the HAProxies of the start are gone", 60)
    (victim,) = own.named("haproxy")
    with Load(own_door, list(UNARY.values()), new_picture) as load:
        load.wait_for(40)
        victim.kill()
        wait_until(lambda: own.parts().get(STAND_IN) == 1, "a stand-in")
        good = len(load.answers) - len(load.failures)
        wait_until(lambda: len(load.answers) - len(load.failures) > good + 40, "answers, while Ray has no HAProxy")
        wait_until(lambda: any(name.startswith("ray::HAProxy") for name in parents(own).values()), "Ray's own", 60)
        wait_until(lambda: STAND_IN not in own.parts(), "the stand-in has let its clients go", 60)
        load.wait_for(60)
    assert [line for line in load.failures if not SHUT.search(f"transport: {line}" if "Error" in line else line)] == []
    wait_until(lambda: len(parents(own)) == 1, "those that Ray has replaced have let their clients go", 60)
    (pid,) = parents(own)
    assert listeners(own.port) == listeners(own.grpc_port) == {pid}, "one listener, Ray's own"
    assert own.is_ready()


def test_killed_controller_costs_nothing(own: System, own_door: Door, new_picture: Callable[[], Picture]) -> None:
    def controllers() -> list[psutil.Process]:
        return [process for process in own.processes() if name_of(process).startswith("ray::ServeController")]

    (victim,) = controllers()
    with Load(own_door, list(UNARY.values()), new_picture) as load:
        load.wait_for(40)
        victim.kill()
        load.wait_for(100)
        assert own.is_ready()
        wait_until(lambda: [p for p in controllers() if p.pid != victim.pid], "another controller", 60)
        load.wait_for(100)
    assert load.failures == []


def test_everything_still_answers_afterwards(own_door: Door, digits: list[Picture]) -> None:
    for surface in SURFACES.values():
        assert surface(own_door, Ask([digits[6][0]], model=MODEL)).codes == ("6",)


def states(door: Door) -> dict[str, bool]:
    """What every probe of a model or of all says."""
    health = health_pb2_grpc.HealthStub(door.channel)

    def serves(service: str) -> bool:
        reply = health.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    found = {"server": door.http.get("/v2/health/ready").is_success, "healthz": door.http.get("/healthz").is_success}
    found |= {"rpc server": door.oip.ServerReady(oip.ServerReadyRequest()).ready}
    found |= {"service": serves(""), "vireo.v1": serves("vireo.v1.Vireo"), "oip": serves(OIP)}
    listed = {card["id"]: card["vireo"]["ready"] for card in door.http.get("/v1/models").json()["data"]}
    for model in (MODEL, CHAT):
        found[f"{model} ready"] = door.http.get(f"/v2/models/{model}/ready").is_success
        found[f"{model} ModelReady"] = door.oip.ModelReady(oip.ModelReadyRequest(name=model)).ready
        found[f"{model} listed"] = listed[model]
    return found


def test_model_that_cannot_come_back_is_not_ready_and_takes_nobody_along(
    own: System, own_door: Door, checkpoint: Path
) -> None:
    weights = checkpoint / "model.safetensors"
    good = weights.read_bytes()
    assert all(states(own_door).values()), states(own_door)
    weights.write_bytes(b"no weights")
    own.replicas(MODEL)[0].kill()
    wait_until(lambda: not own_door.http.get(f"/v2/models/{MODEL}/ready").is_success, "the model is not ready")
    red = {"oip", *(name for name in states(own_door) if name.startswith(MODEL))}
    assert {name for name, state in states(own_door).items() if not state} == red
    assert own_door.http.get(f"/v2/models/{MODEL}/ready").json()["code"] == "not_ready"

    weights.write_bytes(good)
    wait_until(lambda: all(states(own_door).values()), "all is well again", 120)


def check_end(system: System, part: psutil.Process, name: str) -> None:
    """`vireo up` ends with an error that names what died, and leaves nothing."""
    assert system.process.wait(60) == 1
    assert system.output.strip().splitlines()[-1].startswith(f"vireo: {name} (process {part.pid}) died")
    wait_until(lambda: not system.processes(), "no process is left")
    status = system.command("status", "--port", str(system.port), "--json")
    assert (status.returncode, json.loads(status.stdout)) == (Exit.UNREACHABLE, {"running": False})


def test_up_ends_with_an_error_when_rays_store_of_state_dies(own: System) -> None:
    (victim,) = own.named("gcs_server")
    victim.kill()
    check_end(own, victim, "gcs_server")


def test_gateway_is_not_ready_without_its_raylet_whoever_watches_and_up_ends_when_it_looks() -> None:
    with running_system() as system:
        (victim,) = system.named("raylet")
        system.process.send_signal(signal.SIGSTOP)  # it would end everything
        victim.kill()
        wait_until(lambda: not system.is_ready(), "readiness turns red")
        model = httpx.get(f"{system.http_url}/v2/models/{MODEL}/ready")
        assert (model.status_code, model.json()["code"]) == (503, "not_ready")
        system.process.send_signal(signal.SIGCONT)
        check_end(system, victim, "raylet")
