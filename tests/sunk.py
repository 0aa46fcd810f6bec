"""Attention kernels with a sink that are right, one per style: the suite must pass every one of them.

The functions have torch SDPA's parameters and semantics, as those of honest.py, and `sinks` (h), None for none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import torch
from honest import (
    BLOCK,
    Plan,
    _attend_to_part,
    _parts,
    blocks,
    for_each_query_head,
    prepare,
    rounded,
    softmax,
    sum_over_group,
    wide,
    widen,
)
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Sunk(Plan):
    """A plan with a sink."""

    sinks: Tensor | None = None  # (h)

    def logit(self, like: Tensor) -> Tensor:
        """z (1 h 1 1) in the dtype of another tensor; −∞ where there is none."""
        if self.sinks is None:
            return like.new_full((1, self.hidden.shape[1], 1, 1), -inf)
        return self.sinks.to(like.dtype)[:, None, None]

    def column(self, scores: Tensor) -> Tensor:
        """z as one more key (b h i 1)."""
        return self.logit(scores).expand(*scores.shape[:3], 1)


Attend = Callable[[Tensor, Tensor, Tensor, Sunk], Tensor]


def kernel(attend: Attend) -> Callable[..., Tensor]:
    """As a function with torch SDPA's parameters and `sinks`."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        sinks: Tensor | None = None,
    ) -> Tensor:
        plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if sinks is not None and (sinks.shape != query.shape[1:2] or not sinks.is_floating_point()):
            raise ValueError(f"sinks are a float for each of {query.shape[1]} heads, got {sinks.dtype} {(*sinks.shape,)}")
        return attend(query, key, value, Sunk(**{f.name: getattr(plan, f.name) for f in fields(plan)}, sinks=sinks))

    run.__doc__ = attend.__doc__
    return run


# A COLUMN


def column_wide(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """One more score beside those of the keys, in float32 or wider; its probability is thrown away."""
    q, k, v = widen(query, key, value)
    scores = plan.scores(q, k)
    p = softmax(torch.cat([scores, plan.column(scores)], -1))[..., :-1]
    return (plan.thin_out(p) @ v).to(query.dtype)


def column_eager(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """As gpt-oss has it: the same with each step in the input dtype, z too."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1]))
    p = softmax(torch.cat([scores, plan.column(scores)], -1))[..., :-1]
    return plan.thin_out(p).to(value.dtype) @ for_each_query_head(value, query.shape[1])


def column_first(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """As MLX has it: the first column; softmax in float32, its result in the input dtype."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1])).to(wide(query.dtype))
    p = softmax(torch.cat([plan.column(scores), scores], -1))[..., 1:].to(value.dtype)
    return plan.thin_out(p) @ for_each_query_head(value, query.shape[1])


def column_below_its_largest(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """As transformers has gpt-oss: the largest is subtracted in the input dtype, with its gradient, before the softmax."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1]))
    every = torch.cat([scores, plan.column(scores)], -1)
    peak = every.amax(-1, keepdim=True)
    p = softmax(every - peak.masked_fill(peak == -inf, 0.0))[..., :-1]
    return plan.thin_out(p).to(value.dtype) @ for_each_query_head(value, query.shape[1])


def primitives(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """exp, sum and division in the input dtype, with their own autograd; z joins the largest score and the sum."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1]))
    z = plan.column(scores)
    peak = torch.cat([scores, z], -1).amax(-1, keepdim=True)
    pivot = peak.masked_fill(peak == -inf, 0.0)
    weights = torch.exp(scores - pivot).masked_fill(plan.hidden, 0.0)
    total = weights.sum(-1, keepdim=True) + torch.exp(z - pivot)
    p = (weights / total.masked_fill(total == 0.0, 1.0)).masked_fill(plan.hidden, 0.0)
    return plan.thin_out(p).to(value.dtype) @ for_each_query_head(value, query.shape[1])


# THE LSE


def by_lse(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """exp(s − lse) with the lse of keys and sink, and the autograd of that."""
    q, k, v = widen(query, key, value)
    scores = plan.scores(q, k)
    every = torch.cat([scores, plan.column(scores)], -1)
    none = (every == -inf).all(-1, keepdim=True)
    lse = torch.logsumexp(every.masked_fill(none, 0.0), -1, keepdim=True)
    return (plan.thin_out(torch.exp(scores - lse).masked_fill(plan.hidden, 0.0)) @ v).to(query.dtype)


def lse_of(scores: Tensor) -> Tensor:
    """Their log-sum-exp (b h i 1), −∞ where there is nothing, without a gradient that is no number."""
    nothing = (scores == -inf).all(-1, keepdim=True)
    return torch.logsumexp(scores.masked_fill(nothing, 0.0), -1, keepdim=True).masked_fill(nothing, -inf)


def kept(lse: Tensor, z: Tensor) -> Tensor:
    """What a sink leaves of an output: the sigmoid of lse − z, where there is a key and a sink."""
    none = (lse == -inf) | (z == -inf)
    return torch.sigmoid((lse - z.masked_fill(z == -inf, 0.0)).masked_fill(none, 0.0)).masked_fill(none, 1.0)


def after_the_fact(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """Attention without a sink in float32 or wider, times the sigmoid of its lse less z; gradients through both."""
    q, k, v = widen(query, key, value)
    scores = plan.scores(q, k)
    lse = lse_of(scores)
    return (plan.thin_out(softmax(scores)) @ v * kept(lse, plan.logit(lse))).to(query.dtype)


def after_storage(query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
    """As with flex attention in transformers: the output without the sink is stored, and so is what it is multiplied by."""
    q, k, v = widen(query, key, value)
    scores = plan.scores(q, k)
    lse = lse_of(scores)
    out = (rounded(plan.thin_out(softmax(scores)), query.dtype) @ v).to(query.dtype)
    return out * kept(lse, plan.logit(lse)).to(query.dtype)


@dataclass(frozen=True)
class Split:
    """Three ranges of keys, merged by their lse, in float32 or wider. part: the one that has the sink; 3 is one of its own."""

    part: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
        q, k, v = widen(query, key, value)
        outs, lses = [], []
        for n, keys in enumerate(_parts(k.shape[2])):
            if n == self.part:
                scores = plan.scores(q, k[:, :, keys], keys)
                every = torch.cat([scores, plan.column(scores)], -1)
                outs.append(plan.thin_out(softmax(every)[..., :-1], keys) @ v[:, :, keys])
                lses.append(lse_of(every))
            else:
                out, lse = _attend_to_part(q, k, v, plan, keys)
                outs.append(out)
                lses.append(lse)
        if self.part == 3:
            outs.append(torch.zeros_like(outs[0]))
            lses.append(plan.column(lses[0]))
        share = softmax(torch.cat(lses, -1))
        return sum(share[..., [n]] * out for n, out in enumerate(outs)).to(query.dtype)


# FLASH


@dataclass(frozen=True)
class Tiled:
    """Online softmax over blocks of keys, and scores again in backward.

    at: where the sink enters: "start", as the state before the first block (m = z, l = 1); "end", after the last, with the largest
    of m and z; or "end, without the maximum", as FlashAttention has it, where z is far enough below what overflows.
    folded: base 2, with log2 e in the scale and in z.
    """

    at: str = "end"
    folded: bool = False

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, plan: Sunk) -> Tensor:
        z = plan.sinks if plan.sinks is not None else query.new_full(query.shape[1:2], -inf)
        return _Tiled.apply(query, key, value, plan.bias, z, plan, self)  # type: ignore[no-any-return]

    def scores(self, q: Tensor, k: Tensor, plan: Sunk, keys: slice) -> Tensor:
        unit = LOG2_E if self.folded else 1.0
        bias = plan.bias.to(q.dtype).masked_fill(plan.bias == -inf, 0.0).expand_as(plan.hidden)[..., keys]
        return (q @ k.mT * (plan.scale * unit) + bias * unit).masked_fill(plan.hidden[..., keys], -inf)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, sinks: Tensor, plan: Sunk, how: Tiled) -> Tensor:
        q, k, v = widen(query, key, value)
        exp, log = (torch.exp2, torch.log2) if how.folded else (torch.exp, torch.log)
        z = (sinks.to(q.dtype) * (LOG2_E if how.folded else 1.0))[:, None, None]
        out, total = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_zeros(*q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        if how.at == "start":
            peak, total = z.expand_as(peak).clone(), total + (z > -inf)
        for keys in blocks(k.shape[2], BLOCK):
            scores = how.scores(q, k[:, :, keys], plan, keys)
            new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            weights, shrink = exp(scores - pivot), exp(peak - pivot)
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + rounded(plan.thin_out(weights, keys), query.dtype) @ v[:, :, keys]
            peak = new_peak
        if how.at != "start":
            new_peak = torch.maximum(peak, z) if how.at == "end" else torch.where(peak == -inf, z, peak)
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            shrink = exp(peak - pivot)
            out, total, peak = out * shrink, total * shrink + exp(z - pivot), new_peak
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        out = (out / total).to(query.dtype)
        ctx.save_for_backward(query, key, value, bias, sinks, out, peak.masked_fill(empty, 0.0) + log(total))
        ctx.plan, ctx.how, ctx.z = plan, how, z
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, sinks, out, lse = ctx.saved_tensors
        plan, how, dtype = ctx.plan, ctx.how, query.dtype
        exp = torch.exp2 if how.folded else torch.exp
        q, k, v = widen(query, key, value)
        dout = cotangent.to(q.dtype)
        delta = (dout * out).sum(-1, keepdim=True)
        p = exp(how.scores(q, k, plan, slice(None)) - lse)
        ds = (p * (plan.thin_out(dout @ v.mT) - delta)).masked_fill(plan.hidden, 0.0)
        dsinks = -(exp(ctx.z - lse) * delta).sum((0, 2, 3))
        dbias = ds.sum_to_size(bias.shape).to(bias.dtype)
        p, ds = rounded(plan.thin_out(p), dtype), rounded(ds, dtype)
        dq, dk, dv = ds @ k * plan.scale, ds.mT @ q * plan.scale, p.mT @ dout
        return dq.to(dtype), sum_over_group(dk, key), sum_over_group(dv, value), dbias, dsinks.to(sinks.dtype), None, None


# By name: the kernel, and the class that its arithmetic belongs to in half types; in others it is A.
STYLES: dict[str, tuple[Attend, str]] = {
    "column, wide": (column_wide, "A"),
    "column, eager": (column_eager, "C"),
    "column, first": (column_first, "C"),
    "column, below its largest": (column_below_its_largest, "D"),
    "primitives": (primitives, "D"),
    "by the lse": (by_lse, "A"),
    "after the fact": (after_the_fact, "A"),
    "after storage": (after_storage, "C"),
    "split, sink in the first": (Split(0), "A"),
    "split, sink in the last": (Split(2), "A"),
    "split, sink of its own": (Split(3), "A"),
    "tiled, at the start": (Tiled("start"), "B"),
    "tiled, at the end": (Tiled("end"), "B"),
    "tiled, exp2 folded": (Tiled("end", folded=True), "B"),
}
HONEST: dict[str, tuple[Callable[..., Tensor], str]] = {name: (kernel(how), class_) for name, (how, class_) in STYLES.items()}

honest = HONEST["tiled, at the end"][0]
"""The one that mutants are compared with."""
