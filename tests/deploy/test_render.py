"""The tests' own renderer, held against the real kustomize inside kubectl where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.render import Manifest, render


def by_identity(manifests: list[Manifest]) -> dict[tuple[str, str], Any]:
    return {(m["kind"], m["metadata"]["name"]): m for m in manifests}


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_the_renderer_agrees_with_kustomize(overlay: str, deploy_dir: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: the renderer is not compared with kustomize")
    folder = deploy_dir / "overlays" / overlay
    run = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True)
    assert by_identity(render(folder)) == by_identity(list(yaml.safe_load_all(run.stdout)))


def test_a_kustomize_feature_that_the_renderer_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: a-\n", encoding="utf-8")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)


def test_a_patch_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("patches: [{path: p.yaml}]\n", encoding="utf-8")
    (tmp_path / "p.yaml").write_text("{kind: Service, metadata: {name: missing}}", encoding="utf-8")
    with pytest.raises(ValueError, match="missing"):
        render(tmp_path)


def test_a_changed_config_changes_the_name_that_the_pods_mount(deploy_dir: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(deploy_dir, tmp_path / "deploy")
    config = changed / "overlays" / "prod" / "config" / "vireo.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    before, after = (_mounted_config(render(d / "overlays" / "prod")) for d in (deploy_dir, changed))
    assert before != after


def _mounted_config(manifests: list[Manifest]) -> str:
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (name,) = [
        volume["configMap"]["name"]
        for volume in service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    ]
    assert any(m["metadata"]["name"] == name for m in manifests if m["kind"] == "ConfigMap")
    return str(name)
