"""Reads the numbers of a tensor."""

from __future__ import annotations

import torch
from numpy import ndarray as Array


def to_float64(x: torch.Tensor) -> Array:
    """A tensor's values as a NumPy float64 array of the same shape. Nothing is rounded: float64 holds all numbers of the dtypes."""
    return x.detach().to("cpu", torch.float64).resolve_neg().numpy()
