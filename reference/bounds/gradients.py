"""How far from the exact gradients an honest kernel may be: element by element, for a class of arithmetic.

The same analysis as in :mod:`output`, whose notation and tiles it uses. D = Σ P dP is the sum that dS = P∘(dP − D) subtracts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic
from attnspec.reference.bounds.output import (
    ForwardBound,
    Tile,
    Tiles,
    dropout,
    eager_lse,
    kappa,
    kappas,
    mapped_error,
    once,
    operand_lost,
    quotient,
    raised,
    with_common,
)
from attnspec.spec import implements


@dataclass(frozen=True)
class Probabilities:
    """P as backward has it, recomputed from the stored lse. All (b h i n)."""

    error: Array
    upper: Array  # the largest that P can be
    error_rounded: Array  # the same after rounding for a matmul
    upper_rounded: Array
    stored: Array  # relative error that comes with the stored lse


@dataclass(frozen=True)
class Products:
    """dP and dP − D, how far they may be off but for D, and what P meets. All (b h i n), 0 where nothing comes of them."""

    dp: Array
    error: Array
    centred: Array
    weighed: Array  # |dP − D| + |λ|, which P meets


@dataclass(frozen=True)
class RowSums:
    """What the gradients of a row need from all of its keys. (b h i 1)."""

    delta: Array  # bound of the error of D
    amplified: Array | float  # what D may be off by for the keys alone, where a sink is applied to a stored output
    spread: Array  # the largest |dP − D|
    weighed: Array  # Σ P |dP − D|
    noise: Array  # what dS may sum to, by rounding, and amax passes on
    peak: Array  # the error of the largest score


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


# SOFTMAX


@once
def probabilities(x: Tile, w: ForwardBound, a: Arithmetic) -> Probabilities:
    """P again, from the stored lse, which carries its own error, may come from rounded P, and is not normalised again."""
    f = x.forward
    _, added = raised(x, w.rescales, a)
    again = np.minimum(added * (1 + w.grow) + f.p * w.grow, np.maximum(f.p, 1 - f.p))
    row = with_common(x, x.size_lse, a) + with_common(x, x.size_m, a)
    sums = kappas(w.count[..., 0] + 2 * w.rescales + 4, a.u_acc) + a.rescale * w.rescales
    stored = kappa(4, a.u_acc) * with_common(x, x.abs_s, a) + (kappa(4, a.u_acc) * row + sums)[..., None]
    per_key = np.expm1(np.minimum(stored + (2 * a.exp + 2 * a.u_softmax - np.log1p(-a.u_mma)), 5.0))
    error = np.where(x.live, again * (1 + per_key) + per_key * f.p + a.eta_acc, 0.0)
    upper = np.where(x.live, f.p, 0.0) + error
    if not a.u_mma:
        return Probabilities(error, upper, error, upper, stored)
    rounded = error + np.where(x.live, a.u_mma * upper + a.eta_mma, 0.0)
    return Probabilities(error, upper, rounded, np.where(x.live, f.p, 0.0) + rounded, stored)


# dP


@once
def products(x: Tile, a: Arithmetic) -> Products:
    """dP = r∘(do vᵀ)."""
    assert x.backward is not None
    assert x.do is not None
    seen, e = x.scored, x.v.shape[-1]
    dp = np.where(seen, np.abs(x.backward.dp), 0.0)
    product, storage = kappa(e, a.u_acc), a.u_s + dropout(x, a)
    error = (product + 2 * a.u_in + storage * product) * x.reach + (a.eta_s + a.eta_acc * e) * x.stretch
    # An operand that is flushed as it is read meets the other one.
    error += a.eta_acc * x.stretch * (np.abs(x.do).sum(-1, keepdims=True) + x.abs_v.sum(-1)[:, :, None])
    if storage:
        error += storage * dp
    if x.sunk and a.u_s:  # do times what a sink leaves of the output is stored
        error += kappa(2, a.u_s) * x.reach
    centred = np.where(seen, np.abs(x.backward.dp - x.backward.delta[..., None]), 0.0)
    weighed = centred if x.lam is None else centred + np.where(seen, x.abs_lam, 0.0)
    return Products(dp, np.where(seen, error, 0.0), centred, weighed)


# D


@dataclass(frozen=True)
class OverKeys:
    """What D's bound needs from all of a row's keys. All (b h i 1)."""

    shift: Array  # Σ |dP − D| where P moves with its score
    p_dp: Array  # Σ P |dP|
    p_error: Array  # Σ P · (the error of dP)
    reach: Array
    dps: Array  # Σ |dP|
    weighed: Array
    own: Array  # Σ P (|dP| + |D|) of wide arithmetic
    spread: Array
    peak: Array
    highest: Array  # the largest |r v| of any key, (b h 1 e)
    last: Tile  # that of the last keys: it holds what is the same in all of them


def over_keys(tiles: Tiles, w: ForwardBound, a: Arithmetic) -> OverKeys:
    """One pass over the tiles."""
    shift = p_dp = p_error = reach = dps = weighed = own = spread = peak = highest = np.zeros(())
    for x in tiles(False):
        f, back, p, y = x.forward, x.backward, probabilities(x, w, a), products(x, a)
        assert back is not None
        delta, added = raised(x, w.rescales, a)
        moved = np.minimum(quotient(added, w.low), 1.0)
        shift = shift + (moved * y.centred).sum(-1, keepdims=True)
        p_dp = p_dp + (p.upper_rounded * y.dp).sum(-1, keepdims=True)
        p_error = p_error + (p.upper_rounded * y.error).sum(-1, keepdims=True)
        reach = reach + np.where(x.scored, x.reach, 0.0).sum(-1, keepdims=True)
        dps = dps + y.dp.sum(-1, keepdims=True)
        weighed = weighed + ((p.upper_rounded if a.u_s else p.upper) * y.centred).sum(-1, keepdims=True)
        spread = np.maximum(spread, y.centred.max(-1, keepdims=True, initial=0.0))
        if not a.u_softmax:
            own = own + (p.upper * y.dp).sum(-1, keepdims=True) + np.abs(back.delta)[..., None] * p.upper.sum(-1, keepdims=True)
        at_most = f.visible & (f.s >= f.m[..., None])
        peak = np.maximum(peak, np.where(at_most, delta, 0.0).max(-1, keepdims=True, initial=0.0))
        if x.sunk:
            highest = np.maximum(highest, x.abs_v.max(-2, keepdims=True, initial=0.0) * np.max(x.factor, initial=0.0))
    return OverKeys(np.minimum(shift, spread), p_dp, p_error, reach, dps, weighed, own, spread, peak, highest, x)


def delta_error(row: OverKeys, w: ForwardBound, a: Arithmetic) -> Array:
    """The bound of the error of D, the larger of the two ways to obtain it. (b h i 1)."""
    x, f, back = row.last, row.last.forward, row.last.backward
    assert x.do is not None
    assert back is not None
    ado, e = np.abs(x.do), x.v.shape[-1]
    summed, product = kappas(w.count, a.u_acc), kappa(e, a.u_acc)
    do_o = (ado * np.abs(f.o)).sum(-1, keepdims=True)
    rounded = (a.u_mma + a.u_in + dropout(x, a)) * row.p_dp
    # What is common to a row's P does not cancel in D: the rounding of an lse that o was divided by, or, where D is made of
    # the P of backward, all that the stored lse is off by.
    lse = (with_common(x, x.size_lse, a) + with_common(x, x.size_m, a))[..., None]
    divided = np.minimum(kappa(2, a.u_acc) * (1 + lse), 100.0)
    common = np.minimum(2 * w.sums + 2 * a.rescale * w.rescales[..., None] - np.log1p(-a.u_mma) + kappa(2, a.u_acc) * lse, 100.0)
    from_output = (  # Σ_c do·o, from the stored output
        2 * w.sums * ((ado * w.magnitude).sum(-1, keepdims=True) + do_o)
        + w.tiny * row.reach
        + (a.u_out + product) * (do_o + (ado * w.unrounded).sum(-1, keepdims=True))
        + ado.sum(-1, keepdims=True) * a.eta_out
        + a.eta_acc * (e + (ado + np.abs(f.o)).sum(-1, keepdims=True))
        + divided * do_o
    )
    d = np.abs(back.delta)[..., None]
    from_products = (  # Σ_j P dP
        (summed + 2 * w.sums + kappa(2, a.u_acc)) * row.p_dp
        + row.p_error
        + w.tiny * row.dps
        + (d + row.shift) * (kappa(2, a.u_acc) + common)
    )
    error = row.shift + rounded + np.maximum(from_output, from_products) + a.eta_acc
    if x.sunk and a.u_s:  # the output without the sink and what it is multiplied by are stored, and so is what do is
        error = error + kappa(3, a.u_s) * do_o + a.eta_s * (e + (ado * row.highest).sum(-1, keepdims=True))
    if a.u_softmax:
        row_sum = np.exp(np.where(f.empty, 0.0, f.lse) - f.m)[..., None]
        error = error + kappa(5, a.u_softmax) * (row.p_dp + d) + a.eta_s * (w.count + 2) * (row_sum + 1)
    return error


def amplified(row: OverKeys, a: Arithmetic) -> Array | float:
    """What the keys see of D's error where a sink is applied to a stored output o': there D is Σ do·o' = D / (1 − π). (b h i 1).

    It meets probabilities that are as much larger. The sink meets it times 1 − π.
    """
    x, f = row.last, row.last.forward
    if f.pi is None or not a.u_s:
        return 0.0
    assert x.do is not None
    ado = np.abs(x.do)
    do_o = quotient((ado * np.abs(f.o)).sum(-1, keepdims=True), 1 - f.pi[..., None])
    return kappa(3, a.u_s) * np.minimum(do_o, (ado * row.highest).sum(-1, keepdims=True))


def with_cotangent_of_lse(row: OverKeys, w: ForwardBound, delta: Array, noise: Array, a: Arithmetic) -> tuple[Array, Array]:
    """The error of D − λ from that of D, and the noise of its row. Both (b h i 1).

    λ may be divided by ln 2 and stored, and the difference is rounded. What sums to λ over a row in exact arithmetic does so but
    for the roundings of the row sum, and amax passes on what is left.
    """
    back = row.last.backward
    assert back is not None
    lam = np.abs(np.asarray(row.last.abs_lam))
    delta = delta + kappa(4, a.u_acc) * (np.abs(back.delta)[..., None] + delta + lam) + a.eta_acc
    rescaled = 2 * a.rescale * w.rescales[..., None] + 2 * w.sums + 2 * a.exp
    return delta, noise + (rescaled + 2 * kappas(w.count, a.u_acc) + kappa(6, a.u_acc)) * lam


def row_sums(tiles: Tiles, w: ForwardBound, a: Arithmetic) -> RowSums:
    """The bound of D, and the other sums over a row's keys."""
    row = over_keys(tiles, w, a)
    noise = kappa(3, a.u_acc) * row.own + (2 * kappas(w.count, a.u_acc) + kappa(4, a.u_acc)) * row.p_dp
    delta = delta_error(row, w, a)
    if row.last.lam is not None:
        delta, noise = with_cotangent_of_lse(row, w, delta, noise, a)
    sums = RowSums(delta, amplified(row, a), row.spread, row.weighed, noise, row.peak)
    if not a.u_softmax:
        return sums
    # Class D: the autograd of a softmax from primitives, with a gradient through amax at every key that may be it.
    total = np.zeros(())
    for x in tiles(False):
        assert x.backward is not None
        error = score_gradient(x, w, sums, a) + through_primitives(x, w, sums, a)
        stored = a.u_s * (np.abs(x.backward.ds) + error) + a.eta_s
        total = total + np.where(x.scored, error + stored, 0.0).sum(-1, keepdims=True)
    return replace(sums, noise=total * (1 + a.u_softmax))


# dS


def stored_lse(x: Tile, a: Arithmetic) -> Array | float:
    """What an lse that is stored in a half type, by choice, is off by, (b h i 1): eager code reads it in backward."""
    if x.lam is None or not a.u_s or x.given.dialect.lse_dtype != "operand":
        return 0.0
    stored = a.u_s * np.abs(np.where(x.forward.empty, 0.0, x.forward.lse))[..., None]
    return stored + eager_lse(x.given.problem.j, x.given.dialect, a)


@once
def score_gradient(x: Tile, w: ForwardBound, sums: RowSums, a: Arithmetic) -> Array:
    """dS = P∘(dP − D), (b h i n), but for what softmax from primitives adds. The eager classes use the rounded P."""
    p, y = probabilities(x, w, a), products(x, a)
    error, upper = (p.error_rounded, p.upper_rounded) if a.u_s else (p.error, p.upper)
    difference = y.error + sums.delta + (0.0 if x.sink else sums.amplified)
    # A split over keys n, merged by lse_n and differentiated: P (dP − D_n) + exp(s − lse_n) share_n (D_n − D). The two
    # probabilities differ by the error of the stored lse_n, which meets D_n − D and not the smaller dP − D. |D_n − D| is
    # at most the largest |dP − D|, and share_n |D_n − D| at most Σ P |dP − D|. (Measured without this term: 3.05 of the
    # bound, float64, scores of −10⁵, three parts.)
    # λ meets the second of the two.
    apart = np.minimum(upper * sums.spread, sums.weighed)
    if x.lam is not None:
        apart = apart + upper * x.abs_lam * np.exp(np.minimum(stored_lse(x, a), 5.0))
    split = np.minimum(p.stored + 2 * a.rescale + stored_lse(x, a), 1.0) * apart
    rounding = kappa(3, a.u_acc)
    # What the autograd of a split multiplies v with, share·do, may underflow; P_n beside it is not small. A sink that is applied
    # to a stored output is such a split.
    values = x.abs_v.sum(-1)[:, :, None] * np.max(x.factor, initial=0.0)
    lost = (a.eta_acc + (a.eta_s if x.sunk else 0.0)) * (1 + values + values.max(-1, keepdims=True, initial=0.0))
    return np.where(
        x.scored,
        (error + rounding * upper) * y.weighed + (1 + rounding) * upper * difference + split + lost,
        0.0,
    )


@once
def through_primitives(x: Tile, w: ForwardBound, sums: RowSums, a: Arithmetic) -> Array:
    """The autograd of exp, sum and division subtracts P dP and P D, not dP and D. (b h i n)."""
    assert x.backward is not None
    p, y = probabilities(x, w, a), products(x, a)
    magnitude = y.dp + np.abs(x.backward.delta)[..., None] + x.abs_lam
    if a.u_softmax:
        return np.where(x.scored, kappa(3, a.u_softmax) * p.upper_rounded * (magnitude + y.error + sums.delta), 0.0)
    # The same in wide arithmetic. (Measured without this and the noise: dq at 2.0 of the bound, float32, all dP equal.)
    return np.where(x.scored, kappa(3, a.u_acc) * p.upper * magnitude, 0.0)


def may_be_largest(x: Tile, w: ForwardBound, sums: RowSums, a: Arithmetic) -> Array:
    """Keys whose score may be the row's maximum, given its error; through amax they get what dS sums to, by rounding."""
    f, (delta, _) = x.forward, raised(x, w.rescales, a)
    return x.scored & (f.s + 2 * delta >= f.m[..., None] - 2 * sums.peak)


# SCORE MAPS


def through_slopes(x: Tile, ds: Array, error: Array, a: Arithmetic) -> tuple[Array, Array, dict[str, Array], Array | None]:
    """|dz| and its error from |dS| and its error, (b h i n), the bounds of what the maps add, by option, and the slope of all maps.

    The error of a gradient meets the slope; the slope itself is off by curvature · Δ, and its product is rounded.
    """
    of_maps, whole = {}, None
    for n, one in reversed(list(enumerate(x.maps))):
        if one.gradient:
            of_maps[one.option] = np.where(x.scored, error + a.u_out * (ds + error) + a.eta_out, 0.0)
        before = x.forward.scores[n]
        slope = one.slope(before, x.given)
        if slope is None:
            continue
        off = one.curvature(x.given) * mapped_error(x, x.maps[:n], a).at(np.abs(before))
        off = np.minimum(off, 2 * one.steepest(x.given)) + one.slope_rounding(a)  # two slopes are no further apart
        error = (np.abs(slope) + off) * error + off * ds
        ds = np.abs(slope) * ds
        whole = slope if whole is None else whole * slope
        error = error + (kappa(2, a.u_acc) + a.u_s) * (ds + error)
        error = error + (1 + 2 / one.detour(x.given)) * (a.eta_acc + a.eta_s)  # what underflows before it is divided
    return ds, error, of_maps, whole


# GRADIENTS


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


@dataclass(frozen=True)
class Operand:
    """dS as dk and dq have it as an operand, (b h i n), and the bounds of what the score maps add."""

    error: Array
    upper: Array  # the largest that it can be
    unscaled: Array  # the same where scale·dS does not underflow
    of_maps: dict[str, Array]
    slope: Array | None  # of all score maps, None where it is 1


def operand(x: Tile, w: ForwardBound, sums: RowSums, a: Arithmetic) -> Operand:
    """dS as it is, as a bias gets it, and as an operand. dS and scale·dS are stored by the eager classes."""
    assert x.backward is not None
    ds = np.abs(x.backward.ds)
    error = score_gradient(x, w, sums, a) + through_primitives(x, w, sums, a)
    error += np.where(may_be_largest(x, w, sums, a), sums.noise, 0.0)
    if a.u_s:
        error += 2 * a.u_s * (1 + a.u_s) * (ds + error) + a.eta_s
    ds, error, of_maps, slope = through_slopes(x, ds, error, a)
    if not a.u_s:
        error += a.u_mma * (ds + error) + a.eta_mma
    unscaled = ds + np.where(x.scored, error, 0.0)
    error = np.where(x.scored, error + (a.eta_s + a.eta_acc) / max(abs(x.scale), 1e-300), 0.0)  # scale·dS may underflow
    return Operand(error, ds + error, unscaled, of_maps, slope)


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
