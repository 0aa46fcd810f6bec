"""Attention kernels with ALiBi slopes that are right, one per arithmetic style: the suite must pass every one of them.

The functions have torch SDPA's parameters and semantics, as those of honest.py, and `alibi_slopes`, (h) or (b h), None for none.
What is added is −a |i − j|, with the positions aligned top-left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

import torch
from chains import attend_eagerly, softmax_wide
from honest import Plan, _attend_to_part, _parts, _Tiled, blocks, prepare, rounded, softmax, sum_over_group, widen
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Sloped(Plan):
    """A plan with slopes.

    far: (i j) or (b 1 i j), what they are multiplied with.
    causal: no key behind a query is seen, so that a row may have any number in common.
    """

    slopes: Tensor | None = None
    far: Tensor | None = None
    causal: bool = False

    def added(self, dtype: torch.dtype, keys: slice = slice(None)) -> Tensor | float:
        """What the slopes add (b h i j), or 0."""
        if self.slopes is None or self.far is None:
            return 0.0
        return self.slopes.to(dtype)[..., None, None] * self.far.to(dtype)[..., keys]

    def scores(self, query: Tensor, key: Tensor, keys: slice = slice(None)) -> Tensor:
        bias = self.bias.expand_as(self.hidden)[..., keys]
        z = query @ key.mT * self.scale + self.added(query.dtype, keys) + bias
        return z.masked_fill(self.hidden[..., keys], -inf)

    def plain(self, bias: Tensor) -> Plan:
        """The same without slopes, and with this bias."""
        return Plan(**{f.name: getattr(self, f.name) for f in fields(Plan)} | {"bias": bias})


Attend = Callable[[Tensor, Tensor, Tensor, Sloped], Tensor]
Form = Callable[[Tensor], Tensor]  # of j − p (i j): what slopes are multiplied with


def distance(ahead: Tensor) -> Tensor:
    """−|p − j|."""
    return -ahead.abs()


def kernel(attend: Attend, form: Form = distance, offset: Callable[[int, int], int] = lambda i, j: 0) -> Callable[..., Tensor]:
    """As a function with torch SDPA's parameters and `alibi_slopes`. offset: the position of the first query, of the lengths."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        i, j = query.shape[2], key.shape[2]
        far = form(torch.arange(j) - torch.arange(i)[:, None] - offset(i, j)).to(query.device)
        own = {f.name: getattr(plan, f.name) for f in fields(plan)}
        return attend(query, key, value, Sloped(**own, slopes=alibi_slopes, far=far, causal=is_causal))

    run.__doc__ = attend.__doc__
    return run


# STYLES


def unfused_wide(query: Tensor, key: Tensor, value: Tensor, plan: Sloped) -> Tensor:
    """Everything in float32 or wider, rounded once at the end; gradients come from autograd."""
    q, k, v = widen(query, key, value)
    return (plan.thin_out(softmax(plan.scores(q, k))) @ v).to(query.dtype)


def split_k(query: Tensor, key: Tensor, value: Tensor, plan: Sloped) -> Tensor:
    """Three ranges of keys, merged by their lse, in float32 or wider."""
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    outs, lses = zip(*(_attend_to_part(q, k, v, plan, keys) for keys in _parts(k.shape[2])), strict=True)
    share = softmax(torch.cat(lses, dim=-1))
    return sum(share[..., [n]] * out for n, out in enumerate(outs)).to(query.dtype)


def materialised(query: Tensor, key: Tensor, value: Tensor, plan: Sloped) -> Tensor:
    """What the slopes add is made in float32 or wider, beside the bias, and given to a tiled kernel as its bias."""
    wide = widen(query, key, value)[0].dtype
    bias = plan.bias.to(wide) + plan.added(wide)
    return _Tiled.apply(query, key, value, bias, plan.plain(bias))  # type: ignore[no-any-return]


def eager(query: Tensor, key: Tensor, value: Tensor, plan: Sloped) -> Tensor:
    """Every step in the input dtype: the slopes, the distances, what they add and its sum with the scores."""
    return attend_eagerly(query, key, value, plan)


def column_in_half(query: Tensor, key: Tensor, value: Tensor, plan: Sloped) -> Tensor:
    """As BLOOM: where causal allows it one row of numbers (b h 1 j) for all queries, stored in the input dtype; softmax wide."""
    return softmax_wide(query, key, value, by_column(plan))


def by_column(plan: Sloped) -> Sloped:
    """What is added depends on the key alone, where causal allows it."""
    if plan.far is None or not plan.causal:
        return plan
    keys = torch.arange(plan.far.shape[1], device=plan.far.device)
    return replace(plan, far=keys.expand(plan.far.shape))


@dataclass(frozen=True)
class Tiled:
    """Flash style: online softmax over blocks of keys, scores again in backward, and the gradient of the slopes by hand.

    column: where causal allows it what is added is a·j, and the slope is divided by the scale first, as flash-attention 2 does.
    """

    column: bool = False

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, plan: Sloped) -> Tensor:
        if plan.slopes is None:
            return _Tiled.apply(query, key, value, plan.bias, plan)  # type: ignore[no-any-return]
        if self.column:
            plan = by_column(plan)
        return _TiledSlopes.apply(query, key, value, plan.bias, plan.slopes, plan, self)  # type: ignore[no-any-return]

    def scores(self, q: Tensor, k: Tensor, plan: Sloped, keys: slice) -> Tensor:
        if not self.column or plan.scale == 0:
            return plan.scores(q, k, keys)
        assert plan.slopes is not None
        assert plan.far is not None
        a = (plan.slopes.to(q.dtype) / plan.scale)[..., None, None]
        z = (q @ k.mT + a * plan.far.to(q.dtype)[..., keys]) * plan.scale
        bias = plan.bias.expand_as(plan.hidden)[..., keys]
        return (z + bias).masked_fill(plan.hidden[..., keys], -inf)


class _TiledSlopes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, slopes: Tensor, plan: Sloped, how: Tiled
    ) -> Tensor:
        q, k, v = widen(query, key, value)
        out, total = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_zeros(*q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        for keys in blocks(k.shape[2]):
            scores = how.scores(q, k[:, :, keys], plan, keys)
            new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            weights, shrink = torch.exp(scores - pivot), torch.exp(peak - pivot)
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + rounded(plan.thin_out(weights, keys), query.dtype) @ v[:, :, keys]
            peak = new_peak
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        out = (out / total).to(query.dtype)
        ctx.save_for_backward(query, key, value, bias, slopes, out, peak.masked_fill(empty, 0.0) + total.log())
        ctx.plan, ctx.how = plan, how
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, slopes, out, lse = ctx.saved_tensors
        plan, how, dtype = ctx.plan, ctx.how, query.dtype
        q, k, v = widen(query, key, value)
        dout = cotangent.to(q.dtype)
        delta = (dout * out).sum(-1, keepdim=True)
        p = torch.exp(how.scores(q, k, plan, slice(None)) - lse)
        ds = (p * (plan.thin_out(dout @ v.mT) - delta)).masked_fill(plan.hidden, 0.0)
        dbias = ds.sum_to_size(bias.shape).to(bias.dtype)
        of_slopes = (ds * plan.far.to(ds.dtype)).sum((-1, -2)).sum_to_size(slopes.shape).to(slopes.dtype)
        p, ds = rounded(plan.thin_out(p), dtype), rounded(ds, dtype)
        dq, dk, dv = ds @ k * plan.scale, ds.mT @ q * plan.scale, p.mT @ dout
        return dq.to(dtype), sum_over_group(dk, key), sum_over_group(dv, value), dbias, of_slopes, None, None


# By name: the kernel, and the class that its arithmetic belongs to in half types; in others it is A.
STYLES: dict[str, tuple[Attend, str]] = {
    "unfused, wide": (unfused_wide, "A"),
    "split_k": (split_k, "A"),
    "tiled": (Tiled(), "B"),
    "tiled, by column": (Tiled(column=True), "B"),
    "materialised": (materialised, "B"),
    "eager": (eager, "C"),
    "by column in half": (column_in_half, "C"),
}
HONEST: dict[str, tuple[Callable[..., Tensor], str]] = {name: (kernel(how), class_) for name, (how, class_) in STYLES.items()}
SIGNED = {name: (kernel(how, lambda ahead: ahead), class_) for name, (how, class_) in STYLES.items()}
COLUMN = {
    name: (kernel(how, lambda ahead: torch.arange(ahead.shape[1]).expand(ahead.shape)), class_)
    for name, (how, class_) in STYLES.items()
}

honest = HONEST["tiled"][0]
"""The one that mutants are compared with."""


def at_the_end(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    softmax_scale: float | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """The last query stands at the last key, as flash-attention has it."""
    i, j = q.shape[2], k.shape[2]
    shown = torch.ones(i, j, dtype=torch.bool, device=q.device).tril(j - i) if causal else None
    aligned = kernel(Tiled(), offset=lambda i, j: j - i)
    return aligned(q, k, v, shown, scale=softmax_scale, enable_gqa=True, alibi_slopes=alibi_slopes)


def first_of(start: int | Tensor | None, query: Tensor, key: Tensor) -> int | Tensor:
    """The position of the first query, a number or (b 1 1 1); without a start that of :func:`at_the_end`."""
    if isinstance(start, Tensor):
        return start.long().view(-1, 1, 1, 1)
    return key.shape[2] - query.shape[2] if start is None else start


def at_a_start(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    softmax_scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    q_start: int | Tensor | None = None,
) -> Tensor:
    """The first query stands where it is said, or as :func:`at_the_end` has it."""
    ahead = (torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None] - first_of(q_start, q, k)).to(q.device)
    shown = (ahead <= 0).expand(q.shape[0], 1, *ahead.shape[-2:]) if causal else None
    plan = prepare(q, k, v, shown, 0.0, False, softmax_scale, True)
    own = {f.name: getattr(plan, f.name) for f in fields(plan)}
    return Tiled()(q, k, v, Sloped(**own, slopes=alibi_slopes, far=-ahead.abs()))
