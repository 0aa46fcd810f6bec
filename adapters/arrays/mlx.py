"""MLX: gradients by mx.vjp."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch


def there(x: Any) -> Any:
    """A tensor as an array, bit by bit."""
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return mx.array(x.view(torch.uint16).numpy()).view(mx.bfloat16)
    return mx.array(x.numpy(), dtype=mx.float64 if x.dtype == torch.float64 else None)  # it makes float32 of float64, if not told


def here(x: Any) -> Any:
    """An array as a tensor, bit by bit."""
    if x.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(x.view(mx.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))


def own(x: Any) -> bool:
    """Whether something is an array of MLX."""
    return isinstance(x, mx.array)


def vjp(function: Any, arrays: Any) -> Any:
    """What a function returns, and what gives the gradients of its inputs."""
    out = function(*arrays)

    def back(cotangents: Any) -> Any:
        return mx.vjp(lambda *given: list(function(*given)), arrays, list(cotangents))[1]

    return out, back
