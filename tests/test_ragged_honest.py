"""Honest kernels of many sequences, one per style, keep the bound of the class of their arithmetic, in every form and dtype."""

from __future__ import annotations

from dataclasses import replace

import pytest
from honest_ragged import FORMS, STYLES
from mutants.ragged_cases import CASES, DIALECT

from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.ragged import POISONS, form_of
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import default_class, solve

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
