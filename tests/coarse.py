"""Kernels that compute the right formula too coarsely, on every problem: what a suite is slowest to say something about.

Signature and semantics are those of ``honest``: torch SDPA's. ``COARSE`` is all of them by name. Each is outside of its class
nearly everywhere, not on one path, so a run meets hundreds of failures and each of them has the same cause.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from honest import for_each_query_head, prepare, softmax
from torch import Tensor
from variants import with_sdpa_signature

Matmul = Callable[[Tensor, Tensor], Tensor]


def attention(
    product: Matmul = torch.matmul,
    normalise: Callable[[Tensor], Tensor] = softmax,
    pass_through: Callable[[Tensor], Tensor] = lambda x: x,
) -> Callable[..., Tensor]:
    """Eager attention in the storage dtype with another product, another softmax, or something that inputs pass through."""

    def run(query: Tensor, key: Tensor, value: Tensor, *options: object) -> Tensor:
        plan = prepare(query, key, value, *options)  # type: ignore[arg-type]
        q, k, v = (pass_through(x) for x in (query, key, value))
        k, v = for_each_query_head(k, q.shape[1]), for_each_query_head(v, q.shape[1])
        bias = plan.bias.expand_as(plan.hidden).to(q.dtype)
        scores = (product(q, k.mT) * plan.scale + bias).masked_fill(plan.hidden, float("-inf"))
        return product(plan.thin_out(normalise(scores)), v).to(query.dtype)

    return with_sdpa_signature(run)


class _Through(torch.autograd.Function):
    """A value and its gradient, both rounded to another dtype and back."""

    @staticmethod
    def forward(ctx: object, x: Tensor, there: torch.dtype, also_forward: bool) -> Tensor:
        ctx.there = there  # type: ignore[attr-defined]
        return x.to(there).to(x.dtype) if also_forward else x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad.to(ctx.there).to(grad.dtype), None, None  # type: ignore[attr-defined]


def one_by_one(a: Tensor, b: Tensor) -> Tensor:
    """A product whose sums are added up one term after the other in the storage dtype, forward and backward."""
    return _OneByOne.apply(a, b)


class _OneByOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)  # type: ignore[attr-defined]
        return added_up(a, b)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b = ctx.saved_tensors  # type: ignore[attr-defined]
        return added_up(grad, b.mT), added_up(a.mT, grad)


def added_up(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, one term after the other."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for n in range(a.shape[-1]):
        total = total + a[..., n, None] * b[..., n, None, :]
    return total


def row_sums_one_by_one(scores: Tensor) -> Tensor:
    """Softmax whose row sum is added up in bfloat16."""
    p = softmax(scores)
    total = torch.zeros_like(p[..., :1]).bfloat16()
    for n in range(p.shape[-1]):
        total = total + p[..., n, None].detach().bfloat16()
    return torch.where(total > 0, p / total.to(p.dtype), p)


def exp_of_a_table(scores: Tensor) -> Tensor:
    """Softmax of scores that are rounded to multiples of 1/16 before exp."""
    rounded = (scores.detach() * 16).round() / 16
    return softmax(scores + (rounded - scores.detach()).nan_to_num(0, 0, 0))


def probabilities_of_five_bits(scores: Tensor) -> Tensor:
    """Softmax whose probabilities keep five bits."""
    p = softmax(scores)
    mantissa, exponent = torch.frexp(p.detach())
    return p + (torch.ldexp((mantissa * 32).round() / 32, exponent) - p.detach())


COARSE: dict[str, Callable[..., Tensor]] = {
    "sums_in_storage": attention(product=one_by_one),
    "computed_in_bfloat16": attention(pass_through=lambda x: x.bfloat16()),
    "row_sum_in_bfloat16": attention(normalise=row_sums_one_by_one),
    "exp_of_a_table": attention(normalise=exp_of_a_table),
    "probabilities_of_five_bits": attention(normalise=probabilities_of_five_bits),
    "gradients_through_bfloat16": attention(pass_through=lambda x: _Through.apply(x, torch.bfloat16, False)),
}
for _name, _kernel in COARSE.items():
    _kernel.__name__ = _kernel.__qualname__ = _name
    globals()[_name] = _kernel
