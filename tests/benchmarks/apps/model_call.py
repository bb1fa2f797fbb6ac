"""What every side but ours does with one image: decode, fit to the model, run it, exit where its thresholds say.

Plain user code around the same packages: the same weights, the same preparation and the same thresholds as ours, one
image per call.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.families.dyn_perceiver.load import load_model
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.operating_points import read_table
from models.pictures import SquarePicture
from models.registry import find
from serving.operating_points import parted

MODEL = "dyn-perceiver-nano"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Classified:
    """One answer; ``exit_number`` counts from 1."""

    label: str
    score: float
    exit_number: int


class Decoder:
    """Encoded bytes to model input."""

    def __init__(self) -> None:
        self._prepare = SquarePicture(find(MODEL)[1])

    def __call__(self, encoded: bytes) -> Pixels:
        return self._prepare(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))


class Model:
    """Model input to answer; one torch thread."""

    def __init__(self, operating_point: str) -> None:
        torch.set_num_threads(1)
        variant = find(MODEL)[1]
        self._label, side = variant.io.label, variant.io.input_size
        self._runner = DynPerceiverRunner(load_model(variant), variant)
        settings = read_table(variant).points[operating_point].settings
        self._thresholds, _ = parted(settings, variant.io.num_exits)
        self(np.zeros((side, side, 3), dtype=np.uint8))

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Classified:
        state = self._runner.begin(torch.tensor(pixels[None]))
        last = len(self._thresholds) - 1
        for exit_index, threshold in enumerate(self._thresholds):
            state, (outputs,), _ = self._runner.run(state, exit_index, 1)
            score, index = outputs["probabilities"][0].max(dim=0)
            if exit_index == last or float(score) >= threshold:
                break
        return Classified(self._label(int(index)), float(score), exit_index + 1)
