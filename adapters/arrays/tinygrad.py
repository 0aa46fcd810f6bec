"""tinygrad: gradients by its own autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tinygrad import Tensor, dtypes


def there(x: Any) -> Any:
    """A tensor as one of tinygrad, bit by bit."""
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        bits = x.reshape(-1).view(torch.uint16).numpy().copy()
        return Tensor(bits).bitcast(dtypes.bfloat16).reshape(tuple(x.shape)).contiguous().realize()
    return Tensor(x.numpy().reshape(-1).copy()).reshape(tuple(x.shape))  # of an array without axes it would make a constant


def here(x: Any) -> Any:
    """A tensor of tinygrad as one of torch, bit by bit."""
    if x.dtype == dtypes.bfloat16:
        return torch.from_numpy(x.contiguous().bitcast(dtypes.uint16).numpy().copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(x.numpy()))


def own(x: Any) -> bool:
    """Whether something is a tensor of tinygrad."""
    return isinstance(x, Tensor)


def vjp(function: Any, arrays: Any) -> Any:
    """What a function returns, and what gives the gradients of its inputs."""
    out = function(*arrays)

    def back(cotangents: Any) -> Any:
        each = [o.gradient(*arrays, gradient=do) for o, do in zip(out, cotangents, strict=True)]
        return [sum(found[1:], found[0]) for found in zip(*each, strict=True)]

    return out, back
