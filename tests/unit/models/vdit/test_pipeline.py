"""The plain loop, with weights that know nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.pipeline import VideoPipeline
from models.families.vdit.text import TextEncoder
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.adaspa_config import AdaSpaConfig
from models.registry import find
from models.training.vdit.evaluate import make_attention
from models.training.vdit.nano import nano_transformer, nano_vae
from models.training.vdit.words import small_encoder, word_tokenizer

NANO = find("vdit-nano")[1]
PROMPTS = ("a red circle moves left fast", "a blue cross moves up slowly on a gray background")


@cache
def _pipeline() -> VideoPipeline:
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    text = TextEncoder(small_encoder(len(tokenizer)), tokenizer, NANO.io.max_text_tokens)
    vae = CausalVae(nano_vae(0.5)).requires_grad_(False)
    return VideoPipeline(variant=NANO, transformer=OpenSoraT2V(nano_transformer()), vae=vae, text=text)


def _latents(*prompts: str, seeds: tuple[int, ...], guidance: float = 3.0, attention: str = "dense") -> Tensor:
    return _pipeline().generate(
        prompts,
        frames=29,
        sampler="ddim",
        num_steps=4,
        guidance=guidance,
        seeds=seeds,
        attention=make_attention(attention, NANO, 4),
    )


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_clip_depends_on_its_own_prompt_and_seed_alone() -> None:
    together = _latents(*PROMPTS, seeds=(7, 8))
    # Of the whole clip: latents go up to several hundred, and a batch of two sums in another order than one alone.
    assert _distance(together[:1], _latents(PROMPTS[0], seeds=(7,))) < 1e-5
    assert _distance(together[1:], _latents(PROMPTS[1], seeds=(8,))) < 1e-5
    assert _distance(together[1:], _latents(PROMPTS[1], seeds=(9,))) > 0.1


def test_words_count_and_guidance_makes_them_count_more() -> None:
    plain = [_latents(prompt, seeds=(7,), guidance=1.0) for prompt in PROMPTS]
    guided = [_latents(prompt, seeds=(7,), guidance=6.0) for prompt in PROMPTS]
    assert 0 < float((plain[0] - plain[1]).norm()) < float((guided[0] - guided[1]).norm())


@pytest.mark.parametrize("attention", ["tile:2:6", "adaspa:0.5"])
def test_sparse_attention_is_near_dense_and_not_the_same(attention: str) -> None:
    dense, sparse = _latents(PROMPTS[0], seeds=(7,)), _latents(PROMPTS[0], seeds=(7,), attention=attention)
    assert not torch.equal(dense, sparse)
    assert _distance(sparse, dense) < 0.5


def test_adaspa_that_leaves_nothing_out_is_dense() -> None:
    attention = AdaSpaAttention(AdaSpaConfig(sparsity=0.0))
    arguments = {"frames": 29, "sampler": "ddim", "num_steps": 4, "guidance": 3.0, "seeds": (7,)}
    sparse = _pipeline().generate(PROMPTS[:1], **arguments, attention=attention)  # type: ignore[arg-type]
    assert torch.equal(sparse, _latents(PROMPTS[0], seeds=(7,)))


def test_decoded_clip_has_the_pinned_shape() -> None:
    frames = _pipeline().decode(torch.zeros(1, *_pipeline().latent_shape(29)))
    assert frames.shape == (29, 64, 64, 3)
    assert frames.dtype == np.uint8


def test_lengths_samplers_and_prompts_that_do_not_fit_are_refused() -> None:
    def make(prompt: str = PROMPTS[0], **changed: object) -> Tensor:
        plain = {"frames": 29, "sampler": "ddim", "num_steps": 4, "guidance": 1.0, "seeds": (1,)}
        return _pipeline().generate([prompt], **(plain | changed))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="num_frames is 93"):
        make(frames=93)
    with pytest.raises(ValueError, match="num_inference_steps is 5"):
        make(sampler="consistency", num_steps=5)
    with pytest.raises(ValueError, match="limit is 24"):
        make(" ".join(["red"] * 24))
