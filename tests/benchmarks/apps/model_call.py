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
from models.families.dyn_perceiver.processor import Processor
from models.families.dyn_perceiver.staged import StagedDynPerceiver
from models.registry import get_spec
from serving.operating_points import load_table

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
        self._processor = Processor(get_spec(MODEL))

    def __call__(self, encoded: bytes) -> Pixels:
        return self._processor(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))


class Model:
    """Model input to answer; one torch thread."""

    def __init__(self, operating_point: str) -> None:
        torch.set_num_threads(1)
        self._spec = get_spec(MODEL)
        self._staged = StagedDynPerceiver(load_model(self._spec), self._spec)
        self._thresholds = load_table(MODEL, self._spec.checkpoint_dir).point(operating_point).thresholds
        self(np.zeros((self._spec.input_size, self._spec.input_size, 3), dtype=np.uint8))

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Classified:
        states = self._staged.begin(pixels[None])
        last = len(self._thresholds) - 1
        for exit_index, threshold in enumerate(self._thresholds):
            states, logits = self._staged.advance(states)
            score, index = torch.softmax(logits[0], dim=0).max(dim=0)
            if exit_index == last or float(score) >= threshold:
                break
        return Classified(self._spec.label(int(index)), float(score), exit_index + 1)
