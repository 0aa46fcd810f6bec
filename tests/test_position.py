"""POSITION: the reference in its three forms, bounds that honest kernels keep, what parameters mean, and who is asked what."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from random_problems import STARTS, WINDOWS, draw, share

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.reference import SampledRows, solve
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import Dialect, Problem

DIALECTS = (Dialect(), Dialect(causal_alignment="top_left"))


def shaped(i: int, j: int, b: int = 1, **options: Any) -> Problem:
    """Queries of zeros and one-hot values: the output reads out which keys are seen."""
    q, k = torch.zeros(b, 1, i, 2).double(), torch.randn(b, 1, j, 2, generator=torch.Generator().manual_seed(0)).double()
    return Problem(q, k, torch.eye(j).double().expand(b, 1, j, j), **options)


# THE REFERENCE


@pytest.mark.parametrize("start", [0, 1, 3, 6, 20, -1, -4, -20])
def test_which_keys_are_seen(start: int) -> None:
    """Against the sentence, key by key, in each alignment: it says nothing beside a start."""
    for dialect, (i, j), causal, window in product(
        DIALECTS, ((3, 7), (5, 5), (9, 3), (1, 6)), (False, True), (None, (1, None), (2, 1), (None, 0))
    ):
        for starts in (start, (start, 2 - start)):
            problem = shaped(i, j, 2, q_start=starts, causal=causal, window=window)
            seen = solve(problem, dialect).forward.visible[:, 0]
            for item, row, key in product(range(2), range(i), range(j)):
                behind = key - (start if isinstance(starts, int) else starts[item]) - row
                left, right = (99 if side is None else side for side in window or (None, None))
                assert seen[item, row, key] == (-left <= behind <= right and (behind <= 0 or not causal)), (starts, i, j, window)


def test_the_output_counts_the_keys() -> None:
    exact = solve(shaped(4, 3, q_start=-1, causal=True), Dialect())
    assert exact.o[0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3]
    assert exact.empty[0, 0].tolist() == [True, False, False, False]


def test_a_start_takes_the_place_of_the_alignment() -> None:
    """Bottom-right and top-left are two starts, whichever of them a dialect follows."""
    for i, j in ((3, 7), (7, 3), (4, 4)):
        for start, alignment in ((j - i, "bottom_right"), (0, "top_left")):
            plain = solve(shaped(i, j, causal=True), Dialect(causal_alignment=alignment)).o
            for dialect in DIALECTS:
                np.testing.assert_array_equal(solve(shaped(i, j, causal=True, q_start=start), dialect).o, plain)


def test_balls_hold_the_reference() -> None:
    """The exact answer in ball arithmetic lies within the bound of class A in float64; test_reference.py has the second form."""
    pytest.importorskip("flint")
    for seed in range(24):
        drawn = draw(default_rng([53, seed]), windows=WINDOWS, starts=STARTS[2:])
        dialect, keep = DIALECTS[seed % 2], drawn.keep.numpy()
        exact, balls = solve(drawn.problem, dialect, keep), enclose(drawn.problem, dialect, keep)
        tolerance = exact.tolerance("A")
        for name, value in exact.values.items():
            worst = share(balls.nearest(name)[0], value, tolerance.bound[name], exact.undefined[name])
            assert worst <= 1, f"{name} is at {worst:.3g} of the bound: {drawn.choices}"


@pytest.mark.parametrize(
    "value", [1.0, True, "3", [0, 1], (0,), (0, 1, 2), (0, 1.0), (0, True), (0, None), 1 << 30, (0, -(1 << 30)), torch.zeros(2)]
)
def test_what_is_no_start_is_refused(value: Any) -> None:
    x = torch.zeros(2, 1, 1, 1)
    with pytest.raises(ValueError, match="a q_start is one whole number, or a tuple of one for each of 2 batch items"):
        Problem(x, x, x, q_start=value)


def test_a_start_stays_one_as_bytes_and_on_the_way_to_another_process() -> None:
    from attnspec.adapters.remote.protocol import options_of, problem_of, tensors_of

    for start in (0, -3, (2, -1)):
        problem = shaped(3, 4, 2, q_start=start)
        assert Problem.from_bytes(problem.to_bytes()).q_start == start
        said = {name: list(x) if isinstance(x, tuple) else x for name, x in options_of(problem).items()}
        assert problem_of({"options": said}, tensors_of(problem)).q_start == start


def test_no_batch_item_has_a_start_for_each() -> None:
    empty = shaped(3, 4, 0, q_start=(), causal=True)
    assert solve(empty, Dialect()).o.shape == (0, 1, 3, 4)


def test_the_bound_counts_visible_keys() -> None:
    """A row that sees three of 1000 keys has the bound of a row of three, but for what a sweep may rescale."""
    x = build(Case(dtype="float32", i=1, j=3, d=8, seed=3))
    many = x.replace(
        k=torch.cat([x.k, torch.zeros(x.b, x.k.shape[1], 997, x.d)], 2),
        v=torch.cat([x.v, torch.zeros(x.b, x.v.shape[1], 997, x.e)], 2),
    )
    bounds = [solve(p, Dialect()).tolerance("A").bound["o"].max() for p in (x, many.replace(causal=True, q_start=2))]
    assert bounds[0] <= bounds[1] < 1.5 * bounds[0]


def test_sampled_rows_are_rows_of_the_whole() -> None:
    """A few rows of a long problem, a start for each batch item, in tiles of keys."""
    problem = build(Case(dtype="float32", b=2, heads="2/2", i=12, j=700, d=8, causal=True, window="90:", seed=5))
    rows = [0, 3, 11]
    do = torch.zeros_like(problem.do)
    do[:, :, rows] = problem.do[:, :, rows]
    problem = problem.replace(do=do, q_start=(400, -5))
    exact = solve(problem, Dialect())
    assert exact.empty[1, 0].tolist() == [True] * 5 + [False] * 7
    for part in SampledRows(problem, Dialect(), rows).parts("A"):
        value = exact.lse if part.output == "lse" else exact.values[part.output]
        np.testing.assert_allclose(part.values, value[part.at], rtol=1e-12, atol=1e-14, err_msg=part.output)


def test_chunks_of_queries_are_the_whole() -> None:
    """In any order, one after the other or as a zig-zag; dk and dv are sums."""
    problem = build(Case(dtype="float64", b=2, heads="4/2", i=11, j=17, d=8, causal=True, window="6:", mask="padding", seed=1))
    problem = problem.replace(q_start=(3, -2))
    whole = solve(problem, Dialect())
    for cuts in ((0, 1, 3, 7, 11), (0, 5, 11), tuple(range(12))):
        total = {name: np.zeros_like(whole.values[name]) for name in ("dk", "dv")}
        for a, b in reversed(list(pairwise(cuts))):
            each = solve(
                problem.replace(q=problem.q[:, :, a:b], do=problem.do[:, :, a:b], q_start=tuple(x + a for x in problem.q_start)),
                Dialect(),
            ).values
            for name in ("o", "dq"):
                np.testing.assert_allclose(each[name], whole.values[name][:, :, a:b], rtol=1e-12, atol=1e-14)
            for name in total:
                total[name] += each[name]
        for name, x in total.items():
            np.testing.assert_allclose(x, whole.values[name], rtol=1e-12, atol=1e-14)


def test_parts_of_the_keys_merged_are_the_whole() -> None:
    """A ring: chunks of queries against chunks of keys, weighted by their lse; an empty part weighs nothing."""
    problem = build(Case(dtype="float64", b=2, heads="2/2", i=11, j=17, d=8, causal=True, seed=1)).replace(
        do=None, wrt=(), q_start=4
    )
    whole = solve(problem, Dialect())
    for a, b in pairwise((0, 4, 11)):
        o, lse = np.zeros((2, 2, b - a, 8)), np.full((2, 2, b - a), -np.inf)
        for c, d in pairwise((0, 2, 9, 13, 17)):
            part = solve(
                problem.replace(q=problem.q[:, :, a:b], k=problem.k[:, :, c:d], v=problem.v[:, :, c:d], q_start=4 + a - c),
                Dialect(),
            )
            both = np.logaddexp(lse, part.lse)
            with np.errstate(invalid="ignore"):
                weights = (np.where(x == -np.inf, 0.0, np.exp(x - both))[..., None] for x in (lse, part.lse))
            o, lse = sum(w * x for w, x in zip(weights, (o, part.o), strict=True)), both
        np.testing.assert_allclose(o, whole.o[:, :, a:b], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse, whole.lse[:, :, a:b], rtol=1e-12, atol=1e-14)
