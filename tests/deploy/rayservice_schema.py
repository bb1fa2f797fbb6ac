"""KubeRay's own definition of a RayService, as a schema that also refuses unknown fields.

``ray.io_rayservices.yaml.xz`` is ``ray-operator/config/crd/bases/ray.io_rayservices.yaml`` of KubeRay v1.7.0
(Apache-2.0), unchanged: no package carries it, and a test must not need a network.
"""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]
_DEFINITION = Path(__file__).with_name("ray.io_rayservices.yaml.xz")


@cache
def rayservice_schema(version: str = "v1") -> Schema:
    """The published schema of one version. The API server prunes unknown fields in silence, so a typing error would be
    lost; here it is an error."""
    with lzma.open(_DEFINITION) as file:
        definition = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version]
    closed = _close(schema)
    assert isinstance(closed, dict)
    return closed


def _close(node: Any) -> Any:
    if isinstance(node, list):
        return [_close(child) for child in node]
    if not isinstance(node, dict):
        return node
    result = {key: _close(child) for key, child in node.items()}
    is_open = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields", False)
    if node.get("type") == "object" and isinstance(node.get("properties"), dict) and not is_open:
        result["additionalProperties"] = False
    return result
