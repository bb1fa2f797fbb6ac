"""A victim with random weights for attackers, small enough to be made on the spot, whose answers end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from loadtest.adversarial.perturbation import as_pixels
from loadtest.adversarial.victim import Pictures, Victim
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.prompt import PromptBuilder
from tests.support.chat_models import TILE, make_model_folder

QUESTIONS = ("Read it.", "What is this?", "Hm")


def make_victim(folder: Path) -> Victim:
    """The head's row of the end leans towards where an answer begins, so that the end is likely there, and falls as
    pictures move it."""
    make_model_folder(folder)
    network = TextHawk2ForConditionalGeneration.from_pretrained(folder)
    network.config.text_config.pad_token_id = 0
    victim = Victim(network, PromptBuilder.from_dir(folder), weights="made on the spot")
    picture = make_pictures(1)
    (trace,) = victim.trace(as_pixels(picture), [victim.prompt(QUESTIONS[0], TILE, TILE)], [[victim.end_id]])
    place = trace.predicting_places[0]
    direction = trace.hidden[-1, place]
    most = trace.logits(place[None]).max()
    with torch.no_grad():
        network.language_model.lm_head.weight[victim.end_id] = direction / direction.square().sum() * 0.9 * most
    return victim


def make_pictures(count: int, height: int = TILE, width: int = TILE, seed: int = 3) -> Pictures:
    """Blocks of colours that leave room for a change in both directions."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 236, (count, height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))


def prompts_of(victim: Victim, count: int, height: int = TILE, width: int = TILE) -> list[list[int]]:
    """Questions of different lengths, in turn."""
    return [victim.prompt(QUESTIONS[i % len(QUESTIONS)], height, width) for i in range(count)]
