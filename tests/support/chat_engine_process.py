"""Runs a vLLM engine like a replica does, says what a test wants to know, and waits to be killed.

``python -m tests.support.chat_engine_process MODEL_FOLDER RUN_FOLDER``
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from models.families.texthawk2.prompt import PromptBuilder
from serving.telemetry.events import CallRetried
from serving.telemetry.exposition import exposition
from serving.telemetry.metrics import record
from tests.support.chat_engines import collect, engine_processes, make_request, vllm_environment, vllm_setup
from tests.support.chat_models import make_image


async def _main(model: Path, run_dir: Path) -> None:
    record(CallRetried("before"))
    with vllm_environment(run_dir):
        from serving.replica.chat.vllm_engine import VllmEngine

        prompts = PromptBuilder.from_dir(model)
        engine = VllmEngine(vllm_setup(model), prompts)
        started = time.monotonic()
        await engine.start()
        start_s = time.monotonic() - started
        answer = await collect(engine, make_request(prompts, "hello", [make_image(1)], max_tokens=5))
        record(CallRetried("after"))
        report = {
            "start_s": round(start_s, 1),
            "num_tokens": len(answer.token_ids),
            "engine_pids": [process.pid for process in engine_processes()],
            "exposition": exposition()[0].decode(),
        }
        print(json.dumps(report), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2])))
