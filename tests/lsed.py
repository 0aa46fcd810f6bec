"""Attention kernels that return their lse and are right, one per arithmetic style: the suite must pass every one of them.

The functions have torch SDPA's parameters and semantics, as those of honest.py, and `return_lse`: they then give (output, lse).
That lse is natural, float32 (float64 for float64), −∞ in a row without a key, and differentiable, if not said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, log
from typing import Any

import torch
from honest import Plan, _attend_to_part, _parts, blocks, for_each_query_head, prepare, rounded, softmax, sum_over_group, widen
from torch import Tensor
from torch.autograd.function import once_differentiable

Both = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Plan], Both]
LOG2_E = 1 / log(2)


@dataclass(frozen=True)
class Dialect:
    """How an lse is returned: base 2, what stands in rows without a key, and whether it is stored in the dtype of the queries."""

    two: bool = False
    empty: float = -inf
    narrow: bool = False


NATURAL = Dialect()


def kernel(attend: Attend, dialect: Dialect = NATURAL) -> Callable[..., Any]:
    """As a function with torch SDPA's parameters and `return_lse`."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
    ) -> Any:
        plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        out, lse = attend(query, key, value, plan)
        if not return_lse:
            return out
        lse = lse * LOG2_E if dialect.two else lse
        lse = torch.where(plan.hidden.all(-1), dialect.empty, lse)
        return out, lse.to(query.dtype) if dialect.narrow else lse

    run.__doc__ = attend.__doc__
    return run


# STYLES


class _Tiled(torch.autograd.Function):
    """Flash style, natural or with scores in base 2; the cotangent of the lse is subtracted from D."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, plan: Plan, two: bool) -> Both:
        q, k, v = widen(query, key, value)
        exp, unit = (torch.exp2, log(2)) if two else (torch.exp, 1.0)
        out, total = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_zeros(*q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        for keys in blocks(k.shape[2]):
            scores = plan.scores(q, k[:, :, keys], keys) / unit
            new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            weights, shrink = exp(scores - pivot), exp(peak - pivot)
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + rounded(plan.thin_out(weights, keys), query.dtype) @ v[:, :, keys]
            peak = new_peak
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        lse = peak.masked_fill(empty, 0.0) + (total.log2() if two else total.log())
        out = (out / total).to(query.dtype)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.plan, ctx.exp, ctx.unit = plan, exp, unit
        return out, (lse * unit)[..., 0].masked_fill(empty[..., 0], -inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor, of_lse: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        q, k, v = widen(query, key, value)
        dout = cotangent.to(q.dtype)
        delta = (dout * out).sum(-1, keepdim=True) - of_lse.to(q.dtype)[..., None]
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dbias = q.new_zeros(bias.shape)
        for keys in blocks(k.shape[2]):
            probabilities = ctx.exp(plan.scores(q, k[:, :, keys], keys) / ctx.unit - lse)
            dv[:, :, keys] = rounded(plan.thin_out(probabilities, keys), query.dtype).mT @ dout
            dprobabilities = plan.thin_out(dout @ v[:, :, keys].mT, keys)
            dscores = (probabilities * (dprobabilities - delta)).masked_fill(plan.hidden[..., keys], 0.0)
            dbias_here = dbias if dbias.shape[3] == 1 else dbias[..., keys]
            dbias_here += dscores.sum_to_size(dbias_here.shape)
            dscores = rounded(dscores, query.dtype)
            dq += dscores @ k[:, :, keys]
            dk[:, :, keys] = dscores.mT @ q
        scaled = (dq * plan.scale).to(query.dtype), sum_over_group(dk * plan.scale, key)
        return *scaled, sum_over_group(dv, value), dbias.to(bias.dtype), None, None


def tiled(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Both:
    """Flash style: online softmax over blocks of keys, natural exponentials."""
    return _Tiled.apply(query, key, value, plan.bias, plan, False)  # type: ignore[no-any-return]


def base_two(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Both:
    """The same with scores in base 2, exp2 and log2, and an lse that is converted at the end."""
    return _Tiled.apply(query, key, value, plan.bias, plan, True)  # type: ignore[no-any-return]


def safe_lse(scores: Tensor) -> Tensor:
    """torch's logsumexp, −∞ and without a gradient where no key is visible. (b h i)."""
    empty = (scores == -inf).all(-1)
    if not scores.shape[-1]:
        return scores.sum(-1).masked_fill(empty, -inf)
    return torch.logsumexp(scores.masked_fill(empty[..., None], 0.0), -1).masked_fill(empty, -inf)


def wide(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Both:
    """Everything in float32 or wider, torch's softmax and logsumexp, rounded once; gradients come from autograd."""
    q, k, v = widen(query, key, value)
    scores = replace(plan, bias=plan.bias.to(q.dtype)).scores(q, k)
    return (plan.thin_out(softmax(scores)) @ v).to(query.dtype), safe_lse(scores)


def split_k(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Both:
    """Three ranges of keys, merged by their lse, whose own lse is returned; gradients come from autograd."""
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    outs, lses = [], []
    for keys in _parts(k.shape[2]):
        out, _ = _attend_to_part(q, k, v, plan, keys)
        outs.append(out)
        lses.append(safe_lse(plan.scores(q, k[:, :, keys], keys)))
    every = torch.stack(lses, -1)
    share = softmax(every)
    return sum(share[..., [n]] * out for n, out in enumerate(outs)).to(query.dtype), safe_lse(every)


def two_pass(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Both:
    """First the maximum and the sum of each row, then P = exp(s − lse), whose rows are not normalised again; wide."""
    q, k, v = widen(query, key, value)
    scores = replace(plan, bias=plan.bias.to(q.dtype)).scores(q, k)
    empty = plan.hidden.all(-1, keepdim=True)
    if not k.shape[2]:
        return (scores @ v).to(query.dtype), safe_lse(scores)
    s = scores.masked_fill(empty, 0.0)
    m = s.detach().amax(-1, keepdim=True)
    lse = m + torch.exp(s - m).sum(-1, keepdim=True).log()
    p = torch.exp(s - lse).masked_fill(plan.hidden, 0.0)
    return (plan.thin_out(p) @ v).to(query.dtype), lse[..., 0].masked_fill(empty[..., 0], -inf)


def eager(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Both:
    """Textbook style: all scores and probabilities exist in the input dtype; the lse of those scores is taken wide."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1]))
    probabilities = plan.thin_out(softmax(scores)).to(value.dtype)
    wider = torch.float64 if query.dtype == torch.float64 else torch.float32
    return probabilities @ for_each_query_head(value, query.shape[1]), safe_lse(scores.to(wider))


def eager_narrow(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Both:
    """The same, whose lse torch takes in the input dtype."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1])).to(query.dtype)
    probabilities = plan.thin_out(softmax(scores)).to(value.dtype)
    return probabilities @ for_each_query_head(value, query.shape[1]), safe_lse(scores)


# By name: the kernel, its dialect as choices, and the class that its arithmetic belongs to in half types; in others it is A.
STYLES: dict[str, tuple[Attend, Dialect, str]] = {
    "tiled": (tiled, NATURAL, "B"),
    "base two inside": (base_two, NATURAL, "B"),
    "wide, torch's logsumexp": (wide, NATURAL, "A"),
    "split_k": (split_k, NATURAL, "A"),
    "two pass": (two_pass, NATURAL, "A"),
    "eager": (eager, NATURAL, "C"),
    "returned in base 2": (base_two, Dialect(two=True), "B"),
    "returned in base 2, by autograd": (wide, Dialect(two=True), "A"),
    "+∞ in empty rows": (tiled, Dialect(empty=inf), "B"),
    "stored as the queries": (eager_narrow, Dialect(narrow=True), "C"),
}
HONEST: dict[str, tuple[Callable[..., Any], dict[str, str], str]] = {
    name: (
        kernel(how, said),
        {
            **({"lse_base": "2"} if said.two else {}),
            **({"lse_empty": "plus_inf"} if said.empty == inf else {}),
            **({"lse_dtype": "operand"} if said.narrow else {}),
        },
        class_,
    )
    for name, (how, said, class_) in STYLES.items()
}

honest = HONEST["tiled"][0]
"""The one that mutants are compared with."""
