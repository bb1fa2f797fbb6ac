"""Which words of a prompt belong together, and attention that searches as it goes."""

from __future__ import annotations

import pytest
import torch

from models.methods.attention.adaspa_config import AdaSpaConfig
from models.methods.attention.dense import DENSE
from models.training.vdit.binding import ATTRIBUTES, Binding
from models.training.vdit.nano import CAPTION_CHANNELS
from models.training.vdit.searched import SearchedAttention
from models.training.vdit.words import word_tokenizer

PROMPT = "a red circle moves left slowly and a green square moves up on a black background"


def test_words_of_an_object_are_told_apart_from_those_of_another_and_of_the_background() -> None:
    tokenizer = word_tokenizer()
    ids = tokenizer([PROMPT], padding="max_length", max_length=20, return_tensors="pt")["input_ids"]
    numbers = Binding(tokenizer)._object_numbers(ids)[0].tolist()
    assert numbers == [0] * 6 + [-1] + [1] * 5 + [-1] * 8


@torch.no_grad()
def test_loss_is_nothing_where_each_word_says_what_its_object_is_and_large_where_it_says_another() -> None:
    tokenizer = word_tokenizer()
    ids = tokenizer([PROMPT], return_tensors="pt")["input_ids"]
    binding, text = Binding(tokenizer), torch.zeros(1, ids.shape[1], CAPTION_CHANNELS)
    objects = [("red", "circle", "left", "slowly"), ("green", "square", "up", None)]
    channels = {word: n for n, word in enumerate(word for words in ATTRIBUTES for word in words)}
    for place, number in enumerate([0] * 6 + [-1] + [1] * 5):
        for word in objects[number]:
            if word and number >= 0:
                text[0, place, channels[word]] = 30.0
    with torch.no_grad():
        for head, words in zip(binding.heads, ATTRIBUTES, strict=True):
            head.bias.zero_()
            head.weight.zero_()
            for row, word in enumerate(words):
                head.weight[row, channels[word]] = 1.0
    assert float(binding(text, ids)) < 1e-6
    swapped = text[:, [*range(7, 12), 5, 6, *range(5), *range(12, ids.shape[1])]]
    assert float(binding(swapped, ids)) > 10.0


@torch.no_grad()
def test_a_prompt_of_nothing_has_no_loss() -> None:
    tokenizer = word_tokenizer()
    ids = tokenizer([""], return_tensors="pt")["input_ids"]
    assert float(Binding(tokenizer)(torch.ones(1, ids.shape[1], CAPTION_CHANNELS), ids)) == 0.0


def test_attention_to_all_blocks_is_dense() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 32, 3, 8) for _ in range(3))
    every = SearchedAttention(AdaSpaConfig(sparsity=0.0, block_tokens=8))
    torch.testing.assert_close(every(q, k, v, layer=0), DENSE(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_attention_to_the_heaviest_blocks_sees_as_many_as_it_may_and_has_a_gradient(sparsity: float) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 32, 2, 8) for _ in range(3))
    v.requires_grad_()
    attention = SearchedAttention(AdaSpaConfig(sparsity=sparsity, block_tokens=8, head_adaptive=False))
    attention(q, k, v, layer=0)[:, :8].square().sum().backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    seen = v.grad.abs().sum((0, 3)).unflatten(0, (4, 8)).sum(1) > 0  # (blocks, heads)
    assert seen.sum(0).tolist() == [round((1 - sparsity) * 4)] * 2
    weights = (q[0, :8, 0].detach() @ k[0, :, 0].T / 8**0.5).softmax(-1).sum(0).unflatten(0, (4, 8)).sum(1)
    assert bool(seen[weights.argmax(), 0])
