"""Computes the exact answer to a problem, and what the bounds need.

It converts the problem's tensors to float64 without rounding, so the answer is that of the very numbers that an implementation got.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy import ndarray as Array

from attnspec.reference import dense
from attnspec.reference.bounds.tile import Tile
from attnspec.reference.exact import Exact
from attnspec.reference.numbers import to_float64
from attnspec.reference.ragged import solve_ragged
from attnspec.reference.stages import heads, lse
from attnspec.reference.stages.given import Given
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.reference.zeros import is_undefined, must_be_zero
from attnspec.spec import Dialect, Problem, implements


@implements("DTYPE-1", "DTYPE-2", "DTYPE-3", "GRAD-7")
@np.errstate(invalid="ignore")  # a bias or sink of +∞ or NaN: nothing is promised of its rows
def solve(problem: Problem, dialect: Dialect, keep: Array | None = None, *, oracle: str = "float64") -> Exact:
    """The exact answer to a problem in a dialect, as float64 arrays. It has gradients if the problem has a cotangent.

    keep (b h i j): bool, True for the probabilities that dropout kept in training.
    oracle: "float64" computes with the formulas of :mod:`stages`; docs/certificate.md says how exact that is. "arb" uses ball
    arithmetic. It is for implementations in float64, whose own error is no larger than that of a float64 reference, and for numbers
    that a reader is shown.

    Raises ValueError if dropout is active without `keep`, and ImportError for "arb" without python-flint.
    """
    if problem.carrier is not None:
        if problem.carrier.feature in ("cached", "paged"):  # there a query's place is that of its key, whatever dense calls do
            dialect = replace(dialect, causal_alignment="bottom_right")
        return solve_ragged(problem, dialect, lambda one: solve(one, dialect, oracle=oracle))
    if problem.training and 0 < problem.dropout < 1 and keep is None:
        raise ValueError("with dropout in training the answer depends on the keep mask; give `keep` (b h i j)")
    h, grouping = problem.h, dialect.head_grouping
    operands = [to_float64(problem.q), to_float64(problem.k), to_float64(problem.v)]
    q, k, v = (np.where(np.isfinite(x), x, 0.0) for x in operands)
    k_heads, v_heads = heads.per_query_head(k, h, grouping), heads.per_query_head(v, h, grouping)
    if problem.training and problem.dropout == 1 and keep is None:
        keep = np.zeros((problem.b, h, problem.i, problem.j))
    given = Given(problem, dialect, keep)

    f = dense.forward(q, k_heads, v_heads, given)
    live = f.visible | (f.bare[..., None] & (dialect.empty_row == "uniform"))
    values, back, do, lam = {"o": f.o}, None, None, None
    apart = problem.lse and problem.sinks is not None and dialect.lse_includes_sink == "no"
    if problem.lse:
        values["lse"] = lse.returned(f.lse, f.bare, dialect)
    if problem.differentiated:
        do = np.zeros(f.o.shape) if problem.do is None else to_float64(problem.do)
        # What reaches the scores from an lse of the keys alone is that of a call without sinks.
        lam = None if problem.dlse is None or apart else lse.cotangent(to_float64(problem.dlse), f.bare, dialect)
        back = dense.backward(q, k_heads, v_heads, do, f, given, lam=lam)
        values["dq"] = back.dq
        values["dk"] = heads.sum_over_group(back.dk, tuple(problem.k.shape), grouping)
        values["dv"] = heads.sum_over_group(back.dv, tuple(problem.v.shape), grouping)
        values |= dense.operand_gradients(back.dscores, given, back.dsink)
    zero = must_be_zero(problem, dialect, values, live, f, given, do, lam)
    undefined = is_undefined(problem, dialect, operands, given, f, values)
    of_keys = None
    if apart:
        of_keys = solve(
            problem.replace(sinks=None, do=None, wrt=tuple(name for name in problem.wrt if name != "sinks")), dialect, keep
        )
        for name, value in of_keys.values.items():
            if name == "lse":
                values[name], zero[name], undefined[name] = value, of_keys.zero[name], of_keys.undefined[name]
            elif name != "o":  # right, and without a bound: LSE-18 does not specify it
                values[name], undefined[name] = values[name] + value, np.ones(value.shape, bool)
    tile = Tile(q, k_heads, v_heads, given, f, do, back, lam)
    exact = Exact(problem, dialect, f, f.lse, values, zero, undefined, tile, of_keys=of_keys)
    return exact if oracle == "float64" else _enclosed(exact, keep)


def _enclosed(exact: Exact, keep: Array | None) -> Exact:
    """The same answer from enclosures that are much narrower than the bound of class A."""
    narrow = exact.tolerance("A")
    good_enough = {name: np.where(narrow.exempt[name], np.nan, bound) for name, bound in narrow.bound.items()}
    good_enough["lse"] = np.where(exact.forward.bare, np.nan, good_enough["lse"])
    balls = enclose(exact.problem, exact.dialect, keep, good_enough=good_enough)
    values, rest = {}, {}
    for name, value in exact.values.items():
        high, low = balls.nearest(name)
        known = np.isfinite(high)
        values[name], rest[name] = np.where(known, high, value), np.where(known, low, 0.0)
    return replace(exact, values=values, rest=rest, oracle="arb", _cache={})
