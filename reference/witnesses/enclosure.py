"""Attention in ball arithmetic: every number with a radius in which the exact answer lies, whatever was rounded.

The third form of the reference, and what shows that the other two are inside their bounds. It shares no helper with
:mod:`attnspec.reference.dense` or :mod:`attnspec.reference.witnesses.autograd`. A ball is an `arb` of python-flint, midpoint ±
radius; every operation encloses what it does exactly (Johansson, Arb: efficient arbitrary-precision midpoint-radius
interval arithmetic, IEEE Trans. Comput. 66(8), 2017). Arrays of balls have dtype object, so NumPy's operators work on
them; products of matrices are Arb's own. Operands are taken for the numbers that they are, without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.spec import Dialect, Problem

PRECISIONS = (128, 256, 512, 1024, 2048, 4096)  # bits
OF_THE_BOUND = 2.0**-20  # a radius that no verdict notices
OF_THE_NUMBER, SMALLEST = 2.0**-60, 2.0**-1000  # where no bound says what is enough
SUBNORMAL = 2.0**-1074


class _TooCoarse(ArithmeticError):
    """The precision does not separate a row's sum from zero."""


# BALLS


def _flint() -> Any:
    """The module, loaded where it is used. Raises ImportError that says how to get it."""
    try:
        import flint
    except ImportError as error:
        raise ImportError("enclosures need python-flint: pip install attnspec[exact]") from error
    return flint


@contextmanager
def _precision(bits: int) -> Iterator[None]:
    """Arb's precision is global; it is put back in any case."""
    context = _flint().ctx
    before = context.prec
    context.prec = bits
    try:
        yield
    finally:
        context.prec = before


def _balls(entries: list[Any], shape: tuple[int, ...]) -> Array:
    return np.fromiter(entries, object, len(entries)).reshape(shape)


def _zeros(*shape: int) -> Array:
    return np.full(shape, _flint().arb(0), object)


def _product(a: Array, b: Array) -> Array:
    """The product of two matrices of floats or balls, (n m) (m l) → (n l)."""
    matrix = _flint().arb_mat
    product = matrix(*a.shape, a.ravel().tolist()) * matrix(*b.shape, b.ravel().tolist())
    return _balls(product.entries(), (a.shape[0], b.shape[1]))


def _sum(x: Array, axis: tuple[int, ...] | int) -> Array:
    """A sum of balls along axes, which stay; over nothing it is the number zero."""
    return np.sum(x, axis, keepdims=True, initial=_flint().arb(0))


def _each(method: str, x: Array) -> Array:
    """A method of each ball."""
    return np.frompyfunc(getattr(_flint().arb, method), 1, 1)(x)


def _above(x: Array) -> Array:
    """Float64 numbers that are not below exact balls ≥ 0, and zero for zero only. A conversion to float rounds to nearest."""
    up = np.nextafter(x.astype(float), np.inf)
    return np.where(_each("is_zero", x).astype(bool), 0.0, up)


# RESULT


@dataclass(frozen=True)
class Enclosure:
    """Balls that hold the exact answer, by output name: o (b h i e), lse (b h i), and the gradients like their inputs.

    The gradients are there where the problem has a cotangent. What the clauses leave open is NaN: rows under the rule nan,
    rows with a visible bias that is not a finite number, and the gradients that such rows reach. `bits` is the precision.
    """

    balls: dict[str, Array]
    bits: int

    def error(self, name: str, got: Array) -> Array:
        """No less than |got − exact|, in got's shape: float64, NaN where the ball is NaN, ∞ where only `got` is."""
        ball, got = self.balls[name], np.asarray(got, float)
        if got.shape != ball.shape:
            raise ValueError(f"{name} has shape {ball.shape}, found {got.shape}")
        with _precision(self.bits):
            above = _above(_each("abs_upper", ball - got))
            middle = _each("mid", ball).astype(float)
        above = np.where(np.isnan(got), np.inf, above)
        above = np.where(np.isinf(middle) & (middle == got) & ~_each("is_finite", ball).astype(bool), 0.0, above)
        return np.where(np.isnan(middle), np.nan, above)

    def nearest(self, name: str) -> tuple[Array, Array]:
        """Two float64 arrays (high, low): the midpoints are high + low, and low is what float64 loses of them."""
        ball = self.balls[name]
        with _precision(self.bits):
            high = _each("mid", ball).astype(float)
            low = _each("mid", ball - np.where(np.isfinite(high), high, 0.0)).astype(float)
        return high, np.where(np.isfinite(high), low, 0.0)

    def radius(self, name: str) -> Array:
        """No less than the radii, float64; zero where the ball is one number, NaN where it is none."""
        ball = self.balls[name]
        above = _above(_each("rad", ball))
        return np.where(_each("is_nan", ball).astype(bool), np.nan, above)


def enclose(
    problem: Problem, dialect: Dialect, keep: Array | None = None, *, good_enough: Mapping[str, Array] | None = None
) -> Enclosure:
    """The exact answer to a problem in a dialect, in balls. keep (b h i j) bool is the mask that dropout drew, in training.

    `good_enough` holds bounds by output name, in the output's shape: the precision begins at 128 bits and is doubled until
    each radius is at most 2^-20 of its bound. Without one for an output, until it is at most 2^-60 of the number, or 2^-1000.
    Where a bound is zero the ball must be the number zero, and where it is NaN anything will do.

    Raises ValueError where dropout is active without `keep`, ImportError without python-flint, and ArithmeticError where
    4096 bits do not suffice, or what must be zero is not.
    """
    given, found = _read(problem, dialect, keep), ""
    for bits in PRECISIONS:
        with _precision(bits):
            try:
                balls = _answer(given)
            except _TooCoarse as error:
                found = str(error)
                continue
            found = _too_coarse(balls, good_enough or {})
        if not found:
            return Enclosure(balls, bits)
    raise ArithmeticError(f"{PRECISIONS[-1]} bits do not suffice: {found}")


def _too_coarse(balls: dict[str, Array], good_enough: Mapping[str, Array]) -> str:
    """What is not yet known well enough, in words; nothing where all is. NaN is as good as it gets."""
    for name, ball in balls.items():
        middle, radius = _each("mid", ball).astype(float), _above(_each("rad", ball))
        if name in good_enough:
            bound = np.broadcast_to(good_enough[name], ball.shape)
            broken = (bound == 0) & ~_each("is_zero", ball).astype(bool)
            if broken.any():
                at = tuple(int(n) for n in np.argwhere(broken)[0])
                raise ArithmeticError(f"{name}{list(at)} must be zero, and it is {ball[at]}")
            allowed = np.where(bound == 0, 0.0, np.maximum(bound * OF_THE_BOUND, SUBNORMAL))
        else:
            allowed = np.maximum(np.abs(middle) * OF_THE_NUMBER, SMALLEST)
        coarse = ~np.isnan(middle) & (radius > allowed)
        if coarse.any():
            at = tuple(int(n) for n in np.argwhere(coarse)[0])
            return f"the radius of {name}{list(at)} is {radius[at]:.3g}, and {allowed[at]:.3g} is asked for"
    return ""


# OPERANDS


@dataclass(frozen=True)
class _Given:
    """A problem as float64 and bool arrays, nothing repeated but bias and mask."""

    q: Array  # (b h i d)
    k: Array  # (b g j d)
    v: Array  # (b g j e)
    do: Array | None  # (b h i e)
    dlse: Array | None  # (b h i)
    scale: float
    options: dict[str, Any]  # of SCORE_MAPS: (b h i j), or a number
    distances: Array  # (b i j), what slopes are multiplied with
    visible: Array  # (b h i j) bool
    sinks: Array | None  # (h)
    serving: list[int]  # the key/value head of each query head
    kept: Array | None  # (b h i j) bool; None without dropout
    rate: float
    empty_row: str
    lse: Dialect | None  # how it is returned, where it is
    shapes: dict[str, tuple[int, ...]]  # of the operands as they came


def _numbers(x: torch.Tensor) -> Array:
    return x.detach().cpu().double().numpy()


def _finite(x: torch.Tensor) -> Array:
    """What is not a number counts as zero: behind a mask it must not be noticed, and elsewhere nothing is promised."""
    return np.nan_to_num(_numbers(x), nan=0.0, posinf=0.0, neginf=0.0)


def _read(problem: Problem, dialect: Dialect, keep: Array | None) -> _Given:
    """The operands, exactly, and which key each query sees."""
    full, group = (problem.b, problem.h, problem.i, problem.j), problem.h // max(problem.g, 1)
    rate = float(problem.dropout) if problem.training else 0.0
    if keep is None and 0 < rate < 1:
        raise ValueError("with dropout in training the answer depends on the keep mask; give `keep` (b h i j)")
    if rate == 1:
        kept: Array | None = np.zeros(full, bool)
    else:
        kept = np.broadcast_to(np.asarray(keep, bool), full) if keep is not None and rate else None
    do = None if problem.do is None else _numbers(problem.do)
    if do is None and problem.dlse is not None:
        do = np.zeros((*full[:3], problem.e))
    bias = None if problem.bias is None else np.broadcast_to(_numbers(problem.bias), full)
    slopes = problem.alibi_slopes
    operands = {"bias": bias, "alibi_slopes": None if slopes is None else np.broadcast_to(_numbers(slopes)[..., None, None], full)}
    heads = problem.k.shape if not problem.shared else (problem.b, 1, *problem.k.shape[1:])
    return _Given(
        q=_finite(problem.q),
        k=_finite(problem.k).reshape(heads),
        v=_finite(problem.v).reshape((*heads[:3], problem.e)),
        do=do,
        dlse=None if problem.dlse is None else _numbers(problem.dlse),
        # The float64 number, as every form takes it: another rounding of 1/√d would be another problem.
        scale=float(problem.scale) if problem.scale is not None else problem.d**-0.5 if problem.d else 1.0,
        options={
            name: y
            for name in (SCORE_MAPS if dialect.softcap_order == "before_bias" else reversed(SCORE_MAPS))
            if (y := operands[name] if name in operands else getattr(problem, name)) is not None
        },
        distances=_distances(problem, dialect),
        visible=_visible(problem, dialect, full, bias),
        sinks=None if problem.sinks is None else _numbers(problem.sinks),
        serving=[n // group if dialect.head_grouping == "blocked" else n % problem.g for n in range(problem.h)],
        kept=kept,
        rate=rate,
        empty_row=dialect.empty_row,
        lse=dialect if problem.lse else None,
        shapes={name: tuple(x.shape) for name, x in problem.inputs().items()},
    )


# MASK


def _visible(problem: Problem, dialect: Dialect, full: tuple[int, ...], bias: Array | None) -> Array:
    """Where mask, causal, the window and a bias of −∞ leave the key to the query, (b h i j) bool."""
    visible = np.ones(full, bool)
    if problem.mask is not None:
        mask = problem.mask.cpu().numpy()
        visible = visible & (mask.reshape(problem.b, 1, 1, problem.j) if mask.ndim == 2 else mask)
    for item, offset in enumerate(_offsets(problem, dialect)):
        visible[item] &= _placed(problem, dialect, offset)
    return visible if bias is None else visible & ~np.isneginf(bias)


def _offsets(problem: Problem, dialect: Dialect) -> list[int]:
    """The key at which the first query of each batch item stands."""
    starts = problem.q_start if isinstance(problem.q_start, tuple) else (problem.q_start,) * problem.b
    aligned = problem.j - problem.i if dialect.causal_alignment == "bottom_right" else 0
    return [aligned if start is None else start for start in starts]


def _placed(problem: Problem, dialect: Dialect, offset: int) -> Array:
    """Where causal and the window leave the key to the query, (i j) bool; the first query stands at the key `offset`."""
    placed = np.ones((problem.i, problem.j), bool)
    if problem.causal:
        placed &= np.tri(problem.i, problem.j, offset, dtype=bool)
    left, right = problem.window or (None, None)
    if left is not None:
        early = np.tri(problem.i, problem.j, offset - left - (dialect.window_count == "inclusive"), dtype=bool)
        early[:, : problem.first_tokens] = False
        placed &= ~early
    if right is not None:
        placed &= np.tri(problem.i, problem.j, offset + right - (dialect.window_count == "total"), dtype=bool)
    return placed


# SCORES AND WHAT IS ADDED


def _distances(problem: Problem, dialect: Dialect) -> Array:
    """What slopes are multiplied with, whole numbers (b i j)."""
    _, row, key = np.indices((problem.b, problem.i, problem.j)).astype(float)
    if dialect.alibi_form == "column":
        return key
    before = row - key + np.array(_offsets(problem, dialect), float)[:, None, None]
    return -before if dialect.alibi_form == "signed" else np.minimum(before, -before)


# What is done to the scaled product where the key is visible, in this order, where the problem has the option, of which a row of
# operands is given with the distances; and the slope of that, None where it is 1.
SCORE_MAPS: dict[str, tuple[Callable[[Array, Any, Array], Array], Callable[[Array, Any], Array] | None]] = {
    "softcap": (lambda s, cap, far: _each("tanh", s / cap) * cap, lambda s, cap: _each("sech", s / cap) ** 2),
    "bias": (lambda s, bias, far: s + bias, None),
    "alibi_slopes": (lambda s, slopes, far: s + np.frompyfunc(_flint().arb, 1, 1)(slopes) * far, None),
}
# Of the options that have a gradient, what a change of the operand is multiplied with; None for 1.
WEIGHTS: dict[str, Callable[[_Given, int], Array | None]] = {
    "bias": lambda x, item: None,
    "alibi_slopes": lambda x, item: x.distances[item],
}


def _scores(
    q: Array, k: Array, scale: float, options: dict[str, Any], far: Array, visible: Array
) -> tuple[Array, dict[str, Array | None]]:
    """scale · q kᵀ, and what the options make of it where the key is visible (−∞ is never added), and their slopes. (i j)."""
    s, slopes = _product(q, k.T) * _flint().arb(scale), dict[str, Array | None]()
    for name, option in options.items():
        value, slope = SCORE_MAPS[name]
        slopes[name] = None if slope is None else slope(s, option)
        s[visible] = value(s[visible], option[visible] if isinstance(option, np.ndarray) else option, far[visible])
    return s, slopes


# SOFTMAX


def _softmax(s: Array, visible: Array, empty_row: str, sink: float | None) -> tuple[Array, Array]:
    """Probabilities (i j) and lse (i) of scores and what is visible. Hidden keys have the number zero.

    A sink has a term of the sum, and no probability here.

    A row is shifted by a number near its largest score; which one does not matter, for any shift is exact.
    """
    flint = _flint()
    p, lse = _zeros(*s.shape), np.full(len(s), flint.arb(-np.inf), object)
    for row, seen in enumerate(visible):
        keys = np.flatnonzero(seen)
        if not len(keys) and sink is not None:
            lse[row] = flint.arb(sink)
            continue
        if not len(keys):
            if empty_row != "zero":
                p[row] = flint.arb(1) / max(len(seen), 1) if empty_row == "uniform" else flint.arb("nan")
            continue
        score = s[row, keys]
        if not all(_each("is_finite", score)):  # a bias of NaN or +∞; products of finite numbers are finite
            p[row] = lse[row] = flint.arb("nan")
            continue
        shift = max([*score.tolist(), *(() if sink is None else (flint.arb(sink),))]).mid()
        weight = np.exp(score - shift)
        total = weight.sum() if sink is None else weight.sum() + (flint.arb(sink) - shift).exp()
        if not (total > 0 and total.is_finite()):
            raise _TooCoarse(f"the sum of the exponentials of a row is {total}")
        p[row, keys] = weight / total
        lse[row] = shift + total.log()
    return p, lse


# DROPOUT


def _dropout_factor(kept: Array, rate: float) -> Array:
    """keep/(1 − r), with the difference and the quotient of the float64 number r in balls. (i j)."""
    factor = _zeros(*kept.shape)
    if rate < 1:
        factor[kept] = 1 / (1 - _flint().arb(rate))
    return factor


# OUTPUT


def _answer(x: _Given) -> dict[str, Array]:
    """All outputs at the precision of now, head by head, in the implementation's shapes."""
    o, lse = _zeros(*x.q.shape[:3], x.v.shape[3]), _zeros(*x.q.shape[:3])
    dq, dk, dv = _zeros(*x.q.shape), _zeros(*x.k.shape), _zeros(*x.v.shape)
    operands = {name: _zeros(*x.visible.shape) for name in WEIGHTS if name in x.options}
    dsinks, returned = _zeros(x.q.shape[1]), _zeros(*x.q.shape[:3])
    apart = x.sinks is not None and x.lse is not None and x.lse.lse_includes_sink == "no"
    for at in np.ndindex(*x.q.shape[:2]):
        sink = None if x.sinks is None or np.isneginf(x.sinks[at[1]]) else float(x.sinks[at[1]])
        kv = at[0], x.serving[at[1]]
        s, slopes = _scores(
            x.q[at],
            x.k[kv],
            x.scale,
            {name: y[at] if isinstance(y, np.ndarray) else y for name, y in x.options.items()},
            x.distances[at[0]],
            x.visible[at],
        )
        p, lse[at] = _softmax(s, x.visible[at], x.empty_row, sink)
        returned[at] = _softmax(s, x.visible[at], x.empty_row, None)[1] if apart else lse[at]
        factor = None if x.kept is None else _dropout_factor(x.kept[at], x.rate)
        w = p if factor is None else p * factor
        o[at] = _product(w, x.v[kv])
        if x.do is not None:
            lam = None if x.dlse is None else _natural(x.dlse[at], x.lse)
            dz, centre = _score_gradient(p, factor, x.do[at], x.v[kv], x.visible[at], lam)
            if sink is not None:
                dsinks[at[1]] -= _sum(np.exp(_flint().arb(sink) - lse[at]) * centre[:, 0], 0)[0]
            for name, slope in reversed(slopes.items()):
                if name in operands:
                    weight = WEIGHTS[name](x, at[0])
                    operands[name][at] = dz if weight is None else dz * weight
                if slope is not None:
                    dz = dz * slope
            dq[at] = _product(dz, x.k[kv]) * _flint().arb(x.scale)
            # What serves several heads has the sum of their gradients.
            dk[kv] += _product(dz.T, x.q[at]) * _flint().arb(x.scale)
            dv[kv] += _product(w.T, x.do[at])
    answer = {"o": o, "lse": lse if x.lse is None else _returned(returned, x.lse)}
    if x.do is not None:
        answer |= {"dq": dq, "dk": dk.reshape(x.shapes["k"]), "dv": dv.reshape(x.shapes["v"])}
        if "bias" in operands:
            answer["dbias"] = _of_repeated(operands["bias"], x.shapes["bias"])
        if "alibi_slopes" in operands:
            answer["dalibi_slopes"] = _of_repeated(operands["alibi_slopes"], (*x.shapes["alibi_slopes"], 1, 1))[..., 0, 0]
        if x.sinks is not None:
            answer["dsinks"] = dsinks
    return answer


# GRADIENTS


def _natural(dlse: Array, dialect: Dialect | None) -> Array:
    """The cotangent of the natural lse, (i 1), in balls."""
    lam = np.array([_flint().arb(x) for x in dlse.tolist()], object)[:, None]
    return lam / _flint().arb(2).log() if dialect is not None and dialect.lse_base == "2" else lam


def _returned(lse: Array, dialect: Dialect) -> Array:
    """The lse as it is returned: in base 2 or natural, and of a row without a key what the dialect says."""
    flint, two = _flint(), dialect.lse_base == "2"

    def one(x: Any) -> Any:
        if x == flint.arb(-np.inf):
            return flint.arb(np.inf) if dialect.lse_empty == "plus_inf" else x
        return x / flint.arb(2).log() if two else x

    return _balls([one(x) for x in lse.ravel()], lse.shape)


def _score_gradient(
    p: Array, factor: Array | None, do: Array, v: Array, visible: Array, lam: Array | None = None
) -> tuple[Array, Array]:
    """dS = P∘(dP − D + λ) with dP = r∘(do vᵀ) and D = Σ P dP, (i j), λ being lam (i 1); and D − λ (i 1). No dS without a key."""
    dp = _product(do, v.T)
    if factor is not None:
        dp = dp * factor
    centre = _sum(p * dp, 1)
    centre = centre if lam is None else centre - lam
    ds = p * (dp - centre)
    ds[~visible.any(1)] = _flint().arb(0)
    return ds, centre


def _of_repeated(ds: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of a bias: dS (b h i j) summed along every axis on which the bias has size one, or which it lacks."""
    lacking = ds.ndim - len(shape)
    axes = tuple(n for n in range(ds.ndim) if n < lacking or shape[n - lacking] == 1)
    return _sum(ds, axes).reshape(shape)
