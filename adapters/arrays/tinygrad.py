"""tinygrad: gradients by its own autograd, asked for with the output times the cotangent."""

from __future__ import annotations

import numpy as np
import torch
from tinygrad import Tensor, dtypes


def there(x):
    """A tensor as one of tinygrad, bit by bit."""
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return Tensor(x.view(torch.uint16).numpy()).bitcast(dtypes.bfloat16).contiguous().realize()
    return Tensor(x.numpy().copy())


def here(x):
    """A tensor of tinygrad as one of torch, bit by bit."""
    if x.dtype == dtypes.bfloat16:
        return torch.from_numpy(x.contiguous().bitcast(dtypes.uint16).numpy().copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(x.numpy()))


def own(x):
    """Whether something is a tensor of tinygrad."""
    return isinstance(x, Tensor)


def vjp(function, arrays):
    """What a function returns, and what gives the gradients of its inputs."""
    out = function(*arrays)

    def back(cotangents):
        total = sum((o.float() * do.float()).sum() for o, do in zip(out, cotangents, strict=True))
        return total.gradient(*arrays, materialize_grads=True)

    return out, back
