"""An implementation that is not ours: jax.nn.dot_product_attention with windows, their gradients, and its residual, the lse.

docs/window.md and docs/lse.md have what the whole of the chapters says of it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnspec.adapters import Adapter
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import ARRAYS, read
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import ALONE, TOGETHER, Arrays
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import Dialect, Problem

pytest.importorskip("jax", reason="the package jax is not installed")
from jaxed import Jax

pytestmark = pytest.mark.filterwarnings("ignore")


class Shifted(Jax):
    """Its window lies one key too far left, and its lse is that of one more key."""

    def attend(self, q, k, v, *, window=None, lse=False, **options):  # type: ignore[no-untyped-def]
        if window is not None:
            window = tuple(x if x is None else max(0, x + way) for x, way in zip(window, (1, -1), strict=True))
        found = super().attend(q, k, v, window=window, lse=lse, **options)
        return (found[0], found[1] + (1 / k.shape[2])) if lse else found


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
    assert broken(Jax(), of, 2 if of is ALONE["lse"] else 3) == []


@pytest.mark.parametrize("of", [ALONE["window"], ALONE["lse"], TOGETHER], ids=lambda of: of.name)
def test_a_shifted_one_does_not(of: Arrays) -> None:
    assert len(broken(Shifted(), of, 2 if of is ALONE["lse"] else 3)) >= 3
