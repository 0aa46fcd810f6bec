"""Kernels of many sequences that are right, one per style, each in the forms that the style has: the suite must pass every one.

Styles differ in what is computed together and in how it is rounded: sequence by sequence; all sequences in one masked call, by
document ids; batches that are padded; tiles or pages of keys, whose splits are merged by their lse; pages that are gathered first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from honest import softmax, wide
from mutants.carriers import of_cached, of_packed, of_padded, of_paged
from mutants.sequences import Cached, Packed, Padded, Paged, Ragged
from torch import Tensor

from attnspec.adapters import Adapter

TILE, SPLITS = 16, 2


# ARITHMETIC: q (b h i d), k (b g j d), v (b g j e), positions of queries (b i) and keys (b j), and which keys are there (b i j)


@dataclass(frozen=True)
class Batch:
    """What is computed together."""

    q: Tensor
    k: Tensor
    v: Tensor
    at_q: Tensor
    at_k: Tensor
    there: Tensor
    slopes: Tensor | None  # (b i h): each query's own

    def scores(self, options: Any, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(b h i j), −∞ where hidden."""
        group = self.q.shape[1] // max(self.k.shape[1], 1)
        s = product(self.q, self.k.repeat_interleave(group, 1).mT)
        scale, cap, window = (options.get(name) for name in ("scale", "softcap", "window"))
        s = s * (max(self.q.shape[3], 1) ** -0.5 if scale is None else scale)
        s = s if cap is None else cap * torch.tanh(s / cap)
        ahead = self.at_k[:, None] - self.at_q[..., None]
        if self.slopes is not None:
            s = s - self.slopes.to(s.dtype).permute(0, 2, 1)[..., None] * ahead.abs()[:, None].to(s.dtype)
        seen = self.there
        if options.get("causal"):
            seen = seen & (ahead <= 0)
        left, right = window or (None, None)
        seen = seen if left is None else seen & (ahead >= -left)
        seen = seen if right is None else seen & (ahead <= right)
        return s.masked_fill(~seen[:, None], -inf)

    @property
    def values(self) -> Tensor:
        return self.v.repeat_interleave(self.q.shape[1] // max(self.v.shape[1], 1), 1)


Arithmetic = Callable[[Batch, Any], tuple[Tensor, Tensor]]


def column(s: Tensor, sinks: Tensor | None) -> Tensor:
    """The sink as one more score of each row; −∞ without one."""
    z = s.new_full((1, 1, 1), -inf) if sinks is None else sinks.to(s.dtype)[:, None, None]
    return z.expand(*s.shape[:3], 1)


def summed(every: Tensor) -> Tensor:
    """The logarithm of the sum of each row."""
    none = (every == -inf).all(-1, keepdim=True)
    return torch.logsumexp(every.masked_fill(none, 0.0), -1).masked_fill(none[..., 0], -inf)


def in_one(dtype: torch.dtype | None = None, stored: bool = False) -> Arithmetic:
    """A textbook softmax in a dtype, None for float32 or wider. stored: products are rounded to the inputs' dtype."""

    def run(x: Batch, options: Any) -> tuple[Tensor, Tensor]:
        inner = dtype or wide(x.q.dtype)

        def product(a: Tensor, b: Tensor) -> Tensor:
            return (a @ b).to(inner) if stored else a.to(inner) @ b.to(inner)

        s = x.scores(options, product)
        every = torch.cat([s, column(s, options.get("sinks"))], -1)
        p = softmax(every)[..., :-1]
        o = p.to(x.q.dtype) @ x.values if stored else product(p, x.values)
        return o.to(x.q.dtype), summed(every).to(wide(x.q.dtype))

    return run


class Operand(torch.autograd.Function):
    """Weights as a product of half numbers has them: rounded on the way in. What comes back is wide, as the backward of a kernel
    has it; `to` would round it too (class C)."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, dtype: torch.dtype) -> Tensor:
        return weights.to(dtype).to(weights.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def online(x: Batch, options: Any) -> tuple[Tensor, Tensor]:
    """Splits of the keys, each tile by tile with a running maximum; weights are rounded as operands are; merged by the lse."""
    dtype, j = x.q.dtype, x.k.shape[2]
    # Made wide once: a conversion in each tile would round each tile's part of a gradient.
    x = replace(x, q=x.q.to(wide(dtype)), k=x.k.to(wide(dtype)), v=x.v.to(wide(dtype)))
    parts = []
    for part in range(SPLITS):
        tiles = range(0, j, TILE)[part::SPLITS]
        own = [Batch(x.q, x.k[:, :, t : t + TILE], x.v[:, :, t : t + TILE], x.at_q, *_cut(x, t), x.slopes) for t in (*tiles, j)]
        parts.append(_part(own, options, dtype))
    z = column(parts[0][0], options.get("sinks"))
    lses = torch.stack([lse for _, lse in parts] + [z[..., 0]], -1)
    total = summed(lses)
    share = torch.exp(lses - total.masked_fill(total == -inf, 0.0)[..., None])
    o = torch.stack([o for o, _ in parts], -2).mul(share[..., :-1, None]).sum(-2)
    return o.to(dtype), total


def _cut(x: Batch, t: int) -> tuple[Tensor, Tensor]:
    return x.at_k[:, t : t + TILE], x.there[..., t : t + TILE]


def _part(tiles: list[Batch], options: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The output and the lse of some tiles, of which the last has no key."""
    b, h, i, _ = tiles[0].q.shape
    o = tiles[-1].scores(options, torch.matmul).masked_fill(torch.tensor(True), 0.0)
    o = o @ tiles[-1].values
    total, peak = o[..., :0].sum(-1, keepdim=True), o.new_full((b, h, i, 1), -inf)  # zero, of which all have a gradient
    for x in tiles[:-1]:
        s = x.scores(options, torch.matmul)
        highest = torch.maximum(peak, s.detach().amax(-1, keepdim=True))
        pivot = highest.masked_fill(highest == -inf, 0.0)
        weights, shrink = torch.exp(s - pivot), torch.exp(peak - pivot)
        total = total * shrink + weights.sum(-1, keepdim=True)
        o = o * shrink + Operand.apply(weights, dtype) @ x.values
        peak = highest
    some = total > 0
    total = torch.where(some, total, 1.0)
    lse = torch.where(some, peak.masked_fill(peak == -inf, 0.0) + total.log(), -inf)
    return o / total, lse[..., 0]


WIDE, DOUBLE, STORED = in_one(), in_one(torch.float64), in_one(stored=True)


# FORMS


def slopes_of(call: Ragged, owner: Tensor) -> Tensor | None:
    """Of sequences by their numbers (…): the slopes of each (… h)."""
    slopes = call.options.get("alibi_slopes")
    if slopes is None:
        return None
    return slopes.expand(*owner.shape, -1) if slopes.ndim == 1 else slopes[owner]


def clean(x: Tensor, there: Tensor) -> Tensor:
    """Zero in the place of rows that nobody has, (… rows) of (… rows h d)."""
    return torch.where(there[..., None, None], x, 0.0)


def owners(begins: Tensor, counts: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Whose each of n rows is, −1 for nobody's, and its place there."""
    row = torch.arange(n)
    owner, place = torch.full((n,), -1), torch.zeros(n, dtype=torch.long)
    for b, (first, count) in enumerate(zip(begins.tolist(), counts.tolist(), strict=True)):
        own = (row >= first) & (row < first + count)
        owner[own], place[own] = b, row[own] - first
    return owner, place


def counts(call: Packed) -> tuple[Tensor, Tensor]:
    """The queries and keys of each sequence."""
    i = call.cu_q.diff() if call.used_q is None else call.used_q
    return i.long(), (call.cu_k.diff() if call.used_k is None else call.used_k).long()


def by_documents(
    q: Tensor, owner_q: Tensor, place_q: Tensor, k: Tensor, v: Tensor, at: Any, call: Ragged, how: Arithmetic, d: Tensor
):
    """All rows in one call, in which a query sees the keys of its own document. d: keys less queries of each document."""
    owner_k, place_k = at
    mine = owner_q >= 0
    at_q = torch.where(mine, place_q + (d[owner_q.clamp(min=0)] if len(d) else 0), 0)
    x = Batch(
        clean(q, mine).transpose(0, 1)[None],
        clean(k, owner_k >= 0).transpose(0, 1)[None],
        clean(v, owner_k >= 0).transpose(0, 1)[None],
        at_q[None],
        place_k[None],
        ((owner_q[:, None] == owner_k) & mine[:, None])[None],
        None if (s := slopes_of(call, owner_q.clamp(min=0))) is None else s[None],
    )
    o, lse = how(x, call.options)
    return (o[0].transpose(0, 1), lse[0]) if call.lse else o[0].transpose(0, 1)


def documents(how: Arithmetic) -> dict[str, Any]:
    """Packed rows, a pool of pages: one call with document ids."""

    def packed(call: Packed) -> Any:
        if not call.b:
            return call.run()
        i, j = counts(call)
        queries = owners(call.cu_q[:-1], i, len(call.q))
        return by_documents(call.q, *queries, call.k, call.v, owners(call.cu_k[:-1], j, len(call.k)), call, how, j - i)

    def paged(call: Paged) -> Any:
        if call.b < 1 or _shared(call):
            return call.run()
        call.append()
        totals = torch.tensor([call.total(n) for n in range(call.b)])
        i = call.cu_q.diff().long()
        owner, place = torch.full(call.k_pages.shape[:2], -1), torch.zeros(call.k_pages.shape[:2], dtype=torch.long)
        for n in range(call.b):
            for j in range(int(totals[n])):
                owner[call.place(n, j)], place[call.place(n, j)] = n, j
        k, v = (x.flatten(0, 1) for x in (call.k_pages, call.v_pages))
        queries = owners(call.cu_q[:-1], i, len(call.q))
        return by_documents(call.q, *queries, k, v, (owner.flatten(), place.flatten()), call, how, totals - i)

    return {"packed": packed, "paged": paged}


def _shared(call: Paged) -> bool:
    """Whether a page belongs to several."""
    used = [int(call.table[n, p]) for n in range(call.b) for p in range(-(-call.total(n) // call.size))]
    return len(used) != len(set(used))


def batched(q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, call: Ragged, how: Arithmetic) -> tuple[Tensor, Tensor]:
    """Rows (b i h d), (b j g d), of which each item has some."""
    rows_q, rows_k = torch.arange(q.shape[1]), torch.arange(k.shape[1])
    in_q, in_k = rows_q < i[:, None], rows_k < j[:, None]
    x = Batch(
        clean(q, in_q).transpose(1, 2),
        clean(k, in_k).transpose(1, 2),
        clean(v, in_k).transpose(1, 2),
        rows_q + (j - i)[:, None],
        rows_k.expand(len(q), -1),
        in_q[..., None] & in_k[:, None],
        slopes_of(call, torch.arange(len(q))[:, None].expand(-1, q.shape[1])),
    )
    return how(x, call.options)


def batches(how: Arithmetic) -> dict[str, Any]:
    """Every form as a batch that is padded to the longest."""

    def packed(call: Packed) -> Any:
        if not call.b:
            return call.run()
        i, j = counts(call)
        at = [
            (begins[:-1, None].long() + torch.arange(most)).clamp(max=max(len(x) - 1, 0))
            for begins, most, x in ((call.cu_q, call.max_q, call.q), (call.cu_k, call.max_k, call.k))
        ]
        q, k, v = (
            x[rows] if len(x) else x.new_zeros(*rows.shape, *x.shape[1:])
            for x, rows in ((call.q, at[0]), (call.k, at[1]), (call.v, at[1]))
        )
        o, lse = batched(q, k, v, i, j, call, how)
        spans = call.spans
        own = [(o[n, :, : b - a].transpose(0, 1), lse[n, :, : b - a]) for n, (a, b, _, _) in enumerate(spans)]
        return call.put(spans, own)

    def padded(call: Padded) -> Any:
        i, j = (torch.tensor([x[n] for x in call.lengths], dtype=torch.long) for n in (0, 1))
        o, lse = batched(*(x.transpose(1, 2) for x in (call.q, call.k, call.v)), i, j, call, how)
        return (o, lse) if call.lse else o

    def cached(call: Cached) -> Any:
        call.append()
        slots = torch.tensor([call.slot(n) for n in range(call.b)], dtype=torch.long)
        left = torch.zeros(call.b, dtype=torch.long) if call.left is None else call.left.long()
        i, j = torch.full((call.b,), call.q.shape[1]), call.lengths.long() + call.new - left
        rows = left[:, None] + torch.arange(call.k_cache.shape[1])
        rows = rows.clamp(max=max(call.k_cache.shape[1] - 1, 0))
        k, v = (x[slots[:, None], rows] for x in (call.k_cache, call.v_cache))
        o, lse = batched(call.q, k, v, i, j, call, how)
        return (o.transpose(1, 2), lse) if call.lse else o.transpose(1, 2)

    def paged(call: Paged) -> Any:
        if not call.b:
            return call.run()
        call.append()
        j = torch.tensor([call.total(n) for n in range(call.b)])
        pages = -(-j // call.size)
        most = int(pages.max())
        table = torch.where(torch.arange(most) < pages[:, None], call.table[:, :most].long(), 0)
        k, v = (x[table].flatten(1, 2) if len(x) else x.new_zeros(call.b, 0, *x.shape[2:]) for x in (call.k_pages, call.v_pages))
        i = call.cu_q.diff().long()
        rows = (call.cu_q[:-1, None].long() + torch.arange(call.max_q)).clamp(max=max(len(call.q) - 1, 0))
        q = call.q[rows] if len(call.q) else call.q.new_zeros(*rows.shape, *call.q.shape[1:])
        o, lse = batched(q, k, v, i, j, call, how)
        own = torch.arange(call.max_q) < i[:, None]
        found = o.transpose(1, 2)[own]
        return (found, lse.permute(0, 2, 1)[own].T) if call.lse else found

    return {"packed": packed, "padded": padded, "cached": cached, "paged": paged}


def returned(call: Cached | Paged) -> Any:
    """The same in copies, which are returned beside the answer: nothing is written in place."""
    names = ("k_cache", "v_cache") if isinstance(call, Cached) else ("k_pages", "v_pages")
    copied = call.but(**{name: getattr(call, name).clone() for name in names})
    found = copied.run()
    o = dict(zip(("o", "lse"), found, strict=True)) if call.lse else {"o": found}
    return {**o, **{name: getattr(copied, name) for name in names}}


def alone() -> dict[str, Any]:
    """Sequence after sequence."""
    return dict.fromkeys(("packed", "padded", "cached", "paged"), lambda call: call.run())


def singly(how: Arithmetic) -> dict[str, Any]:
    """Sequence after sequence, each as a batch of one."""

    def attend(one: Any) -> tuple[Tensor, Tensor]:
        q, k, v = (x.transpose(0, 1)[None] for x in (one.q, one.k, one.v))
        at_q, at_k = torch.arange(one.i)[None] + one.j - one.i, torch.arange(one.j)[None]
        slopes = None if one.slopes is None else one.slopes.expand(1, one.i, -1)
        options = {name: getattr(one, name) for name in ("causal", "scale", "window", "softcap", "sinks")}
        o, lse = how(Batch(q, k, v, at_q, at_k, torch.ones(1, one.i, one.j, dtype=torch.bool), slopes), options)
        return o[0].transpose(0, 1), lse[0]

    return dict.fromkeys(("packed", "padded", "cached", "paged"), lambda call: call.run(attend=attend))


FORMS = {"packed": of_packed, "padded": of_padded, "cached": of_cached, "paged": of_paged}
STYLES: dict[str, dict[str, Any]] = {
    "loop": alone(),
    "loop, tiles and splits": singly(online),
    "loop, stored": singly(STORED),
    "documents": documents(WIDE),
    "documents, double": documents(DOUBLE),
    "documents, tiles and splits": documents(online),
    "batch": batches(WIDE),
    "batch, stored": batches(STORED),
    "batch, tiles and splits": batches(online),
    "returned": {"cached": returned, "paged": returned},
}


def honest() -> dict[str, type[Adapter]]:
    """An adapter for each style and form, under the name of both."""
    return {f"{style}, {form}": FORMS[form](how) for style, forms in STYLES.items() for form, how in forms.items()}


# For --impl, one for each form.
packed, padded, cached, paged = (FORMS[form](alone()[form]) for form in FORMS)
