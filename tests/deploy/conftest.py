"""What the deployment tests share: the folder, and each overlay rendered once."""

from __future__ import annotations

import base64
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.deploy.render import Manifest, render

REPOSITORY = Path(__file__).resolve().parents[2]
OVERLAYS = ("dev", "prod")


def load_script(name: str) -> ModuleType:
    """Import a script of deploy/ by path: that folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "deploy" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def secret_values(manifests: list[Manifest]) -> dict[str, str]:
    """Return vireo-secrets by key: the generated ones of an overlay, or the example with its placeholders filled."""
    generated = [m for m in manifests if m["kind"] == "Secret"]
    if generated:
        return {key: base64.b64decode(value).decode() for key, value in generated[0]["data"].items()}
    text = (REPOSITORY / "deploy" / "secrets.example.yaml").read_text(encoding="utf-8")
    (example,) = [d for d in yaml.safe_load_all(text) if d["metadata"]["name"] == "vireo-secrets"]
    fill = {
        "REPLACE-ME-WITH-THE-HEX-SHA256-OF-THE-API-KEY": "ab" * 32,
        '"REPLACE-ME"': '"team"',
        "REPLACE-ME": "s" * 32,
    }
    values: dict[str, str] = dict(example["stringData"])
    for placeholder, value in fill.items():
        values = {key: current.replace(placeholder, value) for key, current in values.items()}
    return values


def mounted_secrets(rayservice: Manifest, secrets: dict[str, str]) -> dict[str, str]:
    """Return file name -> text of what a worker finds in the folder that VIREO_SECRETS names."""
    (workers,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    spec = workers["template"]["spec"]
    ray = spec["containers"][0]
    (folder,) = [entry["value"] for entry in ray["env"] if entry["name"] == "VIREO_SECRETS"]
    (name,) = [mount["name"] for mount in ray["volumeMounts"] if mount["mountPath"] == folder]
    (volume,) = [volume["secret"] for volume in spec["volumes"] if volume["name"] == name]
    return {item["path"]: secrets[item["key"]] for item in volume["items"]}


@pytest.fixture(scope="session")
def deploy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of deploy/ in which dev has secrets and prod has digests, so that both render."""
    folder = tmp_path_factory.mktemp("deploy") / "deploy"
    shutil.copytree(REPOSITORY / "deploy", folder, ignore=shutil.ignore_patterns("secrets", "pinned", "__pycache__"))
    load_script("new_secrets").write_secrets(folder / "overlays" / "dev" / "secrets", tenant="test")
    pins = {
        "vireo": ("registry.test/vireo-gpu", "0.1.0", f"sha256:{'a' * 64}"),
        "redis": ("redis", "8", f"sha256:{'b' * 64}"),
    }
    (folder / "overlays" / "prod" / "pinned").mkdir()
    (folder / "overlays" / "prod" / "pinned" / "kustomization.yaml").write_text(
        load_script("pin_images").component(pins)
    )
    return folder


@pytest.fixture(scope="session")
def rendered(deploy_dir: Path) -> dict[str, list[Manifest]]:
    return {overlay: render(deploy_dir / "overlays" / overlay) for overlay in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    return rendered[request.param]


@pytest.fixture
def rayservice(manifests: list[Manifest]) -> Manifest:
    (found,) = [m for m in manifests if m["kind"] == "RayService"]
    return found
