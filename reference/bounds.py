"""How far from the exact answer an honest kernel may be: element by element, from the operands, for a class of arithmetic.

Worst-case rounding analysis in float64, valid for any order of summation, any blocking and any split. Notation, with all
sums over visible keys j of a row i, and r_ij what dropout multiplies with (1 without it):

    Δ_ij   bound on the error of a score as it enters numerator and denominator alike
    E1     Σ p expm1(Δ) |r v − o| / Σ p e^(−Δ): what Δ does to the output, exact because Σ p (r v − o) = 0
    B, W   Σ p e^Δ |r v| and Σ p e^Δ |r v − o| over the same denominator: what errors of the numerator alone do

Sources: Higham 2002, §3.1 and §4.2 (κ(n, u) for n roundings in any order); Blanchard, Higham & Higham 2021 (shifted
softmax); the rest is derived in the comments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.accuracy import LARGEST, Arithmetic
from attnspec.reference.dense import Backward, Forward
from attnspec.spec import implements

TILE = 2_000_000  # elements of the (b h i j e) intermediate that are held at once


def kappa(n: float, u: float) -> float:
    """n roundings of unit u in any order: nu/(1 − nu) (Higham 2002, lemma 3.1), and a larger value where that ends."""
    x = n * u
    return x / (1 - x) if x < 0.5 else 2 * x


@dataclass(frozen=True)
class Operands:
    """What both bounds read: one head of keys and values per query head, finite float64."""

    q: Array
    k: Array
    v: Array
    scale: float
    bias: Array | None
    factor: Array | float  # r_ij

    @property
    def dropped(self) -> bool:
        """True where dropout multiplies the probabilities, one more rounding."""
        return not isinstance(self.factor, float)


@dataclass(frozen=True)
class ForwardBound:
    """The bound of the output, and what the gradient's bound takes from it. (b h i …)."""

    o: Array  # (b h i e)
    unrounded: Array  # the same before the output is rounded to storage
    live: Array  # (b h i j) bool: the key contributes to the row's output
    delta: Array  # Δ (b h i j), 0 where not live
    added: Array  # p expm1(Δ) (b h i j)
    low: Array  # Σ p e^(−Δ), (b h i 1)
    high: Array  # Σ p e^Δ, (b h i 1)
    rescales: Array  # (b h i) how often an online softmax may rescale the row
    magnitude: Array  # B (b h i e)
    sums: float  # κ of the sums over keys
    tiny: float


def weighted(weights: list[Array], x: Operands, o: Array) -> list[Array]:
    """Σ_j W_ij |r_ij v_jc − o_ic| (b h i e) for several W at once, tiled over rows."""
    stacked = np.stack(weights, axis=-2)  # (b h i n j)
    rows = o.shape[2]
    step = max(1, TILE // max(1, x.v[..., None].size))
    out = np.empty((*o.shape[:3], len(weights), o.shape[3]))
    for a in range(0, rows, step):
        tile = slice(a, a + step)
        v = x.v[:, :, None]
        if isinstance(x.factor, np.ndarray):
            v = x.factor[:, :, tile, :, None] * v
        distance = np.abs(v - o[:, :, tile, None, :])
        out[:, :, tile] = stacked[:, :, tile] @ distance
    return [out[..., n, :] for n in range(len(weights))]


def hull(live: Array, x: Operands) -> tuple[Array, Array]:
    """The largest and the smallest r v over a row's live keys, (b h i e). Keys of tiny sets are found one row at a time."""
    rows = live.shape[2]
    top = np.empty((*live.shape[:3], x.v.shape[3]))
    bottom = np.empty_like(top)
    step = max(1, TILE // max(1, x.v[..., None].size))
    for a in range(0, rows, step):
        tile = slice(a, a + step)
        v = np.broadcast_to(x.v[:, :, None], (*live[:, :, tile].shape, x.v.shape[3]))
        if isinstance(x.factor, np.ndarray):
            v = x.factor[:, :, tile, :, None] * v
        here = live[:, :, tile, :, None]
        top[:, :, tile] = np.max(v, axis=3, initial=-np.inf, where=here)
        bottom[:, :, tile] = np.min(v, axis=3, initial=np.inf, where=here)
    none = np.logical_not(live.any(-1, keepdims=True))
    return np.where(none, 0.0, top), np.where(none, 0.0, bottom)


def soft_records(s: Array, slack: Array) -> Array:
    """How many keys may set a new maximum when a row is swept in one direction, given the error of the scores. (b h i)."""
    running = np.maximum.accumulate(s, -1)[..., :-1]
    with np.errstate(invalid="ignore"):
        record = (s[..., 1:] >= running - slack) & (s[..., 1:] > -np.inf) & (running > -np.inf)
    return record.sum(-1)


def score_error(x: Operands, f: Forward, live: Array, a: Arithmetic) -> tuple[Array, Array]:
    """Δ (b h i j) and the number of rescales per row (b h i)."""
    d, keys = x.q.shape[-1], x.k.shape[-2]
    product = abs(x.scale) * (np.abs(x.q) @ np.abs(x.k).swapaxes(-1, -2))
    z, s, m = np.abs(f.z), np.abs(f.s), np.abs(f.m)[..., None]
    operands = 2 * a.u_in + a.u_in**2
    # the dot product, its operands as rounded on entry
    delta = (kappa(d, a.u_acc) * (1 + operands) + operands) * product
    if a.prescaled:  # q·√scale and k·√scale, or q·scale, rounded to storage; and the scale itself
        delta += kappa(a.prescaled + 1, a.u_s) * product
    # the scale constant and its product
    delta += kappa(3, a.u_acc) * z + a.eta_acc * d * (1 + abs(x.scale))
    if a.u_s:  # S and scale·S are stored
        delta += kappa(2, a.u_s) * z + a.eta_s * (2 + d)
    if x.bias is not None:  # the sum is rounded, and stored; the bias may be converted
        finite = np.where(np.isfinite(x.bias), np.abs(x.bias), 0.0)
        delta += (a.u_acc + a.u_s) * s + a.u_s * finite
    # s − m and the constants of exp2
    delta += kappa(3, a.u_acc) * (s + m) * (1 + 4 * a.u_s)
    if a.u_softmax:
        delta += a.u_softmax * (s + m) * (1 + 4 * a.u_s) + kappa(2, a.u_softmax)
    delta = np.where(live & f.visible, delta, 0.0)
    # An online softmax rescales only where the running maximum changes: soft records, in either direction, one a block.
    masked = np.where(f.visible, f.s, -np.inf)
    slack = 2 * delta.max(-1, initial=0.0)[..., None]
    records = soft_records(masked, slack) + soft_records(masked[..., ::-1], slack)
    rescales = np.minimum(records, -(-keys // a.block))
    delta = delta - np.log1p(-a.exp) - rescales[..., None] * np.log1p(-a.rescale)
    return np.where(live, delta, 0.0), rescales


def grown(f: Forward, delta: Array, row: Array | float) -> Array:
    """p expm1(Δ + row), also where p is next to nothing and Δ so large that the product is not.

    Scores of −10⁵ in bfloat16: Δ is hundreds, and a key with p = e^−200 may get all of the weight.
    """
    exponent = delta + row
    score = np.where(f.visible, f.s - np.where(f.empty, 0.0, f.lse)[..., None], -np.inf)
    return np.where(exponent < 30, f.p * np.expm1(np.minimum(exponent, 30.0)), np.exp(np.minimum(score + exponent, 300.0)))


def quotient(x: Array, low: Array) -> Array:
    """x / low, where low may have underflown: nothing stays nothing, and anything else is limited by the caller."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(x == 0, 0.0, x / low)


@implements("ACCURACY-1")
def forward_bound(x: Operands, f: Forward, a: Arithmetic) -> ForwardBound:
    """The bound of every element of the output, 0 where it must be exactly zero."""
    keys = x.k.shape[-2]
    live = f.visible | (f.empty[..., None] & (f.p > 0))
    delta, rescales = score_error(x, f, live, a)
    none = np.logical_not(live.any(-1, keepdims=True))
    low = np.where(none, 1.0, (f.p * np.exp(-delta)).sum(-1, keepdims=True))
    added = grown(f, delta, 0.0)
    raised = f.p + added
    high = np.where(none, 1.0, raised.sum(-1, keepdims=True))

    # SOFTMAX: perturbed weights, at most the hull of the values
    shifted, spread = weighted([added, raised], x, f.o)
    top, bottom = hull(live, x)
    e1 = np.minimum(quotient(shifted, low), np.maximum(top - f.o, f.o - bottom))

    # OUTPUT: errors of the numerator alone. The row sum may be taken before or after the probabilities are rounded.
    largest = np.maximum(np.abs(top), np.abs(bottom))
    weights = np.abs(x.factor) * raised if x.dropped else raised
    v = np.abs(x.v)
    magnitude = np.minimum(quotient(weights @ v, low), largest)
    spread = np.minimum(quotient(spread, low), 2 * largest)
    u_weight = a.u_mma + a.u_in + a.u_mma * a.u_in
    if x.dropped:
        u_weight += kappa(2, a.u_acc) + a.u_s
    tiny = a.eta_acc + a.eta_mma
    reach = (np.where(live, x.factor, 0.0) if x.dropped else live.astype(float)) @ v
    lost = tiny * reach + a.eta_acc * np.minimum(live.sum(-1), keys)[..., None] * (np.abs(f.o) + 1)
    sums = min(kappa(keys + 2 * int(rescales.max(initial=0)) + 2, a.u_acc), 0.5)
    # A row may be normalised by its sum, or by its lse: exp(s − lse), whose rounding is common to the row and does not cancel.
    lse = np.where(f.empty, 0.0, np.abs(np.where(f.empty, 0.0, f.lse)) + np.abs(f.m))[..., None]
    division = np.minimum(sums + kappa(2, a.u_acc) * (1 + lse) + 2 * a.u_softmax, 0.5)
    numerator = u_weight * np.maximum(magnitude, spread) + sums * (1 + u_weight) * magnitude + lost
    unrounded = e1 + (numerator + division * (np.abs(f.o) + e1)) / (1 - division)
    o = unrounded + a.u_out * (np.abs(f.o) + unrounded) + a.eta_out
    return ForwardBound(
        np.where(none, 0.0, o), np.where(none, 0.0, unrounded), live, delta, added, low, high, rescales, magnitude, sums, tiny
    )


@dataclass(frozen=True)
class BackwardBound:
    """Bounds of the gradients per query head, (b h i d), (b h j d), (b h j e), and of each dS as a bias sees it."""

    dq: Array
    dk: Array
    dv: Array
    ds: Array


@implements("ACCURACY-2")
def backward_bound(x: Operands, do: Array, f: Forward, b: Backward, w: ForwardBound, a: Arithmetic, group: int) -> BackwardBound:
    """The bounds of the gradients per query head. `group` is how many query heads are summed into one dk and dv."""
    queries, keys, e = x.q.shape[-2], x.k.shape[-2], x.v.shape[-1]
    q, k, v, ado = np.abs(x.q), np.abs(x.k), np.abs(x.v), np.abs(do)
    seen, r = f.visible, x.factor
    over_queries = min(kappa(queries * group, a.u_acc), 0.5)
    over_keys = min(kappa(keys, a.u_acc), 0.5)
    empty = f.empty[..., None]

    # SOFTMAX: P again, from the stored lse, which carries its own error and is not normalised again. lse may come from
    # rounded probabilities. Λ = log Σ p e^Δ.
    lse = np.where(empty, 0.0, np.abs(np.where(f.empty, 0.0, f.lse))[..., None])
    again = np.minimum(grown(f, w.delta, np.log(w.high)), np.maximum(f.p, 1 - f.p))
    stored = (
        kappa(4, a.u_acc) * (np.abs(np.where(seen, f.s, 0.0)) + lse + np.abs(f.m)[..., None])
        + kappa(keys + 2 * int(w.rescales.max(initial=0)) + 4, a.u_acc)
        + a.rescale * w.rescales[..., None]
    )
    per_key = np.expm1(np.minimum(stored + 2 * a.exp + 2 * a.u_softmax - np.log1p(-a.u_mma), 5.0))
    p_error = np.where(w.live, again * (1 + per_key) + per_key * f.p + a.eta_acc, 0.0)
    p_upper = np.where(w.live, f.p + p_error, 0.0)
    p_error_rounded = np.where(w.live, p_error + a.u_mma * p_upper + a.eta_mma, 0.0)
    p_upper_rounded = np.where(w.live, f.p + p_error_rounded, 0.0)

    # DROPOUT: one more product, stored by the eager classes
    u_drop = kappa(2, a.u_acc) + a.u_s if x.dropped else 0.0

    # dv = (r∘P)ᵀ do
    weight_error = (r * (p_error_rounded + u_drop * p_upper_rounded)).swapaxes(-1, -2)
    weight_upper = (r * p_upper_rounded * (1 + u_drop)).swapaxes(-1, -2)
    dv_error = weight_error @ ado + (over_queries + 2 * a.u_in) * (weight_upper @ ado) + a.eta_acc * queries
    dv_error = dv_error + a.u_out * (np.abs(b.dv) + dv_error) + a.eta_out

    # dP = r∘(do vᵀ)
    reach = r * (ado @ v.swapaxes(-1, -2))
    dp = np.abs(np.where(seen, b.dp, 0.0))
    product = kappa(e, a.u_acc)
    dp_error = (product + 2 * a.u_in) * reach + (a.u_s + u_drop) * (dp + product * reach) + a.eta_s + a.eta_acc * e
    dp_error = np.where(seen, dp_error, 0.0)

    # D, either as Σ_c do·o from the stored output or as Σ_j P dP: the larger of the two
    delta = b.delta[..., None]
    centred = np.where(seen, np.abs(b.dp - delta), 0.0)
    moved = np.minimum(quotient(w.added, w.low), 1.0)
    shift = np.minimum((moved * centred).sum(-1, keepdims=True), centred.max(-1, keepdims=True, initial=0.0))
    p_dp = (p_upper_rounded * dp).sum(-1, keepdims=True)
    do_magnitude = (ado * w.magnitude).sum(-1, keepdims=True)
    do_o = (ado * np.abs(f.o)).sum(-1, keepdims=True)
    rounded_p = (a.u_mma + a.u_in + u_drop) * p_dp
    from_output = (
        shift
        + rounded_p
        + 2 * w.sums * (do_magnitude + do_o)
        + w.tiny * np.where(seen, reach, 0.0).sum(-1, keepdims=True)
        + (a.u_out + product) * (do_o + (ado * w.unrounded).sum(-1, keepdims=True))
        + ado.sum(-1, keepdims=True) * a.eta_out
    )
    from_products = (
        shift
        + rounded_p
        + (over_keys + 2 * w.sums + kappa(2, a.u_acc)) * p_dp
        + (p_upper_rounded * dp_error).sum(-1, keepdims=True)
        + w.tiny * dp.sum(-1, keepdims=True)
        + (np.abs(delta) + shift) * kappa(2, a.u_acc)
    )
    delta_error = np.maximum(from_output, from_products) + a.eta_acc
    if a.u_softmax:
        row_sum = np.exp(np.where(f.empty, 0.0, f.lse) - f.m)[..., None]
        delta_error = delta_error + kappa(5, a.u_softmax) * (p_dp + np.abs(delta)) + a.eta_s * (keys + 2) * (row_sum + 1)

    # dS = P∘(dP − D); the eager classes use the rounded P
    common_p = p_error_rounded if a.u_s else p_error
    common_upper = p_upper_rounded if a.u_s else p_upper
    ds = np.abs(b.ds)
    difference = dp_error + delta_error
    ds_error = common_p * centred + common_upper * (difference + kappa(3, a.u_acc) * (centred + difference)) + a.eta_acc
    # A split over keys n, merged by lse_n and differentiated: P (dP − D_n) + exp(s − lse_n) share_n (D_n − D). The two
    # probabilities differ by the error of the stored lse_n, which meets D_n − D and not the smaller dP − D. |D_n − D| is
    # at most the largest |dP − D|, and share_n |D_n − D| at most Σ P |dP − D|. (Measured without this term: 3.05 of the
    # bound, float64, scores of −10⁵, three parts.)
    weighed = common_upper * centred
    ds_error = ds_error + np.minimum(stored + 2 * a.rescale, 1.0) * np.minimum(
        common_upper * centred.max(-1, keepdims=True, initial=0.0), weighed.sum(-1, keepdims=True)
    )
    ds_error = np.where(seen, ds_error, 0.0)
    if a.u_softmax:
        ds_error = ds_error + _through_primitives(f, w, p_upper_rounded, dp + np.abs(delta) + difference, ds, ds_error, a)
    else:
        # The same in wide arithmetic: the autograd of exp, sum and division subtracts P dP and P D, not dP and D, and amax
        # gets the sum of dS, which is zero but for rounding. (Measured without this: dq at 2.0 of the bound, float32, all
        # dP equal; with `own` alone 0.72.)
        own = kappa(3, a.u_acc) * p_upper * (dp + np.abs(delta))
        noise = own.sum(-1, keepdims=True) + (2 * over_keys + kappa(4, a.u_acc)) * p_dp
        ds_error = np.where(seen, ds_error + own + np.where(_may_be_largest(f, w), noise, 0.0), 0.0)
    # dS and scale·dS are stored by the eager classes
    ds_error = np.where(
        seen, ds_error + 2 * a.u_s * (ds + ds_error) * (1 + a.u_s) + a.eta_s * (1 + 1 / max(abs(x.scale), 1e-300)), 0.0
    )
    operand_error = ds_error if a.u_s else np.where(seen, ds_error + a.u_mma * (ds + ds_error) + a.eta_mma, 0.0)
    operand = ds + operand_error
    bias_error = np.where(seen, ds_error + a.u_out * (ds + ds_error) + a.eta_out, 0.0)

    # dq = scale · dS k, dk = scale · dSᵀ q. D's error is common to a row: it meets |Σ P k|, not Σ P |k|.
    scale = abs(x.scale)
    products = kappa(3, a.u_acc) + 2 * a.u_in + (kappa(1 + a.prescaled, a.u_s) if a.prescaled else 0.0)
    if a.u_softmax:
        dq_error = scale * (operand_error @ k + (over_keys + products) * (operand @ k)) + a.eta_acc * keys
    else:
        own = np.maximum(operand_error - np.where(seen, common_upper * delta_error, 0.0), 0.0)
        mean_key = np.abs(np.where(seen, f.p, 0.0) @ x.k) + np.where(seen, common_p, 0.0) @ k
        dq_error = scale * (own @ k + delta_error * mean_key + (over_keys + products) * (operand @ k)) + a.eta_acc * keys
    dk_error = (
        scale * (operand_error.swapaxes(-1, -2) @ q + (over_queries + products) * (operand.swapaxes(-1, -2) @ q))
        + a.eta_acc * queries
    )
    if a.u_s:  # the products before the scale may be stored
        dq_error = dq_error + a.u_s * (np.abs(b.dq) + dq_error) + (1 + scale) * a.eta_s
        dk_error = dk_error + a.u_s * (np.abs(b.dk) + dk_error) + (1 + scale) * a.eta_s
    dq_error = dq_error + a.u_out * (np.abs(b.dq) + dq_error) + a.eta_out
    dk_error = dk_error + a.u_out * (np.abs(b.dk) + dk_error) + a.eta_out
    return BackwardBound(dq_error, dk_error, dv_error, bias_error)


def _through_primitives(
    f: Forward, w: ForwardBound, p: Array, magnitude: Array, ds: Array, ds_error: Array, a: Arithmetic
) -> Array:
    """Class D: the autograd of a softmax from primitives, with a gradient through amax at every key that may be it."""
    own = np.where(f.visible, kappa(3, a.u_softmax) * p * magnitude, 0.0)
    total = ds_error + own
    row = np.where(f.visible, total + a.u_s * (ds + total) + a.eta_s, 0.0).sum(-1, keepdims=True)
    return own + np.where(_may_be_largest(f, w), row * (1 + a.u_softmax), 0.0)


def _may_be_largest(f: Forward, w: ForwardBound) -> Array:
    """Keys whose score may be the row's maximum, given its error; through amax they get what dS sums to, by rounding."""
    s = np.where(f.visible, f.s, -np.inf)
    at_maximum = np.where(s >= f.m[..., None], w.delta, 0.0).max(-1, keepdims=True, initial=0.0)
    return f.visible & (s + 2 * w.delta >= f.m[..., None] - 2 * at_maximum)


def may_overflow(x: Operands, do: Array | None, f: Forward, a: Arithmetic) -> tuple[Array, Array]:
    """Rows (b h i) whose legal intermediates can leave the dtype's range: in forward, and in forward or backward.

    The eager classes store q·k before the scale, the score with its bias, and do·v; every class holds unnormalised sums
    Σ exp(s − m)·r v in its accumulators, which for bfloat16 and float32 have hardly more range than the output.
    """
    largest = LARGEST[a.dtype] / 1.1
    inside = LARGEST["float64" if a.dtype == "float64" or a.name == "R" else "float32"] / 1.1
    with np.errstate(over="ignore"):
        row_sum = np.exp(np.where(f.empty, 0.0, f.lse) - f.m)
        top = np.abs(x.v).max((-1, -2), initial=0.0)[..., None]
        row = row_sum * top * np.max(x.factor, initial=0.0) > inside
        if a.u_s:
            stored = np.where(f.visible, np.abs(x.q) @ np.abs(x.k).swapaxes(-1, -2) * max(1.0, abs(x.scale)), 0.0)
            row = row | (stored.max(-1, initial=0.0) > largest)
            if x.bias is not None:  # what rounds to infinity hides a key that weighs something
                score = np.abs(f.s) + kappa(4, a.u_s) * np.abs(f.z)
                row = row | (f.visible & (f.p > 0) & (score >= LARGEST[a.dtype] * (1 + a.u_s / 2))).any(-1)
        both = row
        if do is not None and a.u_s:
            dp = np.where(f.visible, np.abs(do) @ np.abs(x.v).swapaxes(-1, -2) * x.factor, 0.0).max(-1, initial=0.0)
            width = np.abs(x.k).max((-1, -2), initial=0.0)[..., None]
            both = row | (dp * np.maximum(1.0, width) > largest)
    return row, both
