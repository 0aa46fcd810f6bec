"""Honest kernels of many sequences, one per style, keep the bound of the class of their arithmetic, in every form and dtype."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from honest_ragged import FORMS, STYLES
from mutants.ragged_cases import CASES, DIALECT

from attnspec.adapters import Answer
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.ragged import POISONS, form_of
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import default_class, solve
from attnspec.spec import Dialect, Problem
from attnspec.spec.ragged import Packed

PAIRS = [(style, form) for style, forms in STYLES.items() for form in forms]


@pytest.mark.parametrize(("style", "form"), PAIRS)
def test_a_style_is_right(style: str, form: str) -> None:
    """Some calls of its form: lengths of all kinds, each poison, each dtype."""
    own = [case for case in CASES if form_of(case) == form]
    for n, case in enumerate(own[:: max(1, len(own) // 24)]):
        dtype, poison = LEVELS["dtype"][n % 4], POISONS[n % 3]
        adapter = FORMS[form](STYLES[style][form])()
        fitted = fit(replace(case, dtype=dtype, poison=poison), adapter)
        assert form_of(fitted) == form
        problem = build(fitted)
        found = judge(adapter.run(problem), solve(problem, DIALECT), default_class(dtype)).findings
        assert not found, (fitted.token(), found)


def test_where_nothing_depends_on_an_input_autograd_may_give_none() -> None:
    """A kernel that leaves out sequences without rows has an output without a history where all of them are such."""
    x = torch.randn(2, 2, 3, 4)
    for k_lengths, wrong in (((0, 2), 0), ((1, 2), 3)):
        problem = Problem(x, x, x, do=x, wrt=("q", "k", "v"), carrier=Packed((3, 0), k_lengths))
        answer = Answer(torch.zeros_like(x), dict.fromkeys(("dq", "dk", "dv")))
        found = judge(answer, solve(problem, Dialect()), "A").findings
        assert sum(one.kind == "missing" for one in found) == wrong
