"""Computes the exact answer for some query rows of a problem that is too long for all of them.

Rows are independent of each other. So are their gradients, if the cotangent is zero in all other rows. The computation goes through
the keys tile by tile, in O(rows · keys · width) time and O(rows · tile · width) memory beside the operands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.reference import dense
from attnspec.reference.bounds.accuracy import LARGEST, arithmetic
from attnspec.reference.bounds.gradients import backward_bound
from attnspec.reference.bounds.output import forward_bound
from attnspec.reference.bounds.overflow import may_overflow
from attnspec.reference.bounds.tile import Tile, Tiles, with_sink
from attnspec.reference.exact import (
    REFERENCE_SHARE,
    Reduced,
    beyond_base_2,
    bound_of_keys,
    limits,
    of_sinks,
    reduced,
    returned_bound,
    weighed_bound,
)
from attnspec.reference.numbers import to_float64
from attnspec.reference.stages import heads, lse, maps, sink, softmax, visible
from attnspec.reference.stages import scores as products
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.stage import ScoreMap
from attnspec.reference.zeros import reaches_sink, weighs
from attnspec.spec import OPTIONS, Dialect, Problem

TILE = 65_536  # elements of rows × keys that are held at once


@dataclass(frozen=True)
class Part:
    """A part of the exact answer: the implementation's `output[at]` must have these values, within these bounds.

    values, bound, exempt: arrays in the shape of `output[at]`, as in :class:`Exact` and :class:`Tolerance`.
    """

    output: str
    at: tuple[slice | list[int], ...]
    values: Array
    bound: Array
    exempt: Array

    def place(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """The index in the implementation's output of an element of this part."""
        selected = (*self.at, *[slice(None)] * (len(index) - len(self.at)))
        return tuple(n + (x.start or 0) if isinstance(x, slice) else x[n] for n, x in zip(index, selected, strict=True))


@dataclass
class _Summed:
    """The gradient of a score map's own tensor that all rows and keys add to, so far."""

    one: ScoreMap
    sums: Reduced
    value: Array | float = 0.0
    reached: Array | float = 0.0  # how many rows and keys add something


def summed(given: Given) -> list[ScoreMap]:
    """The score maps whose own tensors are the same for all rows and keys."""
    return [one for one in maps.active(given) if one.gradient and not set(OPTIONS[one.option].axes) & set("ij")]


class SampledRows:
    """The exact answer for some query rows of a problem against all of its keys.

    rows: indices of queries, the same for every batch item and head. Raises ValueError if the problem's cotangent is not zero in
    all other rows, if an operand is not finite, and for dropout in training.
    """

    def __init__(self, problem: Problem, dialect: Dialect, rows: Sequence[int]) -> None:
        if problem.training and problem.dropout:
            raise ValueError("sampled rows have no dropout: the keep mask of a long problem is too large to be handed over")
        self.problem, self.dialect, self.rows = problem, dialect, list(rows)
        self.q = to_float64(problem.q[:, :, self.rows])
        self.do = None if problem.do is None else to_float64(problem.do[:, :, self.rows])
        if problem.differentiated and problem.do is None:
            self.do = np.zeros((*self.q.shape[:3], problem.e))
        for asked in (x != 0 if name == "dlse" else (x != 0).any(-1) for name, x in problem.cotangents().items()):
            asked[:, :, self.rows] = False
            if asked.any():
                raise ValueError("the cotangent must be zero outside of the sampled rows")
        if not all(bool(torch.isfinite(x).all()) for x in (problem.q[:, :, self.rows], problem.k, problem.v)):
            raise ValueError("sampled rows need finite operands")
        bias = problem.bias
        if bias is not None:  # −∞ hides, and is an operand like any other
            bias = bias if bias.ndim < 2 or bias.shape[-2] == 1 else bias[..., self.rows, :]
            if not bool((bias < np.inf).all()):
                raise ValueError("sampled rows need a bias that is a number or −∞; found NaN or +∞")
        if problem.sinks is not None and not bool((problem.sinks < np.inf).all()):
            raise ValueError("sampled rows need sinks that are numbers or −∞; found NaN or +∞")
        self.width = max(256, TILE // max(1, self.q[..., 0].size))
        self._forward()
        dlse = problem.dlse
        self.lam = None if dlse is None else lse.cotangent(to_float64(dlse[:, :, self.rows]), self.bare, dialect)

    # TILES

    def _slices(self, backwards: bool = False) -> list[slice]:
        starts = range(0, max(1, self.problem.j), self.width)
        slices = [slice(a, min(a + self.width, self.problem.j)) for a in starts]
        return slices[::-1] if backwards else slices

    def _per_query_head(self, x: torch.Tensor, keys: slice) -> Array:
        return heads.per_query_head(to_float64(x[..., keys, :]), self.problem.h, self.dialect.head_grouping)

    def _given(self, keys: slice) -> Given:
        return Given(self.problem, self.dialect, rows=self.rows, keys=keys)

    def _scores(self, k: Array, given: Given) -> tuple[tuple[Array, ...], Array]:
        """The scores after each map, and what is visible, (b h i n), of some keys."""
        scores = maps.through(products.scores(self.q, k, given.scale), given)
        return scores, visible.visible_keys(scores[0].shape, given)

    def _forward(self) -> None:
        """The largest score, the sum and the output of each row, in one pass."""
        shape = self.q.shape[:3]
        m, total, o = np.full(shape, -np.inf), np.zeros(shape), np.zeros((*shape, self.problem.e))
        z = sink.logits(self._given(slice(0, 0)))
        fill = np.zeros((*shape[:2], 1, self.problem.e))
        for keys in self._slices():
            k, v = self._per_query_head(self.problem.k, keys), self._per_query_head(self.problem.v, keys)
            scores, seen = self._scores(k, self._given(keys))
            highest = np.maximum(m, np.max(scores[-1], axis=-1, initial=-np.inf, where=seen))
            pivot = np.where(np.isinf(highest), 0.0, highest)
            e = softmax.exponentials(scores[-1], seen, pivot)
            shrink = np.exp(m - pivot)
            m, total, o = highest, total * shrink + e.sum(-1), o * shrink[..., None] + e @ v
            fill = fill + v.sum(-2, keepdims=True)
        self.empty, self.top, bare = total == 0, None if z is None else m, total == 0
        self.lse_of_keys = None if z is None else np.where(self.empty, -np.inf, m + np.log(np.where(self.empty, 1.0, total)))
        if z is not None:
            bare = bare & (z == -np.inf)
            highest = np.where(bare, 0.0, np.maximum(m, z))
            shrink, e_sink = np.exp(m - highest), softmax.exponential(z, highest)
            m, total, o = highest, total * shrink + e_sink, o * shrink[..., None]
        self.m = np.where(bare, 0.0, m)
        self.total = np.where(bare, 1.0, total)
        self.pi = None if z is None else e_sink / self.total
        rule = self.dialect.empty_row
        fills: dict[str, Array | float] = {"zero": 0.0, "uniform": fill / max(self.problem.j, 1), "nan": np.nan}
        filled = fills[rule] if self.problem.j else 0.0
        self.bare = bare
        self.o = np.where(bare[..., None], filled, o / self.total[..., None])
        self.lse = np.where(bare, -np.inf, self.m + np.log(self.total))

    def _tile(self, keys: slice, gradients: bool) -> Tile:
        k, v = self._per_query_head(self.problem.k, keys), self._per_query_head(self.problem.v, keys)
        given = self._given(keys)
        scores, seen = self._scores(k, given)
        p = softmax.exponentials(scores[-1], seen, self.m) / self.total[..., None]
        p = softmax.fill_empty_rows(p, self.bare, self.dialect.empty_row, self.problem.j)
        f = dense.Forward(scores, seen, self.empty, p, p, self.m, self.lse, self.o, self.pi, self.top, self.lse_of_keys)
        if not gradients or self.do is None:
            return Tile(self.q, k, v, given, f, self.do)
        back = dense.backward(self.q, k, v, self.do, f, given, self._delta, self.lam)
        return Tile(self.q, k, v, given, f, self.do, back, self.lam)

    @cached_property
    def _delta(self) -> Array:
        """D = Σ P dP (b h i)."""
        tiles = (self._tile(keys, False) for keys in self._slices())
        return sum((x.forward.p * dense.probability_gradient(self.do, x.v, 1.0)).sum(-1) for x in tiles)  # type: ignore[arg-type, return-value]

    @cached_property
    def dq(self) -> Array:
        """The exact gradient of the sampled queries (b h rows d). The problem must have a cotangent."""
        tiles = (self._tile(keys, True).backward for keys in self._slices())
        return sum(back.dq for back in tiles if back is not None)  # type: ignore[return-value]

    @cached_property
    def _dsink(self) -> Array:
        """What each row adds to the gradient of its head's sink (b h i)."""
        assert self.pi is not None
        return sink.gradient(self.pi, self._delta if self.lam is None else self._delta - self.lam)

    @cached_property
    def dsinks(self) -> Array:
        """The exact gradient of the sinks (h), to which the other rows add nothing. The problem must have both."""
        return dense.of_rows(self._dsink, "sinks", self._given(slice(0, 0)))

    # ANSWER

    def parts(self, class_: str) -> Iterator[Part]:
        """The exact answer and its bounds for a class: o and lse, dk and dv of each tile of keys, then dq.

        Before dq come the gradients of what is the same for all rows and keys, such as slopes, and after it those of sinks.
        """
        problem, dtype = self.problem, str(self.problem.dtype).removeprefix("torch.")
        a = arithmetic(class_, dtype)
        share = 1 + (1.0 if dtype == "float64" else REFERENCE_SHARE)
        everything, rows = slice(None), (slice(None), slice(None), self.rows)

        def part(output: str, at: tuple[Any, ...], values: Array, bound: Array, zero: Array, exempt: Array) -> Part:
            return Part(output, at, values, *limits(values, bound, zero, exempt, dtype, share))

        def tiles(gradients: bool) -> Tiles:
            def some(backwards: bool) -> Iterator[Tile]:
                for n, keys in enumerate(self._slices(backwards)):
                    tile = self._tile(keys, gradients)
                    yield from (tile,) if n else with_sink(tile)

            return some

        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            w = forward_bound(tiles(False), problem.j, a)
            row, both = may_overflow(tiles(a.u_grad > 0), a)
            both = both | (np.abs(self.o) + w.o > LARGEST[dtype]).any(-1)
            fills = self.bare & (self.dialect.empty_row != "zero") & (problem.j > 0)
            none = self.empty & ~fills
            yield part("o", rows, self.o, w.o, none[..., None], row[..., None])
            if not problem.lse:
                yield part("lse", rows, self.lse, w.lse, self.bare, row)
            elif problem.sinks is not None and self.dialect.lse_includes_sink == "no":
                keys_alone = SampledRows(problem.replace(sinks=None, do=None, wrt=()), self.dialect, self.rows)
                yield from (one for one in keys_alone.parts(class_) if one.output == "lse")
            else:
                value, stored = lse.returned(self.lse, self.bare, self.dialect), lse.dtype_of(problem, self.dialect)
                bound = returned_bound(w.lse, value, problem, self.dialect, a)
                bound, skip = limits(
                    value, bound, np.zeros(value.shape, bool), row | beyond_base_2(w.lse, self.lse, a), stored, share
                )
                skip = np.where(self.bare, self.dialect.lse_empty == "sentinel", skip)
                yield Part("lse", rows, value, bound, skip)
            if self.do is None:
                return
            asked = (self.do != 0).any(-1)[..., None]
            scoring = asked if self.lam is None else asked | (self.lam != 0)[..., None]
            group, grouping = problem.h // max(problem.g, 1), self.dialect.head_grouping
            g = backward_bound(tiles(True), w, self.dq, a, group, problem.i)
            scored_rows = np.zeros((*self.empty.shape, 1), bool)
            of_maps = [_Summed(one, reduced(one, x, a)) for x in (self._given(slice(0, 1)),) for one in summed(x)]
            for keys, each in zip(self._slices(), g.of_keys, strict=True):
                x = self._tile(keys, True)
                assert x.backward is not None
                scored = x.forward.visible & scoring
                scored_rows |= scored.any(-1, keepdims=True)
                at = (slice(None), keys) if problem.shared else (everything, everything, keys)
                for output, head, alone, reached in (
                    ("dk", each.dk, x.backward.dk, scored),
                    ("dv", each.dv, x.backward.dv, x.live & asked),
                ):
                    like = (*problem.k.shape[:-2], keys.stop - keys.start, alone.shape[-1])
                    any_row = reached.any(-2)[..., None].astype(float)
                    value = heads.sum_over_group(alone, like, grouping)
                    nothing = heads.sum_over_group(any_row, (*like[:-1], 1), grouping) == 0
                    bound, skip = bound_of_keys(head, each.stored[output], value, both.any(-1), like, grouping, a)
                    yield part(output, at, value, bound, nothing, skip)
                for own in of_maps:
                    of_map = x.backward.dscores[1 + x.maps.index(own.one)]
                    own.sums.add(*weighed_bound(own.one, of_map, each.of_maps[own.one.option], x.given, a), both)
                    own.value = own.value + own.sums.reduced(dense.weighed(of_map, own.one, x.given))
                    own.reached = own.reached + own.sums.reduced(weighs(own.one, scored, x.given).astype(float))
            for own in of_maps:
                bound, skip = own.sums.limits(np.asarray(own.value), self.empty.size * problem.j)
                yield part(f"d{own.one.option}", (), np.asarray(own.value), bound, np.asarray(own.reached) == 0, skip)
            skip = both[..., None] | (g.stored > LARGEST[dtype])
            yield part("dq", rows, self.dq, g.dq, ~scored_rows, skip)
            given = self._given(slice(0, 0))
            z = sink.logits(given)
            if z is not None and g.dsink is not None:
                reached, sums = reaches_sink(scored_rows[..., 0], z, self.lam), of_sinks(given, a)
                sums.add(self._dsink[..., None], g.dsink, both)
                bound, skip = sums.limits(self.dsinks, self._dsink.size)
                nothing = dense.of_rows(reached.astype(float), "sinks", given) == 0
                yield part("dsinks", (slice(None),), self.dsinks, bound, nothing, skip)
