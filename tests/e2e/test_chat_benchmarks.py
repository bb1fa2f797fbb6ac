"""Load generators of other servers against a chat system, as their users start them: ``vllm bench serve``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.chat_system import ALPHA, CHAT_MODEL, ChatSystem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

# What `vllm bench serve` runs; the command itself fails under the name of the package for CPUs.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
NUM_PROMPTS, OUTPUT_TOKENS = 4, 8


def test_vllm_bench_serve_gets_as_many_tokens_as_it_asks_for(
    chat: ChatSystem, chat_checkpoint: Path, tmp_path: Path
) -> None:
    """Its random prompts have pictures here. It sends ``ignore_eos``, reads the usage and asks ``/metrics``."""
    options = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "base-url": chat.system.http_url,
        "header": f"Authorization=Bearer {ALPHA}",
        "tokenizer": str(chat_checkpoint),
        "dataset-name": "random-mm",
        "random-input-len": "16",
        "random-output-len": str(OUTPUT_TOKENS),
        "random-mm-bucket-config": "{(64, 96, 1): 1.0}",
        "random-mm-limit-mm-per-prompt": '{"image": 1, "video": 0}',
        "num-prompts": str(NUM_PROMPTS),
        "model": CHAT_MODEL,
        "result-dir": str(tmp_path),
        "result-filename": "result.json",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-c", BENCH, *words, "--save-result"]
    environment = os.environ | {"OPENAI_API_KEY": ALPHA, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (NUM_PROMPTS, 0), run.stdout
    assert result["total_output_tokens"] == NUM_PROMPTS * OUTPUT_TOKENS
