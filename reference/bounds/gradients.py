"""How far from the exact gradients an honest kernel may be: element by element, for a class of arithmetic.

The same analysis as in :mod:`output` and :mod:`score_gradient`, whose notation it uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic, kappa, kappas
from attnspec.reference.bounds.output import ForwardBound, dropout, operand_lost
from attnspec.reference.bounds.score_gradient import (
    Operand,
    Probabilities,
    RowSums,
    may_be_largest,
    operand,
    probabilities,
    row_sums,
    score_gradient,
    stored_lse,
    through_primitives,
)
from attnspec.reference.bounds.tile import Tile, Tiles
from attnspec.spec import implements


@dataclass(frozen=True)
class KeyBound:
    """The bounds of one tile's gradients per query head, (b h n d), (b h n e).

    of_maps: those of each element of what a score map adds, (b h i n), by its option. stored: how large what is stored of dk and of
    dv may be, by name.
    """

    dk: Array
    dv: Array
    of_maps: dict[str, Array]
    stored: dict[str, Array]


@dataclass
class BackwardBound:
    """The bounds of a problem's gradients. `of_keys` gives those of each tile; after its last, dq (b h i d) is complete."""

    of_keys: Iterator[KeyBound]
    dq: Array
    stored: Array  # how large what is stored of dq may be
    dsink: Array | None = None  # of what each row adds to the gradient of a sink, (b h i 1); None without sinks


def before_scale(value: Array, bound: Array, scale: float, product: Array | float, a: Arithmetic) -> Array:
    """How large what is stored of a gradient may be, which the eager classes may store before it meets the scale, or its root.

    product: the largest that the sum may be before a scale of zero, which leaves no trace of it: 0 · ∞ is NaN.
    """
    size = np.abs(value) + bound
    if not a.u_s:
        return size
    return size * max(1.0, 1 / abs(scale)) if scale else np.maximum(size, product)


@dataclass(frozen=True)
class KeyTerms:
    """How many terms the gradients of a key sum over queries (b h n 1), what that rounds, and how often a sum is written back."""

    count: Array
    rounding: Array
    writes: int


def terms_of_keys(x: Tile, a: Arithmetic, group: int, queries: int) -> KeyTerms:
    """Those of a tile's keys."""
    assert x.do is not None
    # A row that does not see the key, or that nothing is asked of, adds exactly zero.
    count = (x.live & x.asked[..., None]).sum(-2)[..., None] * group
    # A block of rows of which nothing is asked writes back what it read.
    writes = group * min(queries // a.block + 1, int(x.asked.any((0, 1)).sum()))
    return KeyTerms(count, kappas(count, a.u_acc), writes)


def value_error(x: Tile, p: Probabilities, many: KeyTerms, a: Arithmetic) -> Array:
    """The bound of dv = (r∘P)ᵀ do, (b h n e)."""
    assert x.do is not None
    assert x.backward is not None
    u_drop, ado = dropout(x, a), np.abs(x.do)
    upper = p.upper_rounded * (1 + u_drop)
    error = p.error_rounded + u_drop * p.upper_rounded
    if x.dropped:
        error, upper = np.where(x.live, x.factor * error + a.eta_s, 0.0), x.factor * upper
    largest = upper.swapaxes(-1, -2) @ ado
    dv = error.swapaxes(-1, -2) @ ado + (many.rounding + 2 * a.u_in) * largest + a.eta_acc * many.count * x.stretch
    if x.sunk:
        dv += a.eta_s * many.count * x.stretch
    if a.u_grad:
        dv += kappa(many.writes, a.u_grad) * (largest + dv) + many.writes * a.eta_out
    dv += a.u_out * (np.abs(x.backward.dv) + dv) + a.eta_out
    return dv


def sink_gradient_error(x: Tile, w: ForwardBound, sums: RowSums, a: Arithmetic) -> Array:
    """The bound of what each row adds to the gradient of its head's sink, which is the sink's dS = π (0 − D + λ). (b h i 1)."""
    assert x.backward is not None
    error = score_gradient(x, w, sums, a) + through_primitives(x, w, sums, a)
    error += np.where(may_be_largest(x, w, sums, a), sums.noise, 0.0)
    if a.u_s:
        error += 2 * a.u_s * (1 + a.u_s) * (np.abs(x.backward.ds) + error) + a.eta_s
    # Where the sink is applied after the fact, the derivative of the sigmoid is σ (1 − σ) = (1 − π) π, from a stored σ: what is
    # rounded there is no multiple of a small π.
    error += kappa(2, a.u_acc) * (np.abs(x.backward.delta)[..., None] + sums.delta)
    error = np.where(x.scored, error + a.u_out * (np.abs(x.backward.ds) + error) + a.eta_out, 0.0)
    if x.lam is None:
        return error
    # The lse of a row without a key is the sink: π is one, but for what is stored of the lse, and λ may be divided by ln 2.
    alone = (kappa(4, a.u_acc) + 2 * a.u_s + a.u_out + 2 * np.minimum(stored_lse(x, a), 1.0)) * x.abs_lam + a.eta_acc + a.eta_out
    return np.where((x.forward.empty & ~x.forward.bare & (x.lam != 0))[..., None], alone, error)


def operand_rounding(a: Arithmetic) -> float:
    """What a product of dS with q or k loses, but for the order of its sum."""
    return kappa(3, a.u_acc) + 2 * a.u_in + (kappa(1 + a.prescaled, a.u_s) if a.prescaled else 0.0)


def key_error(x: Tile, ds: Operand, many: KeyTerms, a: Arithmetic) -> Array:
    """The bound of dk = scale · dSᵀ q, (b h n d)."""
    assert x.backward is not None
    scale, value, rounding = abs(x.scale), np.abs(x.backward.dk), operand_rounding(a)
    largest = ds.upper.swapaxes(-1, -2) @ x.abs_q
    dk = scale * (ds.error.swapaxes(-1, -2) @ x.abs_q + (many.rounding + rounding) * largest)
    dk += a.eta_acc * many.count * (1 + scale)
    # q, or what q·c and k·c stored, may have underflown (operand_lost): the loss meets dS as it met the other operand.
    dk += operand_lost(x.scale, a) * (1 + rounding) * (1 + many.rounding) * ds.unscaled.sum(-2)[..., None]
    if a.u_s:  # the product before the scale may be stored
        dk += a.u_s * (value + dk) + (1 + scale) * a.eta_s
    if a.u_grad:
        dk += kappa(many.writes, a.u_grad) * (scale * largest + dk) + many.writes * a.eta_out
    dk += a.u_out * (value + dk) + a.eta_out
    return dk


class QuerySums:
    """The bound of dq = scale · dS k, summed over the tiles. D's error is common to a row: it meets |Σ P k|, not Σ P |k|."""

    def __init__(self, sums: RowSums, w: ForwardBound, a: Arithmetic) -> None:
        self.sums, self.w, self.a = sums, w, a
        self.errors = self.mean_key = self.lost = self.product = np.zeros(())
        self.scale = 1.0
        self.blocks = w.count // a.block + 1
        self.writes = np.vectorize(kappa, otypes=[float])(self.blocks, a.u_grad) if a.u_grad else 0.0
        self.over_keys = kappas(w.count, a.u_acc)

    def add(self, x: Tile, ds: Operand) -> None:
        """What the keys of a tile add."""
        a, found, rounding = self.a, probabilities(x, self.w, self.a), operand_rounding(self.a)
        self.scale = abs(x.scale)
        several = (self.over_keys + rounding + self.writes) * ds.upper
        lost = operand_lost(x.scale, a) * (1 + rounding)
        self.lost = self.lost + lost * (1 + self.over_keys) * ds.unscaled.sum(-1, keepdims=True)
        if a.u_softmax:
            self.errors = self.errors + (ds.error + several) @ x.abs_k
        else:
            common_error, common_upper = (found.error_rounded, found.upper_rounded) if a.u_s else (found.error, found.upper)
            common_upper, common_error, p = (np.where(x.scored, y, 0.0) for y in (common_upper, common_error, x.forward.p))
            if ds.slope is not None:  # behind a score map D's error meets P times its slope
                steep = np.abs(ds.slope)
                common_upper, common_error, p = steep * common_upper, steep * common_error, ds.slope * p
            own = np.maximum(ds.error - common_upper * self.sums.delta, 0.0)
            self.errors = self.errors + (own + several + common_error * self.sums.delta) @ x.abs_k
            self.mean_key = self.mean_key + p @ x.k
        if a.u_s and not x.scale:
            self.product = self.product + ds.unscaled @ x.abs_k

    def bound(self, dq: Array) -> tuple[Array, Array]:
        """The bound of dq, and how large what is stored of it may be. (b h i d)."""
        a, scale = self.a, self.scale
        total = scale * (self.errors + self.sums.delta * np.abs(self.mean_key)) + self.lost
        total = total + a.eta_acc * self.w.count * (1 + scale)
        if a.u_s:
            total += a.u_s * (dq + total) + (1 + scale) * a.eta_s
        if a.u_grad:
            total += self.writes * (dq + total) + self.blocks * a.eta_out
        total = total + a.u_out * (dq + total) + a.eta_out
        return total, before_scale(dq, total, scale, self.product, a)


@implements("ACCURACY-2")
def backward_bound(tiles: Tiles, w: ForwardBound, dq: Array, a: Arithmetic, group: int, queries: int) -> BackwardBound:
    """The bounds of the gradients per query head. `group` is how many query heads are summed into one dk and dv.

    dq (b h i d) is the exact one, and `queries` how many rows the kernel has, of which the tiles may hold some. Bounds of
    keys come tile by tile, those of sinks with the first, and that of dq is complete after the last.
    """
    result = BackwardBound(iter(()), np.zeros(dq.shape), np.zeros(dq.shape))
    result.of_keys = _of_keys(result, tiles, w, np.abs(dq), a, group, queries)
    return result


def _of_keys(
    result: BackwardBound, tiles: Tiles, w: ForwardBound, dq: Array, a: Arithmetic, group: int, queries: int
) -> Iterator[KeyBound]:
    sums = row_sums(tiles, w, a)
    of_queries = QuerySums(sums, w, a)
    for x in tiles(False):
        back = x.backward
        assert back is not None
        if x.sink:  # its key and its value are zero, and so are their gradients, whatever dS is
            result.dsink = sink_gradient_error(x, w, sums, a)
            continue
        many = terms_of_keys(x, a, group, queries)
        dv = value_error(x, probabilities(x, w, a), many, a)
        ds = operand(x, w, sums, a)
        dk = key_error(x, ds, many, a)
        of_queries.add(x, ds)
        sum_of_key = ds.unscaled.swapaxes(-1, -2) @ x.abs_q if a.u_s and not x.scale else 0.0
        before = before_scale(back.dk, dk, abs(x.scale), sum_of_key, a)
        yield KeyBound(dk, dv, ds.of_maps, {"dk": before, "dv": np.abs(back.dv) + dv})
    result.dq[:], result.stored[:] = of_queries.bound(dq)
