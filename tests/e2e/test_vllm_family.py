"""A folder that vLLM knows by itself, served like our own models: over HTTP and gRPC, counted, bounded and freed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from vireo_pb.vireo.v1 import vireo_pb2

from tests.e2e.chats import RawChat, fresh_png, grpc_answer, has_text, turn
from tests.e2e.surfaces import Door, opened
from tests.support.chat_system import EngineCounts
from tests.support.system import System, cli_environment, run_cli, running_system, wait_until
from tests.support.vllm_folder import LONGEST_EDGE, MAX_MODEL_LEN, TOKENS_PER_TILE, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MODEL = "vllm:tiny"
SQUARE = 16 * (TOKENS_PER_TILE + 2) + 4 + 1 + TOKENS_PER_TILE + 3
"""Tokens of a square picture: sixteen tiles with two marks each, four line ends and one more, the whole with three."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = make_folder(tmp_path_factory.mktemp("served") / "model")
    options = {"engine": "vllm", "max_num_seqs": 4, "max_images": 3, "kv_cache_mb": 16, "image_cache_mb": 16}
    models = [{"id": MODEL, "checkpoint_dir": str(folder), "options": options}]
    with running_system(models=models, start_timeout_s=300.0, check=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.http_url}/v1", api_key="none", max_retries=0, timeout=120.0) as opened_client:
        yield opened_client


@pytest.fixture(scope="module")
def door(system: System) -> Iterator[Door]:
    with opened(system) as opened_door:
        yield opened_door


def ask(client: openai.OpenAI, text: str, *images: bytes, **fields: Any) -> Any:
    fields = {"temperature": 0, "max_tokens": 24, **fields}
    return client.chat.completions.create(model=MODEL, messages=turn(text, *images), **fields)


def ask_grpc(door: Door, text: str, *images: bytes) -> Any:
    parts = [*(vireo_pb2.ChatPart(image=image) for image in images), vireo_pb2.ChatPart(text=text)]
    request = vireo_pb2.ChatRequest(
        model=MODEL,
        messages=[vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=parts)],
        sampling=vireo_pb2.Sampling(temperature=0, max_tokens=24),
    )
    return grpc_answer(door.vireo.Chat(request, timeout=120.0))


def test_both_surfaces_give_one_answer_and_count_alike(client: openai.OpenAI, door: Door) -> None:
    images = [fresh_png(LONGEST_EDGE, LONGEST_EDGE), fresh_png(96, 200)]
    over_http, over_grpc = ask(client, "Describe them.", *images), ask_grpc(door, "Describe them.", *images)
    assert over_http.choices[0].message.content == over_grpc.text
    assert over_http.usage.prompt_tokens == over_grpc.end.usage.prompt_tokens
    assert over_http.usage.completion_tokens == over_grpc.num_tokens


def test_tokens_of_pictures_are_told_apart(client: openai.OpenAI) -> None:
    words, seen = ask(client, "Colour?"), ask(client, "Colour?", fresh_png(LONGEST_EDGE, LONGEST_EDGE))
    assert seen.usage.prompt_tokens_details.image_tokens == SQUARE
    # The template writes a space before a text, and none before a picture.
    assert seen.usage.prompt_tokens == words.usage.prompt_tokens + SQUARE - 1


def test_limits_are_the_folders(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {MAX_MODEL_LEN} tokens") as too_long:
        ask(client, "x" * MAX_MODEL_LEN, max_tokens=None)
    assert too_long.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="images"):
        ask(client, "Which?", *[fresh_png(32, 32)] * 4)


def test_budget_is_kept(client: openai.OpenAI) -> None:
    for _ in range(2):
        ask(client, "Warm up.", fresh_png(64, 64))  # prices are known from here on
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, "Hello", fresh_png(64, 64), extra_body={"vireo": {"energy_j": 1e-6}})
    assert refused.value.code == "budget_infeasible"
    answer = ask(client, "Hello", fresh_png(64, 64), extra_body={"vireo": {"energy_j": 1e3}})
    assert answer.vireo["energy_j"] > 0


def test_cut_connection_frees_the_engine(system: System) -> None:
    body = {"model": MODEL, "messages": turn("Go on.", fresh_png(64, 64)), "max_tokens": 700, "stream": True}
    with RawChat(system, "none", body) as raw:
        assert any(has_text(event) for event in raw.events())
    wait_until(lambda: system.metrics().total("vireo_chat_aborts_total") > 0, "an abort is counted")
    wait_until(lambda: EngineCounts(system.metrics()).holds_nothing, "nothing left in the engine")
    wait_until(lambda: system.in_flight() == 0, "in-flight gauge back to 0")


def test_start_says_why_a_folder_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Gemma3ForConditionalGeneration"]}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    environment = cli_environment(tmp_path, "")
    done = run_cli("up", "--model", f"vllm:gemma={tmp_path}", environment=environment, timeout_s=300.0)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "vllm:gemma cannot be served here" in said
    assert "Gemma3ForConditionalGeneration" in said
    assert "torchvision" in said
