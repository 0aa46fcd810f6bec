"""JAX's `jax.nn.dot_product_attention` as an adapter: an implementation that nobody here wrote. Needs the package jax, on a CPU.

JAX has gradients of its own; a node of autograd asks for them. It has no float64 unless the process is told so, and is asked in the
other dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from jax import numpy as jnp
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnspec.adapters import Adapter


def there(x: Tensor) -> Any:
    """A tensor as an array of JAX. bfloat16 goes through float32, which holds each of its numbers."""
    return jnp.asarray(x.float().numpy()).astype(jnp.bfloat16) if x.dtype == torch.bfloat16 else jnp.asarray(x.numpy())


def here(x: Any) -> Tensor:
    """An array of JAX as a tensor of ours."""
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(x.astype(jnp.float32))).bfloat16()
    return torch.from_numpy(np.array(x))


class Called(torch.autograd.Function):
    """One call, and its gradients by jax.vjp."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Any], *inputs: Tensor) -> Any:
        """Of a function of arrays, at these tensors."""
        out, ctx.back = jax.vjp(call, *(there(x.detach()) for x in inputs))
        return tuple(here(x) for x in out)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Of all that the call returned."""
        return None, *(here(x) for x in ctx.back(tuple(there(x) for x in cotangents)))


class Jax(Adapter):
    """With a window, and with the logarithm of the sum, which JAX calls the residual and stops the gradient of."""

    offers = frozenset(
        "mha gqa mqa mask key_padding bias bias_grad causal scale window window_right backward lse".split()  # noqa: SIM905
    )
    dialect = {
        "causal_alignment": "top_left",
        "empty_row": "uniform",
        "lse_base": "e",
        "lse_empty": "sentinel",
        "lse_dtype": "operand",
    }
    dtypes = frozenset({"float32", "bfloat16", "float16"})

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
        window: tuple[int | None, int | None] | None = None,
        lse: bool = False,
    ) -> Any:
        """In JAX's order of axes, (b i h d). It has no words for a side without a limit: one that is longer than all is none."""
        longest = max(q.shape[2], k.shape[2], 1)
        sides = None if window is None else tuple(longest if x is None else x for x in window)
        shown = None if mask is None else there(mask[:, None, None] if mask.ndim == 2 else mask)

        def call(q: Any, k: Any, v: Any, *bias: Any) -> Any:
            out = jax.nn.dot_product_attention(
                *(x.swapaxes(1, 2) for x in (q, k, v)),
                bias=bias[0] if bias else None,
                mask=shown,
                is_causal=causal,
                scale=scale,
                local_window_size=sides,
                return_residual=lse,
                implementation="xla",
            )
            return (out[0].swapaxes(1, 2), out[1].swapaxes(1, 2)) if lse else (out.swapaxes(1, 2),)

        given = [q, k, v] if bias is None else [q, k, v, bias.reshape((1,) * (4 - bias.ndim) + bias.shape)]
        found = Called.apply(call, *given)
        return (found[0], found[1].detach()) if lse else found[0]
