"""An honest call of many sequences in each form, with places where a mutant changes what it reads, computes or writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar

import torch
from honest import softmax, wide, widen
from torch import Tensor

# ONE SEQUENCE


@dataclass(frozen=True)
class One:
    """One sequence of a call, as its form reads it: q (i h d), k (j g d), v (j g e)."""

    n: int  # its number in the call
    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool = False
    scale: float | None = None
    window: tuple[int | None, int | None] | None = None
    softcap: float | None = None
    slopes: Tensor | None = None  # (h)
    sinks: Tensor | None = None  # (h)
    start: int | None = None  # the position of the first query; None: the last query stands at the last key

    def but(self, **changes: Any) -> One:
        return replace(self, **changes)

    @property
    def i(self) -> int:
        return int(self.q.shape[0])

    @property
    def j(self) -> int:
        return int(self.k.shape[0])

    @property
    def groups(self) -> bool:
        """Whether several query heads share keys."""
        return self.q.shape[1] != self.k.shape[1]

    @property
    def moves(self) -> bool:
        """Whether it matters where its queries stand."""
        return self.causal or self.window is not None or self.slopes is not None

    def keys(self, first: int, last: int) -> One:
        """With these of its keys alone; the queries stand where they stood."""
        start = self.j - self.i if self.start is None else self.start
        return self.but(k=self.k[first:last], v=self.v[first:last], start=start - first)


Each = Callable[[One], One]


def scores(one: One) -> Tensor:
    """(h i j) in float32 or wider, −∞ where hidden."""
    q, k, _ = (x.transpose(0, 1) for x in widen(one.q, one.k, one.v))
    k = k.repeat_interleave(q.shape[0] // max(k.shape[0], 1), 0)
    s = q @ k.mT * (max(q.shape[2], 1) ** -0.5 if one.scale is None else one.scale)
    if one.softcap is not None:
        s = one.softcap * torch.tanh(s / one.softcap)
    start = one.j - one.i if one.start is None else one.start
    ahead = torch.arange(one.j) - torch.arange(one.i)[:, None] - start
    if one.slopes is not None:
        s = s - one.slopes.to(s.dtype)[:, None, None] * ahead.abs().to(s.dtype)
    left, right = one.window or (None, None)
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    hidden |= (ahead > 0) & one.causal
    hidden |= ahead < -left if left is not None else False
    hidden |= ahead > right if right is not None else False
    return s.masked_fill(hidden, -inf)


def dense(one: One) -> tuple[Tensor, Tensor]:
    """The output (i h e) and the lse (h i) of one sequence, honestly."""
    s = scores(one)
    column = s.new_full((*s.shape[:2], 1), -inf) if one.sinks is None else one.sinks.to(s.dtype)[:, None, None].expand(-1, one.i, 1)
    every = torch.cat([s, column], -1)
    none = (every == -inf).all(-1, keepdim=True)
    lse = torch.logsumexp(every.masked_fill(none, 0.0), -1).masked_fill(none[..., 0], -inf)
    v = one.v.to(s.dtype).transpose(0, 1).repeat_interleave(s.shape[0] // max(one.v.shape[1], 1), 0)
    o = softmax(every)[..., :-1] @ v
    return o.transpose(0, 1).to(one.q.dtype), lse.to(wide(one.q.dtype))


Attend = Callable[[One], tuple[Tensor, Tensor]]

# A CALL


@dataclass(frozen=True)
class Ragged:
    """What all forms have: how one sequence is attended, and the options of the call."""

    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def but(self, **changes: Any) -> Any:
        return replace(self, **changes)

    @property
    def lse(self) -> bool:
        return bool(self.options.get("lse"))

    @property
    def moves(self) -> bool:
        """Whether it matters where queries stand."""
        return any(self.options.get(name) not in (None, False) for name in ("causal", "window")) or self.option("alibi_slopes")

    def option(self, name: str) -> bool:
        """Whether an option is given."""
        return self.options.get(name) is not None

    def one(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> One:
        """Sequence n, with the options of the call."""
        own = {name: self.options[name] for name in ("causal", "scale", "window", "softcap", "sinks") if name in self.options}
        slopes = self.options.get("alibi_slopes")
        return One(n, q, k, v, slopes=slopes if slopes is None or slopes.ndim == 1 else slopes[n], **own)


@dataclass(frozen=True)
class Packed(Ragged):
    """A call of attend_packed."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    used_q: Tensor | None = None
    used_k: Tensor | None = None
    form: ClassVar[str] = "attend_packed"

    @property
    def b(self) -> int:
        return len(self.cu_q) - 1

    @property
    def spans(self) -> list[tuple[int, int, int, int]]:
        """Where the queries of each sequence begin and end, and its keys."""
        found = []
        for n in range(self.b):
            q0, k0 = int(self.cu_q[n]), int(self.cu_k[n])
            q1 = int(self.cu_q[n + 1]) if self.used_q is None else q0 + int(self.used_q[n])
            k1 = int(self.cu_k[n + 1]) if self.used_k is None else k0 + int(self.used_k[n])
            found.append((q0, q1, k0, k1))
        return found

    def sequences(self, spans: list[tuple[int, int, int, int]] | None = None) -> list[One]:
        return [
            self.one(n, self.q[a:b], self.k[c:d], self.v[c:d])
            for n, (a, b, c, d) in enumerate(self.spans if spans is None else spans)
        ]

    def run(self, each: Each = lambda one: one, spans: Any = None, attend: Attend = dense) -> Any:
        """Each sequence alone, changed by `each`, read at other spans where they are given."""
        spans = self.spans if spans is None else spans
        return self.put(spans, [attend(each(one)) for one in self.sequences(spans)])

    def put(self, spans: list[tuple[int, int, int, int]], found: list[tuple[Tensor, Tensor]]) -> Any:
        """Outputs and lses where the queries of their sequences are; zero elsewhere."""
        n, h = self.q.shape[:2]
        linked = self.q[:0].sum() + self.k[:0].sum() + self.v[:0].sum()  # zero, with a gradient, where there is no sequence
        o = self.q.new_zeros(n, h, self.v.shape[2]) + linked
        lse = torch.zeros(h, n, dtype=wide(self.q.dtype)) + linked
        for (a, b, _, _), (x, of_rows) in zip(spans, found, strict=True):
            o[a:b] = x
            lse[:, a:b] = of_rows
        return (o, lse) if self.lse else o


@dataclass(frozen=True)
class Padded(Ragged):
    """A call of attend_padded."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_lengths: Tensor
    q_lengths: Tensor | None = None
    form: ClassVar[str] = "attend_padded"

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Queries and keys of each batch item."""
        i, j = self.q.shape[2], self.k_lengths.tolist()
        return list(zip([i] * len(j) if self.q_lengths is None else self.q_lengths.tolist(), j, strict=True))

    def item(self, n: int, i: int, j: int) -> One:
        q, k, v = (x[n, :, :rows].transpose(0, 1) for x, rows in ((self.q, i), (self.k, j), (self.v, j)))
        return self.one(n, q, k, v)

    def run(self, each: Each = lambda one: one, lengths: Any = None, attend: Attend = dense) -> Any:
        """Each batch item alone, changed by `each`, with other lengths where they are given."""
        os, lses, i = [], [], self.q.shape[2]
        for n, own in enumerate(self.lengths if lengths is None else lengths):
            o, lse = attend(each(self.item(n, *own)))
            os.append(torch.cat([o, o.new_zeros(i - len(o), *o.shape[1:])]).transpose(0, 1))
            lses.append(torch.cat([lse, lse.new_zeros(lse.shape[0], i - lse.shape[1])], 1))
        return (torch.stack(os), torch.stack(lses)) if self.lse else torch.stack(os)


@dataclass(frozen=True)
class Cached(Ragged):
    """A call of attend_cached."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    lengths: Tensor
    k_new: Tensor | None = None
    v_new: Tensor | None = None
    left: Tensor | None = None
    slots: Tensor | None = None
    form: ClassVar[str] = "attend_cached"

    @property
    def b(self) -> int:
        return len(self.q)

    @property
    def new(self) -> int:
        return 0 if self.k_new is None else int(self.k_new.shape[1])

    def slot(self, n: int) -> int:
        return n if self.slots is None else int(self.slots[n])

    def rows(self, n: int) -> tuple[int, int]:
        """The first key of a sequence, and its end after the call."""
        return 0 if self.left is None else int(self.left[n]), int(self.lengths[n]) + self.new

    def append(self, at: Callable[[int], tuple[int, int]] | None = None, k: bool = True, v: bool = True) -> Cached:
        """Write what is new. at: the slot of a sequence, and the row at which its new keys begin."""
        for n in range(self.b if self.k_new is not None and self.v_new is not None else 0):
            slot, row = (self.slot(n), int(self.lengths[n])) if at is None else at(n)
            for cache, x, asked in ((self.k_cache, self.k_new, k), (self.v_cache, self.v_new, v)):
                room = max(0, min(self.new, cache.shape[1] - row))
                if asked:
                    cache[slot, row : row + room] = x[n, :room]  # type: ignore[index]
        return self

    def attend(self, each: Each = lambda one: one, rows: Any = None, slot: Any = None, attend: Attend = dense) -> Any:
        """Each sequence alone, from what the cache holds."""
        found = []
        for n in range(self.b):
            (a, b), s = (self.rows if rows is None else rows)(n), (self.slot if slot is None else slot)(n)
            found.append(attend(each(self.one(n, self.q[n], self.k_cache[s, a:b], self.v_cache[s, a:b]))))
        if not found:
            o = self.q.new_zeros(0, self.q.shape[1], self.q.shape[2], self.v_cache.shape[3])
            return (o, o[..., 0].transpose(1, 2)) if self.lse else o
        o = torch.stack([x for x, _ in found])
        return (o, torch.stack([x for _, x in found])) if self.lse else o

    def run(self, each: Each = lambda one: one, **how: Any) -> Any:
        """Append, then attend."""
        return self.append().attend(each, **how)


@dataclass(frozen=True)
class Paged(Ragged):
    """A call of attend_paged."""

    q: Tensor
    cu_q: Tensor
    max_q: int
    k_pages: Tensor
    v_pages: Tensor
    table: Tensor
    lengths: Tensor
    k_new: Tensor | None = None
    v_new: Tensor | None = None
    cu_new: Tensor | None = None
    form: ClassVar[str] = "attend_paged"

    @property
    def b(self) -> int:
        return len(self.lengths)

    @property
    def size(self) -> int:
        return int(self.k_pages.shape[1])

    def new(self, n: int) -> int:
        return 0 if self.cu_new is None else int(self.cu_new[n + 1] - self.cu_new[n])

    def total(self, n: int) -> int:
        """Keys of a sequence after the call."""
        return int(self.lengths[n]) + self.new(n)

    def place(self, n: int, j: int) -> tuple[int, int]:
        """The page of key j, and its row there."""
        return int(self.table[n, j // self.size]), j % self.size

    def append(self, place: Callable[[int, int], tuple[int, int]] | None = None, k: bool = True, v: bool = True) -> Paged:
        """Write what is new, key by key, where `place` says."""
        for n in range(self.b if self.cu_new is not None else 0):
            for t in range(self.new(n)):
                page, row = (self.place if place is None else place)(n, int(self.lengths[n]) + t)
                for pool, x, asked in ((self.k_pages, self.k_new, k), (self.v_pages, self.v_new, v)):
                    if asked and 0 <= page < len(pool):
                        pool[page, row] = x[int(self.cu_new[n]) + t]  # type: ignore[index]
        return self

    def read(self, n: int, place: Callable[[int, int], tuple[int, int]] | None = None, total: Any = None) -> tuple[Tensor, Tensor]:
        """The keys and values of a sequence, key by key."""
        at = [(self.place if place is None else place)(n, j) for j in range(self.total(n) if total is None else total(n))]
        pages, rows = (torch.tensor([x[part] for x in at], dtype=torch.long) for part in (0, 1))
        return self.k_pages[pages, rows], self.v_pages[pages, rows]

    def attend(
        self,
        each: Each = lambda one: one,
        place: Callable[[int, int], tuple[int, int]] | None = None,
        total: Any = None,
        attend: Attend = dense,
        read: Any = None,
    ) -> Any:
        """Each sequence alone, from what the pages hold."""
        o = self.q.new_zeros(*self.q.shape[:2], self.v_pages.shape[3])
        lse = torch.zeros(self.q.shape[1], self.q.shape[0], dtype=wide(self.q.dtype))
        for n in range(self.b):
            a, b = int(self.cu_q[n]), int(self.cu_q[n + 1])
            k, v = self.read(n, place, total) if read is None else read(n)
            o[a:b], lse[:, a:b] = attend(each(self.one(n, self.q[a:b], k, v)))
        return (o, lse) if self.lse else o

    def run(self, each: Each = lambda one: one, **how: Any) -> Any:
        """Append, then attend."""
        return self.append().attend(each, **how)


# EDITS


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, right: Tensor, wrong: Tensor) -> Tensor:
        return right.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def backward_of(wrong: Any, right: Any) -> Any:
    """The answer that is right, with the gradients of the wrong one."""
    if isinstance(right, tuple):
        return tuple(backward_of(x, y) for x, y in zip(wrong, right, strict=True))
    return _Backward.apply(right.detach(), wrong)


def both(found: tuple[Tensor, Tensor], edit: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """An output (i h e) that is edited, and its lse."""
    return edit(found[0]), found[1]


def merged(one: One, first: int) -> tuple[Tensor, Tensor]:
    """Two parts of the keys, the first of which ends at `first`; their outputs are averaged as if the parts weighed the same."""
    (a, x), (b, y) = dense(one.keys(0, first)), dense(one.keys(first, one.j).but(sinks=None))
    return (a + b) / 2, torch.logaddexp(x, y)


class Kept:
    """What is made once and kept, under a key."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def first(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]
