"""The Serve config inside the RayService manifest, deployed to a real Ray cluster, answers over HTTP and gRPC.

What differs from a Kubernetes cluster: ports, the folders, the `local` profile instead of `cluster` (so no external
Redis and no keys), and one node. The text of the config, the environment of the pods and the token are the manifest's.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from tests.deploy.conftest import REPOSITORY
from tests.deploy.ray_cluster import RayCluster, ray_cluster
from tests.deploy.render import Manifest
from tests.support.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MODEL = "dyn-perceiver-nano"


@dataclass(frozen=True)
class Served:
    """A deployed application and where it listens."""

    cluster: RayCluster
    http_url: str
    grpc_target: str


def localised(serve_config: Manifest, folder: Path) -> Manifest:
    """Return the config with free ports and the `local` profile; everything else as in the manifest."""
    http_port, grpc_port = free_ports(2)
    serve_config["http_options"].update(host="127.0.0.1", port=http_port)
    serve_config["grpc_options"]["port"] = grpc_port
    (application,) = serve_config["applications"]
    application["args"] = {
        "profile": "local",
        "run_dir": str(folder / "run"),
        "http": {"host": "127.0.0.1", "port": http_port, "grpc_port": grpc_port},
        "gateway": {"cpus": 0.5, "media_workers": 1},
        "models": [{"id": MODEL, "cpus": 0.5}, {"id": "texthawk2-nano"}],
    }
    return serve_config


def literal_environment(rayservice: Manifest) -> dict[str, str]:
    """Return what the manifest sets on a Ray pod by value, without the settings of the `cluster` profile."""
    (workers,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    entries = workers["template"]["spec"]["containers"][0]["env"]
    return {e["name"]: e["value"] for e in entries if "value" in e and not e["name"].startswith("VIREO_")}


@pytest.fixture(scope="module")
def served(rendered: dict[str, list[Manifest]]) -> Iterator[Served]:
    (rayservice,) = [m for m in rendered["dev"] if m["kind"] == "RayService"]
    paths = [str(REPOSITORY), str(REPOSITORY / "proto"), os.environ.get("PYTHONPATH", "")]
    environment = {**literal_environment(rayservice), "PYTHONPATH": ":".join(filter(None, paths))}
    with ray_cluster(environment, num_cpus=2) as cluster:
        config = localised(yaml.safe_load(rayservice["spec"]["serveConfigV2"]), cluster.folder)
        path = cluster.folder / "serve-config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        cluster.serve("deploy", str(path))
        cluster.wait_running("vireo", timeout_s=240.0)
        http_port, grpc_port = config["http_options"]["port"], config["grpc_options"]["port"]
        yield Served(cluster, f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")


@pytest.fixture(scope="module")
def digit() -> tuple[bytes, str]:
    """Return a PNG of a handwritten digit, and which one it is."""
    digits = load_digits()
    pixels = (255 - digits.images[0] * 255 / 16).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode=None).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue(), str(digits.target[0])


def test_a_classify_request_is_answered_over_http(served: Served, digit: tuple[bytes, str]) -> None:
    body = {"model": MODEL, "image": base64.b64encode(digit[0]).decode(), "top_k": 3}
    reply = httpx.post(f"{served.http_url}/v1/classify", json=body, timeout=30.0)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    (result,) = answer["results"]
    assert len(result["top_k"]) == 3
    assert result["label"] == result["top_k"][0]["label"]
    assert {"operating_point", "energy_j", "energy_source", "queue_ms", "compute_ms", "cache"} <= set(answer["vireo"])


def test_the_same_image_gets_the_same_label_over_grpc(served: Served, digit: tuple[bytes, str]) -> None:
    body = {"model": MODEL, "image": base64.b64encode(digit[0]).decode()}
    over_http = httpx.post(f"{served.http_url}/v1/classify", json=body, timeout=30.0).json()["results"][0]["label"]
    with grpc.insecure_channel(served.grpc_target) as channel:
        request = vireo_pb2.ClassifyRequest(model=MODEL, images=[digit[0]])
        reply = vireo_pb2_grpc.VireoStub(channel).Classify(request, timeout=30.0)
    (result,) = reply.results
    assert result.label == over_http


def test_the_paths_that_the_probes_use_answer(served: Served) -> None:
    for path in ("/healthz", "/v2/health/ready"):
        assert httpx.get(f"{served.http_url}{path}", timeout=10.0).status_code == 200, path


def test_a_command_without_the_token_is_refused(served: Served) -> None:
    reply = httpx.get(f"{served.cluster.dashboard_url}/api/serve/applications/", timeout=10.0)
    assert reply.status_code in {401, 403}
