"""Attention kernels with a window that are right, one per arithmetic style: the suite must pass every one of them.

The functions have torch SDPA's parameters and semantics, as those of honest.py, and `window_size`, as flash-attention has it: how
far before and behind the query, -1 for no limit; `sink_token_length` is how many of the first keys it does not hide on the left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

import torch
from chains import attend_eagerly, softmax_wide
from honest import Plan, _attend_to_part, _parts, _Tiled, blocks, prepare, softmax, widen
from torch import Tensor

Window = tuple[int, int]
Attend = Callable[[Tensor, Tensor, Tensor, Plan, Window, int], Tensor]
TILE = 16  # queries and keys at once


def band(i: int, j: int, window: Window, offset: int = 0, first: int = 0) -> Tensor:
    """Which keys the window shows to each query (i j), whose positions begin at `offset`; the left end hides none of the first."""
    left, right = window
    ahead = torch.arange(j) - torch.arange(i)[:, None] - offset
    shown = torch.ones(i, j, dtype=torch.bool)
    if left >= 0:
        shown &= (ahead >= -left) | (torch.arange(j) < first)
    if right >= 0:
        shown &= ahead <= right
    return shown


def kernel(attend: Attend, anchored: Callable[[int, int], int] = lambda i, j: 0) -> Callable[..., Tensor]:
    """As a function with torch SDPA's parameters and `window_size`. anchored: the position of the first query, of the lengths."""

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
    ) -> Tensor:
        plan = prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        i, j = query.shape[2], key.shape[2]
        shown = band(i, j, window_size, anchored(i, j), sink_token_length)
        return attend(query, key, value, replace(plan, hidden=plan.hidden | ~shown), window_size, sink_token_length)

    run.__doc__ = attend.__doc__
    return run


# STYLES


def unfused_wide(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: Window, first: int) -> Tensor:
    """Everything in float32 or wider, rounded once at the end; gradients come from autograd."""
    q, k, v = widen(query, key, value)
    return (plan.thin_out(softmax(plan.scores(q, k))) @ v).to(query.dtype)


def split_k(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: Window, first: int) -> Tensor:
    """Three ranges of keys, merged by their lse, in float32 or wider; a range outside of the window is an empty part."""
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    outs, lses = zip(*(_attend_to_part(q, k, v, plan, keys) for keys in _parts(k.shape[2])), strict=True)
    share = softmax(torch.cat(lses, dim=-1))
    return sum(share[..., [n]] * out for n, out in enumerate(outs)).to(query.dtype)


def tiled(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: Window, first: int) -> Tensor:
    """Flash style: online softmax over all blocks of keys."""
    return _Tiled.apply(query, key, value, plan.bias, plan)  # type: ignore[no-any-return]


def _rows(plan: Plan, rows: slice) -> Plan:
    bias = plan.bias[..., rows, :] if plan.bias.shape[2] > 1 else plan.bias
    return replace(plan, bias=bias, hidden=plan.hidden[..., rows, :], dropped=plan.dropped[..., rows, :])


def tiles_skipped(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: Window, first: int) -> Tensor:
    """Blocks of queries, which visit a tile of keys only for the window or for first keys; in float32 or wider."""
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    left, right = window
    outs = []
    for rows in blocks(q.shape[2], TILE):
        own, here = q[:, :, rows], _rows(plan, rows)
        begin = 0 if left < 0 else (rows.start - left) // TILE * TILE
        last = k.shape[2] if right < 0 else rows.stop + right
        out = (own @ k[:, :, :0].mT) @ v[:, :, :0]  # zeros, of which all three have a gradient where no tile is visited
        total = own.new_zeros(*own.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        for keys in blocks(k.shape[2], TILE):
            if (keys.stop <= begin and keys.start >= first) or keys.start >= last:
                continue
            scores = here.scores(own, k[:, :, keys], keys)
            new_peak = torch.maximum(peak, scores.detach().amax(-1, keepdim=True))
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            weights, shrink = torch.exp(scores - pivot), torch.exp(peak - pivot)
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + here.thin_out(weights, keys) @ v[:, :, keys]
            peak = new_peak
        outs.append(out / total.masked_fill(total == 0.0, 1.0))
    return (torch.cat(outs, 2) if outs else q.new_zeros(*q.shape[:3], v.shape[3])).to(query.dtype)


def cut_out(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: Window, first: int) -> Tensor:
    """Each query alone, against the keys of its window and no others: what lies outside is never read."""
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    left, right = window
    outs = []
    for row in range(q.shape[2]):
        start, stop = 0 if left < 0 else max(row - left, 0), k.shape[2] if right < 0 else min(row + right + 1, k.shape[2])
        keys = [j for j in range(k.shape[2]) if j < stop and (j >= start or j < first)]
        here, own = _rows(plan, slice(row, row + 1)), q[:, :, row : row + 1]
        outs.append(here.thin_out(softmax(here.scores(own, k[:, :, keys], keys)), keys) @ v[:, :, keys])
    return (torch.cat(outs, 2) if outs else q.new_zeros(*q.shape[:3], v.shape[3])).to(query.dtype)


def eager(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: Window, first: int) -> Tensor:
    """Textbook style: all scores exist in the input dtype."""
    return attend_eagerly(query, key, value, plan)


def wide_softmax(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: Window, first: int) -> Tensor:
    """As transformers has it: the softmax alone is wide."""
    return softmax_wide(query, key, value, plan)


# By name: the kernel, and the class that its arithmetic belongs to in half types; in others it is A.
STYLES: dict[str, tuple[Attend, str]] = {
    "unfused, wide": (unfused_wide, "A"),
    "split_k": (split_k, "A"),
    "tiles skipped": (tiles_skipped, "A"),
    "cut out": (cut_out, "A"),
    "tiled": (tiled, "B"),
    "eager": (eager, "C"),
    "softmax wide": (wide_softmax, "C"),
}
HONEST: dict[str, tuple[Callable[..., Tensor], str]] = {name: (kernel(how), class_) for name, (how, class_) in STYLES.items()}

honest = HONEST["tiled"][0]
"""The one that mutants are compared with."""
