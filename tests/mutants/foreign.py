"""Faults of reach: what is read lies before, behind or between the elements of an input, and belongs to none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mutants.base import Call, mutant
from mutants.modules import Mask, Module, module
from mutants.tools import dense, with_gradient

BLOCK = 16


def longer(x: Tensor, axis: int, size: int) -> Tensor:
    """The tensor with so many entries along an axis: what memory holds where they would be, or no more where memory ends."""
    more = size - x.shape[axis]
    shape = [size if n == axis else length for n, length in enumerate(x.shape)]
    if more <= 0 or not x.numel():
        return x
    try:
        whole = x.detach().as_strided(shape, x.stride(), x.storage_offset())
    except RuntimeError:
        return x
    return torch.cat([x, whole.narrow(axis, x.shape[axis], more)], axis)


def tail(x: Tensor, axis: int, block: int = BLOCK) -> Tensor:
    """What lies behind the last entry along an axis, up to the end of its block."""
    size = x.shape[axis]
    whole = longer(x.detach(), axis, -(-size // block) * block)
    return whole.narrow(axis, size, whole.shape[axis] - size)


def depends(backward: bool = False, **shapes: tuple[int, ...]) -> Callable[[Any], bool]:
    """A witness: tensors of these shapes, with ones and then NaN behind them, give other answers."""

    def inside(shape: tuple[int, ...], number: float, dtype: torch.dtype) -> Tensor:
        x = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape) % 3
        memory = torch.full((x.numel() + 4096,), number).to(dtype)
        memory[: x.numel()] = x.flatten().to(dtype)
        return memory[: x.numel()].view(shape)

    def shows(thing: Any) -> bool:
        attend = thing() if isinstance(thing, type) else thing
        answers = []
        for number in (0.0, float("nan")):
            kinds = {name: torch.bool if name == "mask" else torch.float32 for name in shapes}
            given = {name: inside(shape, number, kinds[name]) for name, shape in shapes.items() if name != "cotangent"}
            if backward:
                given["value"].requires_grad_()
            out = attend(**given)
            do = inside(shapes["cotangent"], number, out.dtype) if backward else None
            answers.append(torch.autograd.grad(out, given["value"], do)[0] if backward else out.detach())
        return not torch.equal(*(x.nan_to_num(nan=99.0) for x in answers))

    return shows


QKV = {"query": (1, 1, 2, 4), "key": (1, 1, 5, 4), "value": (1, 1, 5, 4)}


@mutant("error", "ERROR-5", "pytorch/pytorch#193728", witness=depends(**QKV | {"value": (1, 1, 7, 4)}))
def keys_counted_by_values(call: Call) -> Tensor:
    """There are as many keys as values: further ones are read behind the last."""
    j = call.value.shape[2]
    return call.but(key=longer(call.key, 2, j)[:, :, :j]).run()


@mutant("error", "ERROR-5", witness=depends(**QKV | {"value": (1, 1, 4, 4)}))
def values_counted_by_keys(call: Call) -> Tensor:
    """There are as many values as keys: further ones are read behind the last."""
    j = call.key.shape[2]
    return call.but(value=longer(call.value, 2, j)[:, :, :j]).run()


@mutant("error", "ERROR-5", witness=depends(query=(3, 1, 2, 4), key=(2, 1, 5, 4), value=(2, 1, 5, 4)))
def batch_items_counted_by_queries(call: Call) -> Tensor:
    """There are as many batch items of keys and values as of queries: further ones are read behind the last."""
    b = call.query.shape[0]
    return call.but(key=longer(call.key, 0, b)[:b], value=longer(call.value, 0, b)[:b]).run()


@mutant("error", "ERROR-5", witness=depends(query=(1, 1, 5, 4), key=(1, 1, 7, 4), value=(1, 1, 7, 4), attn_mask=(4, 7)))
def rows_of_bias_counted_by_queries(call: Call) -> Tensor:
    """There are as many rows of a bias as queries: further ones are read behind the last."""
    bias, i = call.float_mask, call.query.shape[2]
    if bias is None or bias.ndim < 2 or bias.shape[-2] in (1, i):
        return call.run()
    return call.but(attn_mask=longer(bias, bias.ndim - 2, i)[..., :i, :]).run()


@mutant("shape", "ERROR-5", witness=depends(**QKV))
def values_of_the_whole_block(call: Call) -> Tensor:
    """The last block of values is read to its end, and what lies there is multiplied by zero."""
    v = call.value
    nothing = 0 * tail(v, 2).sum(2, keepdim=True)
    heads = call.query.shape[1] // max(v.shape[1], 1)
    return call.run() + nothing.repeat_interleave(heads, dim=1)


@mutant("shape", "ERROR-5", witness=depends(**QKV))
def keys_of_the_whole_block_in_the_maximum(call: Call) -> Tensor:
    """The maximum of a row is also that of what lies behind the last key, which then weighs nothing."""
    behind = tail(call.key, 2)
    if not behind.shape[2]:
        return call.run()
    heads = call.query.shape[1] // max(behind.shape[1], 1)
    top = (call.query.float() @ behind.float().repeat_interleave(heads, dim=1).mT * call.scale_in_use).amax(-1, keepdim=True)

    def normalise(scores: Tensor) -> Tensor:
        hidden = scores == -torch.inf
        pivot = torch.maximum(scores.amax(-1, keepdim=True), top.to(scores.dtype))
        weights = torch.exp(scores - pivot).masked_fill(hidden, 0.0)
        total = weights.sum(-1, keepdim=True)
        return weights / total.masked_fill(hidden.all(-1, keepdim=True), 1.0)

    return call.run(dense, normalise=normalise)


@mutant("layout", "ERROR-5", witness=depends(query=(1, 1, 2, 5), key=(1, 1, 3, 5), value=(1, 1, 3, 5)))
def channels_of_the_whole_vector(call: Call) -> Tensor:
    """Keys are read in vectors of eight channels, of which those behind the last meet zeros of the query."""
    nothing = 0 * tail(call.key, 3, 8).sum((2, 3), keepdim=True)
    return call.run() + nothing.repeat_interleave(call.query.shape[1] // max(nothing.shape[1], 1), dim=1)


@mutant("gradients", "ERROR-5", witness=depends(backward=True, cotangent=(1, 1, 2, 4), **QKV))
def cotangents_of_the_whole_block(call: Call) -> Tensor:
    """The last block of the cotangent is read to its end, and what lies there is multiplied by zero."""
    return with_gradient(call.run(), lambda grad: grad + 0 * tail(grad, 2).sum(2, keepdim=True))


@module("error", "ERROR-5", witness=depends(q=(3, 1, 2, 4), k=(3, 1, 7, 4), v=(3, 1, 7, 4), mask=(3, 6)))
class PaddingCountedByKeys(Module):
    """A key padding mask has as many columns as there are keys: further ones are read behind the last."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        mask = longer(mask, 1, k.shape[-2]) if mask is not None and mask.ndim == 2 else mask
        return super().forward(q, k, v, mask, attn_bias)
