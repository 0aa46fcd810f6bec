"""Keys in tiles, as the bounds take them: what the reference found for all query rows against some keys.

A problem is one tile with all of its keys, or, for long rows, many that are made when they are asked for, so that nothing of the
size of keys times width has to exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic
from attnspec.reference.dense import Backward, Forward
from attnspec.reference.stages import maps, sink
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.stage import ScoreMap

T = TypeVar("T")
_NOTHING = object()


@dataclass(frozen=True)
class Tile:
    """Some keys, and what the reference found for all query rows against them.

    One head of keys and values per query head, finite float64. forward holds m, lse, empty and o of whole rows; backward
    the whole rows' delta.
    """

    q: Array  # (b h i d)
    k: Array  # (b h n d)
    v: Array  # (b h n e)
    given: Given  # the options, of these rows and keys
    forward: Forward
    do: Array | None = None  # (b h i e)
    backward: Backward | None = None
    lam: Array | None = None  # λ (b h i), the cotangent of the natural lse; None for none
    sink: bool = False  # its one key is the sink; see with_sink
    _memo: dict[tuple[str, object], Any] = field(default_factory=dict)

    @cached_property
    def scale(self) -> float:
        """What the products are multiplied by."""
        return self.given.scale

    @cached_property
    def factor(self) -> Array | float:
        """r_ij, (b h i n), or 1."""
        return self.given.factor

    @cached_property
    def maps(self) -> tuple[ScoreMap, ...]:
        """The score maps that are active; a sink meets none."""
        return () if self.sink else maps.active(self.given)

    @property
    def sunk(self) -> bool:
        """True where the problem has sinks."""
        return self.forward.pi is not None

    @cached_property
    def size_m(self) -> Array:
        """|m|, or that of the largest score of a key where it is larger: kernels shift by either. (b h i)."""
        f = self.forward
        return np.abs(f.m) if f.top is None else np.maximum(np.abs(f.m), np.abs(np.where(f.empty, 0.0, f.top)))

    @cached_property
    def size_lse(self) -> Array:
        """|lse|, or that of the keys alone where it is larger; 0 in an empty row. (b h i)."""
        f = self.forward
        size = np.abs(np.where(f.empty, 0.0, f.lse))
        return size if f.lse_of_keys is None else np.maximum(size, np.abs(np.where(f.empty, 0.0, f.lse_of_keys)))

    @property
    def dropped(self) -> bool:
        """True where dropout multiplies the probabilities, one more rounding."""
        return not isinstance(self.factor, float)

    @cached_property
    def stretch(self) -> float:
        """By how much dropout multiplies what underflowed before it, at most, and once for what underflows after it."""
        return 1 + float(np.max(self.factor, initial=0.0)) if self.dropped else 1.0

    @cached_property
    def live(self) -> Array:
        """Which keys contribute to a row's output, (b h i n) bool: the visible ones, and what a rule fills in."""
        f = self.forward
        return f.visible | (f.bare[..., None] & (f.p > 0)) if f.empty.any() else f.visible

    @cached_property
    def abs_q(self) -> Array:
        """|q| (b h i d)."""
        return np.abs(self.q)

    @cached_property
    def abs_k(self) -> Array:
        """|k| (b h n d)."""
        return np.abs(self.k)

    @cached_property
    def abs_v(self) -> Array:
        """|v| (b h n e)."""
        return np.abs(self.v)

    @cached_property
    def norm_q(self) -> Array:
        """Σ_c |q| (b h i 1)."""
        return self.abs_q.sum(-1, keepdims=True)

    @cached_property
    def norm_k(self) -> Array:
        """Σ_c |k| (b h n 1)."""
        return self.abs_k.sum(-1, keepdims=True)

    @cached_property
    def abs_qk(self) -> Array:
        """|q| |k|ᵀ (b h i n)."""
        return self.abs_q @ self.abs_k.swapaxes(-1, -2)

    @cached_property
    def abs_s(self) -> Array:
        """|s| where the key is visible (b h i n)."""
        return np.where(self.forward.visible, np.abs(self.forward.s), 0.0)

    @cached_property
    def common(self) -> Array | None:
        """What a kernel may add to all scores of a row, and to its sink, (b h 1), at most; None where nothing does."""
        some = [
            np.asarray(c)[..., 0]
            for one in maps.active(self.given)
            for c in (one.common(self.given)[0],)
            if not isinstance(c, float)
        ]
        return sum(some[1:], some[0]) if some else None

    @cached_property
    def reach(self) -> Array:
        """r |do| |v|ᵀ (b h i n). Of a tile with a cotangent only."""
        assert self.do is not None
        product = np.abs(self.do) @ self.abs_v.swapaxes(-1, -2)
        return np.abs(self.factor) * product if self.dropped else product

    @cached_property
    def scored(self) -> Array:
        """Where dS may be anything but zero, (b h i n) bool: the key is visible, and something is asked of the row."""
        assert self.do is not None
        return self.forward.visible & self.asked[..., None]

    @cached_property
    def asked(self) -> Array:
        """Rows of which something is asked, (b h i) bool: a cotangent is not zero."""
        assert self.do is not None
        asked: Array = (self.do != 0).any(-1)
        return asked if self.lam is None else asked | (self.lam != 0)

    @cached_property
    def abs_lam(self) -> Array | float:
        """|λ| (b h i 1), 0 without one."""
        return 0.0 if self.lam is None else np.abs(self.lam)[..., None]

    @cached_property
    def log_p(self) -> Array:
        """s − lse where the key is visible, −∞ elsewhere. (b h i n)."""
        f = self.forward
        return np.where(f.visible, f.s - np.where(f.empty, 0.0, f.lse)[..., None], -np.inf)


def once(function: Callable[..., T]) -> Callable[..., T]:
    """Remember on the tile what `function(tile, …, arithmetic)` gave: its other arguments follow from these two."""

    @wraps(function)
    def remembered(tile: Tile, *arguments: object) -> T:
        key = function.__name__, arguments[-1]  # an arithmetic of twenty numbers is looked up, and so hashed, once
        found = tile._memo.get(key, _NOTHING)
        if found is _NOTHING:
            found = tile._memo[key] = function(tile, *arguments)
        return found

    return remembered


def with_sink(x: Tile) -> Iterator[Tile]:
    """The tile of a row's first keys, behind that of the sink where the problem has one.

    A sink is one more key, with a score of its own and a value of zero. With it the probabilities of a row sum to one, and these
    take that for granted: E1 and its hull (Σ p (r v − o) = 0, and o lies among the values), Σ p e^(±Δ) as what the row sum is off
    by, in o, in lse and in the probabilities of backward, the error of D (Σ P (dP − D) = 0) and what amax passes on (Σ dS = 0).
    The error of D in dq meets Σ P k, whatever P sums to. An empty row has no tile of a sink: nothing that it gives is rounded.
    """
    z, f, back = sink.logits(x.given), x.forward, x.backward
    if z is not None:
        assert f.pi is not None
        k, v = (np.zeros((*y.shape[:2], 1, y.shape[3])) for y in (x.k, x.v))
        score = np.broadcast_to(np.where(z > -np.inf, z, 0.0), f.m.shape)[..., None]
        seen = (~f.empty & (z > -np.inf))[..., None]
        p = np.where(seen, f.pi[..., None], 0.0)
        own = replace(f, scores=(score,), visible=seen, p=p, w=p)
        if back is not None:
            assert back.dsink is not None
            back = replace(back, dp=np.zeros(p.shape), dscores=(back.dsink[..., None],))
        yield Tile(x.q, k, v, replace(x.given, keep=None), own, x.do, back, x.lam, sink=True)
    yield x


Tiles = Callable[[bool], Iterable[Tile]]  # the tiles of a problem, in the order of their keys or (True) against it


def with_common(x: Tile, size: Array, a: Arithmetic) -> Array:
    """A size (b h i), or (b h i n), of scores as a kernel may have them: what is common to a row is rounded with them."""
    if x.common is None:
        return size
    common = a.column * x.common
    return size + (common[..., None] if size.ndim == 4 else common)
