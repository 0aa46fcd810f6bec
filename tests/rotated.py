"""A kernel of a cache and of pages that turns new keys and queries, and takes latents: right, with each step open to a fault."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from honest import wide as wider
from torch import Tensor

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import Dialect, Problem

OFFERS = frozenset(
    {"mha", "gqa", "mqa", "value_width", "causal", "scale", "window", "window_right", "lse"}
    | {"cached", "cached_append", "cached_left", "cached_slots", "rotary", "cached_rotary", "rotary_told", "rotary_any_width"}
    | {"paged", "paged_append", "paged_queries", "paged_any_size", "paged_any_entry", "paged_rotary"}
    | {"cached_latent", "paged_latent"}
)


@dataclass(frozen=True)
class Turn:
    """The tables of a call, and its pairs."""

    cos: Tensor
    sin: Tensor
    interleaved: bool

    @property
    def width(self) -> int:
        return 2 * self.cos.shape[1]


@dataclass(frozen=True)
class Sequence:
    """One sequence of a call: its rows of the cache in order, and what is new.

    length: rows before the call, of which `left` are no keys. k, v: the rows that are there, k_new, v_new: those that are not.
    """

    n: int
    q: Tensor  # (i h d)
    k: Tensor  # (j g d)
    v: Tensor
    k_new: Tensor  # (a g d)
    v_new: Tensor
    length: int
    left: int
    lengths: Tensor
    causal: bool
    window: Any
    scale: float | None
    turn: Turn | None
    size: int  # rows of a page; 0 in a cache

    @property
    def placed(self) -> bool:
        return self.causal or self.window is not None


def wide(x: Tensor) -> Tensor:
    """In the dtype in which it is computed."""
    return x.to(wider(x.dtype))


def rotate(x: Tensor, at: Any, turn: Turn) -> Tensor:
    """x (n g d) with its first channels turned by the rows `at` of the tables."""
    at = torch.as_tensor(at, dtype=torch.long)
    cos, sin = (wide(table[at])[:, None] for table in (turn.cos, turn.sin))
    a, b = places(turn.width, turn.interleaved)
    found, y = x.clone(), wide(x)
    found[..., a] = (y[..., a] * cos - y[..., b] * sin).to(x.dtype)
    found[..., b] = (y[..., a] * sin + y[..., b] * cos).to(x.dtype)
    return found


def places(width: int, interleaved: bool) -> tuple[slice, slice]:
    """The first channels of all pairs, and the second ones."""
    return (slice(0, width, 2), slice(1, width, 2)) if interleaved else (slice(0, width // 2), slice(width // 2, width))


class Honest(Adapter):
    """Sequence by sequence. Each method is a step."""

    offers = OFFERS
    dialect = {"causal_alignment": "bottom_right", "window_count": "inclusive", "head_grouping": "blocked"}
    default = False  # of interleaved
    latent = False  # whether the call that is answered is one of latents
    all_like_the_first = False

    # POSITIONS AND TURNS

    def of_keys(self, one: Sequence) -> list[int]:
        return [one.length + a for a in range(len(one.k_new))]

    def of_queries(self, one: Sequence) -> list[int]:
        step = 0 if self.all_like_the_first and not one.placed else 1
        return [one.length + step * i for i in range(len(one.q))]

    def turned_keys(self, one: Sequence) -> Tensor:
        """New keys as they are attended to."""
        return one.k_new if one.turn is None else rotate(one.k_new, self.of_keys(one), one.turn)

    def turned_queries(self, one: Sequence) -> Tensor:
        return one.q if one.turn is None else rotate(one.q, self.of_queries(one), one.turn)

    def written(self, one: Sequence, keys: Tensor) -> tuple[Tensor, Tensor]:
        """What is written, of the new keys as they are attended to."""
        return keys, one.v_new

    def keys_there(self, one: Sequence) -> Tensor:
        """The keys that were there, as they are attended to."""
        return one.k

    # WHAT A LATENT IS

    def values(self, latents: Tensor, e: int) -> Tensor:
        """The values of latents (… d)."""
        return latents[..., :e]

    def scaled(self, one: Sequence, e: int) -> float:
        return max(one.q.shape[2], 1) ** -0.5 if one.scale is None else one.scale

    # THE CALL

    def scores(self, q: Tensor, k: Tensor, e: int) -> Tensor:
        """(h i j) of q (i h d), k (j h d)."""
        return torch.einsum("ihd,jhd->hij", wide(q), wide(k))

    def attended(self, one: Sequence, e: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """o (i h e) and lse (h i) of a sequence, and what of keys and values is written."""
        keys, q = self.turned_keys(one), self.turned_queries(one)
        k, v = torch.cat([self.keys_there(one), keys]), torch.cat([one.v, one.v_new])
        group = q.shape[1] // max(k.shape[1], 1)
        k_, v_ = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        s = self.scores(q, k_, e) * self.scaled(one, e)
        own = torch.arange(len(q))[:, None] + len(k) - len(q)
        ahead = torch.arange(len(k)) - own
        left, right = one.window or (None, None)
        seen = torch.ones(len(q), len(k), dtype=torch.bool)
        for hidden in (
            ahead > 0 if one.causal else None,
            None if left is None else ahead < -left,
            None if right is None else ahead > right,
        ):
            seen = seen if hidden is None else seen & ~hidden
        s = s.masked_fill(~seen, -inf)
        o = self.weighted(s, wide(v_))
        return o.to(q.dtype), torch.logsumexp(s, -1), *self.written(one, keys)

    def weighted(self, s: Tensor, v: Tensor) -> Tensor:
        """(i h e)"""
        p = s.softmax(-1).nan_to_num() if s.shape[-1] else s
        return torch.einsum("hij,jhe->ihe", p, v)

    def attend_cached(
        self,
        q,
        k_cache,
        v_cache,
        lengths,
        *,
        k_new=None,
        v_new=None,
        left=None,
        slots=None,
        cos=None,
        sin=None,
        interleaved=None,
        value_width=None,
        causal=False,
        scale=None,
        window=None,
        lse=False,
    ):
        self.latent = value_width is not None
        turn = self.turn(cos, sin, interleaved)
        e = v_cache.shape[-1] if value_width is None else value_width
        found = []
        for n in range(len(q)):
            slot, first, m = (n if slots is None else int(slots[n])), (0 if left is None else int(left[n])), int(lengths[n])
            new = k_cache[slot, :0] if k_new is None else k_new[n]
            values = self.values(new, e) if v_new is None and v_cache is None else new[:, :, :0] if v_new is None else v_new[n]
            values = k_cache.new_zeros(0, k_cache.shape[2], e) if not len(new) else values
            k = k_cache[slot, first:m]
            v = self.values(k, e) if v_cache is None else v_cache[slot, first:m]
            one = Sequence(n, q[n], k, v, new, values, m, first, lengths, causal, window, scale, turn, 0)
            o, sums, keys, vs = self.attended(one, e)
            k_cache[slot, m : m + len(keys)] = keys
            if v_cache is not None:
                v_cache[slot, m : m + len(keys)] = vs
            found.append((o, sums))
        o = torch.stack([x for x, _ in found]) if found else q[..., :e]
        return (o, torch.stack([x for _, x in found]) if found else q[..., 0].transpose(1, 2).float()) if lse else o

    def attend_paged(
        self,
        q,
        cu_q,
        max_q,
        k_pages,
        v_pages,
        table,
        lengths,
        *,
        k_new=None,
        v_new=None,
        cu_new=None,
        cos=None,
        sin=None,
        interleaved=None,
        value_width=None,
        causal=False,
        scale=None,
        window=None,
        lse=False,
    ):
        self.latent = value_width is not None
        turn, size = self.turn(cos, sin, interleaved), k_pages.shape[1]
        e = v_pages.shape[-1] if value_width is None else value_width
        outs, sums = [q.new_zeros(0, q.shape[1], e)], [torch.zeros(q.shape[1], 0, dtype=wide(q).dtype)]
        for n in range(len(lengths)):
            m = int(lengths[n])
            a, b = (0, 0) if k_new is None else (int(cu_new[n]), int(cu_new[n + 1]))
            new = k_pages[0, :0] if k_new is None else k_new[a:b]
            values = self.values(new, e) if v_pages is None else v_pages[0, :0] if v_new is None else v_new[a:b]
            pages, rows = self.rows(table[n], m + b - a, size)
            k = k_pages[pages[:m], rows[:m]]
            v = self.values(k, e) if v_pages is None else v_pages[pages[:m], rows[:m]]
            one = Sequence(
                n, q[int(cu_q[n]) : int(cu_q[n + 1])], k, v, new, values, m, 0, lengths, causal, window, scale, turn, size
            )
            o, own, keys, vs = self.attended(one, e)
            k_pages[pages[m:], rows[m:]] = keys
            if v_pages is not None:
                v_pages[pages[m:], rows[m:]] = vs
            outs.append(o)
            sums.append(own)
        o = torch.cat(outs)
        return (o, torch.cat(sums, 1)) if lse else o

    def rows(self, table: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Page and row of each key of a sequence."""
        at = torch.arange(count)
        return table.long()[at // size], at % size

    def turn(self, cos: Tensor | None, sin: Tensor | None, interleaved: bool | None) -> Turn | None:
        if cos is None or sin is None:
            return None
        return Turn(cos, sin, self.default if interleaved is None else interleaved)


class LikeTheFirst(Honest):
    """flash-attention's rule where neither causal nor a window is asked for, and its default of pairs."""

    all_like_the_first = True
    default = True
    dialect = {**Honest.dialect, "rotary_query": "first", "rotary_pairs": "interleaved"}


# WHAT SHOWS A FAULT

TURNS: tuple[dict[str, Any], ...] = tuple(
    {"heads": heads, "b": 3, "i": i, "j": 9, "d": 8, "values": "peaked", "wrt": "none", "seed": i, "lengths": lengths, **how}
    | {"carrier": f"{form}+append{word}"}
    for form, word in (("cached", ""), ("cached", "+left"), ("paged", "+3+dealt"))
    for i, lengths in ((1, "1:9/1:4/1:8"), (3, "3:9/3:4/3:3"))
    for heads, how in (("4/2", {}), ("2/2", {"causal": True}), ("2/1", {"window": "2:1"}))
)
LONG: dict[str, Any] = {"heads": "2/2", "b": 1, "i": 70, "j": 75, "d": 8, "values": "peaked", "wrt": "none", "causal": True}


def turns() -> list[Problem]:
    """Small problems whose calls turn new keys and queries: both pairs, half of the channels and all."""
    found = []
    for n, levels in enumerate((*TURNS, {**LONG, "carrier": "cached+append", "lengths": "70:75"})):
        problem = build(Case(**levels))
        for width, interleaved in ((4, n % 2 == 0), (8, n % 2 == 1)):
            carrier = replace(problem.carrier, rotary=width, interleaved=interleaved, told=True)  # type: ignore[type-var]
            found.append(problem.replace(carrier=carrier))
    return found


def latents() -> list[Problem]:
    """Small problems of latents: a scale that is given and none, new rows and none, pages of several sizes."""
    found = []
    for carrier in (
        "cached+latent",
        "cached+append+latent",
        "paged+latent",
        "paged+3+append+dealt+latent",
        "paged+16+dealt+latent",
    ):
        for n, how in enumerate(({}, {"scale": 0.3}, {"causal": True})):
            levels: dict[str, Any] = {"heads": "4/1", "b": 3, "i": 3, "j": 21, "d": 12, "e": 8, "values": "peaked", "wrt": "none"}
            found.append(build(Case(**levels | how, lse="returned", seed=n, carrier=carrier, lengths="3:21/3:4/3:8")))  # type: ignore[arg-type]
    return found


def wrong(kind: Any, problems: list[Problem], dialect: Dialect) -> bool:
    """Whether an adapter answers one of them wrongly, or writes what it may not."""
    from attnspec.conformance.judging.judge import judge

    adapter = kind()
    for problem in problems:
        answer = adapter.run(problem)
        if answer.changed or judge(answer, solve(problem, dialect), "A").findings:
            return True
    return False
