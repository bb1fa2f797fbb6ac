"""Any models make a system: here none that classifies, in test_vllm_family.py and test_video_nano.py one alone."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from vireo_pb.oip import open_inference_pb2 as oip

from serving.client.exits import Exit
from tests.e2e.surfaces import opened
from tests.support.clients import error_in
from tests.support.system import running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FAKE: dict[str, Any] = {"options": {"engine": "fake"}}
CHAT = {"id": "texthawk2-nano", **FAKE}
SECOND_CHAT = {"id": "texthawk2-7b", **FAKE}
VIDEOS = {"id": "vdit-nano", **FAKE}
SECOND_VIDEOS = {"id": "vdit-osp-93x720p", **FAKE}


def test_two_models_of_one_family_are_served_side_by_side_and_none_that_classifies() -> None:
    models = [CHAT, SECOND_CHAT, VIDEOS, SECOND_VIDEOS]
    ids = [model["id"] for model in models]
    tasks = {"chat": ids[:2], "videos": ids[2:]}
    with running_system(models=models, check=True) as system, opened(system) as door:
        assert "self-check failed" not in system.output
        status = system.status()
        assert (status["ready"], status["models"], status["tasks"]) == (True, ids, tasks)
        assert all(status["parts"].values()), status["parts"]
        listed = door.http.get("/v1/models").json()["data"]
        assert [(card["id"], card["vireo"]["ready"]) for card in listed] == [(name, True) for name in ids]
        for name in ids:
            assert door.http.get(f"/v2/models/{name}/ready").is_success
            assert door.oip.ModelReady(oip.ModelReadyRequest(name=name)).ready
        assert door.oip.ServerReady(oip.ServerReadyRequest()).ready
        assert door.http.get("/openapi.json").is_success
        run = system.command("classify", "examples/digit-7.png", "--url", system.http_url)
        assert (run.returncode, "no model for classify is served at" in run.stderr) == (Exit.REFUSED, True), run.stderr
        for path, body in BODIES.items():
            answer: httpx.Response = door.http.post(path, json=body)
            assert (answer.status_code, error_in(answer.json())["code"]) == (404, "model_not_found"), path


BODIES: dict[str, dict[str, Any]] = {
    "/v1/classify": {"model": "dyn-perceiver-nano", "image": ""},
    "/v1/chat/completions": {"model": "no-such", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/videos": {"model": "no-such", "prompt": "x"},
    "/v2/models/no-such/infer": {"inputs": []},
}
