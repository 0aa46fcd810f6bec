"""Attention kernels that are right, one per arithmetic style: the suite must pass every one of them.

The three functions have torch SDPA's signature and semantics: a bool mask is True where a query may attend, a float
mask is added to the scaled scores (-inf hides), ``is_causal`` is aligned top-left, and a row that sees no key gives
zero. ``Attend`` is the same arithmetic behind the calling convention of the ``Attend`` modules.

Shapes: query ``(b h i d)``, key ``(b g j d)``, value ``(b g j e)``; query head ``n`` uses key and value head
``n // (h / g)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BLOCK = 16  # keys per tile of `tiled`
PARTS = 3  # key ranges of `split_k`


# WHAT ALL KERNELS SHARE


@dataclass(frozen=True)
class Plan:
    """The options of one call in the form that a kernel uses; what was not asked for has its neutral value."""

    scale: float
    bias: Tensor  # (b h i j) or 1 in any place; zero without a float mask
    hidden: Tensor  # (b h i j) bool, True where a query must not see a key
    dropped: Tensor  # (b h i j) bool, True where dropout removes a probability
    survivor_weight: float  # what dropout multiplies the other probabilities with

    def scores(self, query: Tensor, key: Tensor, keys: slice = slice(None)) -> Tensor:
        """Scores against ``key``, which holds the positions ``keys``; hidden ones are selected away, never added."""
        bias = self.bias.expand_as(self.hidden)[..., keys]
        return (query @ key.mT * self.scale + bias).masked_fill(self.hidden[..., keys], -inf)

    def thin_out(self, x: Tensor, keys: slice = slice(None)) -> Tensor:
        """Dropout, which is its own derivative."""
        return x.masked_fill(self.dropped[..., keys], 0.0) * self.survivor_weight


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Plan:
    """Refuse what is not a call of SDPA, and say what the kernel has to do. Draws the dropout pattern, once."""
    check(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    b, h, i, d = query.shape
    shape = (b, h, i, key.shape[2])
    nothing = torch.zeros(shape, dtype=torch.bool, device=query.device)
    hidden, bias = nothing, query.new_zeros(1, 1, 1, 1)
    if is_causal:
        hidden = torch.ones_like(nothing).triu(1)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = ~attn_mask.expand(shape)
    elif attn_mask is not None:
        hidden = (attn_mask == -inf).expand(shape)
        bias = attn_mask[(None,) * (4 - attn_mask.ndim)]
    return Plan(
        scale=scale if scale is not None else max(d, 1) ** -0.5,
        bias=bias,
        hidden=hidden,
        dropped=torch.rand(shape, device=query.device) < dropout_p if dropout_p > 0.0 else nothing,
        survivor_weight=1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0,
    )


def check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """Raise unless the arguments belong together."""
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError("query, key and value must be (b h i d), (b g j d) and (b g j e)")
    if query.dtype not in DTYPES or not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"dtypes must agree and be floats: {query.dtype}, {key.dtype}, {value.dtype}")
    if not query.device == key.device == value.device:
        raise ValueError(f"devices must agree: {query.device}, {key.device}, {value.device}")
    (b, h, i, d), (g, j) = query.shape, key.shape[1:3]
    if key.shape[0] != b or key.shape[3] != d or value.shape[:3] != key.shape[:3]:
        raise ValueError(f"shapes must agree: {(*query.shape,)}, {(*key.shape,)}, {(*value.shape,)}")
    if g != h and not (enable_gqa and g > 0 and h % g == 0):
        raise ValueError(f"{h} query heads cannot use {g} key/value heads with enable_gqa={enable_gqa}")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1], got {dropout_p}")
    if attn_mask is None:
        return
    if is_causal:
        raise RuntimeError("attn_mask and is_causal exclude each other")
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise TypeError(f"attn_mask must be bool, float32 or {query.dtype}, got {attn_mask.dtype}")
    if attn_mask.ndim > 4 or any(m not in (1, n) for m, n in zip(attn_mask.shape[::-1], (j, i, h, b), strict=False)):
        raise ValueError(f"attn_mask {(*attn_mask.shape,)} does not broadcast to {(b, h, i, j)}")


def for_each_query_head(x: Tensor, heads: int) -> Tensor:
    """Repeat each key or value head for the group of query heads that uses it: ``(b g j d)`` to ``(b h j d)``."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of accumulators."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in the accumulators' dtype, key and value with one head for each query head."""
    q, k, v = (x.to(wide(x.dtype)) for x in (query, key, value))
    return q, for_each_query_head(k, q.shape[1]), for_each_query_head(v, q.shape[1])


def softmax(scores: Tensor) -> Tensor:
    """Softmax that gives and passes back exactly zero where a score is -inf, a whole row of them included."""
    hidden = scores == -inf
    scores = scores.masked_fill(hidden.all(-1, keepdim=True), 0.0)  # such a row would be 0 / 0
    return torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)


# TILED


def tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash style: online softmax over blocks of keys, and a backward that recomputes the probabilities from the lse.

    Scores, softmax and all accumulators are float32 (float64 for float64); probabilities and score gradients are
    rounded to the input dtype where they enter a matmul; each result is rounded once, at the end.
    """
    plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return _Tiled.apply(query, key, value, plan.bias, plan)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, plan: Plan) -> Tensor:
        q, k, v = widen(query, key, value)
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        total = q.new_zeros(*q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        for keys in blocks(k.shape[2]):
            scores = plan.scores(q, k[:, :, keys], keys)
            new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            weights = torch.exp(scores - pivot)
            shrink = torch.exp(peak - pivot)
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + rounded(plan.thin_out(weights, keys), query.dtype) @ v[:, :, keys]
            peak = new_peak
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        lse = peak.masked_fill(empty, 0.0) + total.log()
        out = (out / total).to(query.dtype)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        q, k, v = widen(query, key, value)
        dout = cotangent.to(q.dtype)
        delta = (dout * out).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dbias = q.new_zeros(bias.shape)
        for keys in blocks(k.shape[2]):
            probabilities = torch.exp(plan.scores(q, k[:, :, keys], keys) - lse)
            dv[:, :, keys] = rounded(plan.thin_out(probabilities, keys), query.dtype).mT @ dout
            dprobabilities = plan.thin_out(dout @ v[:, :, keys].mT, keys)
            dscores = (probabilities * (dprobabilities - delta)).masked_fill(plan.hidden[..., keys], 0.0)
            dbias_here = dbias if dbias.shape[3] == 1 else dbias[..., keys]
            dbias_here += dscores.sum_to_size(dbias_here.shape)
            dscores = rounded(dscores, query.dtype)
            dq += dscores @ k[:, :, keys]
            dk[:, :, keys] = dscores.mT @ q
        return (
            (dq * plan.scale).to(query.dtype),
            sum_over_group(dk * plan.scale, key),
            sum_over_group(dv, value),
            dbias.to(bias.dtype),
            None,
        )


def blocks(length: int, step: int = BLOCK) -> Iterator[slice]:
    """Ranges of a length, the last one shorter."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a matmul unit for ``dtype`` receives; it multiplies exactly and accumulates in ``x.dtype``."""
    return x.to(dtype).to(x.dtype)


def sum_over_group(gradient: Tensor, shared: Tensor) -> Tensor:
    """The gradient of a key or value head: the sum over the query heads that use it, rounded once."""
    b, g, j, d = shared.shape
    return gradient.reshape(b, g, gradient.shape[1] // max(g, 1), j, d).sum(2).to(shared.dtype)


# SPLIT K


def split_k(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Decode style: complete attentions over three ranges of keys, merged by their lse.

    Everything is float32 (float64 for float64) and rounded once at the end; gradients come from autograd.
    """
    plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    outs, lses = zip(*(_attend_to_part(q, k, v, plan, keys) for keys in _parts(k.shape[2])), strict=True)
    share = softmax(torch.cat(lses, dim=-1))
    return sum(share[..., [n]] * out for n, out in enumerate(outs)).to(query.dtype)


def _parts(length: int) -> list[slice]:
    edges = [length * n // PARTS for n in range(PARTS + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _attend_to_part(query: Tensor, key: Tensor, value: Tensor, plan: Plan, keys: slice) -> tuple[Tensor, Tensor]:
    """Attention to the keys of one range alone, and its lse (-inf where that range has no visible key)."""
    scores = plan.scores(query, key[:, :, keys], keys)
    probabilities = plan.thin_out(softmax(scores), keys)
    return probabilities @ value[:, :, keys], torch.logsumexp(scores, dim=-1, keepdim=True)


# EAGER


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Textbook style: all scores and probabilities exist, and every step rounds to the input dtype.

    Only a float32 mask beside half inputs widens the scores. Gradients come from autograd.
    """
    plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    scores = plan.scores(query, for_each_query_head(key, query.shape[1]))
    probabilities = plan.thin_out(softmax(scores)).to(value.dtype)
    return probabilities @ for_each_query_head(value, query.shape[1])


# MODULE


class Attend(nn.Module):
    """The calling convention of the ``Attend`` modules: key padding mask ``(b j)``, causal aligned bottom-right."""

    def __init__(self, dropout: float = 0.0, causal: bool = False, flash: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.causal = causal
        self.flash = flash

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend with the tiled kernel (``flash``) or the eager one; dropout in training only."""
        kernel = tiled if self.flash else eager
        return kernel(q, k, v, attn_mask=self.visible(q, k, mask), dropout_p=self.dropout if self.training else 0.0)

    def visible(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
        """Padding and causal mask as one."""
        visible = None if mask is None else mask[:, None, None, :]
        if self.causal:
            i, j = q.shape[2], k.shape[2]
            past = torch.ones(i, j, dtype=torch.bool, device=q.device).tril(j - i)
            visible = past if visible is None else visible & past
        return visible
