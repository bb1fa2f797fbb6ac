"""What the deployment tests share: the folder, and each overlay rendered once."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

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


@pytest.fixture(scope="session")
def deploy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of deploy/ in which the dev overlay has secrets, so that it renders."""
    folder = tmp_path_factory.mktemp("deploy") / "deploy"
    shutil.copytree(REPOSITORY / "deploy", folder, ignore=shutil.ignore_patterns("secrets", "__pycache__"))
    load_script("new_secrets").write_secrets(folder / "overlays" / "dev" / "secrets", tenant="test")
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
