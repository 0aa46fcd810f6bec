"""Softmax over the visible keys of a row, and rows without one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray as Array

from attnspec.spec import implements


@dataclass(frozen=True)
class Rows:
    """What the softmax makes of rows: probabilities (b h i j), the others (b h i)."""

    p: Array
    m: Array  # the largest of the scores and the sink; 0 where there is neither
    lse: Array  # log Σ exp, of the scores and the sink; −∞ where there is neither
    empty: Array  # bool: no key is visible
    # None without sinks:
    pi: Array | None = None  # the probability of the sink
    top: Array | None = None  # the largest score of a key; −∞ where none is visible
    lse_of_keys: Array | None = None  # log Σ exp of the scores alone; −∞ where none is visible


@implements(
    "SOFTMAX-1",
    "SOFTMAX-2",
    "SOFTMAX-3",
    "SOFTMAX-4",
    "SHAPE-2",
    "SINK-1",
    "SINK-4",
    "SINK-5",
    "SINK-6",
    "SINK-8",
    "SINK-9",
    "SINK-10",
)
def softmax(s: Array, visible: Array, sink: Array | None = None) -> Rows:
    """The softmax of scores (b h i j). sink: a score without a key, of each row or what broadcasts to them; −∞ for none."""
    empty = np.logical_not(visible.any(-1))
    largest = np.max(s, axis=-1, initial=-np.inf, where=visible)
    bare = empty if sink is None else empty & (sink == -np.inf)
    m = np.where(bare, 0.0, largest if sink is None else np.maximum(largest, sink))
    e = exponentials(s, visible, m)
    e_sink = 0.0 if sink is None else exponential(sink, m)
    total = np.where(bare, 1.0, e.sum(-1) + e_sink)
    lse = np.where(bare, -np.inf, m + np.log(total))
    rows = Rows(e / total[..., None], m, lse, empty)
    return rows if sink is None else replace(rows, pi=e_sink / total, top=largest, lse_of_keys=softmax(s, visible).lse)


def exponential(sink: Array, m: Array) -> Array:
    """exp(z − m), also where both are infinite: a sink of ∞ leaves nothing to any key. (b h i)."""
    with np.errstate(under="ignore", invalid="ignore"):
        return np.exp(np.where(sink == m, 0.0, sink - m))


def exponentials(s: Array, visible: Array, m: Array) -> Array:
    """exp(s − m) of the visible keys, 0 elsewhere. (b h i j)."""
    with np.errstate(under="ignore"):
        return np.exp(np.where(visible, s - m[..., None], -np.inf))


@implements("EMPTY-1", "EMPTY-2", "EMPTY-4", "EMPTY-5")
def fill_empty_rows(p: Array, empty: Array, rule: str, keys: int) -> Array:
    """Probabilities of rows with neither key nor sink: none, the same for all keys, or NaN. With no keys at all there are none."""
    if rule == "zero" or not empty.any():
        return p
    return np.where(empty[..., None], 1.0 / max(keys, 1) if rule == "uniform" else np.nan, p)
