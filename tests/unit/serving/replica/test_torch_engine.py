"""The plain engine hosts a family that it has never heard of: a language model, prompts, and something for images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from models.contract import Grid, Turn
from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason
from serving.errors import EngineFailed
from serving.replica.chat.base import EngineDelta
from serving.replica.chat.checks import EngineSetup
from serving.replica.chat.torch_engine import TorchEngine

IMAGE, END, WIDTH = 256, 257, 16


class LetterPrompts:
    """A byte is a token, and an image three of them between brackets."""

    image_id = IMAGE
    end_of_turn_id = END

    def build(self, messages: Iterable[Turn]) -> list[int]:
        parts = [part for _, parts in messages for part in parts]
        return [token for part in parts for token in ([IMAGE] if part is None else part.encode())]

    def image_tokens(self, grid: Grid) -> int:
        return 3

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        image = [ord("<"), IMAGE, IMAGE, IMAGE, ord(">")]
        return [token for number in ids for token in (image if number == IMAGE else [number])]

    def num_expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        return len(ids) + 4 * len(grids)


class Network:
    """GPT-2, and images as their mean colour."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        config = GPT2Config(vocab_size=260, n_positions=64, n_embd=WIDTH, n_layer=1, n_head=2, initializer_range=0.5)
        self.language_model = GPT2LMHeadModel(config).eval()

    def encode_images(self, tiles: Any, grids: Sequence[Grid]) -> list[Any]:
        ramp = torch.linspace(-1, 1, WIDTH)
        return [(tiles.float().mean() * ramp).expand(3, WIDTH) for _ in grids]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<image>", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path)
    return tmp_path


def request(*images: EngineImage) -> EngineRequest:
    ids = LetterPrompts().build([("user", [*[None] * len(images), "Hi!"])])
    never = {END: -100.0}
    return EngineRequest("r", tuple(ids), images, 8, 0.0, 1.0, None, (), None, None, never, "5a")


def image(colour: int) -> EngineImage:
    return EngineImage(f"{colour:04x}", np.full((1, 4, 4, 3), colour, np.uint8), (1, 1))


async def test_any_family_that_builds_a_language_model_is_hosted(folder: Path) -> None:
    engine = TorchEngine(EngineSetup(model_id="m", folder=folder, max_model_len=64), LetterPrompts(), Network)
    await engine.start()
    try:
        answers = set()
        for images in ((), (image(1),), (image(255),)):
            said: list[EngineDelta] = []
            await engine.run(request(*images), said.append)
            assert [delta.finish_reason for delta in said] == [None] * 7 + [FinishReason.LENGTH]
            assert said[0].num_prompt_tokens == 3 + 5 * len(images)
            answers.add(tuple(token for delta in said for token in delta.token_ids))
        assert len(answers) == 3, "what is in the image decides"
        assert engine.stats().encoder_images == 2
    finally:
        await engine.stop()


async def test_tower_says_how_far_apart_it_sees_two_images_and_keeps_the_first(folder: Path) -> None:
    """Embeddings of the network above all point the same way, but for black, which points nowhere."""
    engine = TorchEngine(EngineSetup(model_id="m", folder=folder, max_model_len=64), LetterPrompts(), Network)
    with pytest.raises(EngineFailed):
        await engine.image_distance(image(1), image(2))
    await engine.start()
    try:
        assert await engine.image_distance(image(1), image(255)) == pytest.approx(0.0, abs=1e-5)
        assert await engine.image_distance(image(1), image(0)) == pytest.approx(1.0, abs=1e-5)
        assert engine.stats().encoder_images == 3, "the first was there"
        await engine.run(request(image(0)), lambda delta: True)
        assert engine.stats().encoder_images == 4, "the other one was not kept"
    finally:
        await engine.stop()


async def test_end_is_told_before_a_bias_forbids_it(folder: Path) -> None:
    engine = TorchEngine(EngineSetup(model_id="m", folder=folder, max_model_len=64), LetterPrompts(), Network)
    await engine.start()
    try:
        for bias in ({END: -100.0}, {END: 100.0}):
            said: list[EngineDelta] = []
            asked = request()._replace(tells_ends=True, logit_bias=bias, ignore_eos=True, logprobs=0)
            await engine.run(asked, said.append)
            ends = [log_p for delta in said for log_p in delta.log_p_ends or ()]
            assert len(ends) == 8
            assert all(-50.0 < log_p < 0.0 for log_p in ends)
        assert ends == pytest.approx([delta.logprobs[0].logprob for delta in said], abs=1e-4), "all were the end"
    finally:
        await engine.stop()


async def test_text_that_stop_strings_hold_back_is_at_hand_after_every_token(folder: Path) -> None:
    engine = TorchEngine(EngineSetup(model_id="m", folder=folder, max_model_len=64), LetterPrompts(), Network)
    await engine.start()
    try:
        plain: list[EngineDelta] = []
        held: list[EngineDelta] = []
        await engine.run(request(), plain.append)
        await engine.run(request()._replace(stop=("never there",)), held.append)
        so_far = ["".join(delta.text for delta in plain[: i + 1]) for i in range(8)]
        given = ["".join(delta.text for delta in held[: i + 1]) + held[i].held_text for i in range(8)]
        assert given == so_far
        assert held[-2].held_text
        assert (held[-1].held_text, plain[-2].held_text) == ("", "")
    finally:
        await engine.stop()
