"""The rendered overlays against published schemas."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.conftest import REPOSITORY, load_script
from tests.deploy.rayservice_schema import rayservice_schema
from tests.deploy.render import Manifest, containers_of, ray_containers, render

KUBERNETES_VERSIONS = ("1.33", "1.37")
CUSTOM_KINDS = {"RayService", "PodMonitor", "PrometheusRule"}


def ray_pod_templates(rayservice: Manifest) -> Iterator[Manifest]:
    cluster = rayservice["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        metadata = {"name": "template", **group["template"]["metadata"]}
        yield {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "t"},
            "template": {**group["template"], "metadata": metadata},
        }


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_built_in_kind_is_valid(manifests: list[Manifest], version: str) -> None:
    checked = [m for m in manifests if m["kind"] not in CUSTOM_KINDS]
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert {"Namespace", "NetworkPolicy", "StatefulSet", "PodDisruptionBudget", "Service"} <= {
        m["kind"] for m in checked
    }


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_pod_templates_inside_the_rayservice_are_valid(rayservice: Manifest, version: str) -> None:
    templates = list(ray_pod_templates(rayservice))
    assert len(templates) == 2
    for template in templates:
        kubernetes_validate.validate(template, version, strict=True)
    service = {"apiVersion": "v1", "kind": "Service", **rayservice["spec"]["serveService"]}
    kubernetes_validate.validate(service, version, strict=True)


def test_a_wrong_pod_template_is_found(rayservice: Manifest) -> None:
    template = copy.deepcopy(next(ray_pod_templates(rayservice)))
    template["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(template, KUBERNETES_VERSIONS[0], strict=True)


def test_the_rayservice_is_valid_by_kuberays_definition(rayservice: Manifest) -> None:
    jsonschema.Draft202012Validator(rayservice_schema()).validate(rayservice)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterConfig", "headGroupSpecs"), {}),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterConfig", "authOptions", "mode"), "tokens"),
    ],
)
def test_a_wrong_rayservice_field_is_found(rayservice: Manifest, path: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(rayservice)
    node = broken
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(rayservice_schema()).validate(broken)


def test_the_head_container_names_the_serving_ports_that_the_operator_publishes(rayservice: Manifest) -> None:
    published = {port["name"]: port["port"] for port in rayservice["spec"]["serveService"]["spec"]["ports"]}
    serve_config = yaml.safe_load(rayservice["spec"]["serveConfigV2"])
    assert published == {
        "serve": serve_config["http_options"]["port"],
        "serve-grpc": serve_config["grpc_options"]["port"],
    }
    for container in ray_containers(rayservice):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {name: ports.get(name) for name in published} == published


def test_every_image_of_the_small_overlay_names_a_version(rendered: dict[str, list[Manifest]]) -> None:
    for container in [c for m in rendered["dev"] for c in containers_of(m)]:
        tag = container["image"].partition(":")[2]
        assert tag[:1].isdigit(), container["image"]


def test_production_refers_to_images_by_digest_alone(rendered: dict[str, list[Manifest]]) -> None:
    containers = [c for m in rendered["prod"] for c in containers_of(m)]
    assert len(containers) >= 5
    for container in containers:
        assert re.fullmatch(r"[^@:]+@sha256:[0-9a-f]{64}", container["image"]), container["image"]


def test_production_does_not_render_before_its_images_are_pinned(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("pinned"))
    with pytest.raises(FileNotFoundError, match="pinned"):
        render(tmp_path / "deploy" / "overlays" / "prod")


DIGEST = f"sha256:{'c' * 64}"


@pytest.mark.parametrize("tool", ["crane", "skopeo", "docker"])
def test_images_are_pinned_by_what_the_registry_says(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pin = load_script("pin_images")
    (tmp_path / tool).write_text(
        f'#!/bin/sh\ncase "$*" in *team/vireo:2*) echo {DIGEST};; *) echo gone >&2; exit 1;; esac\n'
    )
    (tmp_path / tool).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(pin.shutil, "which", lambda name: name if name == tool else None)
    assert pin.main([str(tmp_path / "pinned"), "vireo=registry.test:5000/team/vireo:2"]) == 0
    written = yaml.safe_load((tmp_path / "pinned" / "kustomization.yaml").read_text())
    assert written["images"] == [{"name": "vireo", "newName": "registry.test:5000/team/vireo", "digest": DIGEST}]
    assert pin.main(["-", "base=team/vireo:2"]) == 0
    assert capsys.readouterr().out == f"team/vireo@{DIGEST}\n"
    assert pin.main([str(tmp_path / "other"), "vireo=team/lost:1"]) == 1
    assert "gave no digest of team/lost:1: gone" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_image_without_a_tag_or_a_tool_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pin = load_script("pin_images")
    with pytest.raises(ValueError, match="has no tag"):
        pin.split("registry.test:5000/vireo")
    monkeypatch.setattr(pin.shutil, "which", lambda _name: None)
    with pytest.raises(ValueError, match="none of crane, skopeo, docker is installed"):
        pin.digest_of("vireo:1")


def test_the_pinned_ray_is_the_one_in_the_lock_file(rayservice: Manifest) -> None:
    lock = (REPOSITORY / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    assert f"ray=={rayservice['spec']['rayClusterConfig']['rayVersion']}" in lock.split()


def test_every_config_map_secret_and_account_that_a_pod_names_exists(manifests: list[Manifest]) -> None:
    external = {"vireo-secrets", "vireo-gcs-redis"} if _namespace(manifests) == "vireo" else set()
    defined = {m["metadata"]["name"] for m in manifests if m["kind"] in {"ConfigMap", "Secret", "ServiceAccount"}}
    assert set(_references(manifests)) <= defined | external


def _namespace(manifests: list[Manifest]) -> str:
    (name,) = [m["metadata"]["name"] for m in manifests if m["kind"] == "Namespace"]
    return str(name)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for child in node:
            yield from _references(child)
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"secretName", "serviceAccountName"}:
                yield value
            elif key in {"configMap", "secretKeyRef", "configMapKeyRef"}:
                yield value["name"]
            else:
                yield from _references(value)
