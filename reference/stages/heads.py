"""Heads: which key/value head serves a query head, and the sum over those that share one."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.spec import implements


@implements("SHARED-1", "SHARED-2", "SHARED-3", "SHARED-5")
def head_of_query(h: int, g: int, grouping: str) -> Array:
    """Which key/value head serves each query head. Shape (h,)."""
    heads = np.arange(h)
    return heads // (h // g) if grouping == "blocked" else heads % g


def per_query_head(x: Array, h: int, grouping: str) -> Array:
    """Keys or values (b g j c), or one shared head (b j c), repeated to (b h j c)."""
    x = x[:, None] if x.ndim == 3 else x
    return x if x.shape[1] == h else x[:, head_of_query(h, x.shape[1], grouping)]


@implements("SHARED-4")
def sum_over_group(dx: Array, like: tuple[int, ...], grouping: str) -> Array:
    """Per-query-head gradients (b h j c) summed to the shape of the keys or values that they belong to."""
    g = 1 if len(like) == 3 else like[1]
    if dx.shape[1] == g:
        return dx.reshape(like)
    b, h, *rest = dx.shape
    if grouping == "blocked":
        return dx.reshape(b, g, h // g, *rest).sum(2).reshape(like)
    return dx.reshape(b, h // g, g, *rest).sum(1).reshape(like)
