"""An implementation that is not ours: torch's flex_attention with a soft cap as its score_mod, as it is and compiled.

On a CPU it has no backward, so only outputs are asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attnspec.adapters import Adapter
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import ARRAYS, read
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import ALONE
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import Dialect

pytestmark = pytest.mark.filterwarnings("ignore")


class Flex(Adapter):
    """The cap in score_mod, and the bias behind it; masks as −∞ from the same function."""

    offers = frozenset({"mha", "causal", "scale", "softcap", "bias", "key_padding"})
    dialect = {"causal_alignment": "top_left", "empty_row": "zero"}

    def __init__(self, flex: Callable[..., Any] = flex_attention) -> None:
        self.flex = flex

    def capped(self, s: Tensor, cap: float) -> Tensor:
        return cap * torch.tanh(s / cap)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        whole = None if bias is None else bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            s = s if softcap is None else self.capped(s, softcap)
            if whole is not None:
                s = s + whole[b, h, i, j]
            if mask is not None:
                s = torch.where(mask[b, j], s, -torch.inf)
            return torch.where(i >= j, s, -torch.inf) if causal else s

        return self.flex(q, k, v, score_mod=score, scale=scale)  # type: ignore[no-any-return]


class OfScore(Flex):
    """tanh of the score itself."""

    def capped(self, s: Tensor, cap: float) -> Tensor:
        return cap * torch.tanh(s)


def broken(kernel: Flex, cases: list[Case]) -> list[str]:
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
    fitted = (fit(replace(row, dtype="float32", i=min(row.i, 5), j=min(row.j, 9)), Flex()) for row in rows)
    return list(dict.fromkeys(fitted))


def test_flex_attention_keeps_the_chapter() -> None:
    cases = small(3)
    assert len(cases) >= 10
    assert broken(Flex(), cases) == []


def test_another_formula_breaks_it() -> None:
    assert len(broken(OfScore(), small(9))) >= 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_compiled_flex_attention_keeps_it_too() -> None:
    torch._dynamo.reset()
    case = Case(i=17, j=33, d=16, heads="2/2", softcap=0.7, scale=1.0, causal=True, bias="bhij", wrt="none", values="peaked")
    assert broken(Flex(torch.compile(flex_attention, dynamic=False)), [case]) == []
