"""Our problems and our bounds in other people's tests: what is drawn, and what an answer is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnspec.conformance import strategies
from attnspec.reference import check_answer
from attnspec.spec import Problem

FEW = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)


def drawn(**options: Any) -> list[Problem]:
    """Some problems of these options."""
    found: list[Problem] = []

    @FEW
    @given(strategies.problems(**options))
    def look(problem: Problem) -> None:
        found.append(problem)

    look()
    return found


def test_nothing_is_drawn_that_is_not_offered() -> None:
    for problem in drawn(offers=("mha", "causal"), max_len=16):
        assert (problem.mask, problem.bias, problem.scale, problem.do) == (None, None, None, None)
        assert problem.h == problem.g
        assert problem.i <= 16
        assert problem.j <= 16


def test_what_is_offered_is_drawn() -> None:
    every = drawn(max_len=24)
    for feature in (lambda p: p.mask is not None, lambda p: p.bias is not None, lambda p: p.causal, lambda p: p.do is not None):
        assert any(map(feature, every))
        assert not all(map(feature, every))


def test_dtype_causal_and_widths_are_those_asked_for() -> None:
    for problem in drawn(dtype=torch.bfloat16, causal=True, widths=(32, 64), max_len=16):
        assert problem.dtype == torch.bfloat16
        assert problem.causal
        assert problem.d in (32, 64)
    assert not any(problem.causal for problem in drawn(dtype="float64", causal=False, max_len=8))


def plain() -> Problem:
    q, k, v = (torch.arange(4.0).reshape(1, 1, 2, 2) + n for n in range(3))
    return Problem(q, k, v)


def right(problem: Problem) -> torch.Tensor:
    return torch.softmax(problem.q @ problem.k.transpose(-1, -2) * problem.d**-0.5, -1) @ problem.v


def test_a_right_answer_passes() -> None:
    check_answer(plain(), right(plain()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: o + torch.tensor([[0.0, 0.0], [0.0, 1.0]]),
            r"^ACCURACY-1: o\[0, 0, 1, 1\] is 5\.9\d+, expected 4\.9\d+ ± .*class A of float32\)",
        ),
        (lambda o: o * float("nan"), r"^ACCURACY-1: o\[0, 0, 0, 0\] is nan, expected 3\.\d+ .*4 of 4 elements are outside$"),
        (lambda o: o[..., :1], r"^SHAPE-1: "),
        (lambda o: None, r"^SHAPE-1: o is None, expected a tensor$"),
    ],
    ids=["one number", "nan", "shape", "none"],
)
def test_a_wrong_answer_is_told_where_and_by_how_much(change: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_answer(plain(), change(right(plain())))


def test_what_can_not_be_checked_is_refused() -> None:
    problem = plain()
    with pytest.raises(ValueError, match="dq can't be checked: the problem has not a cotangent"):
        check_answer(problem, right(problem), dq=problem.q)
    with pytest.raises(ValueError, match=r"^accuracy 'E': choose from R, A, "):
        check_answer(problem, right(problem), accuracy="E")


def test_the_strategy_is_one_of_hypothesis() -> None:
    assert isinstance(strategies.problems(), st.SearchStrategy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, r"^dtype 'float8': choose from float32, "),
        ({"offers": ("mha", "sliding")}, r"^offers names unknown sliding; choose from .*\bmha\b"),
    ],
    ids=["dtype", "offers"],
)
def test_an_unknown_option_of_the_strategy_is_told_with_those_to_choose_from(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategies.problems(**options)
