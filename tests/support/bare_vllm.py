"""vLLM itself on a folder, with nothing of ours: what its own chat code makes of conversations.

``python -m tests.support.bare_vllm FOLDER`` reads a list of lists of messages in OpenAI's form as JSON, and prints for
each the ids of prompt and answer, and the text.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from serving.replica.chat.setup import engine_environment


def _main(folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints
    conversations: list[Any] = json.load(sys.stdin)
    os.environ.update(engine_environment(Path(folder).parent / "bare"))
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=4,
        kv_cache_memory_bytes=16 << 20,
        generation_config="vllm",
        limit_mm_per_prompt={"image": 3},
    )
    made = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    outputs = [
        {
            "prompt_ids": list(each.prompt_token_ids or ()),
            "ids": list(each.outputs[0].token_ids),
            "text": each.outputs[0].text,
        }
        for each in made
    ]
    json.dump(outputs, answers)
    answers.close()


if __name__ == "__main__":
    _main(sys.argv[1])
