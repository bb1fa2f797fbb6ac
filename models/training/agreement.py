"""How much of what is made at one point is what would be made at the dearest: what quality is where nobody judges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL_DB = 50.0
"""Pictures that agree so well, or better, count as the same: the mean error is below one grey level."""
METRIC = f"agreement with the dearest point: PSNR over {FULL_DB:g} dB, at most 1"


def agreement(made: NDArray[Any], best: NDArray[Any]) -> float:
    """0 to 1: the peak signal-to-noise ratio of one picture, or of all frames of a clip, to another, of ``FULL_DB``."""
    error = float(np.mean(np.square(made.astype(np.float64) - best.astype(np.float64))))
    return 1.0 if error == 0.0 else float(np.clip(10.0 * np.log10(255.0**2 / error) / FULL_DB, 0.0, 1.0))
