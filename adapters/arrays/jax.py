"""JAX: gradients by jax.vjp. It has no float64 unless JAX_ENABLE_X64 is set."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import torch
from jax import numpy as jnp


def there(x: Any) -> Any:
    """A tensor as an array, bit by bit."""
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return jnp.asarray(x.view(torch.uint16).numpy().view(jnp.bfloat16))
    if x.dtype == torch.float64 and not jax.config.jax_enable_x64:
        raise TypeError("JAX has no float64 here; set JAX_ENABLE_X64=1")
    return jnp.asarray(x.numpy())


def here(x: Any) -> Any:
    """An array as a tensor, bit by bit."""
    x = np.array(x)
    return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16) if x.dtype == jnp.bfloat16 else torch.from_numpy(x)


def own(x: Any) -> bool:
    """Whether something is an array of JAX."""
    return isinstance(x, jax.Array)


def vjp(function: Any, arrays: Any) -> Any:
    """What a function returns, and what gives the gradients of its inputs."""
    out, back = jax.vjp(lambda *given: list(function(*given)), *arrays)
    return out, lambda cotangents: back(list(cotangents))
