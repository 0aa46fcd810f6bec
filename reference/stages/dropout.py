"""Dropout of probabilities."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.spec import implements


@implements("DROPOUT-1", "DROPOUT-3", "DROPOUT-4", "DROPOUT-5")
def keep_factor(keep: Array | None, rate: float) -> Array | float:
    """What dropout multiplies each probability with: keep/(1−r); 1 without dropout and 0 at a rate of one."""
    if rate == 0 or keep is None:
        return 1.0
    return np.zeros(keep.shape) if rate == 1 else keep / (1 - rate)
