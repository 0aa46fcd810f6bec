"""The lse that is returned, its cotangent, and how parts of a row are merged by it."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
from numpy import ndarray as Array

from attnspec.spec import Dialect, Problem, implements

LN2 = log(2.0)
SENTINEL = -1e4  # above this no finite number stands for the lse of an empty row


def unit(dialect: Dialect) -> float:
    """One unit of the lse that is returned, in natural units: ln 2 in base 2."""
    return LN2 if dialect.lse_base == "2" else 1.0


def dtype_of(problem: Problem, dialect: Dialect) -> str:
    """The dtype of the lse that is returned."""
    own = str(problem.dtype).removeprefix("torch.")
    return own if own == "float64" or dialect.lse_dtype == "operand" else "float32"


@implements("LSE-1", "LSE-2", "LSE-3", "LSE-4", "LSE-5", "LSE-6", "LSE-18")
def returned(lse: Array, empty: Array, dialect: Dialect) -> Array:
    """The lse as it is returned, from the natural one (b h i). Of a row without a key under a sentinel it is −∞, and undefined."""
    with np.errstate(over="ignore"):
        return np.where(empty, np.inf if dialect.lse_empty == "plus_inf" else -np.inf, lse / unit(dialect))


@implements("LSE-12", "LSE-13", "LSE-14")
def cotangent(dlse: Array, empty: Array, dialect: Dialect) -> Array:
    """λ, the cotangent of the natural lse, (b h i): nothing of it is left in a row without a key."""
    return np.where(empty, 0.0, dlse / unit(dialect))


# MERGE


@dataclass(frozen=True)
class Part:
    """What some keys of each row give: o (b h i e), and the natural lse (b h i), −∞ where they are none."""

    o: Array
    lse: Array


def weights(parts: tuple[Part, ...]) -> tuple[Array, list[Array]]:
    """The lse of the whole (b h i), and the weight of each part."""
    lses = [np.asarray(part.lse, float) for part in parts]
    m = np.max(lses, axis=0)
    shift = np.where(np.isneginf(m), 0.0, m)
    with np.errstate(divide="ignore", under="ignore"):
        each = [np.exp(x - shift) for x in lses]
        total = np.sum(each, axis=0)
        lse = shift + np.log(total)
    return lse, [x / np.where(total == 0, 1.0, total) for x in each]


def of_part(weight: Array, x: Array) -> Array:
    """The share of a part, (b h i e): nothing where its weight is zero, whatever it holds."""
    return np.where(weight[..., None] == 0, 0.0, weight[..., None] * np.where(weight[..., None] == 0, 0.0, x))


@implements("LSE-15", "LSE-16")
def merge(*parts: Part) -> Part:
    """The whole that these parts make, in float64, of one part or more.

    lse = ln Σ e^lse_X and o = Σ e^(lse_X − lse) o_X. A part whose lse is −∞ is left out of its row, whatever its o holds there; a
    row of which all parts are empty has o = 0 and lse = −∞. An lse is natural: convert another base first, and +∞ or a sentinel of
    rows without a key to −∞. Source: section MERGE of the chapter LSE.

    Raises ValueError where the shapes of the parts differ, or where there is none.
    """
    if not parts or any(part.o.shape != parts[0].o.shape or part.lse.shape != part.o.shape[:-1] for part in parts):
        found = ", ".join(f"o {part.o.shape} with lse {part.lse.shape}" for part in parts) or "none"
        raise ValueError(f"parts have o (b h i e) and lse (b h i) of one shape; found {found}")
    lse, each = weights(parts)
    return Part(np.sum([of_part(w, np.asarray(part.o, float)) for w, part in zip(each, parts, strict=True)], axis=0), lse)


@implements("LSE-17")
def merge_gradients(do: Array, dlse: Array, *parts: Part) -> list[tuple[Array, Array]]:
    """The cotangents (do_X, dlse_X) of each part, from those of the merged o (b h i e) and natural lse (b h i).

    do_X = w_X do and dlse_X = w_X (⟨do, o_X − o⟩ + dlse), both 0 where the part has no weight.
    """
    _, each = weights(parts)
    o, found = merge(*parts).o, []
    for w, part in zip(each, parts, strict=True):
        live = w > 0
        inner = (do * np.where(live[..., None], part.o - o, 0.0)).sum(-1) + dlse
        found.append((of_part(w, do), np.where(live, w * inner, 0.0)))
    return found


def merge_error(part: Part, bounds: tuple[tuple[Array, Array], ...], parts: tuple[Part, ...]) -> tuple[Array, Array]:
    """How far the merged o and lse may be off where each part is off by its own (bound of o, bound of lse), natural.

    part: the merged one. A weight is off by a factor of at most e^(2 δ), δ the largest error of an lse: o moves by at most
    Σ w_X (e^2δ − 1) |o_X − o|, for Σ w_X (o_X − o) = 0, and by Σ w_X e^2δ times the parts' own errors.
    """
    _, each = weights(parts)
    delta = np.max([np.where(w > 0, lse, 0.0) for w, (_, lse) in zip(each, bounds, strict=True)], axis=0)
    with np.errstate(over="ignore"):
        factor = np.exp(np.minimum(2 * delta, 300.0))[..., None]
    o = np.zeros_like(part.o)
    for w, (own, _), one in zip(each, bounds, parts, strict=True):
        live = (w > 0)[..., None]
        o += np.where(live, w[..., None] * ((factor - 1) * np.abs(np.where(live, one.o - part.o, 0.0)) + factor * own), 0.0)
    return o, delta
