"""An implementation that is not ours: torch's flex_attention with a soft cap as its score_mod, as it is and compiled.

On a CPU it has no backward, so only outputs are asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import ARRAYS, read
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import ALONE
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import Dialect

pytestmark = pytest.mark.filterwarnings("ignore")


def flex(function: Callable[..., Any] = flex_attention) -> Adapter:
    """As its family calls it: the cap in score_mod, and the bias behind it."""
    return resolve(function)[0].on("cpu")


@wraps(flex_attention)
def capped_twice(*tensors: Tensor, score_mod: Any = None, **given: Any) -> Tensor:
    """What moves a score moves it once more."""

    def twice(score: Tensor, *at: Tensor) -> Tensor:
        return score_mod(score_mod(score, *at), *at)

    return flex_attention(*tensors, score_mod=None if score_mod is None else twice, **given)


def broken(kernel: Adapter, cases: list[Case]) -> list[str]:
    """The cases whose answers are outside of class A."""
    found = []
    for case in cases:
        problem = build(case, "cpu", ())
        if judge(kernel.run(problem), solve(problem, Dialect(**kernel.dialect)), "A").findings:
            found.append(case.token())
    return found


def small(every: int) -> list[Case]:
    """Rows of the chapter's array, as far as they are offered: each shape is traced anew, which is what takes the time."""
    rows = read(ARRAYS / "softcap", "pairs", ALONE["softcap"].levels)[::every]
    fitted = (fit(replace(row, dtype="float32", i=min(row.i, 5), j=min(row.j, 9)), flex()) for row in rows)
    return list(dict.fromkeys(fitted))


def test_flex_attention_keeps_the_chapter() -> None:
    cases = small(3)
    assert len(cases) >= 10
    assert broken(flex(), cases) == []


def test_another_formula_breaks_it() -> None:
    assert len(broken(flex(capped_twice), small(9))) >= 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_compiled_flex_attention_keeps_it_too() -> None:
    torch._dynamo.reset()
    case = Case(i=17, j=33, d=16, heads="2/2", softcap=0.7, scale=1.0, causal=True, bias="bhij", wrt="none", values="peaked")
    assert broken(flex(torch.compile(flex_attention, dynamic=False)), [case]) == []
