"""How far from the exact output an honest kernel may be: element by element, from the operands, for a class of arithmetic.

Worst-case rounding analysis in float64, valid for any order of summation, any blocking and any split. Keys come in tiles
(:mod:`tile`). Notation, with all sums over visible keys j of a row i, and r_ij what dropout multiplies with (1
without it):

    Δ_ij   bound on the error of a score as it enters numerator and denominator alike
    E1     Σ p expm1(Δ) |r v − o| / Σ p e^(−Δ): what Δ does to the output, exact because Σ p (r v − o) = 0
    B, W   Σ p e^Δ |r v| and Σ p e^Δ |r v − o| over the same denominator: what errors of the numerator alone do

Sources: Higham 2002, §3.1 and §4.2 (κ(n, u) for n roundings in any order); Blanchard, Higham & Higham 2021 (shifted
softmax); the rest is derived in the comments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import Arithmetic, kappa, kappas
from attnspec.reference.bounds.tile import Tile, Tiles, once, with_common
from attnspec.reference.stages.stage import ScoreMap
from attnspec.spec import Dialect, implements

CHUNK = 30_000  # elements of the (b h i j e) intermediate that are held at once
NEGLIGIBLE = 1e-3  # a Δ up to which a row is not limited by the hull of its values


@dataclass(frozen=True)
class ForwardBound:
    """The bounds of o (b h i e) and lse (b h i), and what the gradients' bounds take from them. Others (b h i 1)."""

    o: Array
    lse: Array
    unrounded: Array  # that of o, before it is rounded to storage, (b h i e)
    magnitude: Array  # B (b h i e)
    low: Array  # Σ p e^(−Δ)
    grow: Array  # Σ p expm1(Δ); Σ p e^Δ is one more
    rescales: Array  # (b h i) how often an online softmax may rescale the row
    count: Array  # how many keys contribute; a term that is zero adds no error
    sums: Array  # κ of the sums over keys
    tiny: float


# SCORES


def operand_lost(scale: float, a: Arithmetic) -> float:
    """What an operand of q kᵀ may lose by underflow, beside a unit of the other one: as read, or once it has been scaled.

    As read, flushed, it still meets the whole scale. Scaled by c, it meets the other operand times scale/c, and c is 1, the
    root of the scale, or the scale, which makes that the scale, its root, or 1: a c of 1 stores nothing, and of 0 zeros.
    """
    if not scale:
        return 0.0
    stored = a.eta_acc + (a.eta_s if a.prescaled else 0.0)
    return max(1.0, abs(scale) ** 0.5) * stored + abs(scale) * a.eta_acc


def product_error(x: Tile, a: Arithmetic) -> tuple[Array, float]:
    """The error of the scaled product, (b h i n), but for what is a multiple of it, and that multiple."""
    d = x.q.shape[-1]
    tf32 = 2 * a.u_in + a.u_in**2
    # The dot product and its operands as rounded on entry; q·√scale and k·√scale, or q·scale, rounded to storage.
    product = kappa(d, a.u_acc) * (1 + tf32) + tf32 + (kappa(a.prescaled + 1, a.u_s) if a.prescaled else 0.0)
    # The scale constant and its product; S and scale·S are stored.
    scaled = kappa(3, a.u_acc) + (kappa(2, a.u_s) if a.u_s else 0.0)
    # Each product may underflow, before or after the scale. Stored: S, which still meets the scale; scaled, with bias, s − m.
    constant = a.eta_acc * d * (1 + abs(x.scale)) + (a.eta_s * (3 + abs(x.scale)) if a.u_s else 0.0) + kappa(2, a.u_softmax)
    # Σ_c (q_c + ε)(k_c + ε') − q_c k_c: each loss meets the other operand, and the other loss.
    lost = operand_lost(x.scale, a) * (1 + product)
    constant = constant + lost * (x.norm_q[..., 0] + d * (a.eta_acc + a.eta_s))
    fixed = (constant + shift_rounding(a) * with_common(x, x.size_m, a))[..., None]
    return (abs(x.scale) * product) * x.abs_qk + lost * x.norm_k.swapaxes(-1, -2) + fixed, scaled


def shift_rounding(a: Arithmetic) -> float:
    """What s − m and the constants of exp2 lose, as a multiple of |s| and of |m|."""
    return (kappa(3, a.u_acc) + a.u_softmax) * (1 + 4 * a.u_s)


@dataclass(frozen=True)
class MappedError:
    """The error of a score after some maps: fixed + more + Σ relative · |score| + Σ constants."""

    fixed: Array
    more: Array | None
    relative: tuple[float, ...]
    constants: tuple[Array, ...]

    def at(self, size: Array, *relative: float) -> Array:
        """Of scores of this size, with further roundings of them."""
        own = sum((*relative, *self.relative)) * size
        whole = self.fixed + (own if self.more is None else self.more + own)
        for constant in self.constants:
            whole += constant
        return whole


def mapped_error(x: Tile, some: tuple[ScoreMap, ...], a: Arithmetic) -> MappedError:
    """The error of the scaled product through these maps: Δ′ = (largest slope) · Δ + rounding, for each."""
    fixed, scaled = product_error(x, a)
    error = MappedError(fixed, None, (scaled,), ())
    for one, before in zip(some, x.forward.scores, strict=False):
        own, constant = sum(error.relative) * np.abs(before), one.constant(x.given, a)
        error = MappedError(error.fixed, own if error.more is None else error.more + own, one.rounding(a), error.constants)
        steepest = one.steepest(x.given)
        if steepest != 1:
            assert error.more is not None
            so_far = tuple(steepest * old for old in error.constants)
            error = MappedError(steepest * error.fixed, steepest * error.more, error.relative, so_far)
        if constant is not None:
            error = replace(error, constants=(*error.constants, constant))
    return error


def sink_error(x: Tile, a: Arithmetic) -> Array:
    """That of the score of the sink: z − m is rounded as s − m is, and the eager classes convert z to the dtype of the scores.

    z is neither a product nor scaled. As read it may be flushed.
    """
    constant = shift_rounding(a) * with_common(x, x.size_m, a)[..., None] + kappa(2, a.u_softmax) + a.eta_acc + a.eta_s
    return (shift_rounding(a) + a.u_s) * with_common(x, x.abs_s, a) + constant


@once
def score_error(x: Tile, a: Arithmetic) -> Array:
    """The error of a score, (b h i n): Δ but for exp and for rescales, which multiply what a score has become."""
    if x.sink:
        return np.where(x.forward.visible, sink_error(x, a), 0.0)
    return np.where(x.forward.visible, mapped_error(x, x.maps, a).at(with_common(x, x.abs_s, a), shift_rounding(a)), 0.0)


def soft_records(s: Array, slack: Array, running: Array) -> tuple[Array, Array]:
    """How many keys may set a new maximum when a row is swept, given the error of the scores, and the maximum. (b h i).

    `running` (b h i) is the largest score so far; the first key of a row is none.
    """
    before = np.maximum.accumulate(np.concatenate([running[..., None], s], -1), -1)
    with np.errstate(invalid="ignore"):
        record = (s >= before[..., :-1] - slack[..., None]) & (s > -np.inf) & (before[..., :-1] > -np.inf)
    return record.sum(-1), before[..., -1]


def sweep(tiles: Tiles, keys: int, a: Arithmetic) -> tuple[Array, Array]:
    """Per row (b h i): the largest error of a score, and how often an online softmax may rescale.

    It rescales only where the maximum may change, at most once a block, and may visit the keys in either direction.
    Counting blocks instead of soft records made the bound six times wider at 4096 keys. A sink, which may come first, last or
    between two blocks, is one record more; n blocks and a sink are rescaled n times at most.
    """
    slack = records = seen = np.zeros(())
    sinks: Array | int = 0
    for x in tiles(False):
        slack = np.maximum(slack, score_error(x, a).max(-1, initial=0.0))
        if x.sink:
            sinks = x.forward.visible[..., 0]
        else:
            seen = seen + x.forward.visible.sum(-1)
    if keys <= a.block:
        # One block. Of two keys the later one is a record, or lies so far below the first that this is one on the way back.
        return slack, np.minimum((seen > 1) + sinks, -(-keys // a.block))
    for backwards in (False, True):
        running = np.full(slack.shape, -np.inf)
        for x in tiles(backwards):
            if x.sink:
                continue
            s = np.where(x.forward.visible, x.forward.s, -np.inf)
            more, running = soft_records(s[..., ::-1] if backwards else s, 2 * slack, running)
            records = records + more
    return slack, np.minimum(records + sinks, -(-keys // a.block))


@once
def raised(x: Tile, rescales: Array, a: Arithmetic) -> tuple[Array, Array]:
    """Δ, and p expm1(Δ), also where p is next to nothing and Δ so large that the product is not. Both (b h i n).

    Scores of −10⁵ in bfloat16: Δ is hundreds, and a key with p = e^−200 may get all of the weight.
    """
    delta = np.where(x.live, score_error(x, a) + exponentials(rescales, a)[..., None], 0.0)
    if delta.max(initial=0.0) < 30:
        return delta, x.forward.p * np.expm1(delta)
    certain = x.forward.p * np.expm1(np.minimum(delta, 30.0))
    return delta, np.where(delta < 30, certain, np.exp(np.minimum(x.log_p + delta, 300.0)))


def exponentials(rescales: Array, a: Arithmetic) -> Array:
    """What exp and as many rescales add to Δ."""
    return -np.log1p(-a.exp) - rescales * np.log1p(-a.rescale)


# OUTPUT


def distances(weights: list[Array], x: Tile) -> list[Array]:
    """Σ_n W_in |r_in v_nc − o_ic| (b h i e) for several W at once, a few rows at a time."""
    stacked, o = np.stack(weights, axis=-2), x.forward.o  # (b h i w n)
    out = np.empty((*o.shape[:3], len(weights), o.shape[3]))
    step = max(1, CHUNK // max(1, x.v.size))
    for a in range(0, o.shape[2], step):
        rows = slice(a, a + step)
        v = x.v[:, :, None] * x.factor[:, :, rows, :, None] if isinstance(x.factor, np.ndarray) else x.v[:, :, None]
        distance = v - o[:, :, rows, None, :]
        out[:, :, rows] = stacked[:, :, rows] @ np.abs(distance, out=distance)
    return [out[..., n, :] for n in range(len(weights))]


def hull(x: Tile, rows: Array) -> tuple[Array, Array]:
    """The largest |r v − o| and |r v| over the live keys of some rows, (b h i e); 0 in the other rows. rows is (b h i) bool."""
    far, largest = np.zeros((2, *x.forward.o.shape))
    places = np.argwhere(rows)
    step = max(1, CHUNK // max(1, x.v.shape[2] * x.v.shape[3]))
    for a in range(0, len(places), step):
        at = tuple(places[a : a + step].T)
        v, live = x.v[at[:2]], x.live[at][..., None]
        if isinstance(x.factor, np.ndarray):
            v = x.factor[at][..., None] * v
        far[at] = np.where(live, np.abs(v - x.forward.o[at][:, None]), 0.0).max(1, initial=0.0)
        largest[at] = np.where(live, np.abs(v), 0.0).max(1, initial=0.0)
    return far, largest


def quotient(x: Array, low: Array) -> Array:
    """x / low, where low may have underflown: nothing stays nothing, and anything else is limited by the caller."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(x == 0, 0.0, x / low)


def dropout(x: Tile, a: Arithmetic) -> float:
    """One more product, stored by the eager classes."""
    return kappa(2, a.u_acc) + a.u_s if x.dropped else 0.0


def weight_rounding(a: Arithmetic) -> float:
    """What a probability loses as an operand of P V, but for dropout."""
    return a.u_mma + a.u_in + a.u_mma * a.u_in


@dataclass(frozen=True)
class OverKeys:
    """What a row's bound needs from all of its keys. (b h i 1) and (b h i e); where no key contributes, low is 1 and grow 0."""

    low: Array
    grow: Array
    count: Array
    shifted: Array  # Σ p expm1(Δ) |r v − o|
    spread: Array  # Σ p e^Δ |r v − o|, where errors of the numerator alone are not as good as none
    numerator: Array  # Σ p e^Δ |r v|
    reach: Array  # Σ |r v| and, with dropout, Σ |v|: what underflows meets one of them
    highest: Array  # the largest |r v| of any key, (b h 1 e)
    far: Array  # the largest |r v − o|, in limited rows
    largest: Array  # the largest |r v|, there
    limited: Array  # (b h i) bool: rows whose Δ is so large that the hull of their values may limit the error
    last: Tile  # any tile: it holds what is the same in all of them, such as the outputs of whole rows


def over_keys(tiles: Tiles, rescales: Array, widest: Array, a: Arithmetic) -> OverKeys:
    """One pass over the tiles. `widest` (b h i) is the largest Δ of a row."""
    # E1 cannot leave the hull of the values while e^Δ (e^Δ − 1) ≤ 1, and B not by more than e^2Δ: rows of small Δ need
    # no hull.
    limited = widest > NEGLIGIBLE
    shifted = spread = numerator = reach = far = largest = highest = low = grow = count = np.zeros(())
    for x in tiles(False):
        p = x.forward.p
        delta, added = raised(x, rescales, a)
        weights = p + added
        low = low + (p * np.exp(-delta)).sum(-1, keepdims=True)
        grow = grow + added.sum(-1, keepdims=True)
        count = count + x.live.sum(-1, keepdims=True)
        if weight_rounding(a) or x.dropped:
            more, wide = distances([added, weights], x)
            spread = spread + wide
        else:
            (more,) = distances([added], x)
        shifted = shifted + more
        numerator = numerator + (np.abs(x.factor) * weights if x.dropped else weights) @ x.abs_v
        reach = reach + (np.where(x.live, x.factor + 1.0, 0.0) if x.dropped else x.live.astype(float)) @ x.abs_v
        highest = np.maximum(highest, x.abs_v.max(-2, keepdims=True, initial=0.0) * np.max(x.factor, initial=0.0))
        if limited.any():
            far, largest = (np.maximum(old, new) for old, new in zip((far, largest), hull(x, limited), strict=True))
    low, grow = np.where(count == 0, 1.0, low), np.where(count == 0, 0.0, grow)
    return OverKeys(low, grow, count, shifted, spread, numerator, reach, highest, far, largest, limited, x)


def output_error(row: OverKeys, sums: Array, a: Arithmetic) -> tuple[Array, Array]:
    """The bound of o before it is rounded to storage, and B. (b h i e).

    Perturbed weights, and errors of the numerator alone, both at most the hull of the values. The row sum may be taken before
    or after the probabilities are rounded.
    """
    f, x = row.last.forward, row.last
    u_weight = weight_rounding(a) + dropout(x, a)
    e1, magnitude, spread = (quotient(y, row.low) for y in (row.shifted, row.numerator, row.spread))
    most = row.highest
    if row.limited.any():
        most = np.where(row.limited[..., None], row.largest, most)
        e1 = np.where(row.limited[..., None], np.minimum(e1, row.far), e1)
    magnitude, spread = np.minimum(magnitude, most), np.minimum(spread, 2 * most)
    o = np.abs(f.o)
    lost = (a.eta_acc + a.eta_mma) * row.reach + a.eta_acc * row.count * (o + x.stretch)
    # A row may be normalised by its sum, or by its lse: exp(s − lse), whose rounding is common to the row and does not cancel.
    lse, m = with_common(x, x.size_lse, a), with_common(x, x.size_m, a)
    division = np.minimum(sums + kappa(2, a.u_acc) * (1 + lse + m)[..., None] + 2 * a.u_softmax, 0.5)
    numerator = u_weight * np.maximum(magnitude, spread) + sums * (1 + u_weight) * magnitude + lost
    if x.sunk and a.u_s:  # the output without the sink, and what it is multiplied by, are stored
        numerator = numerator + kappa(2, a.u_s) * (o + e1 + magnitude) + a.eta_s * (1 + most)
    return e1 + (numerator + division * (o + e1)) / (1 - division), magnitude


def lse_error(row: OverKeys, widest: Array, sums: Array, a: Arithmetic) -> Array:
    """log Σ p e^Δ on one side, −log Σ p e^(−Δ) on the other, the sum of terms that may have been rounded, m + log ℓ. (b h i)."""
    with np.errstate(divide="ignore"):
        moved = np.minimum(np.maximum(np.log1p(row.grow), -np.log(row.low)), widest[..., None])
    moved = moved - np.log1p(-sums) - np.log1p(-a.u_mma) + 2 * a.u_softmax
    x = row.last
    lse, m = with_common(x, x.size_lse, a), with_common(x, x.size_m, a)
    error = moved[..., 0] + (kappa(4, a.u_acc) + a.u_softmax) * (1 + lse + 2 * m) + a.eta_acc
    # Of an empty row the lse is the sink, which may be converted.
    return error + np.where(x.forward.empty, a.u_s * x.size_m, 0.0) if x.sunk else error


def eager_lse(keys: int, dialect: Dialect, a: Arithmetic) -> float:
    """What the lse of stored scores adds where the choice is their dtype and eager code takes it there (torch.logsumexp).

    s − m, its exponential, their sum and its log are rounded. Σ P|s − m| + log ℓ is the entropy of a row, at most log of its terms.
    """
    if dialect.lse_dtype != "operand" or not a.u_s:
        return 0.0
    return kappa(2, a.u_s) + a.u_s * (1 + 4 * a.u_s) * log(keys + 1) + keys * a.eta_s


@implements("ACCURACY-1")
def forward_bound(tiles: Tiles, keys: int, a: Arithmetic) -> ForwardBound:
    """The bounds of every element of output and lse over rows of so many keys, 0 where nothing contributes."""
    slack, rescales = sweep(tiles, keys, a)
    widest = slack + exponentials(rescales, a)
    row = over_keys(tiles, rescales, widest, a)
    none, f = row.count == 0, row.last.forward
    sums = kappas(row.count + 2 * rescales[..., None] + 2, a.u_acc)
    unrounded, magnitude = output_error(row, sums, a)
    return ForwardBound(
        np.where(none, 0.0, unrounded + a.u_out * (np.abs(f.o) + unrounded) + a.eta_out),
        np.where(f.bare, 0.0, lse_error(row, widest, sums, a)),
        np.where(none, 0.0, unrounded),
        magnitude,
        row.low,
        row.grow,
        rescales,
        row.count,
        sums,
        a.eta_acc + a.eta_mma,
    )
