"""A kernel that takes many sequences in every form, and can be told what to do wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters import Adapter


@dataclass
class Plan:
    """What one sequence does: its queries, which rows of keys it reads, where its first query stands, and whose slopes it has."""

    queries: list[int]
    keys: list[int]
    start: int
    slopes: int


@dataclass
class Told:
    """What a call says of all sequences. row(n, j): the row of key j of sequence n, wherever it is."""

    form: str
    i: list[int]
    j: list[int]
    row: Callable[[int, int], int]
    count: int
    room: int = 0
    new: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    table: list[list[int]] = field(default_factory=list)
    size: int = 0
    longest: int = 0
    k: Any = None
    v: Any = None


Wrong = Callable[[list[Plan], Told], None]


def one(
    q: Tensor, k: Tensor, v: Tensor, start: int, *, causal: bool, window: Any, scale: float | None, slopes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One sequence: q (i h d), k (j g d), v (j g e)."""
    group = q.shape[1] // max(k.shape[1], 1)
    q, k, v = q.transpose(0, 1), k.transpose(0, 1).repeat_interleave(group, 0), v.transpose(0, 1).repeat_interleave(group, 0)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    at, keys = torch.arange(s.shape[1])[:, None] + start, torch.arange(s.shape[2])
    if slopes is not None:
        s = s - slopes[:, None, None] * (at - keys).abs()
    if causal:
        s = s.masked_fill(keys > at, -math.inf)
    if window is not None:
        left, right = (1 << 30 if side is None else side for side in window)
        s = s.masked_fill((keys < at - left) | (keys > at + right), -math.inf)
    p = torch.where((s > -math.inf).any(-1, keepdim=True), s, torch.zeros_like(s)).softmax(-1) if s.shape[2] else s
    p = torch.where((s > -math.inf).any(-1, keepdim=True), p, torch.zeros_like(p)) if s.shape[2] else p
    return (p @ v).transpose(0, 1), torch.logsumexp(s.float(), -1)


class Many(Adapter):
    """Attends each sequence alone; `wrong` changes the plans of a call of many sequences, and of no other."""

    offers = (
        *("mha", "mqa", "gqa", "strided", "value_width", "causal", "scale", "window", "window_right", "alibi", "alibi_batch"),
        *("backward", "lse", "lse_grad", "packed", "packed_gaps", "packed_long", "padded", "padded_queries"),
        *("cached", "cached_append", "cached_left", "cached_slots"),
        *("paged", "paged_append", "paged_queries", "paged_any_size", "paged_any_entry"),
    )
    dialect = {"causal_alignment": "bottom_right"}
    wrong: Wrong | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, lse=False, **options) -> Any:
        """Dense."""
        b, (i, j) = len(q), (q.shape[2], k.shape[2])
        told = Told("dense", [i] * b, [j] * b, lambda n, at: n * j + at, b * j)
        rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        o, of_rows = self._all(*rows, [n * i for n in range(b)], told, dense=True, **options)
        o = o.view(b, i, q.shape[1], v.shape[3]).transpose(1, 2)
        return (o, of_rows.view(-1, b, i).transpose(0, 1)) if lse else o

    def attend_packed(self, q, k, v, cu_q, cu_k, max_q, max_k, *, used_q=None, used_k=None, lse=False, **options):
        """Packed."""
        i = (cu_q.diff() if used_q is None else used_q).tolist()
        j = (cu_k.diff() if used_k is None else used_k).tolist()
        begins = cu_k.tolist()
        told = Told("packed", i, j, lambda n, at: begins[n] + at, len(k), longest=max_k)
        told.left = [begins[n + 1] - begins[n] - j[n] for n in range(len(j))]  # the gaps
        o, of_rows = self._all(q, k, v, cu_q.tolist()[:-1], told, **options)
        return (o, of_rows) if lse else o

    def attend_padded(self, q, k, v, k_lengths, q_lengths=None, *, lse=False, **options):
        """Padded."""
        b, most = len(q), k.shape[2]
        i = [q.shape[2]] * b if q_lengths is None else q_lengths.tolist()
        told = Told("padded", i, k_lengths.tolist(), lambda n, at: n * most + at if at < most else -1, b * most, room=most)
        rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        o, of_rows = self._all(*rows, [n * q.shape[2] for n in range(b)], told, **options)
        o = o.view(b, q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        return (o, of_rows.view(-1, b, q.shape[2]).transpose(0, 1)) if lse else o

    def attend_cached(self, q, k_cache, v_cache, lengths, *, k_new=None, v_new=None, left=None, slots=None, lse=False, **options):
        """Cached."""
        b, room = len(q), k_cache.shape[1]
        begin = [0] * b if left is None else left.tolist()
        slot = list(range(b)) if slots is None else slots.tolist()
        new = 0 if k_new is None else k_new.shape[1]
        before = (k_cache.flatten(0, 1).clone(), v_cache.flatten(0, 1).clone())
        for n, filled in enumerate(lengths.tolist() if new else ()):
            k_cache[slot[n], filled : filled + new] = k_new[n]
            v_cache[slot[n], filled : filled + new] = v_new[n]
        j = [filled + new - begin[n] for n, filled in enumerate(lengths.tolist())]
        told = Told(
            "cached",
            [q.shape[1]] * b,
            j,
            lambda n, at: slot[n] * room + begin[n] + at if begin[n] + at < room else -1,
            k_cache.shape[0] * room,
        )
        told.room, told.new, told.left, told.k, told.v = room, [new] * b, begin, *before
        o, of_rows = self._all(
            q.flatten(0, 1), k_cache.flatten(0, 1), v_cache.flatten(0, 1), [n * q.shape[1] for n in range(b)], told, **options
        )
        o = o.view(b, q.shape[1], *o.shape[1:])
        return (o, of_rows.view(-1, b, q.shape[1]).transpose(0, 1)) if lse else o

    def attend_paged(
        self, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, k_new=None, v_new=None, cu_new=None, lse=False, **options
    ):
        """Paged."""
        b, size, count = len(lengths), k_pages.shape[1], k_pages.shape[0] * k_pages.shape[1]
        pages = table.tolist()

        def row(n: int, at: int) -> int:
            column = at // size
            page = pages[n][column] if column < len(pages[n]) else -1
            return page * size + at % size if 0 <= page * size < count else -1

        new = [0] * b if cu_new is None else cu_new.diff().tolist()
        k, v = k_pages.flatten(0, 1), v_pages.flatten(0, 1)
        before = (k.clone(), v.clone())
        for n in range(b):
            for a in range(new[n]):
                at = row(n, int(lengths[n]) + a)
                k[at], v[at] = k_new[int(cu_new[n]) + a], v_new[int(cu_new[n]) + a]
        told = Told("paged", cu_q.diff().tolist(), [x + y for x, y in zip(lengths.tolist(), new, strict=True)], row, count)
        told.table, told.size, told.new, told.k, told.v = pages, size, new, *before
        o, of_rows = self._all(q, k, v, cu_q.tolist()[:-1], told, **options)
        return (o, of_rows) if lse else o

    def _all(self, q, k, v, begins, told, *, causal=False, window=None, scale=None, alibi_slopes=None, dense=False):
        """All sequences, one after the other."""
        plans = []
        for n, (i, j) in enumerate(zip(told.i, told.j, strict=True)):
            plans.append(Plan(list(range(begins[n], begins[n] + i)), [told.row(n, at) for at in range(j)], j - i, n))
        if self.wrong is not None and not dense:
            self.wrong(plans, told)
            k, v = (torch.cat([x, k_]) if k_ is not None else x for x, k_ in ((k, told.k), (v, told.v)))
        o, of_rows = q.new_zeros(len(q), q.shape[1], v.shape[2]), torch.zeros(q.shape[1], len(q))
        for plan in plans:
            own = [row for row in plan.keys if 0 <= row < len(k)]
            slopes = alibi_slopes if alibi_slopes is None or alibi_slopes.ndim == 1 else alibi_slopes[plan.slopes]
            x, of_x = one(q[plan.queries], k[own], v[own], plan.start, causal=causal, window=window, scale=scale, slopes=slopes)
            at = torch.tensor(plan.queries, dtype=torch.long)
            o, of_rows = o.index_copy(0, at, x), of_rows.index_copy(1, at, of_x)
        return o, of_rows


def each(change: Callable[[Plan, Told, int], None]) -> Wrong:
    """The same wrong thing for each sequence."""

    def wrong(plans: list[Plan], told: Told) -> None:
        for n, plan in enumerate(plans):
            change(plan, told, n)

    return wrong


def keys(count: Callable[[Told, int], int], *, aligned: bool = False) -> Wrong:
    """Each sequence reads so many keys."""

    def change(plan: Plan, told: Told, n: int) -> None:
        plan.keys = [told.row(n, at) for at in range(max(count(told, n), 0))]
        if aligned:
            plan.start = len(plan.keys) - told.i[n]

    return each(change)


def of(other: Callable[[Told, int], int], *, own: bool = False) -> Wrong:
    """Each sequence reads the keys of another one."""

    def change(plan: Plan, told: Told, n: int) -> None:
        m = other(told, n)
        if 0 <= m < len(told.i):
            plan.keys = [told.row(m, at) for at in range(told.j[n] if own else told.j[m])]
            plan.start = len(plan.keys) - told.i[n]

    return each(change)


def start(at: Callable[[Told, int], int]) -> Wrong:
    """The queries of each sequence stand elsewhere."""

    def change(plan: Plan, told: Told, n: int) -> None:
        plan.start = at(told, n)

    return each(change)


def kernel(wrong: Wrong | None, forms: str = "packed padded cached paged", **members: Any) -> type[Many]:
    """A class of kernels that does this wrong in these forms, and has these alone."""
    gone = {f"attend_{form}": None for form in ("packed", "padded", "cached", "paged") if form not in forms.split()}
    offers = tuple(x for x in Many.offers if x.split("_")[0] not in {name.removeprefix("attend_") for name in gone})
    body = {"wrong": None if wrong is None else staticmethod(wrong), "offers": offers, **gone, **members}
    return type("Wrong", (Many,), {"__module__": __name__, **body})
