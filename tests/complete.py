"""Attention kernels that take every option of a call together, and are right: the suite must pass each of them.

The functions have torch SDPA's parameters and semantics, as those of honest.py. Windows, first tokens and starts are those of
positioned.py, caps those of capped.py (before the bias), slopes those of sloped.py and sinks those of sunk.py; the lse is that of
lsed.py, and counts the sink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from honest import BLOCK, Plan, blocks, check, prepare, softmax, wide, widen
from positioned import Places, places
from torch import Tensor
from windowed import Window


@dataclass(frozen=True)
class Whole:
    """What a call asks for: the plan of SDPA, where the queries stand, and what is done to their scores."""

    plan: Plan
    at: Places
    hidden: Tensor  # (b h i j), by the mask, by causal or by the window
    softcap: float | None
    slopes: Tensor | None  # (h) or (b h)
    sinks: Tensor | None  # (h)

    def scores(self, q: Tensor, k: Tensor, keys: slice = slice(None)) -> Tensor:
        """Scores against these keys (b h i keys), in the dtype of q: scaled, capped, with slopes and bias, −∞ where hidden."""
        s = q @ k.mT * self.plan.scale
        if self.softcap is not None:
            s = self.softcap * torch.tanh(s / self.softcap)
        if self.slopes is not None:
            far = (torch.arange(self.hidden.shape[3])[keys] - self.at.own[:, None, :, None]).abs().to(q.dtype)
            s = s - self.slopes.to(q.dtype)[..., None, None] * far
        bias = self.plan.bias.to(q.dtype).expand_as(self.hidden)[..., keys]
        return (s + bias).masked_fill(self.hidden[..., keys], -inf)

    def logit(self, like: Tensor) -> Tensor:
        """The sink as one more score of each row (b h i 1); −∞ without one."""
        z = like.new_full((1, 1, 1, 1), -inf) if self.sinks is None else self.sinks.to(like.dtype)[:, None, None]
        return z.expand(*like.shape[:3], 1)


Attend = Callable[[Tensor, Tensor, Tensor, Whole], tuple[Tensor, Tensor]]


def kernel(attend: Attend) -> Callable[..., Any]:
    """As a function with all parameters."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        window_size: Window = (-1, -1),
        sink_token_length: int = 0,
        softcap: float | None = None,
        alibi_slopes: Tensor | None = None,
        sinks: Tensor | None = None,
        q_start: int | Tensor | None = None,
        return_lse: bool = False,
    ) -> Any:
        check(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        plan = prepare(query, key, value, attn_mask, dropout_p, False, scale, enable_gqa)
        at = places(query.shape[0], query.shape[2], q_start, is_causal, window_size, sink_token_length)
        hidden = plan.hidden | ~at.shown(key.shape[2])
        out, lse = attend(query, key, value, Whole(plan, at, hidden, softcap, alibi_slopes, sinks))
        return (out, lse) if return_lse else out

    run.__doc__ = attend.__doc__
    return run


def in_one(query: Tensor, key: Tensor, value: Tensor, call: Whole) -> tuple[Tensor, Tensor]:
    """All scores at once in float32 or wider, the sink as one more column; gradients come from autograd."""
    q, k, v = widen(query, key, value)
    scores = call.scores(q, k)
    every = torch.cat([scores, call.logit(scores)], -1)
    none = (every == -inf).all(-1, keepdim=True)
    lse = torch.logsumexp(every.masked_fill(none, 0.0), -1).masked_fill(none[..., 0], -inf)
    out = (call.plan.thin_out(softmax(every)[..., :-1]) @ v).to(query.dtype)
    return out, lse.to(wide(query.dtype))


def online(query: Tensor, key: Tensor, value: Tensor, call: Whole) -> tuple[Tensor, Tensor]:
    """Tile by tile of keys in float32 or wider, from a row that holds the sink alone; gradients come from autograd."""
    q, k, v = widen(query, key, value)
    none = slice(0, 0)  # zeros that have a gradient where there is no key
    out = call.scores(q, k[:, :, none], none) @ v[:, :, none]
    z = call.logit(out)
    peak = z.detach()
    total = torch.exp(z - peak.masked_fill(peak == -inf, 0.0))
    for keys in blocks(k.shape[2], BLOCK):
        scores = call.scores(q, k[:, :, keys], keys)
        new_peak = torch.maximum(peak, scores.detach().amax(-1, keepdim=True))
        pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
        weights, shrink = torch.exp(scores - pivot), torch.exp(peak - pivot)
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + call.plan.thin_out(weights, keys) @ v[:, :, keys]
        peak = new_peak
    seen = total > 0.0
    lse = torch.where(seen, peak.masked_fill(peak == -inf, 0.0) + torch.log(torch.where(seen, total, 1.0)), -inf)
    return (out / torch.where(seen, total, 1.0)).to(query.dtype), lse[..., 0]


HONEST: dict[str, Callable[..., Any]] = {"in one": kernel(in_one), "online": kernel(online)}

honest = HONEST["online"]
"""The one that mutants are compared with."""
