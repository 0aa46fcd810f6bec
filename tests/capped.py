"""Attention kernels with a soft cap that are right, one per arithmetic style: the suite must pass every one of them.

The functions have torch SDPA's parameters and semantics, as those of honest.py, and `softcap`, None for none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import torch
from chains import attend_eagerly, softmax_wide
from honest import BLOCK, Plan, _attend_to_part, _parts, blocks, prepare, rounded, softmax, sum_over_group, wide, widen
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E = 1.4426950408889634
Tanh = Callable[[Tensor], Tensor]


# TANH


class _ByHand(torch.autograd.Function):
    """Whatever tanh is, with the slope 1 − t² of the same number: the autograd of exp would multiply infinity by zero."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, tanh: Tanh) -> Tensor:
        t = tanh(y)
        ctx.save_for_backward(t)
        return t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (t,) = ctx.saved_tensors
        return cotangent * (1 - t * t), None


def quotient(y: Tensor) -> Tensor:
    """As vLLM has it since #56579: no digit near zero, but no infinity either."""
    return _ByHand.apply(y, lambda y: 1 - 2 / (torch.exp(2 * y) + 1))  # type: ignore[no-any-return]


def of_sigmoid(y: Tensor) -> Tensor:
    """As sglang has it."""
    return 2 * torch.sigmoid(2 * y) - 1


def one_instruction(y: Tensor) -> Tensor:
    """As tanh.approx.f32 of a GPU: off by 2⁻¹¹ of itself. For half types only."""
    return _ByHand.apply(y, _ten_bits)  # type: ignore[no-any-return]


def _ten_bits(y: Tensor) -> Tensor:
    t = torch.tanh(y)
    if t.dtype != torch.float32:
        return t
    return ((t.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


# SCORES


@dataclass(frozen=True)
class Capped(Plan):
    """A plan with a soft cap."""

    cap: float | None = None
    after: bool = False  # it limits the score with its bias
    tanh: Tanh = torch.tanh

    def limited(self, x: Tensor) -> Tensor:
        return x if self.cap is None else self.cap * self.tanh(x / self.cap)

    def scores(self, query: Tensor, key: Tensor, keys: slice = slice(None)) -> Tensor:
        z = query @ key.mT * self.scale
        bias = self.bias.expand_as(self.hidden)[..., keys]
        scores = self.limited(z + bias) if self.after else self.limited(z) + bias
        return scores.masked_fill(self.hidden[..., keys], -inf)


Attend = Callable[[Tensor, Tensor, Tensor, Capped], Tensor]


def kernel(attend: Attend, after: bool = False, tanh: Tanh = torch.tanh, half_alone: bool = False) -> Callable[..., Tensor]:
    """As a function with torch SDPA's parameters and `softcap`. half_alone: that tanh stands in half types only."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        softcap: float | None = None,
    ) -> Tensor:
        plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        own = torch.tanh if half_alone and wide(query.dtype) == query.dtype else tanh
        return attend(
            query,
            key,
            value,
            Capped(
                **{f.name: getattr(plan, f.name) for f in fields(plan)},
                cap=softcap if softcap and softcap > 0 else None,
                after=after,
                tanh=own,
            ),
        )

    run.__doc__ = attend.__doc__
    return run


# STYLES


def unfused_wide(query: Tensor, key: Tensor, value: Tensor, plan: Capped) -> Tensor:
    """Everything in float32 or wider, rounded once at the end; gradients come from autograd."""
    q, k, v = widen(query, key, value)
    return (plan.thin_out(softmax(plan.scores(q, k))) @ v).to(query.dtype)


def split_k(query: Tensor, key: Tensor, value: Tensor, plan: Capped) -> Tensor:
    """Three ranges of keys, merged by their lse, in float32 or wider."""
    q, k, v = widen(query, key, value)
    outs, lses = zip(*(_attend_to_part(q, k, v, plan, keys) for keys in _parts(k.shape[2])), strict=True)
    share = softmax(torch.cat(lses, dim=-1))
    return sum(share[..., [n]] * out for n, out in enumerate(outs)).to(query.dtype)


@dataclass(frozen=True)
class Tiled:
    """Flash style: online softmax over blocks of keys, scores and slopes again in backward.

    folded: tanh meets acc · (scale/c), and exp2 what it gives times c · log2 e, both constants made once.
    """

    folded: bool = False

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, plan: Capped) -> Tensor:
        return _Tiled.apply(query, key, value, plan.bias, plan, self)  # type: ignore[no-any-return]

    def scores(self, q: Tensor, k: Tensor, plan: Capped, keys: slice) -> tuple[Tensor, Tensor]:
        """Scores in the unit of the exponential, and tanh."""
        unit = LOG2_E if self.folded else 1.0
        bias = plan.bias.to(q.dtype).masked_fill(plan.bias == -inf, 0.0).expand_as(plan.hidden)[..., keys]
        z = q @ k.mT
        if plan.cap is None:
            return (z * (plan.scale * unit) + bias * unit).masked_fill(plan.hidden[..., keys], -inf), torch.zeros_like(z)
        y = z * (plan.scale / plan.cap) if self.folded else z * plan.scale / plan.cap
        t = plan.tanh(y + bias / plan.cap if plan.after else y)
        s = t * (plan.cap * unit)
        return (s if plan.after else s + bias * unit).masked_fill(plan.hidden[..., keys], -inf), t


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, plan: Capped, how: Tiled) -> Tensor:
        q, k, v = widen(query, key, value)
        exp, log = (torch.exp2, torch.log2) if how.folded else (torch.exp, torch.log)
        out, total = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_zeros(*q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        for keys in blocks(k.shape[2], BLOCK):
            scores, _ = how.scores(q, k[:, :, keys], plan, keys)
            new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            weights, shrink = exp(scores - pivot), exp(peak - pivot)
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + rounded(plan.thin_out(weights, keys), query.dtype) @ v[:, :, keys]
            peak = new_peak
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        out = (out / total).to(query.dtype)
        ctx.save_for_backward(query, key, value, bias, out, peak.masked_fill(empty, 0.0) + log(total))
        ctx.plan, ctx.how = plan, how
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, lse = ctx.saved_tensors
        plan, how, dtype = ctx.plan, ctx.how, query.dtype
        q, k, v = widen(query, key, value)
        dout = cotangent.to(q.dtype)
        delta = (dout * out).sum(-1, keepdim=True)
        scores, t = how.scores(q, k, plan, slice(None))
        p = (torch.exp2 if how.folded else torch.exp)(scores - lse)
        ds = (p * (plan.thin_out(dout @ v.mT) - delta)).masked_fill(plan.hidden, 0.0)
        dz = ds * (1 - t * t)
        dbias = (dz if plan.after else ds).sum_to_size(bias.shape).to(bias.dtype)
        p, dz = rounded(plan.thin_out(p), dtype), rounded(dz, dtype)
        dq, dk, dv = dz @ k * plan.scale, dz.mT @ q * plan.scale, p.mT @ dout
        return dq.to(dtype), sum_over_group(dk, key), sum_over_group(dv, value), dbias, None, None


# By name: the kernel, and the class that its arithmetic belongs to in half types; in others it is A.
STYLES: dict[str, tuple[Attend, str]] = {
    "unfused, wide": (unfused_wide, "A"),
    "split_k": (split_k, "A"),
    "tiled": (Tiled(), "B"),
    "tiled, exp2 folded": (Tiled(folded=True), "B"),
    "eager": (attend_eagerly, "C"),
    "softmax wide": (softmax_wide, "C"),  # as transformers has Gemma 2
}
HONEST: dict[str, tuple[Callable[..., Tensor], str]] = {name: (kernel(how), class_) for name, (how, class_) in STYLES.items()}
HONEST |= {
    "quotient of exponentials": (kernel(unfused_wide, tanh=quotient), "A"),
    "tanh from sigmoid": (kernel(split_k, tanh=of_sigmoid), "A"),
    "tiled, one instruction": (kernel(Tiled(), tanh=one_instruction, half_alone=True), "B"),
    "tiled, exp2 folded, one instruction": (kernel(Tiled(folded=True), tanh=one_instruction, half_alone=True), "B"),
}
AFTER = {name: (kernel(how, after=True), class_) for name, (how, class_) in STYLES.items()}

honest = HONEST["tiled"][0]
"""The one that mutants are compared with."""
