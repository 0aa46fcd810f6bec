"""Attention in float64 NumPy: the forward pass and its gradients, written out by hand.

Slow, exact to float64, and in the order of the spec. Masks select and never add, so that what is hidden contributes
nothing, not even NaN. Arrays carry one head of keys and values per query head: :func:`per_query_head` repeats,
:func:`sum_over_group` is its transpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray as Array

from attnspec.spec import implements


@dataclass(frozen=True)
class Forward:
    """What the forward pass leaves behind. All (b h i j) unless said otherwise; float64 or bool."""

    z: Array  # scale · q kᵀ
    s: Array  # scores, with bias
    visible: Array  # bool: the query may attend to the key
    empty: Array  # (b h i) bool: no key is visible
    p: Array  # probabilities
    w: Array  # what multiplies the values: p, or p·keep/(1−r)
    m: Array  # (b h i) the row's largest score; 0 in an empty row
    lse: Array  # (b h i) log Σ exp s; −∞ in an empty row
    o: Array  # (b h i e)


@dataclass(frozen=True)
class Backward:
    """Gradients per query head, before shared heads are summed and broadcast biases reduced."""

    dp: Array  # (b h i j) keep/(1−r) · do vᵀ
    delta: Array  # (b h i) Σ_j P dP
    ds: Array  # (b h i j)
    dq: Array  # (b h i d)
    dk: Array  # (b h j d)
    dv: Array  # (b h j e)


# SHARED


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


# SCORES


@implements("SCALE-1")
def default_scale(d: int) -> float:
    """One over the root of the query width. An empty width has empty products, so its scale is 1."""
    return d**-0.5 if d else 1.0


@implements("SCALE-2", "SCALE-3")
def scores(q: Array, k: Array, scale: float) -> Array:
    """scale · q kᵀ, (b h i j)."""
    return scale * (q @ k.swapaxes(-1, -2))


# BIAS


@implements("BIAS-1", "BIAS-2", "BIAS-4")
def add_bias(z: Array, bias: Array | None) -> Array:
    """The bias, aligned from the right, added to the scaled scores. Where it is −∞ the score stays; BIAS-3 hides it."""
    return z if bias is None else z + np.where(bias == -np.inf, 0.0, bias)


# MASK


@implements("CAUSAL-1", "CAUSAL-2", "CAUSAL-3", "CAUSAL-4", "CAUSAL-5")
def causal_mask(q_len: int, k_len: int, alignment: str) -> Array:
    """Which key each query may see. True = may attend. Shape (q_len, k_len)."""
    return np.arange(k_len) <= last_visible(q_len, k_len, alignment)[:, None]


def last_visible(q_len: int, k_len: int, alignment: str) -> Array:
    """The last key that each query may see, below zero where it sees none. Shape (q_len,)."""
    return np.arange(q_len) + (k_len - q_len if alignment == "bottom_right" else 0)


@implements("MASK-2", "MASK-3", "SOFTMAX-5")
def broadcast_mask(mask: Array, shape: tuple[int, ...]) -> Array:
    """Key padding (b j), or anything right-aligned, as (b h i j)."""
    return np.broadcast_to(mask[:, None, None, :] if mask.ndim == 2 else mask, shape)


@implements("MASK-1", "BIAS-3", "CAUSAL-6")
def visible_keys(shape: tuple[int, ...], mask: Array | None, bias: Array | None, causal: Array | None) -> Array:
    """Where mask, bias and causal all allow it. (b h i j) bool."""
    visible = np.ones(shape, bool)
    if mask is not None:
        visible &= broadcast_mask(mask, shape)
    if bias is not None:
        visible &= np.broadcast_to(bias != -np.inf, shape)
    if causal is not None:
        visible &= causal
    return visible


# SOFTMAX


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


# DROPOUT


@implements("DROPOUT-1", "DROPOUT-3", "DROPOUT-4", "DROPOUT-5")
def keep_factor(keep: Array | None, rate: float) -> Array | float:
    """What dropout multiplies each probability with: keep/(1−r); 1 without dropout and 0 at a rate of one."""
    if rate == 0 or keep is None:
        return 1.0
    return np.zeros(keep.shape) if rate == 1 else keep / (1 - rate)


# OUTPUT


@implements("SHAPE-1", "SHAPE-3", "SHAPE-4", "SOFTMAX-6", "SOFTMAX-7", "SOFTMAX-8")
def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    bias: Array | None,
    mask: Array | None,
    causal: Array | None,
    factor: Array | float,
    empty_row: str,
) -> Forward:
    """Output and probabilities of q (b h i d), k (b h j d), v (b h j e), all finite float64.

    bias and mask broadcast, causal is (i j), factor is what :func:`keep_factor` gives.
    """
    # SCORES
    z = scores(q, k, scale)
    # BIAS
    s = add_bias(z, bias)
    # MASK
    visible = visible_keys(z.shape, mask, bias, causal)
    # SOFTMAX
    p, m, lse, empty = softmax(s, visible)
    p = fill_empty_rows(p, empty, empty_row, p.shape[-1])
    # DROPOUT
    w = p * factor
    # OUTPUT
    return Forward(z, s, visible, empty, p, w, m, lse, w @ v)


# GRADIENTS


def probability_gradient(do: Array, v: Array, factor: Array | float) -> Array:
    """dP = keep/(1−r) · do vᵀ, (b h i j)."""
    return factor * (do @ v.swapaxes(-1, -2))


@implements("GRAD-1", "GRAD-2", "GRAD-3", "GRAD-5", "GRAD-6", "GRAD-8", "GRAD-9", "DROPOUT-2", "EMPTY-3", "MASK-6")
def backward(
    q: Array, k: Array, v: Array, do: Array, f: Forward, *, scale: float, factor: Array | float, delta: Array | None = None
) -> Backward:
    """Gradients of Σ do∘o. D is Σ P dP of the same P, not Σ do∘o: that cancels exactly where it must.

    `delta` (b h i) is given where k and v are only some of a row's keys; dq is then their share of it.
    """
    dv = f.w.swapaxes(-1, -2) @ do
    dp = probability_gradient(do, v, factor)
    if delta is None:
        delta = (f.p * dp).sum(-1)
    # An empty row does not depend on its scores, whatever the rule fills in.
    ds = np.where(f.empty[..., None], 0.0, f.p * (dp - delta[..., None]))
    dq = scale * (ds @ k)
    dk = scale * (ds.swapaxes(-1, -2) @ q)
    return Backward(dp, delta, ds, dq, dk, dv)


@implements("GRAD-4")
def reduce_to(dx: Array, like: tuple[int, ...]) -> Array:
    """A gradient (b h i j) summed over every dimension along which an operand of shape `like` was repeated."""
    aligned = (1,) * (dx.ndim - len(like)) + like
    repeated = tuple(n for n, size in enumerate(aligned) if size == 1 and dx.shape[n] != 1)
    return dx.sum(repeated, keepdims=True).reshape(like)
