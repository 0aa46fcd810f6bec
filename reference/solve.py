"""The exact answer to a problem, and how far from it an answer may be.

A problem's tensors are upcast exactly, so the answer is the one for the very numbers that the implementation received.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.reference import dense
from attnspec.reference.bounds import gradients as gradient_bounds
from attnspec.reference.bounds import output as bounds
from attnspec.reference.bounds.accuracy import LARGEST, TERMS, Arithmetic, arithmetic, without
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import Dialect, Problem, implements

OUTPUTS = ("o", "dq", "dk", "dv", "dbias")
INPUT_OF = {"dq": "q", "dk": "k", "dv": "v", "dbias": "bias"}
# float64's own error in the reference is that of class A in float64 (docs/certificate.md: a fifth of it). Every term of a
# bound grows at least linearly in u, and u is 2^29 times larger for float32, so a millionth covers it there. Enclosures are
# made as narrow as that.
REFERENCE_SHARE = 2.0**-20


def to_float64(x: torch.Tensor) -> Array:
    """A tensor's values, exactly, as a NumPy float64 array."""
    return x.detach().to("cpu", torch.float64).resolve_neg().numpy()


@dataclass(frozen=True)
class Tolerance:
    """Bounds by output name, and the elements that no class can promise because a legal intermediate may overflow."""

    bound: dict[str, Array]
    exempt: dict[str, Array]


def limits(values: Array, bound: Array, zero: Array, exempt: Array, dtype: str, share: float) -> tuple[Array, Array]:
    """What one output is judged by: its bound, `share` times as wide beside a reference that errs too, and what is exempt."""
    with np.errstate(invalid="ignore", over="ignore"):
        bound = np.where(zero, 0.0, np.where(np.isnan(values), np.nan, bound * share))
        return bound, exempt | (np.abs(values) + bound > LARGEST[dtype])


def bound_of_keys(
    head: Array, alone: Array, value: Array, touched: Array, like: tuple[int, ...], grouping: str, scale: float, a: Arithmetic
) -> tuple[Array, Array]:
    """Bound and exemption of dk or dv (shape `like`): the whole, or some keys of it.

    head and alone are bound and value of each query head (b h j ·), value is their sum over a group, touched (b h) says in which
    heads an intermediate may overflow. scale is that of dk, which may be stored before it is multiplied by it; 0 for dv.
    """
    bound = dense.sum_over_group(head, like, grouping)
    exempt = dense.sum_over_group(touched[..., None, None].astype(float), (*like[:-2], 1, 1), grouping) > 0
    # A head's own gradient, and dk before the scale, may be stored.
    stored = bounds.overflows_before_scale(alone, head, scale, a)
    exempt = exempt | (dense.sum_over_group(stored.astype(float), like, grouping) > 0)
    if head.shape[1] != (1 if len(like) == 3 else like[1]):
        bound = bound + a.u_out * (np.abs(value) + bound)
    return bound, exempt


@dataclass(frozen=True)
class Exact:
    """The exact answer: float64 arrays in the shapes of the implementation's answer.

    o (b h i e), lse (b h i), dq, dk, dv and dbias in the shapes of their inputs; None where nothing asked for them.
    zero holds for each output where it must be exactly zero. undefined: where a visible operand is not finite. Where the
    oracle is "arb", values are the nearest float64 numbers to enclosures, and rest is what they leave of the exact answer.
    """

    problem: Problem
    dialect: Dialect
    forward: dense.Forward
    lse: Array
    values: dict[str, Array]
    zero: dict[str, Array]
    undefined: dict[str, Array]
    _tile: bounds.Tile
    oracle: str = "float64"
    rest: dict[str, Array] = field(default_factory=dict)
    strict: bool = False  # nothing is exempt for an intermediate that may overflow
    _cache: dict[tuple[str, str], Tolerance] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Array | None:
        if name in OUTPUTS:
            return self.values.get(name)
        raise AttributeError(name)

    @cached_property
    def empty(self) -> Array:
        """Rows without a visible key, (b h i) bool."""
        return self.forward.empty

    def promising_all(self) -> Exact:
        """The same, but that no element is exempt because a legal intermediate may overflow."""
        return replace(self, strict=True, _cache={})

    @property
    def reaches_hidden(self) -> bool:
        """Some row may take from keys that it does not see: it is empty under another rule than zero, or open (EMPTY-1)."""
        return bool(self.undefined["o"].any() or (self.empty.any() and self.dialect.empty_row != "zero"))

    @property
    def heads_of_values(self) -> Array:
        """The values that each query head has, (b h j e)."""
        return self._tile.v

    def tolerance(self, class_: str, dtype: str | None = None) -> Tolerance:
        """The bound of each output for an accuracy class, 0 where the answer must be exactly zero.

        `dtype` is for asking what a computation in another dtype would have been allowed.
        """
        dtype = dtype or str(self.problem.dtype).removeprefix("torch.")
        if (class_, dtype) not in self._cache:
            self._cache[class_, dtype] = self._tolerance(class_, dtype)
        return self._cache[class_, dtype]

    def terms(self, class_: str, name: str, index: tuple[int, ...]) -> dict[str, float]:
        """What the bound of one element is made of: for each of TERMS the share that is gone without it, the largest first."""
        a = arithmetic(class_, str(self.problem.dtype).removeprefix("torch."))

        def size(a: Arithmetic) -> float:
            return float(self.bounds(a)[0][name][index])

        gone = {term: size(a) - size(without(a, term)) for term in TERMS}
        total = sum(x for x in gone.values() if x > 0)
        return {term: x / total for term, x in sorted(gone.items(), key=lambda item: -item[1]) if x > 0}

    def _tolerance(self, class_: str, dtype: str) -> Tolerance:
        share = 1 + (1.0 if dtype == self.oracle == "float64" else REFERENCE_SHARE)
        bound, exempt = self.bounds(arithmetic(class_, dtype))
        bound["lse"] = share * bound["lse"]
        for name, value in self.values.items():
            skip = self.undefined[name] if self.strict else exempt[name] | self.undefined[name]
            bound[name], exempt[name] = limits(value, bound[name], self.zero[name], skip, dtype, share)
        return Tolerance(bound, exempt)

    def bounds(self, a: Arithmetic) -> tuple[dict[str, Array], dict[str, Array]]:
        """The bounds of an arithmetic, once, and what it exempts, by output, in the shapes of the answer.

        Elements that must be zero have a bound here as well; :meth:`tolerance` is what an answer is judged by.
        """
        problem, grouping, back = self.problem, self.dialect.head_grouping, self._tile.backward

        def tiles(_: bool) -> tuple[bounds.Tile, ...]:
            return (self._tile,)

        # A row that is NaN by rule has no bound; it is compared as NaN.
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            w = bounds.forward_bound(tiles, problem.j, a)
            row, both = bounds.may_overflow(tiles, a)
            # D = Σ do·o of a stored output that is infinite: with dropout it may be, and 0 · ∞ reaches rows without a cotangent.
            both = both | (np.abs(self.values["o"]) + w.o > LARGEST[a.dtype]).any(-1)
            bound, exempt = {"o": w.o, "lse": w.lse}, {"o": np.broadcast_to(row[..., None], w.o.shape), "lse": row}
            if back is None:
                return bound, exempt
            g = gradient_bounds.backward_bound(tiles, w, back.dq, a, problem.h // max(problem.g, 1), problem.i)
            (keys,) = g.of_keys
            touched = both.any(-1)
            bound["dq"] = g.dq
            exempt["dq"] = both[..., None] | bounds.overflows_before_scale(back.dq, g.dq, self._tile.scale, a)
            for name, head, alone in (("dk", keys.dk, back.dk), ("dv", keys.dv, back.dv)):
                like = tuple(problem.k.shape if name == "dk" else problem.v.shape)
                scale = self._tile.scale if name == "dk" else 0.0
                bound[name], exempt[name] = bound_of_keys(head, alone, self.values[name], touched, like, grouping, scale, a)
            if problem.bias is not None:
                bound["dbias"], exempt["dbias"] = self._bias_bound(back.ds, keys.ds, both, a)
        return bound, exempt

    def _bias_bound(self, ds: Array, each: Array, rows: Array, a: Arithmetic) -> tuple[Array, Array]:
        assert self.problem.bias is not None
        like = tuple(self.problem.bias.shape)
        total, repeated = dense.reduce_to(each, like), each.size // max(1, int(np.prod(like)))
        if repeated > 1:
            terms = bounds.kappa(repeated, a.u_acc) + bounds.kappa(repeated // a.block + 1, a.u_grad)
            total = total + terms * dense.reduce_to(np.abs(ds) + each, like) + a.u_out * (np.abs(self.values["dbias"]) + total)
        touched = dense.reduce_to(np.broadcast_to(rows[..., None], each.shape).astype(float), like) > 0
        return total, touched


@implements("DTYPE-1", "DTYPE-2", "DTYPE-3", "GRAD-7")
@np.errstate(invalid="ignore")  # a bias of +∞ or NaN makes NaN of its row, of which nothing is promised
def solve(problem: Problem, dialect: Dialect, keep: Array | None = None, *, oracle: str = "float64") -> Exact:
    """The exact answer to a problem in a dialect. keep (b h i j) bool is the mask that dropout drew, in training.

    Gradients are there where the problem has a cotangent. oracle "arb" is ball arithmetic: for an implementation in float64,
    beside which the error of a float64 reference counts as much as its own, and for numbers that are shown to a reader.
    Raises ValueError where dropout is active without `keep`, and ImportError where "arb" is asked for without python-flint.
    """
    if problem.training and 0 < problem.dropout < 1 and keep is None:
        raise ValueError("with dropout in training the answer depends on the keep mask; give `keep` (b h i j)")
    h, grouping = problem.h, dialect.head_grouping
    scale = dense.default_scale(problem.d) if problem.scale is None else float(problem.scale)
    given = [to_float64(problem.q), to_float64(problem.k), to_float64(problem.v)]
    q, k, v = (np.where(np.isfinite(x), x, 0.0) for x in given)
    k_heads, v_heads = dense.per_query_head(k, h, grouping), dense.per_query_head(v, h, grouping)
    bias = None if problem.bias is None else to_float64(problem.bias)
    mask = None if problem.mask is None else problem.mask.cpu().numpy()
    causal = dense.causal_mask(problem.i, problem.j, dialect.causal_alignment) if problem.causal else None
    rate = problem.dropout if problem.training else 0.0
    if rate == 1 and keep is None:
        keep = np.zeros((problem.b, h, problem.i, problem.j))
    factor = dense.keep_factor(keep, rate)

    f = dense.forward(
        q, k_heads, v_heads, scale=scale, bias=bias, mask=mask, causal=causal, factor=factor, empty_row=dialect.empty_row
    )
    live = f.visible | (f.empty[..., None] & (dialect.empty_row == "uniform"))
    values, back, do = {"o": f.o}, None, None
    if problem.do is not None:
        do = to_float64(problem.do)
        back = dense.backward(q, k_heads, v_heads, do, f, scale=scale, factor=factor)
        values["dq"] = back.dq
        values["dk"] = dense.sum_over_group(back.dk, tuple(problem.k.shape), grouping)
        values["dv"] = dense.sum_over_group(back.dv, tuple(problem.v.shape), grouping)
        if problem.bias is not None:
            values["dbias"] = dense.reduce_to(back.ds, tuple(problem.bias.shape))
    zero = _zeros(problem, dialect, values, live, f, factor, do)
    undefined = _undefined(problem, dialect, given, bias, f, values)
    tile = bounds.Tile(q, k_heads, v_heads, scale, bias, factor, f, do, back)
    exact = Exact(problem, dialect, f, f.lse, values, zero, undefined, tile)
    return exact if oracle == "float64" else _enclosed(exact, keep)


def _enclosed(exact: Exact, keep: Array | None) -> Exact:
    """The same answer from enclosures that are narrow beside the bound of the strictest class."""
    narrow = exact.tolerance("A")
    good_enough = {name: np.where(narrow.exempt[name], np.nan, bound) for name, bound in narrow.bound.items()}
    good_enough["lse"] = np.where(exact.empty, np.nan, good_enough["lse"])
    balls = enclose(exact.problem, exact.dialect, keep, good_enough=good_enough)
    values, rest = {}, {}
    for name, value in exact.values.items():
        high, low = balls.nearest(name)
        known = np.isfinite(high)
        values[name], rest[name] = np.where(known, high, value), np.where(known, low, 0.0)
    return replace(exact, values=values, rest=rest, oracle="arb", _cache={})


@implements("ACCURACY-3")
def _zeros(
    problem: Problem,
    dialect: Dialect,
    values: dict[str, Array],
    live: Array,
    f: dense.Forward,
    factor: Array | float,
    do: Array | None,
) -> dict[str, Array]:
    """Where nothing contributes to an output, so that it is exactly zero. What dropout removed contributes nothing."""
    grouping = dialect.head_grouping
    kept = np.broadcast_to(np.not_equal(factor, 0), live.shape)

    def nothing_reaches(pairs: Array, like: tuple[int, ...]) -> Array:
        """Keys (b h j) that no row reaches, in the shape of keys or values."""
        each = np.broadcast_to(
            np.any(pairs, axis=-2, keepdims=True).swapaxes(-1, -2), (*pairs.shape[:2], pairs.shape[3], like[-1])
        ).astype(float)
        return dense.sum_over_group(each, like, grouping) == 0

    live = live & kept
    not_a_number = f.empty & (dialect.empty_row == "nan") & (problem.j > 0)
    zero = {"o": np.broadcast_to(~(live.any(-1) | not_a_number)[..., None], f.o.shape)}
    if do is None:
        return zero
    asked = (do != 0).any(-1)[..., None]
    # Where dropout removed a whole row, dP and D are zero, and with them all of dS.
    scored = f.visible & asked & (f.visible & kept).any(-1)[..., None]
    zero["dq"] = np.broadcast_to(np.logical_not(scored.any(-1, keepdims=True)), values["dq"].shape)
    zero["dk"] = nothing_reaches(scored, tuple(problem.k.shape))
    zero["dv"] = nothing_reaches(live & asked, tuple(problem.v.shape))
    if "dbias" in values:
        zero["dbias"] = dense.reduce_to(scored.astype(float), values["dbias"].shape) == 0
    return zero


def _undefined(
    problem: Problem, dialect: Dialect, given: list[Array], bias: Array | None, f: dense.Forward, values: dict[str, Array]
) -> dict[str, Array]:
    """Where the clauses promise nothing: a visible operand is NaN or infinite, or a NaN row reaches a gradient."""
    undefined = {name: np.zeros(value.shape, bool) for name, value in values.items()}
    poisoned = f.empty & (dialect.empty_row == "nan")
    if bias is not None and dialect.empty_row == "uniform":
        # A fill value decides among keys that it hides and keys that −∞ hides; EMPTY-1 leaves that open. The lowest number
        # is such a value, where a row has no better key and some are hidden.
        low = -LARGEST[str(problem.dtype).removeprefix("torch.")] / 2
        saturated = f.visible.any(-1) & ~f.visible.all(-1) & np.logical_not(f.visible & ~(bias <= low)).all(-1)
        open_rows = saturated | (f.empty & np.broadcast_to((bias == -np.inf), f.visible.shape).any(-1))
        undefined["o"] |= open_rows[..., None]
        poisoned = poisoned | open_rows
    bad_q, bad_k, bad_v = (~np.isfinite(x).all(-1) for x in given)
    if bad_q.any() or bad_k.any() or bad_v.any():
        bad = dense.per_query_head((bad_k | bad_v)[..., None], problem.h, dialect.head_grouping)[..., 0]
        rows = (f.visible & (bad[:, :, None, :] | bad_q[..., None])).any(-1)
        undefined["o"] |= rows[..., None]
        poisoned = poisoned | rows
    if bias is not None and (np.isnan(bias) | (bias == np.inf)).any():
        rows = (np.broadcast_to(np.isnan(bias) | (bias == np.inf), f.visible.shape) & f.visible).any(-1)
        undefined["o"] |= rows[..., None]
        poisoned = poisoned | rows
    if len(values) > 1 and poisoned.any():
        undefined["dq"] |= poisoned[..., None]
        heads = np.broadcast_to(poisoned.any(-1)[..., None, None], (*poisoned.shape[:2], problem.j, 1)).astype(float)
        for name, x in (("dk", problem.k), ("dv", problem.v)):
            like = (*x.shape[:-1], 1)
            undefined[name] |= dense.sum_over_group(heads, like, dialect.head_grouping) > 0
        if "dbias" in values:
            rows = np.broadcast_to(poisoned[..., None], f.visible.shape).astype(float)
            undefined["dbias"] |= dense.reduce_to(rows, values["dbias"].shape) > 0
    return undefined
