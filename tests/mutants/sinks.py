"""Faults of the sink: whether it is there, whose it is, what it is, how often it counts, and what of it backward has."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from honest import blocks
from torch import Tensor
from torch.autograd.function import once_differentiable

from mutants.base import Call, mutant
from mutants.tools import Steps

SPLIT = 64  # keys that one of several workers has


@dataclass(frozen=True)
class SunkCall(Call):
    """The arguments of one call of SDPA, and sinks."""

    sinks: Tensor | None = None

    def run(self, kernel: Callable[..., Any] | None = None, **options: Any) -> Any:
        """The honest kernel on the call; any other one without its sinks."""
        if kernel is None:
            return Honest()(self)
        given = {name: x for name, x in vars(self).items() if name != "sinks"}
        return kernel(**given, **options)

    @property
    def group(self) -> int:
        """Query heads that share one of keys."""
        return self.query.shape[1] // max(self.key.shape[1], 1)


class Honest(Steps):
    """The tiled kernel with a sink, which enters after the last block of keys, and nothing wrong with it."""

    call: SunkCall
    sinks: Tensor  # (h) in the dtype of accumulators; −∞ for none

    def __call__(self, call: SunkCall) -> Tensor:
        run = copy(self)
        run.call, run.plan = call, run.planned(call)
        sinks = call.sinks if call.sinks is not None else call.query.new_full(call.query.shape[1:2], -inf)
        return _Sunk.apply(call.query, call.key, call.value, run.plan.bias, sinks, run)

    def read(self, sinks: Tensor) -> Tensor:
        """The sinks (h) as the kernel has them."""
        return sinks

    def z(self) -> Tensor:
        """The sink of each row (b h i 1)."""
        return self.read(self.sinks)[:, None, None].expand(*self.call.shape[:3], 1) + self.more()

    def more(self) -> Tensor | float:
        """What is added to the sink: log n for one that counts n times."""
        return 0.0

    def largest(self, peak: Tensor, z: Tensor) -> Tensor:
        """What the sum is shifted by once the sink is in it."""
        return torch.maximum(peak, z)

    def term(self, z: Tensor, pivot: Tensor) -> Tensor:
        """What joins the sum."""
        return torch.exp(z - pivot)

    def sunk(self, out: Tensor, total: Tensor, peak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, sum and shift with the sink."""
        z = self.z()
        after = self.largest(peak, z)
        pivot = self.pivot(after)
        shrink = torch.exp(peak - pivot)
        return out * shrink, total * shrink + self.term(z, pivot), after

    def empty(self, out: Tensor) -> Tensor:
        """The output, where rows without a key may be another."""
        return out

    def kept_lse(self, lse: Tensor, before: Tensor) -> Tensor:
        """What backward gets: the lse of keys and sink, or that of the keys alone."""
        return lse

    def dsinks(self, lse: Tensor, delta: Tensor) -> Tensor:
        """The gradient of the sinks (h)."""
        return self.summed(-torch.exp(self.z() - lse) * delta)

    def summed(self, each: Tensor) -> Tensor:
        """What each row (b h i 1) adds, summed."""
        return each.sum((0, 2, 3))

    @property
    def hidden(self) -> Tensor:
        """(b h i j) bool."""
        return self.plan.hidden


class _Sunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, sinks: Tensor, run: Honest) -> Tensor:
        run.q, run.k, run.v = run.widened(query, key, value)
        run.sinks = sinks.to(run.q.dtype)
        out, total = run.q.new_zeros(*run.q.shape[:3], run.v.shape[3]), run.q.new_zeros(*run.q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        for keys in run.tiles(run.k.shape[2]):
            scores = run.scores(keys)
            new_peak = run.peak(peak, scores)
            pivot = run.pivot(new_peak)
            weights, shrink = run.weights(scores, pivot), torch.exp(peak - pivot)
            total, out, peak = run.total(total, weights, shrink, keys), run.out(out, weights, shrink, keys), new_peak
        alone = total == 0.0
        before = peak.masked_fill(alone, 0.0) + total.masked_fill(alone, 1.0).log()
        out, total, peak = run.sunk(out, total, peak)
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        out = run.empty(run.finish(out, total)).to(query.dtype)
        lse = run.kept_lse(run.lse(peak.masked_fill(empty, 0.0), total), before)
        ctx.save_for_backward(query, key, value, bias, sinks, out, lse)
        ctx.run = run
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, sinks, out, lse = ctx.saved_tensors
        run: Honest = ctx.run
        q, k, v = run.q, run.k, run.v
        dout = cotangent.to(q.dtype)
        delta = run.delta(dout, out)
        dq, dk, dv, dbias = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), q.new_zeros(bias.shape)
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
            run.dsinks(lse, delta).to(sinks.dtype),
            None,
        )


def with_sinks(attend: Callable[[SunkCall], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one with torch SDPA's parameters and `sinks`."""

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
        return attend(SunkCall(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, sinks))

    return run


def sunk(clause: str, source: str = "", *, witness: Callable[[Any], bool] | None = None) -> Callable[[Any], Any]:
    """Enter a mutant: a class of functions of a ``SunkCall``, a fresh one for each make, or one such function."""

    return mutant("sinks", clause, source, signed=with_sinks, witness=witness)


# WHETHER IT IS THERE


def ignored(name: str, clause: str, what: str, where: Callable[[SunkCall], bool], source: str = "") -> None:
    """Enter a mutant that ignores the sinks in some calls."""

    class Ignored(Honest):
        def read(self, sinks: Tensor) -> Tensor:
            return torch.full_like(sinks, -inf) if where(self.call) else sinks

    Ignored.__name__, Ignored.__doc__ = name, what
    sunk(clause, source)(Ignored)


ignored("SinksIgnored", "SINK-1", "Sinks are accepted and not applied.", lambda call: True, "vllm-project/vllm#52156")
ignored("SinksIgnoredInDecode", "SINK-1", "A single query has no sink.", lambda call: call.shape[2] == 1)
ignored("SinksIgnoredForOneKey", "SINK-1", "A single key has all of the weight.", lambda call: call.shape[3] == 1)
ignored("SinksIgnoredBesideMask", "SINK-3", "Beside a bool mask there are no sinks.", lambda call: call.bool_mask is not None)
ignored("SinksIgnoredBesideBias", "SINK-3", "Beside a float mask there are no sinks.", lambda call: call.float_mask is not None)
ignored("SinksIgnoredInCausal", "SINK-3", "Under causal there are no sinks.", lambda call: call.is_causal)
ignored("SinksIgnoredForGroups", "SINK-2", "Where heads share keys there are no sinks.", lambda call: call.group > 1)
ignored("SinksIgnoredInHalf", "SINK-1", "In float16 there are no sinks.", lambda call: call.query.dtype == torch.float16)
ignored("SinksIgnoredAt17Keys", "SINK-1", "With 17 keys there are no sinks.", lambda call: call.shape[3] == 17)
ignored("SinksIgnoredForManyKeys", "SINK-4", "With more than 128 keys there are no sinks.", lambda call: call.shape[3] > 128)
ignored(
    "SinksIgnoredInTraining",
    "SINK-1",
    "Where a gradient is asked for there are no sinks.",
    lambda call: call.query.requires_grad,
    "NVIDIA/TransformerEngine#2541",
)


@sunk("SINK-8")
class SinksOfZeroAreNone(Honest):
    """Sinks that are all zero are taken for none."""

    def read(self, sinks: Tensor) -> Tensor:
        return sinks if sinks.any() else torch.full_like(sinks, -inf)


@sunk("SINK-1")
class SinksInTheMaximumAlone(Honest):
    """The sink joins the largest score, and not the sum."""

    def term(self, z: Tensor, pivot: Tensor) -> Tensor:
        return torch.zeros_like(pivot)


# WHOSE IT IS


@sunk("SINK-2")
class SinksOfKeyHeads(Honest):
    """Query head n has the sink with the number of its key head."""

    def read(self, sinks: Tensor) -> Tensor:
        return sinks[torch.arange(len(sinks)) // self.call.group]


@sunk("SINK-2")
class SinksOfTheFirstOfAGroup(Honest):
    """All query heads of a group have the sink of the first."""

    def read(self, sinks: Tensor) -> Tensor:
        group = self.call.group
        return sinks[torch.arange(len(sinks)) // group * group]


@sunk("SINK-2")
class SinksOfTheFirstHead(Honest):
    """All heads have the sink of the first."""

    def read(self, sinks: Tensor) -> Tensor:
        return sinks[:1].expand_as(sinks)


@sunk("SINK-2", "flashinfer-ai/flashinfer#4525")
class SinksReadPastTheEnd(Honest):
    """The last head of more than two reads what lies behind the sinks."""

    def read(self, sinks: Tensor) -> Tensor:
        behind = len(sinks) > 2 and self.call.sinks is not None
        return torch.cat([sinks[:-1], torch.full_like(sinks[-1:], 7.0)]) if behind else sinks


@sunk("SINK-2")
class SinksOfLaterBatchItems(Honest):
    """Batch items behind the first have the sinks in the opposite order."""

    def z(self) -> Tensor:
        z = super().z()
        return torch.cat([z[:1], z[1:].flip(1)])


def strides_ignored(attend: Callable[..., Tensor]) -> bool:
    """Whether the column of a table is not the same as its copy."""
    x, table = torch.linspace(-3, 3, 48).reshape(1, 2, 3, 8), torch.arange(6.0).reshape(2, 3)
    return not torch.equal(attend(x, x, x, sinks=table[:, 1]), attend(x, x, x, sinks=table[:, 1].contiguous()))


@sunk("SINK-2", witness=strides_ignored)
class SinksReadWithoutStrides(Honest):
    """The sinks are read as if one lay behind the other."""

    def __call__(self, call: SunkCall) -> Tensor:
        sinks = call.sinks
        if sinks is not None and len(sinks) > 1 and sinks.stride(0) != 1:
            wrong = torch.as_strided(sinks.detach(), sinks.shape, (1,), sinks.storage_offset())
            sinks = sinks + (wrong - sinks.detach())
        return super().__call__(SunkCall(**{**vars(call), "sinks": sinks}))


# WHAT IT IS


@sunk("SINK-3")
class SinksScaled(Honest):
    """The sink is scaled as the scores are."""

    def more(self) -> Tensor | float:
        z = self.sinks[:, None, None]
        return torch.where(z.isinf(), torch.zeros_like(z), z * self.plan.scale - z)


@sunk("SINK-3", "ROCm/rocm-libraries#12227")
class SinksScaledInDecode(SinksScaled):
    """The sink is scaled as the scores are where there is one query."""

    def more(self) -> Tensor | float:
        return super().more() if self.call.shape[2] == 1 else 0.0


@sunk("SINK-3")
class SinksInBaseTwo(Honest):
    """The sink is taken for one in base two."""

    def read(self, sinks: Tensor) -> Tensor:
        return sinks * math.log(2)


@sunk("SINK-3")
class SinksBiased(Honest):
    """The sink gets the bias of the first key."""

    def more(self) -> Tensor | float:
        if self.call.float_mask is None or not self.call.shape[3]:
            return 0.0
        bias = self.plan.bias.expand_as(self.hidden)[..., :1].to(self.q.dtype)
        return bias.masked_fill(bias == -inf, 0.0)


@sunk("SINK-3")
class SinksMasked(Honest):
    """The sink is hidden where the first key is."""

    def more(self) -> Tensor | float:
        if not self.call.shape[3]:
            return 0.0
        return torch.zeros(()).to(self.q).expand_as(self.hidden[..., :1]).masked_fill(self.hidden[..., :1], -inf)


def heavier_under_dropout(attend: Callable[..., Tensor]) -> bool:
    """Whether what dropout keeps is not twice what it is at a rate of zero, at a rate of a half."""
    x, v = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16), torch.eye(16).reshape(1, 1, 16, 16)
    whole, half = (attend(x, x, v, dropout_p=p, sinks=torch.tensor([1.0])) for p in (0.0, 0.5))
    kept = half > 0
    return not torch.allclose(half[kept], 2 * whole[kept], rtol=1e-3)


@sunk("SINK-3", witness=heavier_under_dropout)
class SinksDroppedOut(Honest):
    """Under dropout the sink weighs as much more as the keys that are kept."""

    def more(self) -> Tensor | float:
        return math.log(self.plan.survivor_weight) if self.plan.survivor_weight > 0 else 0.0


@sunk("SINK-1")
class SinksInHalf(Honest):
    """The sinks pass through bfloat16."""

    def read(self, sinks: Tensor) -> Tensor:
        return sinks.bfloat16().to(sinks.dtype)


def infinite_far_above(attend: Callable[..., Tensor]) -> bool:
    """Whether the gradient of a sink of 100 is no number."""
    x, z = torch.linspace(-1, 1, 24).reshape(1, 1, 3, 8), torch.tensor([100.0], requires_grad=True)
    return bool(torch.autograd.grad(attend(x, x, x, sinks=z).sum(), z)[0].isnan())


@sunk("SINK-6", witness=infinite_far_above)
class SinksWithoutTheMaximum(Honest):
    """The sink joins the sum and not the largest score: far above it its probability in backward is ∞/∞."""

    def largest(self, peak: Tensor, z: Tensor) -> Tensor:
        return torch.where(peak == -inf, z, peak)

    def sunk(self, out: Tensor, total: Tensor, peak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, total, peak = super().sunk(out, total, peak)
        self.pi = torch.exp(self.z() - self.pivot(peak)) / total.masked_fill(total == 0.0, 1.0)
        return out, total, peak

    def dsinks(self, lse: Tensor, delta: Tensor) -> Tensor:
        return self.summed(-self.pi * delta)


@sunk("SINK-6")
class SinksLimited(Honest):
    """Sinks beyond ±16 are ±16."""

    def read(self, sinks: Tensor) -> Tensor:
        return torch.where(sinks.isinf(), sinks, sinks.clamp(-16, 16))


@sunk("SINK-8")
class SinksOfZeroAreAOneInTheShiftedSum(Honest):
    """Where all sinks are zero a 1 is added to the sum that is shifted by the largest score."""

    def largest(self, peak: Tensor, z: Tensor) -> Tensor:
        return torch.where(peak == -inf, z, peak) if not self.sinks.any() else super().largest(peak, z)

    def term(self, z: Tensor, pivot: Tensor) -> Tensor:
        return torch.ones_like(pivot) if not self.sinks.any() else super().term(z, pivot)

    def dsinks(self, lse: Tensor, delta: Tensor) -> Tensor:
        return super().dsinks(lse, delta)


# HOW OFTEN IT COUNTS


@sunk("SINK-4")
class SinksTwice(Honest):
    """The sink counts twice."""

    def more(self) -> float:
        return math.log(2)


class BySplits(Honest):
    """As where each of several workers has 64 keys: which rows have a key in which split."""

    def filled(self) -> Tensor:
        """Whether a split has a visible key (b h i n)."""
        parts = [~self.hidden[..., keys].all(-1) for keys in blocks(self.call.shape[3], SPLIT)]
        return torch.stack(parts, -1) if parts else torch.zeros(*self.call.shape[:3], 1, dtype=torch.bool)

    def count(self, filled: Tensor) -> Tensor:
        """How often the sink counts (b h i)."""
        return torch.ones(filled.shape[:3])

    def more(self) -> Tensor:
        return self.count(self.filled()).to(self.q.dtype).log()[..., None]


@sunk("SINK-4", "ROCm/rocm-libraries#12227")
class SinksTwiceWhereTheFirstSplitIsEmpty(BySplits):
    """A first split without a visible key publishes the sink, and the next one counts it again."""

    def count(self, filled: Tensor) -> Tensor:
        return 1.0 + (~filled[..., 0] & filled.any(-1))


@sunk("SINK-4", "ROCm/rocm-libraries#12227")
class SinksLostWhereTheFirstSplitIsEmpty(BySplits):
    """A first split without a visible key is skipped, and the sink with it."""

    def count(self, filled: Tensor) -> Tensor:
        return (filled[..., 0] | ~filled.any(-1)).float()


@sunk("SINK-4")
class SinksOfEverySplit(BySplits):
    """Each split of 64 keys counts the sink."""

    def count(self, filled: Tensor) -> Tensor:
        return filled.sum(-1).clamp(min=1).float()


@sunk("SINK-4", "ml-explore/mlx#3452")
class SinksOfEverySplitInDecode(SinksOfEverySplit):
    """Where there is one query, each split of 64 keys counts the sink."""

    def count(self, filled: Tensor) -> Tensor:
        return super().count(filled) if self.call.shape[2] == 1 else torch.ones(filled.shape[:3])


@sunk("SINK-10")
class SinksAfterTheFactOfAnLseThatHasThem(Honest):
    """The output with the sink is multiplied by the sigmoid of an lse that has it already."""

    def empty(self, out: Tensor) -> Tensor:
        return out * torch.sigmoid(self.with_it - self.z().masked_fill(self.z() == -inf, -1e30))

    def lse(self, peak: Tensor, total: Tensor) -> Tensor:
        return super().lse(peak, total)

    def finish(self, out: Tensor, total: Tensor) -> Tensor:
        self.with_it = self.shift + total.log()
        return super().finish(out, total)

    def sunk(self, out: Tensor, total: Tensor, peak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, total, peak = super().sunk(out, total, peak)
        self.shift = self.pivot(peak)
        return out, total, peak


# ROWS WITHOUT A KEY, HEADS WITHOUT A SINK


@sunk("SINK-5")
class SinksInEmptyRowsAreNaN(Honest):
    """A row without a key is NaN beside a sink."""

    def empty(self, out: Tensor) -> Tensor:
        return out.masked_fill(self.hidden.all(-1, keepdim=True) & (self.z() > -inf), math.nan)


@sunk("SINK-5")
class SinksInEmptyRowsAreTheMean(Honest):
    """A row without a key is the mean of the values beside a sink."""

    def empty(self, out: Tensor) -> Tensor:
        if not self.call.shape[3]:
            return out
        return torch.where(self.hidden.all(-1, keepdim=True) & (self.z() > -inf), self.v.mean(2, keepdim=True), out)


@sunk("SINK-7")
class SinksOfMinusInfinityAreNaN(Honest):
    """Where the first 16 keys are hidden, a sink of −∞ makes NaN of −∞ − (−∞)."""

    def empty(self, out: Tensor) -> Tensor:
        first = self.hidden[..., :16].all(-1, keepdim=True)
        return out.masked_fill(first & (self.z() == -inf) if self.call.sinks is not None else first & False, math.nan)


@sunk("SINK-7")
class SinksOfMinusInfinityAreZero(Honest):
    """A sink of −∞ is read as zero."""

    def read(self, sinks: Tensor) -> Tensor:
        return sinks if self.call.sinks is None else sinks.masked_fill(sinks == -inf, 0.0)


# A CONSTANT IN A ROW


@sunk("SINK-9")
class SinksBesideABiasOfRows(Honest):
    """A bias that is the same for all keys is left out, as a softmax does not notice it."""

    def z(self) -> Tensor:
        bias = self.plan.bias
        if self.call.float_mask is None or bias.shape[3] != 1:
            return super().z()
        bias = bias.masked_fill(bias == -inf, 0.0).to(self.q.dtype)
        return super().z() + bias.expand(*self.call.shape[:3], 1)


@sunk("SINK-9")
class SinksBesideLargeBiases(Honest):
    """The largest bias of each row is taken off the scores first."""

    def z(self) -> Tensor:
        if self.call.float_mask is None or not self.call.shape[3]:
            return super().z()
        most = self.plan.bias.expand_as(self.hidden).amax(-1, keepdim=True).to(self.q.dtype)
        return super().z() + torch.where(most > 15, most, torch.zeros_like(most))


# BACKWARD


@sunk("SINK-11", "NVIDIA/TransformerEngine#2541")
class SinksMissingInBackward(Honest):
    """Backward recomputes the probabilities from the lse of the keys alone."""

    def kept_lse(self, lse: Tensor, before: Tensor) -> Tensor:
        return before

    def dsinks(self, lse: Tensor, delta: Tensor) -> Tensor:
        return super().dsinks(torch.logaddexp(lse, self.z()), delta)


@sunk("SINK-11")
class SinksCentred(Honest):
    """dS of a row is made to sum to zero."""

    def delta(self, dout: Tensor, out: Tensor) -> Tensor:
        self.right = super().delta(dout, out)
        return self.right / (1 - self.share).clamp(min=1e-30)

    def kept_lse(self, lse: Tensor, before: Tensor) -> Tensor:
        self.share = torch.exp(self.z() - lse)
        return lse

    def dsinks(self, lse: Tensor, delta: Tensor) -> Tensor:
        return super().dsinks(lse, self.right)


@sunk("SINK-12", "NVIDIA/TransformerEngine#2541")
class SinkGradientZero(Honest):
    """The gradient of the sinks is zero."""

    def summed(self, each: Tensor) -> Tensor:
        return super().summed(each) * 0


@sunk("SINK-12")
class SinkGradientPositive(Honest):
    """The gradient of the sinks lacks its sign."""

    def summed(self, each: Tensor) -> Tensor:
        return -super().summed(each)


@sunk("SINK-12")
class SinkGradientOfLastItem(Honest):
    """The gradient of the sinks is that of the last batch item."""

    def summed(self, each: Tensor) -> Tensor:
        return super().summed(each[-1:])


@sunk("SINK-12")
class SinkGradientOfFullBlocks(Honest):
    """Rows behind the last full block of 16 add nothing to the gradient of the sinks."""

    def summed(self, each: Tensor) -> Tensor:
        i = each.shape[2]
        return super().summed(each[:, :, : i // 16 * 16 or i])


@sunk("SINK-12")
class SinkGradientOfRowsThatSeeTheFirstKeys(Honest):
    """Rows of which the first 16 keys are hidden add nothing to the gradient of the sinks."""

    def summed(self, each: Tensor) -> Tensor:
        return super().summed(each.masked_fill(self.hidden[..., :16].all(-1, keepdim=True), 0.0))


@sunk("SINK-12")
class SinkGradientNaNInEmptyRows(Honest):
    """A row without a key makes the gradient of its head's sink NaN."""

    def summed(self, each: Tensor) -> Tensor:
        none = self.hidden.all(-1, keepdim=True) & (self.z() > -inf)
        return super().summed(each.masked_fill(none, math.nan))


@sunk("SINK-12")
class SinkGradientOfGroups(Honest):
    """Each head of a group has the gradient of the whole group's sinks."""

    def summed(self, each: Tensor) -> Tensor:
        own = super().summed(each)
        return own.view(-1, self.call.group).sum(1, keepdim=True).expand(-1, self.call.group).reshape(-1)


@sunk("SINK-12")
class SinkGradientOfKeysAlone(Honest):
    """The probability of the sink is taken from the lse of the keys alone."""

    def kept_lse(self, lse: Tensor, before: Tensor) -> Tensor:
        self.before = before
        return lse

    def dsinks(self, lse: Tensor, delta: Tensor) -> Tensor:
        return super().dsinks(self.before, delta)


@sunk("SINK-12")
class SinkGradientAveraged(Honest):
    """The gradient of the sinks is the mean over batch items."""

    def summed(self, each: Tensor) -> Tensor:
        return super().summed(each) / max(each.shape[0], 1)


# CALL AFTER CALL


def sinks_mixed(attend: Callable[..., Tensor]) -> bool:
    """Whether a call with other sinks gives what an earlier one gave."""
    x = torch.linspace(-3, 3, 24).reshape(1, 1, 3, 8)
    first, second = (attend(x, x, x, sinks=torch.tensor([z])) for z in (0.5, 3.0))
    return torch.equal(first, second)


@sunk("SINK-12", witness=sinks_mixed)
class SinksOfFirstCall(Honest):
    """A kernel is kept for each shape and dtype with the sinks of its first call."""

    def __init__(self) -> None:
        self.known: dict[Any, Tensor] = {}

    def read(self, sinks: Tensor) -> Tensor:
        key = self.call.shape, self.call.query.dtype
        return sinks if self.call.sinks is None else self.known.setdefault(key, sinks.clone())
