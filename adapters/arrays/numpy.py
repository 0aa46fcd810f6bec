"""NumPy: no gradients, and no bfloat16 but that of ml_dtypes, where that is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

vjp = None  # no gradients


def there(x: Any) -> Any:
    """A tensor as an array in its own memory; bfloat16 by its bits."""
    if x.dtype != torch.bfloat16:
        return x.detach().cpu().numpy()
    import ml_dtypes

    return x.detach().cpu().contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


def here(x: Any) -> Any:
    """An array as a tensor, in its own memory where torch can have that: who returns an input is seen."""
    x = np.asarray(x)
    if not x.flags.writeable or any(step < 0 for step in x.strides):
        x = x.copy()
    return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)


def own(x: Any) -> bool:
    """Whether something is an array, or can be read as one."""
    return hasattr(x, "__array__") and not isinstance(x, torch.Tensor) and getattr(x, "shape", None) is not None
