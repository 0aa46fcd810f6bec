"""Faults of dropout: factor, mask of backward, rate, independence."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import torch
from honest import Plan, softmax
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import Keys, Steps, dense


@mutant("dropout", "DROPOUT-1")
def dropout_not_rescaled(call: Call) -> Tensor:
    """The surviving probabilities are not divided by 1 - p."""
    return call.run(dense, dropout=lambda probabilities, plan: probabilities.masked_fill(plan.dropped, 0.0))


@mutant("dropout", "DROPOUT-1")
def dropout_divided_by_rate(call: Call) -> Tensor:
    """The surviving probabilities are divided by the rate."""
    rate = call.dropout_p or 1.0
    return call.run(dense, dropout=lambda p, plan: p.masked_fill(plan.dropped, 0.0) / rate)


@mutant("dropout", "DROPOUT-1")
def dropout_before_softmax(call: Call) -> Tensor:
    """Dropped keys are hidden before the softmax."""
    if not call.dropout_p:
        return call.run()
    return call.run(dense, score=lambda s, plan: s.masked_fill(plan.dropped, -inf), normalise=softmax, dropout=lambda p, plan: p)


@mutant("dropout", "DROPOUT-1")
def dropout_renormalised(call: Call) -> Tensor:
    """What is kept is divided by its sum."""

    def dropout(p: Tensor, plan: Plan) -> Tensor:
        kept = p.masked_fill(plan.dropped, 0.0)
        return kept / kept.sum(-1, keepdim=True).clamp(min=1e-30)

    return call.run(dense, dropout=dropout) if call.dropout_p else call.run()


@mutant("dropout", "DROPOUT-1", "pytorch/pytorch#27968")
class DropoutInRowSum(Steps):
    """The row sum is that of the kept and scaled probabilities."""

    def total(self, total: Tensor, weights: Tensor, shrink: Tensor, keys: Keys) -> Tensor:
        return super().total(total, self.plan.thin_out(weights, keys), shrink, keys)


@mutant("dropout", "DROPOUT-1")
def dropout_of_output(call: Call) -> Tensor:
    """Dropout is applied to the output, not to the probabilities."""
    out = call.but(dropout_p=0.0).run()
    return torch.dropout(out, call.dropout_p, True) if call.dropout_p else out


@mutant("dropout", "DROPOUT-2", "pytorch/pytorch#196586")
def dropout_redrawn_in_backward(call: Call) -> Tensor:
    """The backward uses a dropout pattern other than the forward's."""

    def dropout(probabilities: Tensor, plan: Plan) -> Tensor:
        in_backward = replace(plan, dropped=plan.dropped.flip(-1)).thin_out(probabilities)
        return in_backward + (plan.thin_out(probabilities) - in_backward).detach()

    return call.run(dense, dropout=dropout)


@mutant("dropout", "DROPOUT-2")
class DropoutForgottenInScores(Steps):
    """Backward applies dropout to dv and not to dP."""

    def dropped(self, x: Tensor, keys: Keys) -> Tensor:
        self.second = not getattr(self, "second", False)
        return super().dropped(x, keys) if self.second else x


@mutant("dropout", "DROPOUT-2")
class DropoutOfFirstBlockInBackward(Steps):
    """Backward uses the pattern of the first block of keys for all blocks."""

    def dropped(self, x: Tensor, keys: Keys) -> Tensor:
        return super().dropped(x, slice(0, x.shape[3]))


@mutant("dropout", "DROPOUT-2")
class DropoutNotRescaledInBackward(Steps):
    """Backward does not divide by 1 − r."""

    def dropped(self, x: Tensor, keys: Keys) -> Tensor:
        return x.masked_fill(self.plan.dropped[..., keys], 0.0)


@mutant("dropout", "DROPOUT-4")
def dropout_of_one_is_nan(call: Call) -> Tensor:
    """A rate of one divides by zero."""
    return call.run() * float("nan") if call.dropout_p == 1.0 else call.run()


@mutant("dropout", "DROPOUT-4")
def dropout_of_one_raises(call: Call) -> Tensor:
    """A rate of one raises."""
    if call.dropout_p == 1.0:
        raise ValueError("dropout must be below 1")
    return call.run()


def with_pattern(call: Call, draw) -> Tensor:
    """The call with its own way to draw what is dropped, `draw(shape)` of True where a probability goes."""
    if not 0.0 < call.dropout_p < 1.0:
        return call.run()
    dropped = draw(call.shape).expand(call.shape)
    return call.run(dense, dropout=lambda p, plan: p.masked_fill(dropped, 0.0) * plan.survivor_weight)


@mutant("dropout", "DROPOUT-5")
def dropout_same_for_all_heads(call: Call) -> Tensor:
    """All heads drop the same."""
    return with_pattern(call, lambda s: torch.rand(s[0], 1, s[2], s[3]) < call.dropout_p)


@mutant("dropout", "DROPOUT-5")
def dropout_same_for_all_items(call: Call) -> Tensor:
    """All batch items drop the same."""
    return with_pattern(call, lambda s: torch.rand(1, *s[1:]) < call.dropout_p)


@mutant("dropout", "DROPOUT-5")
def dropout_of_whole_rows(call: Call) -> Tensor:
    """Queries are dropped as a whole."""
    return with_pattern(call, lambda s: torch.rand(*s[:3], 1) < call.dropout_p)


@mutant("dropout", "DROPOUT-5")
def dropout_of_whole_keys(call: Call) -> Tensor:
    """Keys are dropped for all queries of a head."""
    return with_pattern(call, lambda s: torch.rand(s[0], s[1], 1, s[3]) < call.dropout_p)


@mutant("dropout", "DROPOUT-5")
def dropout_repeats_each_block(call: Call) -> Tensor:
    """The counter starts again at each 16 keys."""
    return with_pattern(call, lambda s: (torch.rand(*s[:3], 16) < call.dropout_p).repeat(1, 1, 1, -(-s[3] // 16))[..., : s[3]])


@mutant("dropout", "DROPOUT-5")
def dropout_in_pairs(call: Call) -> Tensor:
    """Two neighbouring keys are dropped together."""
    return with_pattern(call, lambda s: (torch.rand(*s[:3], -(-s[3] // 2)) < call.dropout_p).repeat_interleave(2, -1)[..., : s[3]])


@mutant("dropout", "DROPOUT-5")
def dropout_rate_exchanged(call: Call) -> Tensor:
    """A probability is kept with the chance r, and divided by r."""
    return call.but(dropout_p=1 - call.dropout_p if call.dropout_p else 0.0).run()


@mutant("dropout", "DROPOUT-5")
def dropout_rate_in_256ths(call: Call) -> Tensor:
    """The rate is rounded down to quarters; the factor is that of the full rate."""
    return with_pattern(call, lambda s: torch.rand(s) < int(call.dropout_p * 4) / 4)


@mutant("dropout", "DROPOUT-5")
def dropout_keeps_a_little_more(call: Call) -> Tensor:
    """Nine tenths of the rate are dropped; the factor is that of the full rate."""
    return with_pattern(call, lambda s: torch.rand(s) < 0.9 * call.dropout_p)


@mutant("dropout", "DROPOUT-5")
def dropout_never_the_first_key(call: Call) -> Tensor:
    """The first key is never dropped."""
    return with_pattern(call, lambda s: (torch.rand(s) < call.dropout_p) & (torch.arange(s[3]) > 0))


@mutant("dropout", "DROPOUT-5")
def dropout_seed_fixed(call: Call) -> Tensor:
    """Each call drops the same, whatever the generator says."""
    fixed = torch.Generator().manual_seed(7)
    return with_pattern(call, lambda s: torch.rand(s, generator=fixed) < call.dropout_p)


@mutant("dropout", "DROPOUT-5")
def dropout_not_done(call: Call) -> Tensor:
    """A dropout rate is accepted and nothing is dropped."""
    return call.but(dropout_p=0.0).run()


@mutant("dropout", "DROPOUT-3")
class DropoutRateRemembered:
    """A call without a rate uses the rate of the call before."""

    rate = 0.0

    def __call__(self, call: Call) -> Tensor:
        out = call.but(dropout_p=call.dropout_p or min(self.rate, 0.5)).run()
        self.rate = call.dropout_p
        return out


@mutant("dropout", "DROPOUT-3", "pytorch/pytorch#124464")
def dropout_of_one_percent_always(call: Call) -> Tensor:
    """Without a rate a hundredth is dropped."""
    return call.but(dropout_p=call.dropout_p or 0.01).run()


@mutant("dropout", "DROPOUT-1")
def dropout_rescaled_without_dropping_masked(call: Call) -> Tensor:
    """Beside a mask the kept probabilities are not divided by 1 − r."""
    if call.attn_mask is None:
        return call.run()
    return call.run(dense, dropout=lambda p, plan: p.masked_fill(plan.dropped, 0.0))
