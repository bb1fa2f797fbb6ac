"""Second stage: a tiny CLIP vision tower learns to say what is shown and where; SVD's cross-attention reads that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from models.training.exvideo.autoencoder import to_pixels
from models.training.exvideo.scenes import COLOURS, FAR, NEAR, SHAPES, Scene, render, sample_scene
from models.training.optimizer import Optimizers
from models.training.stages import log_of

SIDE = 224
"""What SVD's pipeline scales pictures to."""
WIDTH = 64
BATCH = 24


def small_encoder() -> CLIPVisionModelWithProjection:
    """Two layers over patches of 4 pixels (28 once scaled), fresh."""
    config = CLIPVisionConfig(
        image_size=SIDE, patch_size=28, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=WIDTH, hidden_act="gelu",
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def feature_extractor() -> CLIPImageProcessor:
    """Only its mean and deviation are used."""
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)


def inputs(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) in -1..1 as SVD's pipeline prepares them for the tower."""
    scaled = (_resize_with_antialiasing(pixels.contiguous(), (SIDE, SIDE)) + 1.0) / 2.0
    processor = feature_extractor()
    mean, deviation = (torch.tensor(one)[:, None, None] for one in (processor.image_mean, processor.image_std))
    found: Tensor = (scaled - mean) / deviation
    return found


def train(
    out: Path,
    *,
    steps: int = 650,
    lr: float = 2e-3,
    seed: int = 1,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> CLIPVisionModelWithProjection:
    """Train; the log goes into ``out``."""
    torch.manual_seed(seed)
    encoder, head = small_encoder(), nn.Linear(WIDTH, len(COLOURS) + len(SHAPES) + 2)
    optimizers = Optimizers([encoder], [head], muon_lr=lr, adam_lr=lr)
    rng, log = np.random.default_rng(seed), log_of(out, "image_encoder")
    for step in range(steps):
        scenes = [sample_scene(rng, held_out=None) for _ in range(BATCH)]
        loss, right = _told(head(encoder(inputs(_firsts(scenes))).image_embeds), scenes)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(step / steps, step)
        if (step + 1) % 25 == 0 or step + 1 == steps:
            log.write(step=step + 1, loss=float(loss.detach()), right=right)
            on_step(step + 1, steps)
    _unit_scale(encoder, inputs(_firsts([sample_scene(rng, held_out=None) for _ in range(64)])))
    return encoder


def _firsts(scenes: Sequence[Scene]) -> Tensor:
    return to_pixels(torch.from_numpy(np.concatenate([render(scene, 1) for scene in scenes])))


def _told(said: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, float]:
    """The loss of what is said of colours, shapes and places, and the share with both of the former right."""
    colours, shapes, places = torch.split(said, [len(COLOURS), len(SHAPES), 2], 1)
    true_colours = torch.tensor([COLOURS.index(scene.colour) for scene in scenes])
    true_shapes = torch.tensor([SHAPES.index(scene.shape) for scene in scenes])
    true_places = torch.tensor([scene.place for scene in scenes], dtype=torch.float32).sub(NEAR).div(FAR - NEAR)
    loss = F.cross_entropy(colours, true_colours) + F.cross_entropy(shapes, true_shapes)
    right = (colours.argmax(1) == true_colours) & (shapes.argmax(1) == true_shapes)
    return loss + 4 * F.mse_loss(places, true_places), float(right.float().mean())


@torch.no_grad()
def _unit_scale(encoder: CLIPVisionModelWithProjection, prepared: Tensor) -> None:
    """Embeddings of about unit size per channel."""
    encoder.visual_projection.weight.div_(encoder(prepared).image_embeds.std())
