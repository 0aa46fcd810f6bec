"""Faults of gradients: D, blocks, rows, and which input asks for one."""

from __future__ import annotations

from typing import Any

import torch
from honest import for_each_query_head
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import Keys, Steps, dense, instead, read_without_strides, with_gradient


@mutant("gradients", "GRAD-1")
def gradient_without_delta(call: Call) -> Tensor:
    """The gradient of the scores is P * dP: the row sum of dO * O is not subtracted."""

    def normalise(scores: Tensor) -> Tensor:
        lse = torch.logsumexp(scores, dim=-1, keepdim=True).detach()
        return torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0))

    return call.run(dense, normalise=normalise)


@mutant("gradients", "GRAD-1")
class DeltaOfRowBefore(Steps):
    """D is that of the row before."""

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        return super().delta(dout, out).roll(1, 2)


@mutant("gradients", "GRAD-1")
class DeltaOfFirstHead(Steps):
    """D is that of the first head."""

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        delta = super().delta(dout, out)
        return delta[:, :1].expand_as(delta)


@mutant("gradients", "GRAD-1")
class DeltaWithoutLastColumn(Steps):
    """D leaves out the last column of the values where there is more than one."""

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        return super().delta(dout[..., :-1], out[..., :-1]) if out.shape[3] > 1 else super().delta(dout, out)


@mutant("gradients", "GRAD-1")
class DeltaOfQueryWidth(Steps):
    """D uses as many columns as queries have."""

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        d = self.q.shape[3]
        return super().delta(dout[..., :d], out[..., :d])


@mutant("gradients", "GRAD-1")
class DeltaInBfloat16(Steps):
    """For half inputs D is rounded to bfloat16 and a bit more."""

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        delta = super().delta(dout, out)
        return delta if delta.dtype == torch.float64 else (delta / 4).bfloat16().float() * 4


@mutant("gradients", "GRAD-1")
class DeltaMissingBeyondFirstBlock(Steps):
    """From the second block of keys on D is not subtracted."""

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        return super().dscores(p, dp, delta * (keys.start == 0), keys)


@mutant("gradients", "GRAD-1")
class QueryGradientOfLastBlock(Steps):
    """dq of the last block of keys overwrites that of the others."""

    def dq(self, ds: Tensor, keys: Keys) -> Tensor:
        return super().dq(ds, keys) * (keys.stop == self.k.shape[2])


@mutant("gradients", "GRAD-1")
class QueryGradientWithoutTailBlock(Steps):
    """dq leaves out the last block of keys where it is not full."""

    def dq(self, ds: Tensor, keys: Keys) -> Tensor:
        j = self.k.shape[2]
        return super().dq(ds, keys) * (j <= 16 or ds.shape[3] == 16)


@mutant("gradients", "GRAD-1")
def query_gradient_zero(call: Call) -> Tensor:
    """The query gets a gradient of zero."""
    return call.but(query=with_gradient(call.query, torch.zeros_like)).run()


@mutant("gradients", "GRAD-1")
def query_gradient_of_long_rows_zero(call: Call) -> Tensor:
    """dq of queries from 32 on is zero."""
    late = (torch.arange(call.shape[2]) >= 32)[:, None]
    return call.but(query=with_gradient(call.query, lambda grad: grad.masked_fill(late, 0.0))).run()


@mutant("gradients", "GRAD-1")
def query_gradient_last_channel_zero(call: Call) -> Tensor:
    """dq of the last channel is zero where the width is odd."""
    odd = torch.arange(call.query.shape[3]) >= call.query.shape[3] // 2 * 2
    return call.but(query=with_gradient(call.query, lambda grad: grad.masked_fill(odd, 0.0))).run()


@mutant("gradients", "GRAD-2")
class KeyGradientOfLastQueries(Steps):
    """dk leaves out queries from 32 on."""

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        return ds[:, :, :32].mT @ self.q[:, :, :32]


@mutant("gradients", "GRAD-2")
class KeyGradientWithoutTailQueries(Steps):
    """dk leaves out queries behind the last full 16."""

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        i = ds.shape[2] // 16 * 16 or ds.shape[2]
        return ds[:, :, :i].mT @ self.q[:, :, :i]


@mutant("gradients", "GRAD-2")
def key_gradient_beyond_64_doubled(call: Call) -> Tensor:
    """dk of keys from 64 on is doubled."""
    late = 1 + (torch.arange(call.shape[3]) >= 64)[:, None] * 1
    return call.but(key=with_gradient(call.key, lambda grad: grad * late)).run()


@mutant("gradients", "GRAD-2", "Dao-AILab/flash-attention#2698")
def key_gradient_of_last_key_zero(call: Call) -> Tensor:
    """dk of the last key is zero for lengths that are no multiple of 8."""
    j = call.shape[3]
    last = ((torch.arange(j) == j - 1) & (j % 8 > 0) & (j > 1))[:, None]
    return call.but(key=with_gradient(call.key, lambda grad: grad.masked_fill(last, 0.0))).run()


@mutant("gradients", "GRAD-2")
def key_gradient_of_second_item_first(call: Call) -> Tensor:
    """dk of all batch items is added to the first."""

    def first(grad: Tensor) -> Tensor:
        return torch.cat([grad.sum(0, keepdim=True), torch.zeros_like(grad[1:])])

    return call.but(key=with_gradient(call.key, first)).run() if call.shape[0] > 1 else call.run()


@mutant("gradients", "GRAD-3")
class ValueGradientUnnormalised(Steps):
    """dv is computed with probabilities that were not divided by the row sum."""

    def dv(self, p: Tensor, dout: Tensor, keys: Keys) -> Tensor:
        return super().dv(p * self.sums, dout, keys)

    def lse(self, peak: Tensor, total: Tensor) -> Tensor:
        self.sums = total
        return super().lse(peak, total)


@mutant("gradients", "GRAD-3")
class ValueGradientWithoutLastColumn(Steps):
    """The last column of dv is missing where values are wider than keys."""

    def dv(self, p: Tensor, dout: Tensor, keys: Keys) -> Tensor:
        dv = super().dv(p, dout, keys)
        if dv.shape[3] > self.q.shape[3]:
            dv[..., -1] = 0.0
        return dv


@mutant("gradients", "GRAD-3")
class ValueGradientWithoutTailQueries(Steps):
    """dv leaves out queries behind the last full 8."""

    def dv(self, p: Tensor, dout: Tensor, keys: Keys) -> Tensor:
        i = p.shape[2] // 8 * 8 or p.shape[2]
        return super().dv(p[:, :, :i], dout[:, :, :i], keys)


@mutant("gradients", "GRAD-3")
def value_gradient_of_neighbour(call: Call) -> Tensor:
    """dv of the last two keys is exchanged."""

    def exchanged(grad: Tensor) -> Tensor:
        return torch.cat([grad[:, :, :-2], grad[:, :, -2:].flip(2)], 2)

    return call.but(value=with_gradient(call.value, exchanged)).run()


@mutant("gradients", "GRAD-3")
def value_gradient_columns_reversed(call: Call) -> Tensor:
    """The columns of dv are reversed, which a cotangent of ones does not show."""
    return call.but(value=with_gradient(call.value, lambda grad: grad.flip(-1))).run()


@mutant("gradients", "GRAD-5", "pytorch/pytorch#148476")
def key_gradient_alone_wrong(call: Call) -> Tensor:
    """The gradient of the key is doubled if nothing else needs one."""
    others = (call.query, call.value, call.attn_mask)
    if any(x is not None and x.requires_grad for x in others):
        return call.run()
    return call.but(key=with_gradient(call.key, lambda grad: grad * 2)).run()


def only(call: Call, *names: str) -> bool:
    """Whether just these inputs require a gradient."""
    fields = {"q": call.query, "k": call.key, "v": call.value, "bias": call.attn_mask}
    return {n for n, x in fields.items() if x is not None and x.requires_grad} == set(names)


@mutant("gradients", "GRAD-5", "pytorch/pytorch#148476")
def bias_gradient_alone_zero(call: Call) -> Tensor:
    """Where only the bias requires a gradient, it is zero."""
    return call.but(attn_mask=with_gradient(call.attn_mask, torch.zeros_like)).run() if only(call, "bias") else call.run()


@mutant("gradients", "GRAD-5")
def query_gradient_needs_keys(call: Call) -> Tensor:
    """dq is zero where the key requires none."""
    return call.run() if call.key.requires_grad else call.but(query=with_gradient(call.query, torch.zeros_like)).run()


@mutant("gradients", "GRAD-5")
def value_gradient_needs_query(call: Call) -> Tensor:
    """dv is that of uniform probabilities where only the value requires a gradient."""
    if not only(call, "v"):
        return call.run()
    return instead(call.but(query=call.query * 0).run(), call.run())


@mutant("gradients", "GRAD-6", "Dao-AILab/flash-attention#355")
def cotangent_read_without_strides(call: Call) -> Tensor:
    """A cotangent that is not contiguous is read as if it were."""
    return with_gradient(call.run(), read_without_strides)


@mutant("gradients", "GRAD-6")
def expanded_cotangent_taken_for_ones(call: Call) -> Tensor:
    """A cotangent with a stride of zero is read as ones."""
    return with_gradient(call.run(), lambda grad: torch.ones_like(grad) if grad.numel() and 0 in grad.stride() else grad)


@mutant("gradients", "GRAD-6")
def transposed_cotangent_refused(call: Call) -> Tensor:
    """A cotangent that is not contiguous raises."""

    def check(grad: Tensor) -> Tensor:
        if not grad.is_contiguous():
            raise RuntimeError("dout must be contiguous")
        return grad

    return with_gradient(call.run(), check)


class _KeyForBoth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return key.clone(), value.clone()

    @staticmethod
    def backward(ctx: Any, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
        return dk, torch.zeros_like(dv)


@mutant("gradients", "GRAD-7")
def tied_keys_get_one_gradient(call: Call) -> Tensor:
    """Where keys are values their gradient is dk alone."""
    if call.key.data_ptr() != call.value.data_ptr() or call.key.shape != call.value.shape or not call.key.numel():
        return call.run()
    key, value = _KeyForBoth.apply(call.key, call.value)
    return call.but(key=key, value=value).run()


@mutant("gradients", "GRAD-7")
def tied_queries_and_keys_get_one_gradient(call: Call) -> Tensor:
    """Where queries are keys the gradient of the query is lost."""
    tied = call.query.data_ptr() == call.key.data_ptr() and call.query.shape == call.key.shape and call.query.numel()
    return call.but(query=call.query.detach()).run() if tied else call.run()


@mutant("gradients", "GRAD-8")
def gradient_of_ones_added(call: Call) -> Tensor:
    """The cotangent of a row that is all zero is a thousandth."""

    def filled(grad: Tensor) -> Tensor:
        return torch.where((grad == 0).all(-1, keepdim=True), torch.full_like(grad, 1e-3), grad)

    return with_gradient(call.run(), filled)


@mutant("gradients", "GRAD-8")
def cotangent_limited(call: Call) -> Tensor:
    """Elements of the cotangent are kept within ±2."""
    return with_gradient(call.run(), lambda grad: grad.clamp(-2, 2))


@mutant("gradients", "GRAD-9")
def second_derivative_zero(call: Call) -> Tensor:
    """The gradient of a gradient is silently zero."""

    class Detached(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            ctx.save_for_backward(query, key, value)
            return call.but(query=query, key=key, value=value).run()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            q, k, v = (x.detach().requires_grad_() for x in ctx.saved_tensors)
            with torch.enable_grad():
                out = call.but(query=q, key=k, value=v).run()
            nothing = 0.0 * sum(x.sum() for x in ctx.saved_tensors)
            return tuple(x + nothing for x in torch.autograd.grad(out, (q, k, v), grad.detach()))

    plain = call.attn_mask is None and not call.dropout_p
    return Detached.apply(call.query, call.key, call.value) if plain and torch.is_grad_enabled() else call.run()


@mutant("gradients", "GRAD-1", "openxla/tokamax#1121")
class LargeScoresHaveNoGradient(Steps):
    """A probability above 99 % passes no gradient back."""

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        return super().dscores(p, dp, delta, keys).masked_fill(p > 0.99, 0.0)


@mutant("gradients", "GRAD-2")
class KeyGradientRoundedInBlocks(Steps):
    """For all but float64 dk is summed over queries in bfloat16, one after the other."""

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        if self.call.query.dtype == torch.float64:
            return super().dk(ds, keys)
        total = torch.zeros_like(self.k[:, :, keys]).bfloat16()
        for n in range(ds.shape[2]):
            total = total + (ds[:, :, n, :, None] * self.q[:, :, n, None, :]).bfloat16()
        return total.float()


@mutant("gradients", "GRAD-1")
def gradients_of_last_head_zero(call: Call) -> Tensor:
    """dq, dk and dv come from the first head alone."""
    h = call.shape[1]
    first = (torch.arange(h) == 0)[:, None, None]

    def of_first(grad: Tensor) -> Tensor:
        return grad.masked_fill(~first, 0.0)

    key, value = (with_gradient(for_each_query_head(x, h), of_first) if h else x for x in (call.key, call.value))
    return call.but(query=with_gradient(call.query, of_first), key=key, value=value).run()
