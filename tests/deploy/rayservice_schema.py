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


def _closed(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


_TEXT: Schema = {"type": "string", "minLength": 1}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEMPLATE: Schema = {"type": "object", "required": ["metadata", "spec"]}
# `ray start` flags: KubeRay passes them on as text, so a bare number in YAML would be refused.
_START_PARAMS: Schema = {"type": "object", "additionalProperties": _TEXT}
_SECRET_KEY = _closed(("name", "key"), name=_TEXT, key=_TEXT)

_HEAD = _closed(
    ("rayStartParams", "template"),
    serviceType={"enum": ["ClusterIP"]},
    rayStartParams=_START_PARAMS,
    template=_TEMPLATE,
)
_WORKERS = _closed(
    ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    rayStartParams=_START_PARAMS,
    template=_TEMPLATE,
)
_CLUSTER = _closed(
    ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=_closed(("mode",), mode={"enum": ["disabled", "token"]}),
    gcsFaultToleranceOptions=_closed(
        ("redisAddress",),
        redisAddress=_TEXT,
        redisPassword=_closed(("valueFrom",), valueFrom=_closed(("secretKeyRef",), secretKeyRef=_SECRET_KEY)),
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "minItems": 1, "items": _WORKERS},
)

RAYSERVICE: Schema = _closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata={"type": "object", "required": ["name"]},
    spec=_closed(
        ("serveConfigV2", "rayClusterConfig"),
        upgradeStrategy=_closed(("type",), type={"enum": ["NewCluster", "None"]}),
        rayClusterDeletionDelaySeconds=_COUNT,
        excludeHeadPodFromServeSvc={"type": "boolean"},
        serveService={"type": "object", "required": ["metadata", "spec"]},
        serveConfigV2=_TEXT,
        rayClusterConfig=_CLUSTER,
    ),
)


def strict_crd_schema(crd: Schema, version: str = "v1") -> Schema:
    """Return the schema of one version of a published CustomResourceDefinition, with unknown fields refused.

    The API server prunes unknown fields in silence, so a typing error would be lost; here it is an error.
    """
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version]
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
