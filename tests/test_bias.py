"""Errors that lean in one direction are named, errors that do not are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from honest import Plan, eager, split_k, tiled, widen
from judging import judge
from numpy.random import default_rng
from threads import one_thread  # noqa: F401  a fixture
from torch import Tensor
from variants import kernel

from attnspec.adapters import resolve
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.systematic import LIMIT, Meter, generic

HONEST = str(Path(__file__).with_name("honest.py:tiled"))
PROBLEMS = 200  # of tier standard
BITS = {torch.bfloat16: 16, torch.float16: 13}  # of float32's significand that the type has not


def truncated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Towards zero instead of to nearest. The gradient passes."""
    if dtype not in BITS:
        return x
    cut = (x.detach().float().view(torch.int32) >> BITS[dtype] << BITS[dtype]).view(torch.float32)
    return x + (cut - x.detach())


def leaning(kind: str) -> Callable[..., Tensor]:
    """A kernel of class B with one small systematic fault."""

    @kernel
    def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
        q, k, v = widen(query, key, value)
        if kind == "scale off by 0.1 %":
            plan = replace(plan, scale=plan.scale * 1.001)
        scores = plan.scores(q, k)
        peak = scores.detach().amax(-1, keepdim=True)
        weights = torch.exp(scores - peak.masked_fill(peak == -torch.inf, 0.0))
        total = weights.sum(-1, keepdim=True).clamp(min=1e-30)
        if kind == "an epsilon in the row sum":
            total = total + 1e-3
        p = plan.thin_out(weights / total)
        p = truncated(p, query.dtype) if kind == "probabilities truncated" else p.to(query.dtype).to(q.dtype)
        o = p @ v
        return (truncated(o, query.dtype) if kind == "output truncated" else o).to(query.dtype)

    return attend


probabilities_truncated = leaning("probabilities truncated")


def subject_of(impl: Any) -> Subject:
    return meet(resolve(impl)[0].on("cpu"), "cpu", {}, None, ("bfloat16", "float16"))


def measured(impl: Any, dtype: str) -> Meter:
    subject, meter = subject_of(impl), Meter()
    for number in range(PROBLEMS):
        problem = subject.problem(generic(subject, dtype, number))
        meter.add(subject.run(problem), subject.solve(problem), subject.required_class(dtype))
    return meter


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("impl", [tiled, split_k, eager, "sdpa-math"], ids=lambda impl: getattr(impl, "__name__", impl))
def test_honest_kernels_do_not_lean(impl: Any, dtype: str) -> None:
    meter = measured(impl, dtype)
    assert len(meter.shares) == 5
    assert max(map(abs, meter.leaning().values())) < LIMIT / 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["probabilities truncated", "output truncated", "scale off by 0.1 %", "an epsilon in the row sum"])
def test_a_systematic_error_is_named(kind: str, dtype: str) -> None:
    """Each of them is below the bound of any element of class C, or of nearly any."""
    found = measured(leaning(kind), dtype).biased()
    words = " ".join(found.values())
    assert found, kind
    assert ("larger scale" in words) if "scale" in kind else ("too small" in words), words


def test_errors_without_a_preferred_sign_stay_below_the_limit() -> None:
    """Any sizes, random signs: as the inequality says, far rarer than one in a thousand."""
    rng, meter = default_rng(3), Meter()
    worst = 0.0
    for _ in range(2000):
        meter.shares["o", "gain"] = [(float(r), 0.0) for r in rng.standard_t(2, 200) * rng.choice([-1, 1], 200)]
        worst = max(worst, abs(meter.leaning()["o", "gain"]))
    assert 3 < worst < LIMIT
    meter.shares["o", "gain"] = [(1.0, 0.0)] * 200
    assert meter.leaning()["o", "gain"] == pytest.approx(np.sqrt(200))
    meter.shares["o", "gain"] = [(1.0, 1.5)] * 200
    assert meter.leaning()["o", "gain"] == 0.0


def test_a_bias_is_reported_and_fails_where_should_is_enforced() -> None:
    impl = f"{__file__}:probabilities_truncated"
    said = judge(impl, "--clauses=ACCURACY-5", "--impl-dtypes=bfloat16", tier="standard")
    assert said.exit == 0
    assert "ACCURACY-5 (SHOULD) does not hold" in said.screen
    assert "biased: the output is too small throughout" in said.screen
    enforced = judge(impl, "--clauses=ACCURACY-5", "--impl-dtypes=bfloat16", "--enforce-should", tier="standard")
    assert enforced.exit == 1
    (shown,) = (failure for failure in enforced.failures if failure.clause == "ACCURACY-5")
    assert shown.data["what"] == "biased"
    assert "the problem shown here leans furthest" in shown.text
    keys = int(re.search(r"problem .* k \(1, 2, (\d+), \d+\)", shown.text)[1])
    assert keys >= 17  # one of the problems that were measured, and not the simplest
    assert judge(HONEST, "--clauses=ACCURACY-5", "--impl-dtypes=bfloat16", "--enforce-should", tier="standard").exit == 0


def test_the_problem_that_leans_furthest_is_the_one_that_is_shown() -> None:
    meter, key = Meter(), ("o", "gain")
    meter.shares[key], meter.numbers[key] = [(1.0, 0.5), (-3.0, 0.5), (2.5, 0.1), (2.0, 0.0)], [0, 1, 4, 5]
    assert meter.clearest(key) == 4
