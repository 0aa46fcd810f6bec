"""Faults that once went under a wrong clause or a wrong name."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from mutants.base import Call, mutant
from mutants.causality import separate
from mutants.tools import Keys, Steps, dense


@mutant("scale", "ACCURACY-4")
def default_scale_in_float32(call: Call) -> Tensor:
    """The default scale is held in float32, in a kernel for float64, too."""
    return call.but(scale=float(torch.tensor(call.scale_in_use)) if call.scale is None else call.scale).run()


def _with_epsilon(scores: Tensor) -> Tensor:
    """A softmax over a row sum to which a little is added."""
    peak = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.new_zeros(*scores.shape[:-1], 1)
    weights = torch.exp(scores - peak.masked_fill(peak == -inf, 0.0))
    return weights / (weights.sum(-1, keepdim=True) + 1e-9)


@mutant("softmax", "ACCURACY-4")
def small_constant_in_row_sum(call: Call) -> Tensor:
    """1e-9 is added to the row sum, which no other dtype than float64 shows."""
    return call.run(dense, normalise=_with_epsilon)


@mutant("empty", "EMPTY-1")
def hidden_scores_less_10000(call: Call) -> Tensor:
    """10000 is subtracted from what a mask hides, in place of −∞."""
    mask = call.bool_mask
    if mask is None:
        return call.run()
    return call.but(attn_mask=torch.zeros(mask.shape, dtype=call.query.dtype).masked_fill(~mask, -1e4)).run()


@mutant("causal", "CAUSAL-6", raw=True)
def causal_wins_over_padding(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """Beside causal a mask that does not vary over the queries is not read."""
    one_row = mask is not None and (mask.ndim == 2 or mask.shape[-2] == 1)
    return separate(q, k, v, None if causal and one_row else mask, bias, causal, scale)


@mutant("mode", "MODE-1")
def first_key_lost_without_gradients(call: Call) -> Tensor:
    """Where no input requires a gradient the first of several keys is not read."""
    if call.query.requires_grad or call.key.requires_grad or call.value.requires_grad or call.key.shape[2] < 2:
        return call.run()
    mask = torch.ones(call.shape[2:], dtype=torch.bool)
    mask[:, 0] = False
    shown = call.visible & mask
    mask = shown if call.float_mask is None else call.float_mask.expand(call.shape).masked_fill(~shown, -inf)
    return call.but(attn_mask=mask, is_causal=False).run()


@mutant("dropout", "DROPOUT-2")
class DropoutDrawnAgainForScores(Steps):
    """Backward uses the pattern of forward for dv, and for dP that of the heads in the opposite order."""

    def dropped(self, x: Tensor, keys: Keys) -> Tensor:
        self.second = not getattr(self, "second", False)
        return super().dropped(x, keys) if self.second else super().dropped(x.flip(1), keys).flip(1)


@mutant("state", "PURITY-5")
class GraphKeptWithoutItsScale:
    """What the first call in some shapes was compiled to holds its scale."""

    def __init__(self) -> None:
        self.scales: dict[tuple, float] = {}

    def __call__(self, call: Call) -> Tensor:
        mask = None if call.attn_mask is None else (call.attn_mask.shape, call.attn_mask.dtype)
        graph = (call.query.shape, call.key.shape, call.value.shape, call.query.dtype, mask, call.is_causal)
        return call.but(scale=self.scales.setdefault(graph, call.scale_in_use)).run()
