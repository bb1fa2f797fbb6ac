"""Folders of vLLM's own models: what is read of them, and that pictures and tokens are those of vLLM itself."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from models.contract import Variant
from models.families.vllm.asking import PictureCounter
from models.families.vllm.family import FAMILY, to_pillow, whole_picture
from models.families.vllm.prompts import FolderPrompts, read_prompts
from models.registry import find
from models.testing import Check, checks_of
from serving.config import StreamOptions
from serving.delivery.stream.wire import EngineImage
from serving.replica.chat.checks import EngineSetup
from tests.support.chat_engines import collect, make_request, vllm_environment
from tests.support.media_files import encode
from tests.support.vllm_folder import MAX_MODEL_LEN, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "vllm:tiny"
_SIZES = ((64, 64), (40, 130), (300, 70), (128, 96))
"""(height, width)."""


class Talk(NamedTuple):
    """Texts, and sizes of pictures."""

    turns: Sequence[tuple[str, Sequence[str | int]]]

    def turns_of_ours(self) -> list[tuple[str, list[str | None]]]:
        return [(role, [part if isinstance(part, str) else None for part in parts]) for role, parts in self.turns]

    def pictures(self) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        return [picture(part) for _, parts in self.turns for part in parts if isinstance(part, int)]

    def messages(self) -> list[dict[str, Any]]:
        return [{"role": role, "content": [_part(part) for part in parts]} for role, parts in self.turns]


TALKS = (
    Talk([("user", ["What is this?"])]),
    Talk([("user", [0, "Read the text."])]),
    Talk([("user", ["Which of them is larger, ", 1, " or ", 2, "?"])]),
    Talk([("system", ["Be brief."]), ("user", [3, "Colour?"]), ("assistant", ["Réd 红"]), ("user", ["Why?"])]),
)


def picture(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(number).integers(0, 256, (*_SIZES[number], 3), np.uint8)


def _part(part: str | int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/png;base64,{base64.b64encode(encode(picture(part))).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def variant(folder: Path) -> Variant:
    family, found = find(NAME, folder)
    assert family is FAMILY
    return found


@pytest.fixture(scope="module")
def prompts(variant: Variant) -> FolderPrompts:
    return read_prompts(variant)


@pytest.fixture(scope="module")
def bare(folder: Path) -> Sequence[Mapping[str, Any]]:
    """What vLLM alone makes of the talks."""
    asked = json.dumps([talk.messages() for talk in TALKS])
    command = [sys.executable, "-m", "tests.support.bare_vllm", str(folder)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: Sequence[Mapping[str, Any]] = json.loads(done.stdout)
    return answers


# -- what is read of a folder ----------------------------------------------------------------------------------------


def test_folder_says_limits_and_licence(variant: Variant) -> None:
    assert variant.source.licence == "apache-2.0"
    assert variant.io.max_model_len == MAX_MODEL_LEN
    assert variant.config["architecture"] == "Idefics3ForConditionalGeneration"
    assert variant.config["image_tokens"] is None, "their number depends on the size"


def test_name_needs_a_folder() -> None:
    with pytest.raises(ValueError, match=r"--model vllm:tiny=FOLDER"):
        find(NAME)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "Qwen2_5_VLForConditionalGeneration.*torchvision"),
        ({"architectures": ["NobodyForCausalLM"]}, "knows no NobodyForCausalLM"),
        ({}, "names no architecture"),
    ],
)
def test_why_a_folder_cannot_be_served_is_said_by_name(
    folder: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match=f"vllm:other cannot be served here: .*{reason}"):
        find("vllm:other", tmp_path)


def test_contract_is_kept_on_a_folder(variant: Variant) -> None:
    checks: list[Check] = checks_of(replace(FAMILY, variants=(variant,)))
    assert len(checks) > 3
    for check in checks:
        check()


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_pictures_are_counted_as_vllm_counts_them(
    variant: Variant, prompts: FolderPrompts, bare: Sequence[Mapping[str, Any]]
) -> None:
    counter = PictureCounter(variant.weights or Path())
    for talk, answer in zip(TALKS, bare, strict=True):
        grids = [counter(*pixels.shape[:2]) for pixels in talk.pictures()]
        assert prompts.num_expanded(prompts.build(talk.turns_of_ours()), grids) == len(answer["prompt_ids"])


def test_typed_control_tokens_are_characters(prompts: FolderPrompts) -> None:
    typed = "<image> and <end_of_utterance>, <row_1_col_1>"
    ids = prompts.build([("user", [None, typed])])
    assert ids.count(prompts.image_id) == 1
    assert ids.count(prompts.end_of_turn_id) == prompts.build([("user", [None, "x"])]).count(prompts.end_of_turn_id)
    assert len(ids) == len(prompts.build([("user", [None, ""])])) + len(typed), "a byte is a token here"


@pytest.mark.asyncio
async def test_ids_are_those_of_vllm_itself(
    variant: Variant, prompts: FolderPrompts, bare: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    prepare, counter = whole_picture(variant), PictureCounter(variant.weights or Path())
    with vllm_environment(folder.parent / "bare"):  # what vLLM found out about the model is there
        from serving.replica.chat.vllm_engine import VllmEngine

        options = StreamOptions(max_num_seqs=4, kv_cache_mb=16, max_images=3)
        setup = EngineSetup(
            model_id=NAME, folder=variant.weights or Path(), max_model_len=MAX_MODEL_LEN, options=options
        )
        engine = VllmEngine(setup, prompts, to_pillow)
        await engine.start()
        try:
            for talk, expected in zip(TALKS, bare, strict=True):
                images = [
                    EngineImage(f"{_SIZES.index(pixels.shape[:2]):02x}", prepare(pixels)[0], counter(*pixels.shape[:2]))
                    for pixels in talk.pictures()
                ]
                request = make_request(prompts, "", images, cache_salt=str(len(images)))  # type: ignore[arg-type]
                request = request._replace(prompt_token_ids=tuple(prompts.build(talk.turns_of_ours())))
                answer = await collect(engine, request)
                assert answer.num_prompt_tokens == len(expected["prompt_ids"])
                assert list(answer.token_ids) == expected["ids"]
                assert answer.text == expected["text"]
        finally:
            await engine.stop()
    assert len({tuple(answer["ids"]) for answer in bare}) > 2, "pictures and words make no difference"
