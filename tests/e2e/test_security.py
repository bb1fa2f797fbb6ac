"""Who may in: nobody from outside without keys; with keys, nobody without one; and no secret ever in a file."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterable, Iterator

import grpc
import httpx
import psutil
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.oip import open_inference_pb2_grpc
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.front.grpc.registration import SERVICES
from tests.e2e.conftest import KEYS, Picture
from tests.e2e.surfaces import SURFACES, UNARY, Door, http_failure, opened
from tests.support.clients import Ask
from tests.support.system import MODEL, System, cli_environment, run_cli, short_folder
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NEED_KEY = (
    ("POST", "/v1/classify"),
    ("POST", f"/v2/models/{MODEL}/infer"),
    ("GET", "/v1/models"),
    ("GET", f"/v1/models/{MODEL}"),
    ("GET", "/v2"),
    ("GET", f"/v2/models/{MODEL}"),
    ("GET", f"/v2/models/{MODEL}/ready"),
)
OPEN = ("/healthz", "/health", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/metrics", "/", "/docs")


@pytest.fixture(scope="module")
def outside() -> str:
    """An address of this machine that is not loopback: whoever comes by it comes from outside, as a server sees it."""
    addresses = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not addresses:
        pytest.skip("this machine has no address but loopback")
    return addresses[0]


def listening(system: System) -> dict[int, str]:
    """Ports of every process of the system, and whose each is."""
    processes = {process.pid: process for process in system.processes()}
    return {
        connection.laddr.port: processes[connection.pid].name()
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in processes
    }


def is_refused(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5.0)
        return probe.connect_ex((address, port)) != 0


def test_the_doors_and_haproxys_own_ports_are_closed_from_outside(system: System, outside: str) -> None:
    ports = listening(system)
    assert {system.port, system.grpc_port} <= set(ports)
    haproxy = [port for port, name in ports.items() if name == "haproxy"]
    assert len(haproxy) >= 4, "HTTP, gRPC, statistics and metrics"
    assert [port for port in haproxy if not is_refused(outside, port)] == []


def test_no_port_of_the_system_serves_callers_from_outside(system: System, outside: str, digits: list[Picture]) -> None:
    """Ray's gRPC servers on replicas cannot be told to listen on loopback only; what they say instead is no."""
    body = {"model": MODEL, "image": base64.b64encode(digits[0][0]).decode()}
    for port in (port for port in listening(system) if not is_refused(outside, port)):
        with pytest.raises(httpx.HTTPError):  # no HTTP there at all
            httpx.post(f"http://{outside}:{port}/v1/classify", json=body, timeout=5.0)
        assert answers_of_grpc(outside, port, digits[0][0]) == [], port


def answers_of_grpc(address: str, port: int, picture: bytes) -> list[vireo_pb2.ClassifyResponse]:
    """What the port answers to a unary call and to a stream."""
    request = vireo_pb2.ClassifyRequest(model=MODEL, images=[picture])
    got: list[vireo_pb2.ClassifyResponse] = []
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        stub = vireo_pb2_grpc.VireoStub(channel)
        calls: list[Callable[[], Iterable[vireo_pb2.ClassifyResponse]]] = [
            lambda: [stub.Classify(request, timeout=5.0)],
            lambda: stub.ClassifyStream(iter([request]), timeout=5.0),
        ]
        for call in calls:
            try:
                got += list(call())
            except grpc.RpcError as error:
                refusal = error.code()  # type: ignore[attr-defined]
                assert refusal in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED), (port, refusal)
    return got


def test_rays_own_calls_need_a_token(system: System) -> None:
    """Whoever could call a replica directly could run code on it: Ray unpickles what it is sent."""
    asked = 0
    for port in listening(system):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=2.0)
                pytest.fail(f"port {port} answered a call without a token")
            except grpc.RpcError as error:
                asked += error.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    assert asked >= 2, "the classifier and the gateway listen for such calls"


def test_run_folder_is_private(system: System) -> None:
    assert system.run_dir.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("sent", [{"origin": "https://evil.example"}, {"host": "evil.example"}])
def test_pages_of_other_sites_do_not_speak_for_the_user_of_a_browser_here(system: System, sent: dict[str, str]) -> None:
    reply = httpx.get(f"{system.http_url}/v1/models", headers=sent)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")


def test_public_address_without_keys_is_refused_with_the_remedy() -> None:
    with short_folder() as folder:
        run = run_cli("up", "--set", "http.host=0.0.0.0", environment=cli_environment(folder, "none"))
    assert run.returncode != 0
    assert "without API keys" in run.stderr
    assert "tenants[].api_key_sha256" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture(scope="module")
def stranger(strict: System) -> Iterator[Door]:
    with opened(strict) as door:
        yield door


@pytest.fixture(scope="module")
def impostor(strict: System) -> Iterator[Door]:
    with opened(strict, {"authorization": "Bearer alpha-key-5f1c7e0e"}) as door:
        yield door


@pytest.mark.parametrize(("method", "path"), NEED_KEY)
def test_http_path_needs_a_key(method: str, path: str, stranger: Door, impostor: Door, alpha: Door) -> None:
    for door in (stranger, impostor):
        answer = http_failure(door.http.request(method, path))
        assert (answer.status, answer.error) == (401, "invalid_api_key")
        assert answer.extra["www-authenticate"].startswith("Bearer")
    assert alpha.http.request(method, path).status_code != 401


@pytest.mark.parametrize("path", OPEN)
def test_path_of_probes_and_scrapers_needs_none(path: str, stranger: Door) -> None:
    assert stranger.http.get(path).status_code == 200


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_surface_needs_a_key(name: str, stranger: Door, impostor: Door, alpha: Door, digits: list[Picture]) -> None:
    ask = Ask([digits[5][0]], model=MODEL)
    for door in (stranger, impostor):
        answer = SURFACES[name](door, ask)
        assert answer.error == "invalid_api_key"
        assert answer.status in (401, grpc.StatusCode.UNAUTHENTICATED)
    assert SURFACES[name](alpha, ask).codes == ("5",)


@pytest.mark.parametrize("rpc", ["ServerMetadata", "ModelMetadata", "ModelReady"])
def test_grpc_lookup_needs_a_key(rpc: str, stranger: Door, alpha: Door) -> None:
    request = getattr(oip, f"{rpc}Request")(**({} if rpc == "ServerMetadata" else {"name": MODEL}))
    with pytest.raises(grpc.RpcError) as failure:
        getattr(stranger.oip, rpc)(request, timeout=10)
    assert failure.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    assert getattr(alpha.oip, rpc)(request, timeout=10, metadata=alpha.metadata)


EMPTY_ELEMENTS = b"\x12\x00" * (30 << 20)
"""61 KB of gzip, 60 MB of protobuf, gigabytes of objects."""


def grpc_ports(system: System) -> list[int]:
    """The door, and behind it the gateways' own gRPC ports."""
    pids = {process.pid for process in system.replicas("Gateway")}
    found = [system.grpc_port]
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids:
            with grpc.insecure_channel(f"127.0.0.1:{connection.laddr.port}") as channel:
                try:
                    open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(
                        oip.ServerLiveRequest(), timeout=5
                    )
                except grpc.RpcError:
                    continue
            found.append(connection.laddr.port)
    assert len(found) >= 2, "a gateway has a port of its own"
    return found


def resident_mib(system: System) -> int:
    return sum(process.memory_info().rss for process in system.replicas("Gateway")) >> 20


@pytest.mark.parametrize(
    "path", ["/vireo.v1.Vireo/Classify", "/vireo.v1.Vireo/ClassifyStream", "/inference.GRPCInferenceService/ModelInfer"]
)
def test_grpc_call_without_a_key_costs_a_gateway_nothing(path: str, strict: System) -> None:
    """At the door and at the gateways' own ports, to which HAProxy is no wall."""
    before = resident_mib(strict)
    for port in grpc_ports(strict):
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)]) as channel:
            call = channel.unary_unary(path)
            for compression, expected in (
                (grpc.Compression.NoCompression, grpc.StatusCode.UNAUTHENTICATED),
                (grpc.Compression.Gzip, grpc.StatusCode.UNIMPLEMENTED),
            ):
                with pytest.raises(grpc.RpcError) as failure:
                    call(EMPTY_ELEMENTS, timeout=60, compression=compression)
                assert failure.value.code() is expected, port  # type: ignore[attr-defined]
    assert resident_mib(strict) < before + 128


def test_grpc_refusal_at_the_door_has_the_callers_request_id(stranger: Door) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stranger.oip.ServerMetadata(oip.ServerMetadataRequest(), timeout=10, metadata=(("x-request-id", "mine"),))
    error = failure.value
    assert isinstance(error, grpc.Call)
    told = dict([*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())])
    assert told["x-request-id"] == "mine"
    assert json.loads(told["vireo-error-bin"])["code"] == "invalid_api_key"


def test_reflection_needs_no_key_and_lists_every_service(strict: System) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    for port in grpc_ports(strict):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
        listed = {service.name for service in answer.list_services_response.service}
        assert listed == {service.full_name for service in SERVICES}


def test_key_names_the_tenant_in_the_metrics(
    strict: System, alpha: Door, beta: Door, new_picture: Callable[[], Picture]
) -> None:
    before = strict.metrics()
    for door in (alpha, beta, beta):
        for surface in UNARY.values():
            assert surface(door, Ask([new_picture()[0]], model=MODEL)).error is None
    after = strict.metrics()
    for tenant, times in (("alpha", 1), ("beta", 2)):
        labels = {"tenant": tenant, "outcome": "ok"}
        grown = after.total("vireo_requests_total", **labels) - before.total("vireo_requests_total", **labels)
        assert grown == times * len(UNARY)


def test_metrics_name_no_tenant_to_others(strict: System, stranger: Door, alpha: Door) -> None:
    assert alpha.http.get("/v1/models").status_code == 200
    named = strict.metrics()
    assert {labels["tenant"] for _name, labels, _value in named.samples if "tenant" in labels} >= {"alpha"}
    for door in (stranger, alpha):
        text = door.http.get("/metrics").raise_for_status().text
        assert "vireo_requests_total{" in text
        assert "tenant" not in text.replace("charged to the tenant", ""), "nor the label"


def test_refused_callers_are_counted_without_a_tenant(strict: System, impostor: Door, digits: list[Picture]) -> None:
    labels = {"tenant": "unknown", "outcome": "invalid_api_key"}
    before = strict.metrics().total("vireo_requests_total", **labels)
    assert SURFACES["http_json"](impostor, Ask([digits[0][0]], model=MODEL)).status == 401
    assert strict.metrics().total("vireo_requests_total", **labels) == before + 1


def test_cached_answer_is_never_given_to_another_tenant(
    alpha: Door, beta: Door, new_picture: Callable[[], Picture]
) -> None:
    ask = Ask([new_picture()[0]], model=MODEL)
    first = SURFACES["http_json"](alpha, ask)
    assert first.report["cache"] == "miss"
    again = wait_until(lambda: (a := SURFACES["http_json"](alpha, ask)).report["cache"] == "hit" and a, "a cache hit")
    assert again.items == first.items
    others = SURFACES["http_json"](beta, ask)
    assert others.report["cache"] == "miss"
    assert others.items == first.items


def test_secrets_and_images_are_in_no_file_and_no_output(
    strict: System, alpha: Door, beta: Door, impostor: Door, new_picture: Callable[[], Picture]
) -> None:
    picture = new_picture()[0]
    for door in (alpha, beta, impostor):
        for surface in SURFACES.values():
            surface(door, Ask([picture, b"not an image at all, but remembered?"], model=MODEL))
    needles = [key.encode() for key in KEYS.values()]
    needles += [base64.b64encode(picture)[:60], picture[40:80], b"but remembered?"]
    files = [path for path in strict.base_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".log" for path in files)
    assert any("Serve" in path.name or "replica" in path.name for path in files)
    leaks = [(str(path), needle) for path in files for needle in needles if needle in path.read_bytes()]
    assert leaks == []


def test_keys_hash_and_cache_secret_are_masked_in_the_log(strict: System) -> None:
    (line,) = [line for line in strict.output.splitlines() if '"event": "configuration"' in line]
    assert "***" in line
    assert not any(word in line for word in ("alpha-key", "beta-key"))


def test_token_of_ray_is_in_no_file(system: System) -> None:
    environment = system.replicas("Gateway")[0].environ()
    token = environment["RAY_AUTH_TOKEN"].encode()
    assert len(token) >= 32
    files = [path for path in system.base_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [str(path) for path in files if token in path.read_bytes()] == []


# -- tenants that change while the system runs -----------------------------------------------------------------------


def tenants(system: System, *words: str) -> str:
    command = system.command("tenants", *words, "--port", str(system.port))
    assert command.returncode == 0, command.stderr
    return command.stdout


def status_with(system: System, key: str) -> int:
    return httpx.get(f"{system.http_url}/v1/models", headers={"x-api-key": key}, timeout=30).status_code


def test_tenant_is_added_limited_rotated_and_removed_without_a_restart(
    strict: System, alpha: Door, new_picture: Callable[[], Picture]
) -> None:
    started = {process.pid for process in strict.replicas("Gateway")}
    first = tenants(strict, "add", "gamma", "weight=2", "--quiet").strip()
    wait_until(lambda: status_with(strict, first) == 200, "the new key opens")
    with opened(strict, {"authorization": f"Bearer {first}"}) as gamma:
        for name in UNARY:
            assert SURFACES[name](gamma, Ask([new_picture()[0]], model=MODEL)).items, name

        tenants(strict, "set", "gamma", "burst_j=1e-9", "joules_per_s=1e-9")

        def is_refused() -> bool:
            body = {"model": MODEL, "image": base64.b64encode(new_picture()[0]).decode()}
            answer = gamma.http.post("/v1/classify", json=body)
            return answer.status_code == 422 and answer.json()["error"]["code"] == "quota_too_small"

        wait_until(is_refused, "the quota counts")
    assert SURFACES["http_json"](alpha, Ask([new_picture()[0]], model=MODEL)).items

    second = tenants(strict, "rotate", "gamma", "--drop-old", "--quiet").strip()
    wait_until(lambda: status_with(strict, first) == 401, "the old key is closed")
    assert status_with(strict, second) == 200
    assert status_with(strict, KEYS["alpha"]) == 200
    tenants(strict, "remove", "gamma")
    wait_until(lambda: status_with(strict, second) == 401, "nobody is let in any more")
    assert {process.pid for process in strict.replicas("Gateway")} == started

    entries = json.loads(tenants(strict, "audit", "--json"))
    assert [entry["action"] for entry in entries] == ["remove", "rotate", "set", "add"]
    assert all(entry["tenant"] == "gamma" and "@" in entry["actor"] for entry in entries)
    assert entries[2]["fields"] == {"burst_j": 1e-9, "joules_per_s": 1e-9}
    files = [path for path in strict.base_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(b"tenant changed" in path.read_bytes() for path in files if path.suffix == ".log")
    kept = [path for path in files for key in (first, second) if key.encode() in path.read_bytes()]
    assert kept == [], "keys in clear"
