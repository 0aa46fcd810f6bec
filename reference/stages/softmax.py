"""Softmax over the visible keys of a row, and rows without one."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.spec import implements


@implements("SOFTMAX-1", "SOFTMAX-2", "SOFTMAX-3", "SOFTMAX-4", "SHAPE-2")
def softmax(s: Array, visible: Array) -> tuple[Array, Array, Array, Array]:
    """Probabilities (b h i j), and per row the largest score, lse and whether no key is visible (b h i)."""
    empty = np.logical_not(visible.any(-1))
    m = np.where(empty, 0.0, np.max(s, axis=-1, initial=-np.inf, where=visible))
    e = exponentials(s, visible, m)
    total = np.where(empty, 1.0, e.sum(-1))
    lse = np.where(empty, -np.inf, m + np.log(total))
    return e / total[..., None], m, lse, empty


def exponentials(s: Array, visible: Array, m: Array) -> Array:
    """exp(s − m) of the visible keys, 0 elsewhere. (b h i j)."""
    with np.errstate(under="ignore"):
        return np.exp(np.where(visible, s - m[..., None], -np.inf))


@implements("EMPTY-1", "EMPTY-2", "EMPTY-4", "EMPTY-5")
def fill_empty_rows(p: Array, empty: Array, rule: str, keys: int) -> Array:
    """Probabilities of rows without a key: none, the same for all keys, or NaN. With no keys at all there are none."""
    if rule == "zero" or not empty.any():
        return p
    return np.where(empty[..., None], 1.0 / max(keys, 1) if rule == "uniform" else np.nan, p)
