"""An implementation that is not ours: jax.nn.dot_product_attention with windows, their gradients, and its residual, the lse.

docs/window.md and docs/lse.md have what the whole of the chapters says of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import ARRAYS, read
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import ALONE, TOGETHER, Arrays
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import Dialect, Problem

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # each shape is compiled anew
jax = pytest.importorskip("jax", reason="the package jax is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")
NAME = "jax.nn.dot_product_attention"


def shifted(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Its window lies one key too far left, and its lse is that of one more key."""

    @wraps(attend)
    def wrong(
        query: Any, key: Any, value: Any, local_window_size: Any = None, return_residual: bool = False, **options: Any
    ) -> Any:
        if local_window_size is not None:
            local_window_size = tuple(max(0, x + way) for x, way in zip(local_window_size, (1, -1), strict=True))
        options |= {"local_window_size": local_window_size, "return_residual": return_residual}
        found = attend(query, key, value, **options)
        return (found[0], found[1] + (1 / key.shape[1])) if return_residual else found

    return wrong


def small(of: Arrays, kernel: Adapter, every: int) -> list[Case]:
    """Rows of an array, as far as they are offered, in short lengths: each shape is compiled anew."""
    rows = read(ARRAYS / of.name, "pairs", of.levels)[::every]
    fitted = [fit(replace(row, i=min(row.i, 5), j=max(1, min(row.j, 9)), heads="2/1"), kernel) for row in rows]
    return list(dict.fromkeys(case for case in fitted if case.dtype != "float64" and of.there(vars(case))))


def broken(kernel: Adapter, of: Arrays, every: int) -> list[str]:
    """The cases whose answers are outside of the class that a wide softmax between narrow tensors has."""
    found = []
    cases = small(of, kernel, every)
    assert len(cases) >= 8
    for case in cases:
        problem: Problem = build(case)
        class_ = "A" if case.dtype == "float32" else "C"
        found += [case.token()] if judge(kernel.run(problem), solve(problem, Dialect(**kernel.dialect)), class_).findings else []
    return found


@pytest.mark.parametrize("of", [ALONE["window"], ALONE["lse"], TOGETHER], ids=lambda of: of.name)
def test_it_keeps_the_chapter(of: Arrays) -> None:
    assert broken(resolve(NAME)[0], of, 2 if of is ALONE["lse"] else 3) == []


@pytest.mark.parametrize("of", [ALONE["window"], ALONE["lse"], TOGETHER], ids=lambda of: of.name)
def test_a_shifted_one_does_not(of: Arrays) -> None:
    assert len(broken(resolve(shifted(jax.nn.dot_product_attention))[0], of, 2 if of is ALONE["lse"] else 3)) >= 3
