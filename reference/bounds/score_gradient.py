"""How far from the exact dS an honest kernel may be: the gradients of the scores, for a class of arithmetic.

The same analysis as in :mod:`output`, whose notation it uses. D = Σ P dP is the sum that dS = P∘(dP − D) subtracts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic, kappa, kappas
from attnspec.reference.bounds.output import ForwardBound, dropout, eager_lse, mapped_error, quotient, raised
from attnspec.reference.bounds.tile import Tile, Tiles, once, with_common


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


# OPERAND


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
