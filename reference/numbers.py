"""The numbers of a tensor."""

from __future__ import annotations

import torch
from numpy import ndarray as Array


def to_float64(x: torch.Tensor) -> Array:
    """A tensor's values, exactly, as a NumPy float64 array."""
    return x.detach().to("cpu", torch.float64).resolve_neg().numpy()
