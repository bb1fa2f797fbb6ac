"""The Serve config: one text, inlined everywhere, valid for the Ray that is pinned, and naming things that exist."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serving.config import ResolvedConfig, Settings, load, resolve
from tests.deploy.conftest import REPOSITORY, load_script, pod_environment, secret_values
from tests.deploy.render import Manifest


def serve_config(rayservice: Manifest) -> Manifest:
    config = yaml.safe_load(rayservice["spec"]["serveConfigV2"])
    assert isinstance(config, dict)
    return config


def test_the_manifests_hold_the_current_serve_config() -> None:
    assert load_script("inline_serve_config").main(["--check"]) == 0, "run python deploy/inline_serve_config.py"


def test_a_stale_copy_is_found_and_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")
    source = folder / "serve-config.yaml"
    source.write_text(source.read_text(encoding="utf-8").replace("port: 8000", "port: 8001"), encoding="utf-8")
    script = load_script("inline_serve_config")
    assert script.main(["--check"], deploy_dir=folder) == 1
    assert "base/rayservice.yaml is stale" in capsys.readouterr().err
    assert script.main([], deploy_dir=folder) == 0
    assert script.main(["--check"], deploy_dir=folder) == 0
    assert "      port: 8001\n" in (folder / "base" / "rayservice.yaml").read_text(encoding="utf-8")


def test_a_manifest_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0 serveConfigV2 blocks"):
        load_script("inline_serve_config").inlined("spec: {}\n", "a: 1\n")


def test_ray_accepts_the_config(rayservice: Manifest) -> None:
    config = serve_config(rayservice)
    parsed = ServeDeploySchema.model_validate(config)
    assert [application.name for application in parsed.applications] == ["vireo"]
    # These two schemas let unknown keys through, so a typing error has to be looked for.
    assert set(config["http_options"]) <= set(type(parsed.http_options).model_fields)
    assert set(config["grpc_options"]) <= set(type(parsed.grpc_options).model_fields)


def settings_of(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Read the settings as a pod would: the mounted file, and the environment with its Secrets filled in."""
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (config_map,) = [
        m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"].startswith("vireo-config")
    ]
    path = tmp_path / "vireo.yaml"
    path.write_text(config_map["data"]["vireo.yaml"], encoding="utf-8")
    environment = pod_environment(service, secret_values(manifests)) | {"VIREO_CONFIG": str(path)}
    for name in ("VIREO_CONFIG", "VIREO_SET"):
        monkeypatch.setenv(name, environment[name])
    return load()


def test_the_service_accepts_its_settings(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = resolve(settings_of(manifests, monkeypatch, tmp_path))
    assert config.settings.profile == "cluster"
    assert config.run_dir == Path("/run/vireo")
    assert re.fullmatch(r"redis://:[0-9a-zA-Z_-]{16,}@vireo-redis:6379/0", config.store_url)
    assert config.allow_anonymous_loopback is False
    assert [len(tenant.api_key_sha256) for tenant in config.settings.tenants] == [1]


def test_the_workers_have_what_the_settings_ask_for(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(manifests, monkeypatch, tmp_path)
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    num_cpus = settings.gateway.replicas * settings.gateway.cpus + sum(m.replicas * m.cpus for m in settings.models)
    num_gpus = sum(model.replicas * model.gpus for model in settings.models)
    assert num_cpus <= workers["replicas"] * int(limits["cpu"])
    assert num_gpus <= workers["replicas"] * int(limits.get("nvidia.com/gpu", 0))


def test_the_config_file_is_where_the_pods_mount_it(rayservice: Manifest) -> None:
    cluster = rayservice["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["VIREO_CONFIG"] in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_every_servicer_function_can_be_imported(rayservice: Manifest) -> None:
    for name in serve_config(rayservice)["grpc_options"]["grpc_servicer_functions"]:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_the_import_path_resolves(rayservice: Manifest) -> None:
    (application,) = serve_config(rayservice)["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_the_application_is_built_from_what_the_pods_mount(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(manifests, monkeypatch, tmp_path)
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    app = importlib.import_module("serving.app")
    built: list[ResolvedConfig] = []
    monkeypatch.setattr(app, "build_graph", built.append)
    app.build_app(serve_config(service)["applications"][0]["args"])
    assert [config.settings for config in built] == [resolve(settings).settings]
