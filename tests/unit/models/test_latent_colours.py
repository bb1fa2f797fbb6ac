"""Previews without the decoder."""

from __future__ import annotations

import numpy as np
import torch

from models.layers.latent_colours import LatentColours
from tests.support.video_models import decode_linearly


def test_picture_of_a_linear_decoder_is_its_frame_made_small() -> None:
    colours = LatentColours.fitted(decode_linearly, 4, torch.device("cpu"))
    latents = 0.8 * torch.randn((1, 4, 1, 4, 6), generator=torch.Generator().manual_seed(1))
    expected = decode_linearly(latents)[:, ::8, ::8]
    difference = np.abs(colours.picture(latents).astype(int) - expected.astype(int))
    assert difference.max() <= 6, "clipped samples bend the fit a little"


def test_picture_is_of_the_middle_frame() -> None:
    colours = LatentColours(torch.tensor([[100.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [10.0, 20.0, 30.0]]))
    latents = torch.zeros(1, 4, 3, 2, 2)
    latents[0, 0, 1] = 1.0
    assert colours.picture(latents)[0, 0, 0].tolist() == [110, 20, 30]
