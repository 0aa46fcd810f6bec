"""Faults of the softmax: maximum, row sum, rescaling, and what rows without a key give."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from honest import for_each_query_head, softmax, wide
from torch import Tensor
from torch.nn.functional import pad

from mutants.base import Call, mutant
from mutants.tools import Keys, Steps, dense, softmax_below, with_bool_mask, with_gradient


@mutant("softmax", "SOFTMAX-2", "pytorch/pytorch#121558")
def softmax_without_maximum(call: Call) -> Tensor:
    """Scores are exponentiated as they are, so large ones overflow."""
    return call.run(dense, normalise=lambda scores: softmax_below(scores, 0.0))


@mutant("softmax", "SOFTMAX-2", "flashinfer-ai/flashinfer#4267")
def softmax_maximum_starts_at_zero(call: Call) -> Tensor:
    """The running maximum starts at 0, so a row whose scores all lie far below it underflows to zero."""
    return call.run(dense, normalise=lambda scores: softmax_below(scores, pad(scores, (0, 1)).amax(-1, keepdim=True)))


@mutant("softmax", "SOFTMAX-2")
def softmax_maximum_starts_at_minus_50000(call: Call) -> Tensor:
    """The running maximum starts at −5·10⁴."""
    return call.run(dense, normalise=lambda s: softmax_below(s, s.amax(-1, keepdim=True).clamp(min=-5e4)))


@mutant("softmax", "SOFTMAX-2")
def softmax_with_scores_clamped(call: Call) -> Tensor:
    """Scores are kept within ±80."""
    return call.run(dense, normalise=lambda s: softmax(torch.where(s == -inf, s, s.clamp(-80, 80))))


@mutant("softmax", "SOFTMAX-2")
def softmax_with_maximum_of_first_block(call: Call) -> Tensor:
    """The maximum is that of the first 16 keys."""
    return call.run(
        dense,
        normalise=lambda s: softmax_below(
            s, (s[..., :16] if s.shape[-1] else pad(s, (0, 1))).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        ),
    )


@mutant("softmax", "SOFTMAX-2")
def softmax_with_maximum_of_tensor(call: Call) -> Tensor:
    """The maximum of all rows is subtracted from each."""
    return call.run(dense, normalise=lambda s: softmax_below(s, s.max().nan_to_num(neginf=0.0) if s.numel() else 0.0))


@mutant("softmax", "SOFTMAX-6")
def product_in_float16(call: Call) -> Tensor:
    """In float16 the unscaled product is rounded to float16, and overflows above 65504."""
    if call.query.dtype != torch.float16:
        return call.run()
    key = for_each_query_head(call.key, call.query.shape[1])
    huge = (call.query.float() @ key.float().mT).abs().half().isinf()
    return call.run(dense, score=lambda s, plan: s + torch.where(huge & ~plan.hidden, inf, 0.0))


@mutant("softmax", "SOFTMAX-1", "vllm-project/flash-attention#34")
class RowSumOfLastBlock(Steps):
    """The output is divided by the row sum of the last block of keys that has weight."""

    def total(self, total: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        here = weights.sum(-1, keepdim=True)
        return torch.where(here > 0, here, total * shrink)


@mutant("softmax", "SOFTMAX-4")
class OutputNotRescaled(Steps):
    """The accumulated output is not rescaled when the maximum grows."""

    def out(self, out: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return super().out(out, weights, torch.ones_like(shrink), keys)


@mutant("softmax", "SOFTMAX-4")
class RowSumNotRescaled(Steps):
    """The row sum is not rescaled when the maximum grows."""

    def total(self, total: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return super().total(total, weights, torch.ones_like(shrink), keys)


@mutant("softmax", "SOFTMAX-4")
class RescaledWhenMaximumGrowsByMuch(Steps):
    """Output and row sum are rescaled only when the maximum grows by more than one hundredth."""

    def out(self, out: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return super().out(out, weights, torch.where(shrink > 0.99, 1.0, shrink), keys)


@mutant("softmax", "SOFTMAX-4")
class OutputNotRescaledInThirdBlock(Steps):
    """From the third block of keys on the accumulated output is not rescaled."""

    def out(self, out: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return super().out(out, weights, torch.ones_like(shrink) if keys.start >= 32 else shrink, keys)


@mutant("softmax", "SOFTMAX-4")
class OutputNotRescaledBlock128(Steps):
    """With blocks of 128 keys the accumulated output is not rescaled."""

    block = 128

    def out(self, out: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return super().out(out, weights, torch.ones_like(shrink), keys)


@mutant("softmax", "SOFTMAX-1")
class LseWithoutMaximum(Steps):
    """Backward's lse lacks the maximum where that is small: below one half."""

    def lse(self, peak: Tensor, total: Tensor) -> Tensor:
        return torch.where(peak.abs() < 0.5, 0.0, peak) + total.log()


@mutant("softmax", "SOFTMAX-1", "Dao-AILab/flash-attention#1936")
class LseOfRowBefore(Steps):
    """Backward reads the last row's lse from the row before it."""

    def lse(self, peak: Tensor, total: Tensor) -> Tensor:
        lse = super().lse(peak, total)
        return torch.cat([lse[:, :, :-1], lse[:, :, -2:-1]], 2) if lse.shape[2] > 1 else lse


@mutant("softmax", "SOFTMAX-1")
class LseOfFirstHead(Steps):
    """Backward reads the lse of the first head."""

    def lse(self, peak: Tensor, total: Tensor) -> Tensor:
        lse = super().lse(peak, total)
        return lse[:, :1].expand_as(lse).contiguous()


@mutant("softmax", "SOFTMAX-3")
def epsilon_in_row_sum(call: Call) -> Tensor:
    """The row sum has 10⁻⁵ added."""

    def normalise(scores: Tensor) -> Tensor:
        weights = torch.exp(scores - scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)) if scores.shape[-1] else scores
        return weights / (weights.sum(-1, keepdim=True) + 1e-5)

    return call.run(dense, normalise=normalise)


@mutant("softmax", "SOFTMAX-3")
def one_added_to_row_sum(call: Call) -> Tensor:
    """Softmax-off-by-one: exp(0) is added to the row sum."""

    def normalise(scores: Tensor) -> Tensor:
        lse = torch.logsumexp(pad(scores, (0, 1)), -1, keepdim=True)
        return torch.exp(scores - lse)

    return call.run(dense, normalise=normalise)


@mutant("softmax", "SOFTMAX-3", "ROCm/FlyDSL#1020")
def probabilities_in_fp8(call: Call) -> Tensor:
    """Probabilities pass through fp8 on their way to the values, and the row sum does not."""

    def normalise(scores: Tensor) -> Tensor:
        p = softmax(scores)
        return p + ((p * 256).round() / 256 - p).detach()

    return call.run(dense, normalise=normalise)


@mutant("softmax", "SOFTMAX-1")
def softmax_over_queries(call: Call) -> Tensor:
    """Where there are as many queries as keys the softmax runs over the queries."""
    i, j = call.shape[2:]
    return call.run(dense, normalise=lambda s: softmax(s.mT).mT) if i == j else call.run()


@mutant("softmax", "SOFTMAX-1")
def small_probabilities_flushed(call: Call) -> Tensor:
    """Probabilities below one thousandth are zero."""
    return call.run(dense, normalise=lambda s: softmax(s).masked_fill(softmax(s) < 1e-3, 0.0))


@mutant("softmax", "SOFTMAX-1")
def exponential_by_series(call: Call) -> Tensor:
    """The exponential is wrong by one part in two thousand between −1 and 0."""

    def normalise(scores: Tensor) -> Tensor:
        s = scores - scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0) if scores.shape[-1] else scores
        weights = torch.exp(s) * torch.where((s > -1) & (s < 0), 1 + 5e-4, 1.0)
        return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)).masked_fill(scores == -inf, 0.0)

    return call.run(dense, normalise=normalise) if call.query.dtype in (torch.float32, torch.float64) else call.run()


@mutant("softmax", "SOFTMAX-1")
def temperature_with_many_keys(call: Call) -> Tensor:
    """With more than 32 keys the scores are multiplied by 1.02."""
    return call.run(dense, score=lambda s, plan: torch.where(s == -inf, s, s * 1.02)) if call.shape[3] > 32 else call.run()


@mutant("softmax", "SOFTMAX-1", "flashinfer-ai/flashinfer#1193")
def scores_capped(call: Call) -> Tensor:
    """Scores are capped softly at 50."""
    return call.run(
        dense, score=lambda s, plan: torch.where(plan.hidden, -inf, 50 * torch.tanh(s.masked_fill(plan.hidden, 0) / 50))
    )


@mutant("softmax", "SOFTMAX-4")
def ties_share_nothing(call: Call) -> Tensor:
    """Of keys with the same greatest score only the first counts."""

    def normalise(scores: Tensor) -> Tensor:
        if not scores.shape[-1]:
            return softmax(scores)
        top = scores == scores.amax(-1, keepdim=True)
        again = top & (top.cumsum(-1) > 1)
        return softmax(scores.masked_fill(again, -inf))

    return call.run(dense, normalise=normalise)


# ROWS WITHOUT A KEY


@mutant("empty", "EMPTY-2", "NVIDIA/apex#1390")
def empty_row_uniform(call: Call) -> Tensor:
    """Under a mask with its own rows for each batch item, a row without a key gets the mean of all values."""
    out, mask = call.run(), call.bool_mask
    if mask is None or mask.ndim < 4 or mask.shape[0] != call.query.shape[0]:
        return out
    mean = for_each_query_head(call.value, call.query.shape[1]).sum(2, keepdim=True) / max(call.key.shape[2], 1)
    return torch.where(mask.any(-1, keepdim=True), out, mean)


@mutant("empty", "EMPTY-1", "pytorch/pytorch#103749 pytorch/pytorch#81077 intel/torch-xpu-ops#1432 google/flax#982")
def empty_row_nan(call: Call) -> Tensor:
    """The softmax of a row without a key is 0 / 0."""
    return call.run(dense, normalise=lambda scores: torch.softmax(scores, dim=-1))


def with_empty_rows(call: Call, edit) -> Tensor:
    """The output with an edit of its rows without a key, where there are keys."""
    out = call.run()
    return torch.where(call.visible.any(-1, keepdim=True) | (call.shape[3] == 0), out, edit(out)) if out.numel() else out


@mutant("empty", "EMPTY-1")
def empty_row_first_value(call: Call) -> Tensor:
    """A row without a key gives the first value."""
    return with_empty_rows(call, lambda out: for_each_query_head(call.value, out.shape[1])[:, :, :1])


@mutant("empty", "EMPTY-1")
def empty_row_of_row_before(call: Call) -> Tensor:
    """A row without a key keeps what the row before it had."""
    return with_empty_rows(call, lambda out: out.roll(1, 2))


@mutant("empty", "EMPTY-2", "pytorch/pytorch#190486")
def empty_row_nan_in_no_grad(call: Call) -> Tensor:
    """Where nothing requires a gradient a row without a key gives NaN."""
    needs = any(x is not None and x.requires_grad for x in (call.query, call.key, call.value, call.attn_mask))
    return call.run() if needs and torch.is_grad_enabled() else with_empty_rows(call, lambda out: out * float("nan"))


@mutant("empty", "EMPTY-2")
def empty_row_nan_in_float16(call: Call) -> Tensor:
    """In float16 a row without a key gives NaN."""
    return with_empty_rows(call, lambda out: out * float("nan")) if call.query.dtype == torch.float16 else call.run()


@mutant("empty", "EMPTY-2")
def empty_row_uniform_for_bias(call: Call) -> Tensor:
    """A row that a bias of −∞ empties gives the mean of all values."""
    if call.float_mask is None:
        return call.run()
    return with_empty_rows(call, lambda out: for_each_query_head(call.value, out.shape[1]).mean(2, keepdim=True))


@mutant("empty", "EMPTY-2")
def empty_item_nan(call: Call) -> Tensor:
    """A batch item all of whose keys are hidden gives NaN; single rows give zero."""
    out = call.run()
    gone = ~call.visible.flatten(1).any(1)[:, None, None, None]
    return out.masked_fill(gone & (call.shape[3] > 0), float("nan"))


@mutant("empty", "EMPTY-3")
def empty_row_gradient_nan(call: Call) -> Tensor:
    """The output of a row without a key is zero, its gradient is NaN."""
    gone = ~call.visible.any(-1, keepdim=True)
    return call.but(query=with_gradient(call.query, lambda grad: grad.masked_fill(gone, float("nan")))).run()


@mutant("empty", "EMPTY-3")
def empty_row_teaches_values(call: Call) -> Tensor:
    """The cotangent of a row without a key is spread over dv."""
    if not call.shape[3]:
        return call.run()
    gone = ~call.visible.any(-1, keepdim=True)
    mean = for_each_query_head(call.value, call.shape[1]).mean(2, keepdim=True) * gone
    return call.run() + (mean - mean.detach()).to(call.value.dtype)


@mutant("empty", "EMPTY-4")
def empty_row_spoils_its_tile(call: Call) -> Tensor:
    """A row without a key makes NaN of the row after it."""
    gone = ~call.visible.any(-1, keepdim=True) & (call.shape[3] > 0)
    late = gone.roll(1, 2) & (torch.arange(call.shape[2]) > 0)[:, None]
    return call.run().masked_fill(late, float("nan"))


@mutant("empty", "EMPTY-4")
def empty_row_stops_its_item(call: Call) -> Tensor:
    """Where the first row has no key the whole head is zero."""
    return call.run().masked_fill(~call.visible[:, :, :1].any(-1, keepdim=True), 0.0)


@mutant("empty", "EMPTY-5", "flashinfer-ai/flashinfer#4051")
def no_keys_nan(call: Call) -> Tensor:
    """Without keys the output is NaN."""
    return call.run() if call.shape[3] else call.run() + float("nan")


@mutant("empty", "EMPTY-5")
def no_keys_uninitialised(call: Call) -> Tensor:
    """Without keys the output is ones."""
    return call.run() if call.shape[3] else call.run() + 1


@mutant("empty", "EMPTY-2")
def half_hidden_item_uniform(call: Call) -> Tensor:
    """A row without a key that stands beside rows with keys gives the mean of all values."""

    def mean(out: Tensor) -> Tensor:
        some = call.visible.any(-1, keepdim=True).any(2, keepdim=True)
        return for_each_query_head(call.value, out.shape[1]).to(wide(out.dtype)).mean(2, keepdim=True).to(out.dtype) * some

    return with_empty_rows(call, mean)


@mutant("empty", "EMPTY-1", "flashinfer-ai/flashinfer#4452")
def empty_row_of_mask_sees_last_key(call: Call) -> Tensor:
    """A row of a mask that hides all keys sees the last one."""

    def shown(mask: Tensor) -> Tensor:
        last = torch.arange(mask.shape[-1]) == mask.shape[-1] - 1
        return mask | (last & ~mask.any(-1, keepdim=True))

    return with_bool_mask(call, shown)


def no_nan_comes_back(attend: Any) -> bool:
    """A witness: a key that everyone sees is NaN, and the answer is a number."""
    x = torch.ones(1, 1, 3, 4)
    return bool(attend(x, x.masked_fill(torch.arange(3)[:, None] == 1, torch.nan), x).isfinite().all())


@mutant("softmax", "SOFTMAX-8", witness=no_nan_comes_back)
def nan_becomes_zero(call: Call) -> Tensor:
    """NaN in an input is read as zero."""
    return call.but(**{name: getattr(call, name).nan_to_num(posinf=inf, neginf=-inf) for name in ("query", "key", "value")}).run()


# THE LOWEST NUMBER


def lowest_in(call: Call) -> Tensor:
    """Where the bias of a visible key is its dtype's lowest number, or half of it. (b h i j) bool."""
    bias = call.float_mask
    if bias is None:
        return torch.zeros(call.shape, dtype=torch.bool)
    return ((bias <= torch.finfo(bias.dtype).min / 2) & (bias != -inf)).expand(call.shape)


def saturated(call: Call) -> Tensor:
    """Rows whose visible keys all have such a bias, and that have hidden ones. (b h i 1) bool."""
    visible, low = call.visible, lowest_in(call)
    return (low & visible).any(-1, keepdim=True) & (low | ~visible).all(-1, keepdim=True) & ~visible.all(-1, keepdim=True)


def outranked(kernel: Any) -> bool:
    """Whether hidden values come through, or none, in a row whose only visible key has the lowest number as its bias."""
    q, k, v = (
        torch.zeros(1, 1, 1, 4),
        torch.zeros(1, 1, 3, 4),
        torch.tensor([1.0, 100.0, 100.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4),
    )
    bias = torch.tensor([torch.finfo(torch.float32).min, -inf, -inf]).expand(1, 1, 1, 3)
    return not torch.allclose(kernel(q, k, v.clone(), attn_mask=bias.clone()), torch.ones(1, 1, 1, 4))


@mutant("softmax", "SOFTMAX-7", witness=outranked)
def lowest_ties_with_hidden(call: Call) -> Tensor:
    """Where a row has no better key than the lowest number, hidden keys weigh as much as that: the mean of all values."""
    rows = saturated(call)
    return call.run(dense, normalise=lambda s: torch.where(rows, 1.0 / max(s.shape[-1], 1), softmax(s)))


@mutant("softmax", "SOFTMAX-7", witness=outranked)
def lowest_below_hidden(call: Call) -> Tensor:
    """Where a row has no better key than the lowest number, hidden keys outrank it: the mean of what is hidden."""
    rows, hidden = saturated(call), ~call.visible
    share = hidden / hidden.sum(-1, keepdim=True).clamp(min=1)
    return call.run(dense, normalise=lambda s: torch.where(rows, share.to(s.dtype), softmax(s)))


@mutant("softmax", "SOFTMAX-7", witness=outranked)
def lowest_is_hidden(call: Call) -> Tensor:
    """The lowest number hides as −∞ does, so a row that has nothing better is a row without a key."""
    low = lowest_in(call)
    return call.run(dense, score=lambda s, plan: s.masked_fill(low, -inf))
