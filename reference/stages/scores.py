"""The scaled product of queries and keys."""

from __future__ import annotations

from numpy import ndarray as Array

from attnspec.spec import implements


@implements("SCALE-1")
def default_scale(d: int) -> float:
    """One over the root of the query width. An empty width has empty products, so its scale is 1."""
    return d**-0.5 if d else 1.0


@implements("SCALE-2", "SCALE-3")
def scores(q: Array, k: Array, scale: float) -> Array:
    """scale · q kᵀ, (b h i j)."""
    return scale * (q @ k.swapaxes(-1, -2))
