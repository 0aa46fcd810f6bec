"""Visibility: which key a query may attend to.

Masks select and never add, so that what is hidden contributes nothing, not even NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.stages.given import Given
from attnspec.spec import Problem, implements


@implements("CAUSAL-1", "CAUSAL-2", "CAUSAL-3", "CAUSAL-4", "CAUSAL-5", "POSITION-3", "POSITION-4")
def causal_mask(given: Given) -> Array | None:
    """Which key each query may see under causal, (i j) or (b 1 i j) bool; None without causal."""
    return given.positions <= own_positions(given) if given.problem.causal else None


@implements("POSITION-1", "POSITION-6")
def query_positions(problem: Problem, alignment: str) -> Array:
    """The position of each query on the key axis, which may lie outside of it: (i), or (b 1 i) with a start for each batch item."""
    if problem.q_start is None:
        return last_visible(problem.i, problem.j, alignment)
    each = isinstance(problem.q_start, tuple)
    return np.arange(problem.i) + (np.array(problem.q_start, int)[:, None, None] if each else problem.q_start)


def own_positions(given: Given) -> Array:
    """The positions of the queries that are asked, (i 1) or (b 1 i 1)."""
    own = query_positions(given.problem, given.dialect.causal_alignment)
    return (own if given.rows is None else own[..., given.rows])[..., None]


def last_visible(q_len: int, k_len: int, alignment: str) -> Array:
    """The last key that each query may see, below zero where it sees none. Shape (q_len,)."""
    return np.arange(q_len) + (k_len - q_len if alignment == "bottom_right" else 0)


@implements("MASK-1", "MASK-2", "MASK-3", "SOFTMAX-5")
def masked(given: Given) -> Array | None:
    """Where the mask allows it: key padding (b j), or anything right-aligned, as what broadcasts to (b h i j); None without one."""
    mask = given.operand("mask")
    return None if mask is None else right_aligned(mask)


def right_aligned(mask: Array) -> Array:
    """A mask as what broadcasts to (b h i j): key padding (b j) is the same for all heads and queries."""
    return mask[:, None, None, :] if mask.ndim == 2 else mask


@implements("BIAS-3", "SOFTCAP-6")
def finite_bias(given: Given) -> Array | None:
    """Where the bias is not −∞, what broadcasts to (b h i j); None without one."""
    bias = given.operand("bias")
    return None if bias is None else bias != -np.inf


@implements("WINDOW-1", "WINDOW-2", "WINDOW-3", "WINDOW-4", "WINDOW-6", "WINDOW-16", "POSITION-2")
def windowed(given: Given) -> Array | None:
    """Which key the window shows to each query, (i j) or (b 1 i j) bool; None without a window."""
    if given.problem.window is None:
        return None
    own = own_positions(given)
    left, right = reach(given.problem.window, given.dialect.window_count)
    late_enough = (given.positions >= own - left) | (given.positions < given.problem.first_tokens)
    return late_enough & (given.positions <= own + right)


def reach(window: tuple[int | None, int | None] | None, count: str) -> tuple[float, float]:
    """How far a window reaches before and behind the query, ends included, whatever its numbers count."""
    left, right = (np.inf if side is None else side for side in window or (None, None))
    return left - (count != "inclusive"), right - (count == "total")


VISIBILITY: tuple[Callable[[Given], Array | None], ...] = (masked, finite_bias, causal_mask, windowed)


@implements("CAUSAL-6", "WINDOW-7", "WINDOW-8")
def visible_keys(shape: tuple[int, ...], given: Given) -> Array:
    """Where all of VISIBILITY allow it. (b h i j) bool."""
    visible = np.ones(shape, bool)
    for stage in VISIBILITY:
        allowed = stage(given)
        if allowed is not None:
            visible &= allowed
    return visible
