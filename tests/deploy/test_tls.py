"""components/tls on the production overlay: both Redis and Ray, and nobody is left who would speak in clear to them."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serving.config import load, resolve
from tests.deploy.conftest import mounted_secrets, secret_values
from tests.deploy.rayservice_schema import rayservice_schema
from tests.deploy.render import Manifest, ray_containers, render


@pytest.fixture(scope="module")
def overlay(deploy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(deploy_dir, tmp_path_factory.mktemp("tls") / "deploy")
    path = folder / "overlays" / "prod" / "kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text(encoding="utf-8"))
    kustomization["components"].append("../../components/tls")
    path.write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return folder / "overlays" / "prod"


@pytest.fixture(scope="module")
def manifests(overlay: Path) -> list[Manifest]:
    return render(overlay)


@pytest.fixture
def rayservice(manifests: list[Manifest]) -> Manifest:
    (found,) = [m for m in manifests if m["kind"] == "RayService"]
    return found


def test_manifests_with_tls_are_valid(manifests: list[Manifest], rayservice: Manifest) -> None:
    jsonschema.Draft202012Validator(rayservice_schema()).validate(rayservice)
    for manifest in manifests:
        if manifest["kind"] == "StatefulSet":
            kubernetes_validate.validate(manifest, "1.33", strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_renderer_agrees_with_kustomize(overlay: Path, manifests: list[Manifest]) -> None:
    run = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=True)

    def by_name(found: list[Manifest]) -> list[Manifest]:
        return sorted(found, key=lambda m: (m["kind"], m["metadata"]["name"]))

    assert by_name([m for m in yaml.safe_load_all(run.stdout) if m]) == by_name(manifests)


def test_each_redis_serves_tls_and_nothing_else(manifests: list[Manifest]) -> None:
    certificates = {m["spec"]["secretName"]: m["spec"] for m in manifests if m["kind"] == "Certificate"}
    servers = [m for m in manifests if m["kind"] == "StatefulSet"]
    assert len(servers) == 2
    for server in servers:
        name, spec = server["metadata"]["name"], server["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        arguments = container["args"]
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        assert (options["--port"], options["--tls-port"]) == ("0", "6379")
        (secret,) = [v["secret"]["secretName"] for v in spec["volumes"] if v["name"] == "tls"]
        assert certificates[secret]["dnsNames"] == [name]
        (folder,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls"]
        files = [options[f"--tls-{kind}-file"] for kind in ("cert", "key", "ca-cert")]
        assert files == [f"{folder}/{file}" for file in ("tls.crt", "tls.key", "ca.crt")]
        (flags,) = [entry["value"] for entry in container["env"] if entry["name"] == "REDISCLI_FLAGS"]
        assert flags == f"--tls --cacert {folder}/ca.crt --sni {name}", "the probes speak TLS, too"


def test_vireo_and_ray_reach_redis_by_tls_and_check_who_it_is(
    manifests: list[Manifest], rayservice: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = rayservice["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
    assert address == "rediss://vireo-gcs-redis:6379"
    for name, text in mounted_secrets(rayservice, secret_values(manifests)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("VIREO_SECRETS", str(tmp_path))
    for container in ray_containers(rayservice):
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        monkeypatch.setenv("VIREO_SET", env["VIREO_SET"])
        (config_map,) = [m for m in manifests if m["kind"] == "ConfigMap" and "vireo.yaml" in m["data"]]
        url = urlsplit(resolve(load(args=yaml.safe_load(config_map["data"]["vireo.yaml"]))).store_url)
        (folder,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "redis-ca"]
        assert (url.scheme, url.hostname, url.port) == ("rediss", "vireo-redis", 6379)
        assert url.password, "from its file"
        assert parse_qs(url.query) == {"ssl_ca_certs": [f"{folder}/ca.crt"]}
        assert env["RAY_REDIS_CA_CERT"] == f"{folder}/ca.crt"


def test_rays_own_calls_are_encrypted_by_the_operator(rayservice: Manifest) -> None:
    assert rayservice["spec"]["rayClusterConfig"]["tlsOptions"] == {"enabled": True}


def test_what_is_generated_holds_no_key(manifests: list[Manifest]) -> None:
    """cert-manager and the operator make every key where it is used."""
    for manifest in manifests:
        for value in manifest.get("data", {}).values():
            assert "PRIVATE KEY" not in value
            if manifest["kind"] == "Secret":
                assert b"PRIVATE KEY" not in base64.b64decode(value)
