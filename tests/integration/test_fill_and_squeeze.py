"""Fill-and-squeeze (2602.07878) against vLLM itself: however a tenant fills the KV cache, no answer is preempted, since
the hub starts none that the cache has no room for until its longest end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from models.families.texthawk2.prompt import PromptBuilder
from serving.delivery.stream.links import ChatLinks, Route
from serving.delivery.stream.wire import ChoiceStart, EngineRequest, Failure
from serving.replica.chat.base import ChatEngine
from tests.support.chat_engines import make_request, vllm_environment, vllm_setup
from tests.support.chat_models import make_model_folder
from tests.support.chat_replicas import LocalCalls, Mailbox, Replica

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(300)]
_MAX_RUNNING = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatEngine]:
    """With room for a few pages."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with vllm_environment(tmp_path_factory.mktemp("run")):
        from serving.replica.chat.vllm_engine import VllmEngine

        setup = vllm_setup(folder)
        options = setup.options.model_copy(update={"kv_cache_mb": 1, "max_num_seqs": _MAX_RUNNING})
        engine = VllmEngine(replace(setup, options=options), PromptBuilder.from_dir(folder))
        await engine.start()
        yield engine
        await engine.stop()


async def test_nothing_is_preempted_while_one_tenant_fills_the_cache_and_squeezes(
    engine: ChatEngine, folder: Path
) -> None:
    rng, prompts = random.Random(3), PromptBuilder.from_dir(folder)
    replica = Replica("r", engine, max_running=_MAX_RUNNING, max_waiting=256)
    links = ChatLinks(LocalCalls(replica), "g")

    def page() -> EngineRequest:
        return _endless(make_request(prompts, "page " * rng.randint(20, 40), max_tokens=rng.randint(80, 120)))

    def short() -> EngineRequest:
        return _endless(make_request(prompts, "short", max_tokens=rng.randint(1, 12)))

    requests = [page() for _ in range(9)] + [short() for _ in range(9)]
    assert sum(map(engine.held_bytes, requests)) > 2 * engine.kv_bytes, "more than there is room for"
    hostile = [_ask(links, "hostile", request) for request in requests]
    peak = 0
    for _ in range(4):
        await _ask(links, "honest", short())
        peak = max(peak, engine.stats().kv_blocks_used)
    await asyncio.gather(*hostile)
    stats = engine.stats()
    assert stats.preemptions == 0
    assert peak > stats.kv_blocks_total // 3, "it was filled"
    await replica.hub.stop()


def _endless(request: EngineRequest) -> EngineRequest:
    return request._replace(ignore_eos=True)


def _ask(links: ChatLinks, tenant: str, request: EngineRequest) -> asyncio.Task[None]:
    start = ChoiceStart(0, request, 120.0, 1.0, True, tenant, 0)

    async def read() -> None:
        mailbox = Mailbox(links, [start], Route())
        async with asyncio.timeout(120.0):
            while mailbox.open_ids:
                for item in await mailbox.next():
                    assert not isinstance(item, Failure), item
        mailbox.close(lambda _: None)

    return asyncio.get_running_loop().create_task(read())
