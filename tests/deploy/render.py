"""Renders the overlays with the few kustomize features that `deploy/` uses, so that the tests need no kustomize.

Not a kustomize: an unknown field of a kustomization is refused. `test_render.py` holds it against
`kubectl kustomize` where there is one.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "secretGenerator"),
    *("configurations", "labels", "images", "patches"),
}
_CLUSTER_SCOPED = {"Namespace"}
_HASH_LETTERS = str.maketrans({"0": "g", "1": "h", "3": "k", "a": "m", "e": "t"})


def render(folder: Path) -> list[Manifest]:
    """Return the manifests that `kubectl kustomize folder` would print, in no particular order.

    Raises: ValueError: for a kustomize feature that this renderer lacks.
    """
    manifests = _accumulate(folder, [])
    _add_name_hashes(manifests)
    return manifests


def _accumulate(folder: Path, manifests: list[Manifest]) -> list[Manifest]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := set(kustomization) - _KNOWN:
        raise ValueError(f"{folder}/kustomization.yaml uses {sorted(unknown)}, which tests/deploy/render.py lacks")
    for name in kustomization.get("resources", []):
        path = folder / name
        manifests += _accumulate(path, []) if path.is_dir() else load_all(path)
    for name in kustomization.get("components", []):
        _accumulate(folder / name, manifests)
    for kind in ("ConfigMap", "Secret"):
        generators = kustomization.get(kind[0].lower() + kind[1:] + "Generator", [])
        for generator in generators:
            _add_generated(manifests, _generate(folder, kind, generator), generator.get("behavior", "create"))
    for patch in kustomization.get("patches", []):
        _apply_patch(
            manifests, yaml.safe_load((folder / patch["path"]).read_text(encoding="utf-8")), patch.get("target")
        )
    for manifest in manifests:
        _transform(manifest, kustomization)
    return manifests


def load_all(path: Path) -> list[Manifest]:
    """Return every document of a YAML file, without shared sub-objects (an anchor is a copy, as in kustomize)."""
    documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return [json.loads(json.dumps(document)) for document in documents if document]


def _generate(folder: Path, kind: str, generator: Manifest) -> Manifest:
    if unknown := set(generator) - {"name", "behavior", "files", "options"}:
        raise ValueError(f"{kind} generator uses {sorted(unknown)}, which tests/deploy/render.py lacks")
    data = {Path(name).name: (folder / name).read_bytes() for name in generator["files"]}
    options = generator.get("options", {})
    encoded = {key: _base64_lines(value) if kind == "Secret" else value.decode() for key, value in data.items()}
    manifest: Manifest = {"apiVersion": "v1", "kind": kind, "metadata": {"name": generator["name"]}, "data": encoded}
    if "labels" in options:
        manifest["metadata"]["labels"] = dict(options["labels"])
    if kind == "Secret":
        manifest["type"] = "Opaque"
    if not options.get("disableNameSuffixHash", False):
        manifest["metadata"]["annotations"] = {"needs-hash": "true"}
    return manifest


def _add_generated(manifests: list[Manifest], generated: Manifest, behavior: str) -> None:
    if behavior == "create":
        manifests.append(generated)
        return
    identity = (generated["kind"], generated["metadata"]["name"])
    (existing,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == identity]
    if behavior != "merge":
        raise ValueError(f"generator behavior {behavior!r} is one that tests/deploy/render.py lacks")
    existing["data"].update(generated["data"])


def _base64_lines(value: bytes) -> str:
    """Encode as kustomize does: wrapped at 70 characters, because the name's hash covers the line breaks."""
    text = base64.b64encode(value).decode()
    lines = [text[start : start + 70] for start in range(0, len(text), 70)]
    return text if len(lines) <= 1 else "".join(f"{line}\n" for line in lines)


def _apply_patch(manifests: list[Manifest], patch: Any, target: Manifest | None) -> None:
    wanted = target or {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    matched = [m for m in manifests if m["kind"] == wanted["kind"] and m["metadata"]["name"] == wanted["name"]]
    if not matched:
        raise ValueError(f"the patch for {wanted} matches no manifest")
    for manifest in matched:
        if isinstance(patch, list):
            for operation in patch:
                _apply_operation(manifest, operation)
        else:
            _merge(manifest, patch)


def _apply_operation(manifest: Manifest, operation: Manifest) -> None:
    *parents, last = operation["path"].lstrip("/").split("/")
    node: Any = manifest
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if isinstance(node, list) and (operation["op"], last) == ("add", "-"):
        node.append(copy.deepcopy(operation["value"]))
        return
    if operation["op"] not in {"add", "replace"} or isinstance(node, list):
        raise ValueError(f"patch operation {operation['op']} at {operation['path']} is not one that this renderer has")
    if operation["op"] == "replace" and last not in node:
        raise ValueError(f"nothing to replace at {operation['path']}")
    node[last] = copy.deepcopy(operation["value"])


def _merge(into: Manifest, patch: Manifest) -> None:
    for key, value in patch.items():
        if isinstance(value, list):
            raise ValueError(f"merge patch of the list {key!r}: how lists merge depends on the kind, use operations")
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _transform(manifest: Manifest, kustomization: Manifest) -> None:
    metadata = manifest["metadata"]
    for labels in kustomization.get("labels", []):
        metadata.setdefault("labels", {}).update(labels["pairs"])
    if "namespace" in kustomization and manifest["kind"] not in _CLUSTER_SCOPED:
        metadata["namespace"] = kustomization["namespace"]
    for image in kustomization.get("images", []):
        for container in containers_of(manifest):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}@{image['digest']}"


def containers_of(manifest: Manifest) -> list[Manifest]:
    """Return every container and init container of a manifest, whatever its kind."""
    return [
        container
        for node in _dicts(manifest)
        for key in ("containers", "initContainers")
        for container in node.get(key, [])
    ]


def ray_containers(rayservice: Manifest) -> list[Manifest]:
    """Return the containers that run Ray: the first of the head and of the workers, as KubeRay has it."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    return [
        group["template"]["spec"]["containers"][0] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]


def _dicts(node: Any) -> Iterator[Manifest]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _dicts(child)


def _add_name_hashes(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        annotations = manifest["metadata"].get("annotations", {})
        if annotations.pop("needs-hash", None) is None:
            continue
        if not annotations:
            del manifest["metadata"]["annotations"]
        old_name = manifest["metadata"]["name"]
        manifest["metadata"]["name"] = f"{old_name}-{_content_hash(manifest)}"
        for user in manifests:
            _rename(user, manifest["kind"], old_name, manifest["metadata"]["name"])


def _content_hash(manifest: Manifest) -> str:
    fields = {key: manifest.get(key, "") for key in ("kind", "type", "data") if key != "type" or "type" in manifest}
    fields["name"] = ""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":  # Go's JSON encoder escapes these.
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(_HASH_LETTERS)


def _rename(manifest: Manifest, kind: str, old_name: str, new_name: str) -> None:
    places = [("configMap", "name"), ("configMapKeyRef", "name")]
    if kind == "Secret":
        places = [("secret", "secretName"), ("secretKeyRef", "name")]
    for node in _dicts(manifest):
        for holder, field in places:
            if isinstance(node.get(holder), dict) and node[holder].get(field) == old_name:
                node[holder][field] = new_name
