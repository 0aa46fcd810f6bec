"""An attention kernel whose bits depend on nothing but a sequence itself, and what a wrong one may let them depend on.

Each sequence is computed by itself, and sums are taken by halves, element by element: a row has the same bits beside any others.
:class:`Steady` makes every promise and keeps it; subclasses change the plan by which keys are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from attnspec.adapters import Adapter
from attnspec.spec.words import PROMISES

RANDOM = np.random.default_rng(0)  # the order in which threads come, as good as any
Both = tuple[Tensor, Tensor]
Order = Tensor | None


@dataclass(frozen=True)
class About:
    """What a kernel knows of a sequence beside its numbers: the form of its call, its place, how many there are, and their room.

    longest: keys of the longest one, or told as such. room: rows of the capacity, pages of the pool, or 0. begins: where it lies.
    """

    form: str
    place: int = 0
    count: int = 1
    longest: int = 0
    room: int = 0
    begins: int = 0
    causal: bool = False
    graded: bool = False
    lse: bool = False


@dataclass(frozen=True)
class Plan:
    """How keys are added up: in which order, and cut into how many parts."""

    order: Order = None
    parts: int = 1


PLAIN = Plan()


def halved(x: Tensor, dim: int) -> Tensor:
    """The sum along one axis, by halves: each number meets the same partner whatever stands beside."""
    n = x.shape[dim]
    size = 1 << max(n - 1, 0).bit_length()
    x = x.movedim(dim, 0)
    x = torch.cat([x, x.new_zeros((size - n, *x.shape[1:]))])
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x[0]


def added(x: Tensor, dim: int, plan: Plan) -> Tensor:
    """The sum along one axis as a plan has it."""
    if plan.order is not None:
        x = x.index_select(dim, plan.order)
    if plan.parts == 1 or x.shape[dim] < 2:
        return halved(x, dim)
    first, *rest = (halved(one, dim) for one in x.tensor_split(plan.parts, dim))
    for one in rest:
        first = first + one
    return first


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, plan: Plan) -> Both:
    """One sequence: q (h i d), k (g j d) and v (g j e). Causal is aligned bottom-right."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    r = q.shape[0] // max(k.shape[0], 1)
    q, k, v = q.to(wide), k.to(wide).repeat_interleave(r, 0), v.to(wide).repeat_interleave(r, 0)
    i, j = q.shape[1], k.shape[1]
    s = halved(q[:, :, None] * k[:, None], -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        s = s.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(1 + j - i), -inf)
    top = s.detach().amax(-1, keepdim=True) if j else s.new_full((*s.shape[:2], 1), -inf)
    p = torch.exp(s - top.masked_fill(top == -inf, 0.0))
    total = added(p, -1, plan)
    empty = total == 0
    o = added(p[..., None] * v[:, None], 2, plan) / total.masked_fill(empty, 1.0)[..., None]
    lse = (total.masked_fill(empty, 1.0).log() + top[..., 0].masked_fill(empty, 0.0)).masked_fill(empty, -inf)
    return o, lse


class _Graded(torch.autograd.Function):
    """What one function gives, with the gradients of another."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, one: Callable[..., Both], other: Callable[..., Both]) -> Both:
        ctx.save_for_backward(q, k, v)
        ctx.other = other
        return one(q, k, v)

    @staticmethod
    def backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            grads = torch.autograd.grad(ctx.other(*leaves), leaves, (do, dlse), allow_unused=True)
        return (*grads, None, None)


class Steady(Adapter):
    """A right kernel that keeps every promise about bits."""

    offers = frozenset(
        {"mha", "gqa", "mqa", "strided", "value_width", "backward", "causal", "scale", "lse", "lse_grad", "packed", "packed_gaps"}
        | {"packed_long", "cached", "paged", "paged_queries", "paged_any_size", *PROMISES}
    )
    dialect = {"causal_alignment": "bottom_right", "empty_row": "zero"}

    def plan(self, about: About, j: int) -> Plan:
        """How keys of a sequence are added up in forward."""
        return PLAIN

    def backward_plan(self, about: About, j: int) -> Plan:
        """The same in backward."""
        return PLAIN

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        """What is done to the answer of a sequence, (h i e) and (h i)."""
        return o, lse

    def sequence(self, q: Tensor, k: Tensor, v: Tensor, about: About, scale: float | None) -> Both:
        """One sequence in the dtypes of an answer."""
        plan, back = self.plan(about, k.shape[1]), self.backward_plan(about, k.shape[1])

        def one(q: Tensor, k: Tensor, v: Tensor) -> Both:
            return attend(q, k, v, about.causal, scale, plan)

        if about.graded and plan is not back:
            o, lse = _Graded.apply(q, k, v, one, lambda q, k, v: attend(q, k, v, about.causal, scale, back))
        else:
            o, lse = one(q, k, v)
        o, lse = self.changed(about, o, lse)
        return o.to(q.dtype), lse

    def attend(self, q, k, v, *, causal=False, scale=None, lse=False):  # type: ignore[no-untyped-def, override]
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        found = [
            self.sequence(q[n], k[n], v[n], About("", n, len(q), k.shape[2], causal=causal, graded=graded, lse=lse), scale)
            for n in range(len(q))
        ]
        o = torch.stack([x for x, _ in found]) if found else q.new_zeros((*q.shape[:3], v.shape[3]))
        return (o, torch.stack([x for _, x in found]) if found else q.new_zeros(q.shape[:3]).float()) if lse else o

    def attend_packed(  # type: ignore[no-untyped-def, override]
        self, q, k, v, cu_q, cu_k, max_q, max_k, *, used_q=None, used_k=None, causal=False, scale=None, lse=False
    ):
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        outs, sums, at = [], [], 0
        for n in range(len(cu_q) - 1):
            a, c = int(cu_q[n]), int(cu_k[n])
            b = int(cu_q[n + 1]) if used_q is None else a + int(used_q[n])
            d = int(cu_k[n + 1]) if used_k is None else c + int(used_k[n])
            about = About("packed", n, len(cu_q) - 1, int(max_k), begins=c, causal=causal, graded=graded, lse=lse)
            o, own = self.sequence(q[a:b].movedim(0, 1), k[c:d].movedim(0, 1), v[c:d].movedim(0, 1), about, scale)
            outs.append(pad(o.movedim(0, 1), (0, 0, 0, 0, a - at, 0)))
            sums.append(pad(own, (a - at, 0)))
            at = b
        o = torch.cat([*outs, q.new_zeros((len(q) - at, q.shape[1], v.shape[2]))])
        if not lse:
            return o
        rest = torch.zeros(q.shape[1], len(q) - at, dtype=sums[0].dtype if sums else torch.float32)
        return o, torch.cat([*sums, rest], 1)

    def attend_cached(self, q, k_cache, v_cache, lengths, *, causal=False, scale=None, lse=False):  # type: ignore[no-untyped-def, override]
        longest = max(map(int, lengths), default=0)
        found = []
        for n in range(len(q)):
            m = int(lengths[n])
            about = About("cached", n, len(q), longest, k_cache.shape[1], causal=causal, lse=lse)
            o, own = self.sequence(q[n].movedim(0, 1), k_cache[n, :m].movedim(0, 1), v_cache[n, :m].movedim(0, 1), about, scale)
            found.append((o.movedim(0, 1), own))
        o = torch.stack([x for x, _ in found])
        return (o, torch.stack([x for _, x in found])) if lse else o

    def attend_paged(  # type: ignore[no-untyped-def, override]
        self, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, causal=False, scale=None, lse=False
    ):
        size, outs, sums = k_pages.shape[1], [], []
        for n in range(len(lengths)):
            m = int(lengths[n])
            own = table[n, : -(-m // size)].long()
            k, v = (pages[own].flatten(0, 1)[:m] for pages in (k_pages, v_pages))
            begins = int(own[0]) if len(own) else 0
            about = About("paged", n, len(lengths), max(map(int, lengths)), len(k_pages), begins=begins, causal=causal, lse=lse)
            o, total = self.sequence(
                q[int(cu_q[n]) : int(cu_q[n + 1])].movedim(0, 1), k.movedim(0, 1), v.movedim(0, 1), about, scale
            )
            outs.append(o.movedim(0, 1))
            sums.append(total)
        o = torch.cat(outs)
        return (o, torch.cat(sums, 1)) if lse else o


class Shared(Steady):
    """A right kernel that repeats its bits, and splits keys by how many sequences there are: of that it promises nothing."""

    offers = Steady.offers - {"batch_invariant", "batch_invariant_backward", "row_invariant"}

    def plan(self, about: About, j: int) -> Plan:
        """More parts where there are few sequences."""
        return Plan(parts=max(1, 8 // about.count))

    backward_plan = plan


class Atomic(Steady):
    """A right kernel that adds keys up in the order in which they come, another one each time, and promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def plan(self, about: About, j: int) -> Plan:
        """Any order."""
        return Plan(torch.from_numpy(RANDOM.permutation(j)))

    backward_plan = plan
