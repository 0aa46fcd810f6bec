"""The lowest finite number as −∞, and a NaN that stays one: what may be given, what should be, and what is still a fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import FILLED
from judging import judge
from mutants.base import load
from torch import Tensor

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import Dialect

LOW = torch.finfo(torch.float32).min
eager_filled, wide_filled = (kernel for kernel, _ in FILLED.values())
TIES = ("lowest_ties_with_hidden", "lowest_below_hidden", "lowest_is_hidden")
ties, below, hides = (load()[name].make() for name in TIES)


def filled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """As half of the field does it: hidden scores become the lowest number, so that a row without a key is a mean."""
    s = q @ k.mT * q.shape[-1] ** -0.5
    if bias is not None:
        s = s + bias
    low = torch.finfo(s.dtype).min
    if mask is not None:
        s = s.masked_fill(~(mask[:, None, None] if mask.ndim == 2 else mask), low)
    if causal:
        i, j = s.shape[-2:]
        s = s.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(j - i + 1), low)
    return s.softmax(-1).to(v.dtype) @ v


def zeroed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The same, with zeros where no key is visible."""
    keep = torch.ones(q.shape[0], q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool)
    if mask is not None:
        keep = keep & (mask[:, None, None] if mask.ndim == 2 else mask)
    if bias is not None:
        keep = keep & (bias > -torch.inf)
    return filled(q, k, v, keep, bias).masked_fill(~keep.any(-1, keepdim=True), 0)


def lowest_hides(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """A fault under every rule: a visible key with the lowest number as its bias takes part in the mean of a hidden row only."""
    if bias is not None:
        low = bias <= torch.finfo(bias.dtype).min / 2
        bias = bias.masked_fill(low, 0.0)
        v = v.masked_fill(low.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2]).all(2)[..., None], 0.0)
    return filled(q, k, v, mask, bias)


def forgetful(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """NaN becomes zero on its way in."""
    return filled(q.nan_to_num(), k.nan_to_num(), v.nan_to_num(), mask)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_filling_with_the_lowest_number_breaks_no_must(dtype: str) -> None:
    """It mixes what is hidden with what has the lowest number: a SHOULD, and said."""
    outcome = judge("test_lowest.filled", "--clauses=SOFTMAX,EMPTY,GRAD-2,BIAS-1", f"--impl-dtypes={dtype}", "--impl-device=cpu")
    assert not outcome.broken(), outcome.screen
    assert "empty_row = uniform" in outcome.screen
    assert "SOFTMAX-7 (SHOULD) does not hold" in outcome.screen
    assert "SOFTMAX-8 (SHOULD)" not in outcome.screen


@pytest.mark.parametrize("impl", ["eager_filled", "wide_filled"])
def test_honest_kernels_that_fill_are_green(impl: str) -> None:
    """In every dtype, whatever form the mask has: the lowest number gives no MUST a red, and EMPTY is judged."""
    outcome = judge(f"test_lowest.{impl}", "--clauses=SOFTMAX-2,EMPTY", "--impl-device=cpu", "--dialect=empty_row=uniform")
    assert not outcome.broken(), outcome.screen
    assert "empty_row = uniform" in outcome.screen
    judged = {cell[:2] for cell, counts in outcome.record.counts.items() if counts["PASS"]}
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        assert {("SOFTMAX-2", dtype), ("EMPTY-1", dtype), ("EMPTY-2", dtype)} <= judged, judged


@pytest.mark.parametrize("impl", ["ties", "below", "hides"])
def test_who_ranks_the_lowest_number_with_what_is_hidden_is_stopped(impl: str) -> None:
    options = ("--clauses=SOFTMAX-7", "--enforce-should", "--impl-dtypes=float32,float16", "--impl-device=cpu")
    outcome = judge(f"test_lowest.{impl}", *options)
    assert {failure.clause for failure in outcome.failures} == {"SOFTMAX-7"}, outcome.screen


def test_what_has_the_lowest_number_is_not_simply_gone() -> None:
    outcome = judge("test_lowest.lowest_hides", "--clauses=SOFTMAX,BIAS", "--impl-dtypes=float32", "--impl-device=cpu")
    assert outcome.broken(), outcome.screen


@pytest.mark.parametrize("impl", ["sdpa-math", "sdpa-flash", "honest.tiled", "honest.eager", "honest.split_k"])
def test_who_selects_holds_both(impl: str) -> None:
    options = ("--clauses=SOFTMAX-7,SOFTMAX-8", "--enforce-should", "--impl-dtypes=float32,float16", "--impl-device=cpu")
    outcome = judge(impl, *options)
    assert not outcome.failures, outcome.screen
    assert {cell[0] for cell, counts in outcome.record.counts.items() if counts["PASS"]} == {"SOFTMAX-7", "SOFTMAX-8"}


def test_a_nan_that_is_lost_is_seen() -> None:
    options = ("--clauses=SOFTMAX-8", "--enforce-should", "--impl-dtypes=float32", "--impl-device=cpu")
    outcome = judge("test_lowest.forgetful", *options)
    assert {failure.clause for failure in outcome.failures} == {"SOFTMAX-8"}
    assert "with NaN in a visible" in outcome.screen
    assert "expected nan" in outcome.screen


def test_only_saturated_rows_with_hidden_keys_are_open() -> None:
    """One row each: saturated beside a hidden key; with one better key; with nothing hidden; only half as low, and a third."""
    problem = build(Case(i=5, j=3, heads="1/1", d=4))
    bias, mask = torch.zeros(5, 3), torch.ones(1, 1, 5, 3, dtype=torch.bool)
    mask[..., 0] = False
    mask[..., 2, :] = True
    bias[:] = LOW
    bias[1, 1] = 0.0
    bias[3] = LOW / 2
    bias[4] = LOW / 3
    problem = problem.replace(mask=mask, bias=bias, wrt=("q",))
    for rule, expected in (("uniform", [True, False, False, True, False]), ("zero", [False] * 5)):
        exact = solve(problem, Dialect(empty_row=rule))
        np.testing.assert_array_equal(exact.undefined["o"][0, 0, :, 0], expected)
        np.testing.assert_array_equal(exact.undefined["dq"][0, 0, :, 0], expected)
        assert exact.undefined["dv"].any() == (rule == "uniform")


@pytest.mark.parametrize("rule", ["uniform", "zero"])
def test_relations_leave_rows_out_that_may_reach_what_is_hidden(rule: str) -> None:
    """A saturated row, whatever the rule for empty ones: what is hidden may change it, which SOFTMAX-7 alone forbids."""
    problem = build(Case(i=2, j=3, heads="1/1", d=4))
    mask = torch.tensor([[True, True, False]])
    exact = solve(problem.replace(mask=mask, bias=torch.full((2, 3), LOW)), Dialect(empty_row=rule))
    assert exact.reaches_hidden
    assert not solve(problem.replace(mask=mask, bias=torch.zeros(2, 3)), Dialect(empty_row=rule)).reaches_hidden


def test_a_fill_with_the_lowest_number_breaks_a_should_whatever_the_rule_for_empty_rows() -> None:
    """SOFTMAX-1, MASK-4 and 35 more were said to be broken by a kernel that fills so and zeroes its empty rows."""
    outcome = judge("test_lowest.zeroed", "--clauses=SOFTMAX,MASK,EMPTY", "--impl-dtypes=float32", "--dialect=empty_row=zero")
    assert {failure.clause for failure in outcome.failures} == {"SOFTMAX-7", "MASK-5"}
    assert outcome.exit == 0
    assert "explained by another" not in outcome.screen


def test_an_open_row_has_no_second_derivative_either() -> None:
    """GRAD-9 was said to be broken by a row whose visible keys have the lowest number, beside hidden ones."""
    case = "--case=dtype=float64,heads=2/2,b=2,i=3,j=4,d=1,mask=padding,bias=bhij,biases=lowest"
    outcome = judge("test_lowest.filled", "--clauses=GRAD-9", case, "--dialect=empty_row=uniform")
    assert not outcome.failures
    assert outcome.record.counts["GRAD-9", "float64", "only", "cpu"]["PASS"] > 0
