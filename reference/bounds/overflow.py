"""Where a legal intermediate may leave the range of a dtype: no class can promise an answer there."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.bounds.accuracy import LARGEST, Arithmetic, kappa
from attnspec.reference.bounds.tile import Tiles, with_common

LOG2_E = 1.4426950408889634


def may_overflow(tiles: Tiles, a: Arithmetic) -> tuple[Array, Array]:
    """Rows (b h i) whose legal intermediates can leave the dtype's range: in forward, and in forward or backward.

    The eager classes store q·k before the scale, the score with its bias, do·v and scale·dS; whoever scales an operand first
    stores it, in every class, with log2 e where exp is exp2; every class holds unnormalised sums Σ exp(s − m)·r v in its
    accumulators, and those of dS k and dSᵀ q, which for bfloat16 and float32 have hardly more range than the output. Where
    gradient accumulators are stored, what they hold in between may be larger than what remains.
    """
    largest = LARGEST[a.dtype] / 1.1
    inside = LARGEST["float64" if a.dtype == "float64" or a.name == "R" else "float32"] / 1.1
    row = stored = reach = np.zeros((), bool)
    top = product = width = queries = keys = summed = np.zeros(())
    for x in tiles(False):
        f, scale = x.forward, abs(x.scale)
        top = np.maximum(top, x.abs_v.max((-1, -2), initial=0.0)[..., None] * np.max(x.factor, initial=0.0))
        if scale * LOG2_E > 1:
            most = (largest if a.prescaled else inside) / (scale * LOG2_E)
            over = np.asarray((x.abs_k > most).any(-1))
            row = row | (x.abs_q > most).any(-1) | (f.visible & over[:, :, None]).any(-1)
            reach = reach | over.any(-1, keepdims=True)  # a hidden key meets a dS of zero
        if x.backward is not None and x.do is not None:
            for one, of_map in zip(x.maps, x.backward.dscores[1:], strict=True):
                if (detour := one.detour(x.given)) > 1:
                    reach = reach | (detour * np.abs(of_map).max(-1, initial=0.0) > (largest if a.u_s else inside))
            ds = scale * np.abs(x.backward.dz)
            reach = reach | (ds.max(-1, initial=0.0) > (largest if a.u_s else inside))
            unscaled = max(1.0, scale) * np.abs(x.backward.dz)
            summed = summed + unscaled.sum(-1) * x.abs_k.max((-1, -2), initial=0.0)[..., None]
            of_keys = unscaled.sum(-2).max(-1, initial=0.0) * x.abs_q.max((-1, -2), initial=0.0)
            reach = reach | (of_keys > inside)[..., None]
            if a.u_grad:
                queries = queries + ds @ x.abs_k
                weights = np.abs(f.w).swapaxes(-1, -2) @ np.abs(x.do)
                between = (ds.swapaxes(-1, -2) @ x.abs_q).max((-1, -2), initial=0.0)
                keys = np.maximum(keys, np.maximum(between, weights.max((-1, -2), initial=0.0))[..., None])
        if not a.u_s:
            continue
        if x.sink:  # what rounds to infinity is no number, or no sink
            row = row | (f.visible & (x.abs_s >= LARGEST[a.dtype] * (1 + a.u_s / 2))).any(-1)
            continue
        stored = np.maximum(stored, np.where(f.visible, x.abs_qk, 0.0).max(-1, initial=0.0))
        if x.maps:  # what rounds to infinity hides a key that weighs something
            score = with_common(x, x.abs_s, a) + kappa(4, a.u_s) * np.abs(f.z)
            row = row | (f.visible & (f.p > 0) & (score >= LARGEST[a.dtype] * (1 + a.u_s / 2))).any(-1)
        if x.do is not None:
            product = np.maximum(product, np.where(f.visible, x.reach, 0.0).max(-1, initial=0.0))
            width = np.maximum(width, x.abs_k.max((-1, -2), initial=0.0)[..., None])
    with np.errstate(over="ignore"):
        row = row | (np.exp(np.where(f.empty, 0.0, f.lse) - f.m) * top > inside)
        reach = reach | (summed > inside)
        if a.u_s:
            row = row | (stored * max(1.0, abs(x.scale)) > largest)
            reach = reach | (product * np.maximum(1.0, width) > largest)
        if np.ndim(queries):
            reach = reach | (np.max(queries, axis=-1, initial=0.0) > largest) | (keys > largest)
    return row, row | reach
