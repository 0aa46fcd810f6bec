"""Attention in float64 NumPy: the forward pass and its gradients, written out by hand.

Slow, exact to float64, and in the order of the spec. The formulas of a stage stand in :mod:`stages`; here is how they follow each
other. Arrays carry one head of keys and values per query head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray as Array

from attnspec.reference.stages import maps, sink, softmax, visible
from attnspec.reference.stages import scores as products
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.stage import ScoreMap
from attnspec.spec import OPTIONS, implements


@dataclass(frozen=True)
class Forward:
    """What the forward pass leaves behind. All (b h i j) unless said otherwise; float64 or bool."""

    scores: tuple[Array, ...]  # scale · q kᵀ, and what it is after each score map
    visible: Array  # bool: the query may attend to the key
    empty: Array  # (b h i) bool: no key is visible
    p: Array  # probabilities
    w: Array  # what multiplies the values: p, or p·keep/(1−r)
    m: Array  # (b h i) the row's largest score, that of the sink included; 0 in a bare row
    lse: Array  # (b h i) log Σ exp s, that of the sink included; −∞ in a bare row
    o: Array  # (b h i e)
    # Of a problem with sinks, (b h i); None without.
    pi: Array | None = None  # probability of the sink
    top: Array | None = None  # the largest score of a key; −∞ in an empty row
    lse_of_keys: Array | None = None  # log Σ exp s of the keys alone; −∞ in an empty row

    @property
    def z(self) -> Array:
        """scale · q kᵀ (b h i j)."""
        return self.scores[0]

    @property
    def s(self) -> Array:
        """The scores (b h i j)."""
        return self.scores[-1]

    @property
    def bare(self) -> Array:
        """Rows with neither a key nor a sink, to which the rule for empty rows applies. (b h i) bool."""
        return self.empty if self.pi is None else self.empty & (self.pi == 0)


@dataclass(frozen=True)
class Backward:
    """Gradients per query head, before shared heads are summed and broadcast biases reduced."""

    dp: Array  # (b h i j) keep/(1−r) · do vᵀ
    delta: Array  # (b h i) Σ_j P dP
    dscores: tuple[Array, ...]  # (b h i j) of scale · q kᵀ, and of what it is after each score map
    dq: Array  # (b h i d)
    dk: Array  # (b h j d)
    dv: Array  # (b h j e)
    dsink: Array | None = None  # (b h i) what each row adds to that of its head's sink; None without sinks

    @property
    def dz(self) -> Array:
        """That of scale · q kᵀ (b h i j)."""
        return self.dscores[0]

    @property
    def ds(self) -> Array:
        """That of the scores (b h i j)."""
        return self.dscores[-1]


# OUTPUT


@implements("SHAPE-1", "SHAPE-3", "SHAPE-4", "SOFTMAX-6", "SOFTMAX-7", "SOFTMAX-8")
def forward(q: Array, k: Array, v: Array, given: Given) -> Forward:
    """Output and probabilities of q (b h i d), k (b h j d), v (b h j e), all finite float64."""
    # SCORES
    scores = maps.through(products.scores(q, k, given.scale), given)
    # MASK
    seen = visible.visible_keys(scores[0].shape, given)
    # SOFTMAX
    rows = softmax.softmax(scores[-1], seen, sink.logits(given))
    f = Forward(scores, seen, rows.empty, rows.p, rows.p, rows.m, rows.lse, rows.p, rows.pi, rows.top, rows.lse_of_keys)
    p = softmax.fill_empty_rows(rows.p, f.bare, given.dialect.empty_row, rows.p.shape[-1])
    # DROPOUT
    w = p * given.factor
    # OUTPUT
    return replace(f, p=p, w=w, o=w @ v)


# GRADIENTS


def probability_gradient(do: Array, v: Array, factor: Array | float) -> Array:
    """dP = keep/(1−r) · do vᵀ, (b h i j)."""
    return factor * (do @ v.swapaxes(-1, -2))


@implements(
    "GRAD-1",
    "GRAD-2",
    "GRAD-3",
    "GRAD-5",
    "GRAD-6",
    "GRAD-8",
    "GRAD-9",
    "DROPOUT-2",
    "EMPTY-3",
    "MASK-6",
    "WINDOW-9",
    "POSITION-12",
)
def backward(
    q: Array, k: Array, v: Array, do: Array, f: Forward, given: Given, delta: Array | None = None, lam: Array | None = None
) -> Backward:
    """Gradients of Σ do∘o + Σ λ∘lse. D is Σ P dP of the same P, not Σ do∘o: that cancels exactly where it must.

    `delta` (b h i) is given where k and v are only some of a row's keys; dq is then their share of it. `lam` (b h i) is λ, the
    cotangent of the natural lse; None for none.
    """
    dv = f.w.swapaxes(-1, -2) @ do
    dp = probability_gradient(do, v, given.factor)
    if delta is None:
        delta = (f.p * dp).sum(-1)
    # An empty row does not depend on its scores, whatever the rule fills in.
    centre = delta if lam is None else delta - lam
    ds = np.where(f.empty[..., None], 0.0, f.p * (dp - centre[..., None]))
    dscores = maps.back_through(ds, f.scores, given)
    dsink = None if f.pi is None else sink.gradient(f.pi, centre)
    return Backward(dp, delta, dscores, *product_gradients(q, k, dscores[0], given.scale), dv, dsink)


def product_gradients(q: Array, k: Array, dz: Array, scale: float) -> tuple[Array, Array]:
    """dq (b h i d) and dk (b h j d) of z = scale · q kᵀ."""
    dq = scale * (dz @ k)
    dk = scale * (dz.swapaxes(-1, -2) @ q)
    return dq, dk


def operand_gradients(dscores: tuple[Array, ...], given: Given, dsink: Array | None = None) -> dict[str, Array]:
    """The gradients of the options that are tensors, such as dbias, in their shapes.

    dscores: those of the scores after the score maps; dsink (b h i): what each row adds to that of its head's sink.
    """
    of_maps = {
        f"d{name}": reduce_to(weighed(of_sum, one, given), tuple(getattr(given.problem, name).shape), OPTIONS[name].axes)
        for one, of_sum in zip(maps.active(given), dscores[1:], strict=True)
        if one.gradient and (name := one.option)
    }
    return of_maps if dsink is None else of_maps | {"dsinks": of_rows(dsink, "sinks", given)}


def of_rows(each: Array, name: str, given: Given) -> Array:
    """The gradient of an option from what each row (b h i) adds to it, in the option's shape."""
    return reduce_to(each[..., None], tuple(getattr(given.problem, name).shape), OPTIONS[name].axes)


def weighed(of_sum: Array, one: ScoreMap, given: Given) -> Array:
    """What each element (b h i j) adds to the gradient of a score map's own tensor."""
    weight = one.weight(given)
    return of_sum if weight is None else of_sum * weight


@implements("GRAD-4")
def reduce_to(dx: Array, like: tuple[int, ...], axes: str = "bhij") -> Array:
    """A gradient (b h i j) summed over every dimension along which an operand of shape `like` was repeated.

    axes: the operand's dimensions, the last of them where it has fewer.
    """
    sizes = dict(zip(axes[len(axes) - len(like) :], like, strict=True))
    aligned = tuple(sizes.get(letter, 1) for letter in "bhij"[4 - dx.ndim :])
    repeated = tuple(n for n, size in enumerate(aligned) if size == 1 and dx.shape[n] != 1)
    return dx.sum(repeated, keepdims=True).reshape(like)
