"""Attention kernels with a start of the queries that are right, one per style: the suite must pass each of them.

The functions have torch SDPA's parameters and semantics, as those of honest.py, and `window_size` and `sink_token_length` as those
of windowed.py have them. `q_start` is the position of the first query, one number or a tensor of one for each batch item; None for
SDPA's own, which is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import torch
import windowed
from honest import Plan, blocks, check, prepare, softmax, widen
from torch import Tensor
from windowed import TILE, Window, _rows

Start = int | Tensor | None


@dataclass(frozen=True)
class Places:
    """Where the queries stand, (b i), and how far each sees: `left` before its position and `right` behind it, -1 for no limit.

    The left end hides none of the `first` keys.
    """

    own: Tensor
    left: int
    right: int
    first: int = 0

    def shown(self, keys: int) -> Tensor:
        """Which keys each query sees, (b 1 i j)."""
        ahead = torch.arange(keys) - self.own[:, None, :, None]
        shown = torch.ones_like(ahead, dtype=torch.bool)
        if self.left >= 0:
            shown &= (ahead >= -self.left) | (torch.arange(keys) < self.first)
        if self.right >= 0:
            shown &= ahead <= self.right
        return shown

    def reach(self, item: int, rows: slice, keys: int) -> tuple[int, int]:
        """The first key that one of these queries of an item may see, but for first tokens, and the one after the last."""
        own = self.own[item, rows]
        first = 0 if self.left < 0 else int(own.min()) - self.left
        last = keys if self.right < 0 else int(own.max()) + self.right + 1
        return min(max(first, 0), keys), min(max(last, 0), keys)


Attend = Callable[[Tensor, Tensor, Tensor, Plan, Places], Tensor]


def places(b: int, i: int, start: Start, is_causal: bool, window: Window, first: int = 0) -> Places:
    """Of b items of i queries."""
    own = torch.arange(i) + (start.long()[:, None] if isinstance(start, Tensor) else start or 0)
    left, right = window
    if is_causal:
        right = 0 if right < 0 else min(right, 0)
    return Places(own.expand(b, i), left, right, first)


def kernel(attend: Attend) -> Callable[..., Tensor]:
    """As a function with torch SDPA's parameters, `window_size` and `q_start`."""

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
        q_start: int | Tensor | None = None,
        sink_token_length: int = 0,
    ) -> Tensor:
        check(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        plan = prepare(query, key, value, attn_mask, dropout_p, False, scale, enable_gqa)
        at = places(query.shape[0], query.shape[2], q_start, is_causal, window_size, sink_token_length)
        return attend(query, key, value, replace(plan, hidden=plan.hidden | ~at.shown(key.shape[2])), at)

    run.__doc__ = attend.__doc__
    return run


# STYLES


def of_window(attend: windowed.Attend) -> Attend:
    """A kernel that reads what it must not see off the plan."""

    def run(query: Tensor, key: Tensor, value: Tensor, plan: Plan, at: Places) -> Tensor:
        return attend(query, key, value, plan, (at.left, at.right), at.first)

    run.__doc__ = attend.__doc__
    return run


def _item(plan: Plan, n: int) -> Plan:
    bias = plan.bias[n : n + 1] if plan.bias.shape[0] > 1 else plan.bias
    return replace(plan, bias=bias, hidden=plan.hidden[n : n + 1], dropped=plan.dropped[n : n + 1])


def tiles_skipped(query: Tensor, key: Tensor, value: Tensor, plan: Plan, at: Places) -> Tensor:
    """Item by item, blocks of queries, each of which visits no tile of keys that none of them sees; in float32 or wider."""
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    items = []
    for n in range(q.shape[0]):
        outs = []
        for rows in blocks(q.shape[2], TILE):
            own, here = q[n : n + 1, :, rows], _rows(_item(plan, n), rows)
            first, last = at.reach(n, rows, k.shape[2])
            nothing = slice(0, 0)  # zeros that have a gradient where no tile is visited
            out = here.scores(own, k[n : n + 1, :, nothing], nothing) @ v[n : n + 1, :, nothing]
            total = own.new_zeros(*own.shape[:3], 1)
            peak = torch.full_like(total, -inf)
            for keys in blocks(k.shape[2], TILE):
                if (keys.stop <= first and keys.start >= at.first) or keys.start >= last:
                    continue
                scores = here.scores(own, k[n : n + 1, :, keys], keys)
                new_peak = torch.maximum(peak, scores.detach().amax(-1, keepdim=True))
                pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
                weights, shrink = torch.exp(scores - pivot), torch.exp(peak - pivot)
                total = total * shrink + weights.sum(-1, keepdim=True)
                out = out * shrink + here.thin_out(weights, keys) @ v[n : n + 1, :, keys]
                peak = new_peak
            outs.append(out / total.masked_fill(total == 0.0, 1.0))
        items.append(torch.cat(outs, 2) if outs else q.new_zeros(1, *q.shape[1:3], v.shape[3]))
    return (torch.cat(items) if items else q.new_zeros(*q.shape[:3], v.shape[3])).to(query.dtype)


def cut_out(query: Tensor, key: Tensor, value: Tensor, plan: Plan, at: Places) -> Tensor:
    """Each query alone, against the keys that it may see and no others: what lies outside is never read."""
    q, k, v = widen(query, key, value)
    plan = replace(plan, bias=plan.bias.to(q.dtype))
    items = []
    for n in range(q.shape[0]):
        outs = []
        for row in range(q.shape[2]):
            rows = slice(row, row + 1)
            first, last = at.reach(n, rows, k.shape[2])
            keys = [j for j in range(last) if j >= first or j < at.first]
            here = _rows(_item(plan, n), rows)
            weights = softmax(here.scores(q[n : n + 1, :, rows], k[n : n + 1, :, keys], keys))
            outs.append(here.thin_out(weights, keys) @ v[n : n + 1, :, keys])
        items.append(torch.cat(outs, 2) if outs else q.new_zeros(1, *q.shape[1:3], v.shape[3]))
    return (torch.cat(items) if items else q.new_zeros(*q.shape[:3], v.shape[3])).to(query.dtype)


def chunked(query: Tensor, key: Tensor, value: Tensor, plan: Plan, at: Places) -> Tensor:
    """Chunked prefill: five queries at a time, each chunk a call of its own, whose gradients are added in the dtype of the keys."""
    outs = []
    for rows in blocks(query.shape[2], 5):
        part = replace(at, own=at.own[:, rows])
        outs.append(of_window(windowed.unfused_wide)(query[:, :, rows], key, value, _rows(plan, rows), part))
    return torch.cat(outs, 2) if outs else query.new_zeros(*query.shape[:3], value.shape[3])


# By name: the kernel, and the class that its arithmetic belongs to in half types; in others it is A.
STYLES: dict[str, tuple[Attend, str]] = {
    **{
        name: (of_window(how), class_)
        for name, (how, class_) in windowed.STYLES.items()
        if name not in ("tiles skipped", "cut out")
    },
    "tiles skipped": (tiles_skipped, "A"),
    "cut out": (cut_out, "A"),
    "chunked": (chunked, "B*"),
}
HONEST: dict[str, tuple[Callable[..., Tensor], str]] = {name: (kernel(how), class_) for name, (how, class_) in STYLES.items()}

honest = HONEST["tiled"][0]
"""The one that mutants are compared with."""
