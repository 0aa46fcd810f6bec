"""What mutants are planted with: the tiled kernel with each step a method, a dense one, and edits of arguments and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from math import inf
from typing import Any

import torch
from honest import Plan, blocks, prepare, rounded, softmax, sum_over_group, widen
from torch import Tensor
from torch.autograd.function import once_differentiable

from mutants.base import Call

Keys = slice


class Steps:
    """honest.tiled, one method for each step; a mutant replaces one. A fresh copy of it serves each call."""

    block = 16
    call: Call
    plan: Plan
    q: Tensor
    k: Tensor
    v: Tensor

    def __call__(self, call: Call) -> Tensor:
        run = copy(self)
        run.call, run.plan = call, run.planned(call)
        return _Steps.apply(call.query, call.key, call.value, run.plan.bias, run)

    def planned(self, call: Call) -> Plan:
        return call.run(prepare)

    def widened(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return widen(query, key, value)

    def tiles(self, length: int) -> Iterator[Keys]:
        return blocks(length, self.block)

    def scores(self, keys: Keys) -> Tensor:
        return self.plan.scores(self.q, self.k[:, :, keys], keys)

    def peak(self, peak: Tensor, scores: Tensor) -> Tensor:
        return torch.maximum(peak, scores.amax(-1, keepdim=True))

    def pivot(self, peak: Tensor) -> Tensor:
        return peak.masked_fill(peak == -inf, 0.0)

    def weights(self, scores: Tensor, pivot: Tensor) -> Tensor:
        return torch.exp(scores - pivot)

    def total(self, total: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return total * shrink + weights.sum(-1, keepdim=True)

    def out(self, out: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return out * shrink + self.rounded(self.plan.thin_out(weights, keys)) @ self.v[:, :, keys]

    def finish(self, out: Tensor, total: Tensor) -> Tensor:
        return out / total

    def lse(self, peak: Tensor, total: Tensor) -> Tensor:
        return peak + total.log()

    def rounded(self, x: Tensor) -> Tensor:
        return rounded(x, self.call.query.dtype)

    def backward_scores(self, keys: Keys) -> Tensor:
        return self.scores(keys)

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        return (dout * out).sum(-1, keepdim=True)

    def dropped(self, x: Tensor, keys: Keys) -> Tensor:
        """Dropout in backward."""
        return self.plan.thin_out(x, keys)

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        return (p * (dp - delta)).masked_fill(self.plan.hidden[..., keys], 0.0)

    def dq(self, ds: Tensor, keys: Keys) -> Tensor:
        return ds @ self.k[:, :, keys]

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        return ds.mT @ self.q

    def dv(self, p: Tensor, dout: Tensor, keys: Keys) -> Tensor:
        return p.mT @ dout

    def dbias(self, ds: Tensor, shape: torch.Size) -> Tensor:
        return ds.sum_to_size(shape)

    def scaled(self, gradient: Tensor) -> Tensor:
        return gradient * self.plan.scale

    def shared(self, gradient: Tensor, like: Tensor) -> Tensor:
        return sum_over_group(gradient, like)


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, run: Steps) -> Tensor:
        run.q, run.k, run.v = run.widened(query, key, value)
        out = run.q.new_zeros(*run.q.shape[:3], run.v.shape[3])
        total = run.q.new_zeros(*run.q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        for keys in run.tiles(run.k.shape[2]):
            scores = run.scores(keys)
            new_peak = run.peak(peak, scores)
            pivot = run.pivot(new_peak)
            weights, shrink = run.weights(scores, pivot), torch.exp(peak - pivot)
            total = run.total(total, weights, shrink, keys)
            out = run.out(out, weights, shrink, keys)
            peak = new_peak
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        out = run.finish(out, total).to(query.dtype)
        lse = run.lse(peak.masked_fill(empty, 0.0), total)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.run = run
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, lse = ctx.saved_tensors
        run: Steps = ctx.run
        q, k, v = run.q, run.k, run.v
        dout = cotangent.to(q.dtype)
        delta = run.delta(dout, out)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dbias = q.new_zeros(bias.shape)
        for keys in blocks(k.shape[2], run.block):
            p = torch.exp(run.backward_scores(keys) - lse)
            dv[:, :, keys] = run.dv(run.rounded(run.dropped(p, keys)), dout, keys)
            dp = run.dropped(dout @ v[:, :, keys].mT, keys)
            ds = run.dscores(p, dp, delta, keys)
            here = dbias if dbias.shape[3] == 1 else dbias[..., keys]
            here += run.dbias(ds, here.shape)
            ds = run.rounded(ds)
            dq += run.dq(ds, keys)
            dk[:, :, keys] = run.dk(ds, keys)
        return (
            run.scaled(dq).to(query.dtype),
            run.shared(run.scaled(dk), key),
            run.shared(dv, value),
            dbias.to(bias.dtype),
            None,
        )


# DENSE


def softmax_below(scores: Tensor, pivot: Tensor | float) -> Tensor:
    """Softmax that subtracts ``pivot`` from the scores, and gives zero where no key has weight."""
    weights = torch.exp(scores - pivot)
    total = weights.sum(-1, keepdim=True)
    return (weights / total.masked_fill(total == 0.0, 1.0)).masked_fill(scores == -inf, 0.0)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *options: Any,
    normalise: Callable[[Tensor], Tensor] = softmax,
    dropout: Callable[[Tensor, Plan], Tensor] = lambda probabilities, plan: plan.thin_out(probabilities),
    score: Callable[[Tensor, Plan], Tensor] = lambda scores, plan: scores,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
    **named_options: Any,
) -> Tensor:
    """Attention in float32 or wider with steps that can be replaced; gradients come from autograd."""
    plan = prepare(query, key, value, *options, **named_options)
    q, k, v = widen(query, key, value)
    return product(dropout(normalise(score(plan.scores(q, k), plan)), plan), v).to(query.dtype)


# EDITS


def with_gradient(tensor: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The same tensor, whose gradient is edited on its way back."""
    view = tensor.view_as(tensor)
    if view.requires_grad:
        view.register_hook(edit)
    return view


def instead(right: Tensor, wrong: Tensor) -> Tensor:
    """The wrong values with the right gradient."""
    return right + (wrong - right).detach()


def read(tensor: Tensor, places: Tensor) -> Tensor:
    """What lies at places of the tensor's storage, counted in elements; past the end it begins again."""
    storage = tensor.new_empty(0).set_(tensor.untyped_storage())
    return storage[places.to(tensor.device) % len(storage)] if len(storage) else tensor.new_empty(places.shape)


def read_without_strides(tensor: Tensor) -> Tensor:
    """What a kernel reads that assumes contiguous memory."""
    if tensor.is_contiguous():
        return tensor
    return read(tensor, torch.arange(tensor.numel()) + tensor.storage_offset()).view(tensor.shape)


def as_if_contiguous(tensor: Tensor) -> Tensor:
    """A view in which a kernel reads and writes that assumes contiguous memory."""
    return torch.as_strided(tensor, tensor.shape, torch.empty(tensor.shape, device="meta").stride(), tensor.storage_offset())


def read_without_offset(tensor: Tensor) -> Tensor:
    """What a kernel reads that begins at the storage's first element."""
    return torch.as_strided(tensor, tensor.shape, tensor.stride(), 0)


def four(mask: Tensor) -> Tensor:
    """A mask or bias with all four axes."""
    return mask[(None,) * (4 - mask.ndim)]


def form(mask: Tensor) -> str:
    """Which of b, h, i, j a mask varies over by its shape."""
    return "".join(letter for letter, size in zip("bhij", four(mask).shape, strict=True) if size > 1)


def with_bool_mask(call: Call, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The call with its bool mask edited, where there is one."""
    return call.run() if call.bool_mask is None else call.but(attn_mask=edit(call.bool_mask)).run()


def with_bias(call: Call, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The call with its float mask edited, where there is one."""
    return call.run() if call.float_mask is None else call.but(attn_mask=edit(call.float_mask)).run()


def seeing(call: Call, visible: Tensor) -> Tensor:
    """The call with keys hidden as `visible` says instead of by causal and the bool mask; a bias stays."""
    mask = visible
    if call.float_mask is not None:
        mask = call.float_mask.expand(call.shape).masked_fill(~visible, -inf)
    return call.but(is_causal=False, attn_mask=mask).run()


def run_with_causal(call: Call, diagonal: int) -> Tensor:
    """The call; if it is causal, key ``c`` is visible to row ``r`` where ``c <= r + diagonal``."""
    return causal_as(call, lambda r, c: c <= r + diagonal)


def causal_as(call: Call, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The call; if it is causal, key ``c`` is visible to row ``r`` where the rule says so."""
    if not call.is_causal:
        return call.run()
    i, j = call.shape[2:]
    r, c = torch.arange(i, device=call.query.device)[:, None], torch.arange(j, device=call.query.device)
    return call.but(is_causal=False, attn_mask=rule(r, c).expand(i, j)).run()


def with_keys(call: Call, places: Tensor) -> Tensor:
    """The call on the keys and values of these places, in this order, with their part of the mask; −1 is a key of zeros."""
    outside = places < 0
    at = places.clamp(min=0)

    def taken(x: Tensor) -> Tensor:
        return x[:, :, at].masked_fill(outside[:, None], 0.0)

    mask, causal = call.attn_mask, call.is_causal
    if mask is not None and mask.ndim > 0 and mask.shape[-1] > 1:
        mask = mask[..., at].masked_fill(outside, True if mask.dtype == torch.bool else 0.0)
    elif causal:
        i = call.shape[2]
        mask = torch.arange(i)[:, None] >= at
        mask, causal = mask | outside, False
    return call.but(key=taken(call.key), value=taken(call.value), attn_mask=mask, is_causal=causal).run()
