"""Sampled rows of a long problem have the answer and the bounds that they have in the whole of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from honest import tiled
from judging import judge
from numpy.random import default_rng
from threads import one_thread  # noqa: F401  a fixture
from torch import Tensor

from attnspec.adapters import Answer, resolve
from attnspec.adapters.reading import no_memory
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.long_rows import judge_rows, long_problem, needles
from attnspec.reference import SampledRows, rows, solve
from attnspec.spec import CANONICAL, CHOICES, Dialect, Problem

# THE SAME AS THE WHOLE


def drawn(n: int) -> tuple[Problem, Dialect, list[int]]:
    """A case of the suite, its cotangent zero outside of some rows, and keys in up to a dozen tiles."""
    rng, adapter = default_rng([31, n]), resolve("sdpa-math")[0]
    level: dict[str, Any] = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {"b": 1 + n % 2, "i": int(rng.integers(1, 20)), "j": int(rng.choice([0, 1, 16, 300, 513, 700])), "d": 8, "wrt": "all"}
    problem = build(fit(Case(**level, seed=n), adapter))
    chosen = sorted({int(x) for x in rng.integers(0, problem.i, 3)})
    do = torch.zeros_like(problem.do)
    do[:, :, chosen] = problem.do[:, :, chosen]
    dialect = Dialect(
        *(options[n // 3**place % len(options)] for place, options in enumerate(choice.values for choice in CHOICES.values()))
    )
    problem = problem.replace(do=do)
    if n % 3 == 1:
        # So gentle that each key weighs something: of no more than what underflows a tile knows less than the whole.
        slopes = torch.from_numpy(rng.standard_normal((problem.h,) if n % 2 else (problem.b, problem.h))) / 64
        problem = problem.replace(alibi_slopes=slopes.to(torch.promote_types(problem.dtype, torch.float32)))
    return problem, dialect, chosen


@pytest.mark.parametrize("class_", ["A", "B", "C", "C*", "D"])
def test_sampled_rows_are_rows_of_the_whole(class_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values within the float64 bound of each other; bounds the same but for what float64 rounds in them; the same zeros."""
    monkeypatch.setattr(rows, "TILE", 512)
    seen = set()
    for n in range(48):
        problem, dialect, chosen = drawn(n)
        exact = solve(problem, dialect)
        whole, narrow = exact.tolerance(class_), exact.tolerance("A", "float64")
        for part in SampledRows(problem, dialect, chosen).parts(class_):
            name, at = part.output, part.at
            seen.add(name)
            value = (exact.lse if name == "lse" else exact.values[name])[at]
            bound = whole.bound[name][at]
            assert part.values.shape == value.shape
            if name != "lse" and exact.undefined[name].any():
                continue
            np.testing.assert_array_equal(part.bound == 0, bound == 0)
            np.testing.assert_array_equal(np.isnan(part.values), np.isnan(value))
            with np.errstate(invalid="ignore"):
                near = (np.abs(part.values - value) <= narrow.bound[name][at]) | (part.values == value) | np.isnan(value)
            assert near.all(), f"{name} of {problem}"
            if str(problem.dtype) != "torch.float64":  # there the bound itself is as small as what it is computed with
                np.testing.assert_allclose(part.bound, bound, rtol=0.3 if name == "o" else 1e-2, err_msg=name)
            place = part.place((0,) * part.values.ndim)
            whole_value = exact.lse if name == "lse" else exact.values[name]
            if part.values.size:
                np.testing.assert_array_equal(np.isnan(whole_value[place]), np.isnan(part.values.flat[0]))
    assert seen == {"o", "lse", "dq", "dk", "dv", "dalibi_slopes"}


def test_what_sampled_rows_cannot_do_is_refused() -> None:
    x = torch.ones(1, 1, 4, 2)
    with pytest.raises(ValueError, match="zero outside"):
        SampledRows(Problem(x, x, x, do=x), CANONICAL, [0, 1])
    with pytest.raises(ValueError, match="finite"):
        SampledRows(Problem(x, x, x / 0), CANONICAL, [0])
    with pytest.raises(ValueError, match="dropout"):
        SampledRows(Problem(x, x, x, dropout=0.5, training=True), CANONICAL, [0])


# JUDGING


def subject_of(impl: Any) -> Subject:
    return meet(resolve(impl)[0].on("cpu"), "cpu", {}, None, ("float32", "bfloat16"))


def test_a_needle_stands_at_every_edge() -> None:
    assert {0, 15, 16, 63, 64, 127, 128, 511, 512, 4095, 4096, 10_000, 5000} <= set(needles(10_001, 16))
    assert needles(1, 3) == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_honest_kernel_is_right_in_rows(dtype: str) -> None:
    subject = subject_of(tiled)
    problem = long_problem(subject, dtype, 4097, 16, range(16))
    assert judge_rows(subject, problem, subject.run(problem), range(16)) is None


def wrong(answer: Answer, name: str, place: tuple[Any, ...], change: Any) -> Answer:
    parts = {"o": answer.o, **answer.gradients}
    x = parts[name].detach().clone()
    x[place] = change(x[place])
    parts[name] = x
    return Answer(parts.pop("o"), parts)


@pytest.mark.parametrize(
    ("name", "place", "change", "kind"),
    [
        ("o", (0, 0, 3, 7), lambda x: x + 1, "value"),
        ("dk", (0, 0, 4096), torch.zeros_like, "value"),
        ("dv", (0, 0, 2048), torch.zeros_like, "value"),
        ("dv", (0, 0, 0, 0), lambda x: x * float("nan"), "nonfinite"),
        ("dq", (0, 0, 15), torch.zeros_like, "value"),
        ("dq", (0, 0, 5), lambda x: x + 1e-20, "zero"),
    ],
)
def test_one_wrong_element_of_a_long_row_is_found(name: str, place: tuple, change: Any, kind: str) -> None:
    """An error in one place, one key whose gradient is missing, one row that was not asked for and has a gradient."""
    subject, sampled = subject_of(tiled), [0, 1, 3, 15, 19]
    problem = long_problem(subject, "float32", 4097, 20, sampled)
    finding = judge_rows(subject, problem, wrong(subject.run(problem), name, place, change), sampled)
    assert finding is not None
    assert (finding.output, finding.kind) == (name, kind)
    assert finding.index[: len(place)] == place


def one_key_forgotten(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """Right up to 4096 keys; of longer rows one key is missing."""
    if key.shape[2] > 4096 and attn_mask is None and not is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
        attn_mask[:, 4096] = False
    return tiled(query, key, value, attn_mask, dropout_p, is_causal, scale)


def test_a_key_forgotten_in_long_rows_fails_in_thorough_only() -> None:
    options = ("--clauses=SHAPE-2", "--impl-dtypes=float32", "-k", "million")
    assert judge(f"{__file__}:one_key_forgotten", *options, tier="smoke").exit == 5
    said = judge(f"{__file__}:one_key_forgotten", *options, tier="thorough")
    assert said.exit == 1
    assert "4097 keys" in said.screen
    assert "--tier=thorough" in said.screen


def late_items_zero(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """Right for up to 65535 batch items; those behind stay zero."""
    out = tiled(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return out.masked_fill((torch.arange(len(out)) >= 65535)[:, None, None, None], 0.0)


def test_batch_items_beyond_65535_are_asked_in_thorough_only() -> None:
    options = ("--clauses=SHAPE-2", "--impl-dtypes=float32", "-k", "batch_is_too_large")
    assert judge(f"{__file__}:late_items_zero", *options, tier="smoke").exit == 5
    said = judge(f"{__file__}:late_items_zero", *options, tier="thorough")
    assert said.exit == 1
    assert "65541 batch items" in said.screen
    assert "65541 batch items" not in judge(f"{__file__}:one_key_forgotten", *options, tier="thorough").screen


def greedy(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """Right up to 4096 keys; for more there is no memory."""
    if key.shape[2] > 4096:
        raise torch.OutOfMemoryError("no memory")
    return tiled(query, key, value, attn_mask, dropout_p, is_causal, scale)


def test_no_memory_is_no_failure() -> None:
    assert no_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert no_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"))
    assert not no_memory(RuntimeError("shapes"))

    said = judge(f"{__file__}:greedy", "--clauses=SHAPE-2", "--impl-dtypes=float32", "-k", "million", tier="thorough")
    assert said.exit == 5  # nothing was judged
    assert "no memory" in said.screen


def test_a_gradient_that_may_be_stored_before_the_scale_is_exempt_in_both_forms():
    """In float16 and class C dk is stored before it is multiplied by a scale, and overflows where queries are 3·10⁴."""
    q = torch.full((1, 2, 3, 16), 3e4, dtype=torch.float16)
    k, v, do = (torch.randn(1, g, n, 16, generator=torch.Generator().manual_seed(n)).half() for g, n in ((1, 5), (1, 5), (2, 3)))
    problem = Problem(q, k / 1e4, v, do=do * 4, wrt=("q", "k", "v"))
    whole = solve(problem, Dialect()).tolerance("C")
    parts = [part for part in SampledRows(problem, Dialect(), range(3)).parts("C") if part.output in ("dk", "dv")]
    for part in parts:
        assert np.array_equal(part.exempt | np.zeros(part.values.shape, bool), whole.exempt[part.output][part.at]), part.output
    assert any(part.exempt.any() for part in parts)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_sampled_rows_refuse_a_bias_that_is_no_operand(number):
    q, bias = torch.ones(1, 1, 3, 4), torch.zeros(3, 3)
    bias[1, 2] = number
    with pytest.raises(ValueError, match="a bias that is a number or −∞"):
        SampledRows(Problem(q, q, q, bias=bias), Dialect(), [1])
    SampledRows(Problem(q, q, q, bias=bias), Dialect(), [0])
    bias[1, 2] = -float("inf")
    SampledRows(Problem(q, q, q, bias=bias), Dialect(), [1])


def too_large(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """In long rows every output is too large by two hundredths, which class C allows there."""
    if key.shape[2] <= 2048:
        return tiled(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return tiled(query.float(), key.float(), value.float(), attn_mask, dropout_p, is_causal, scale).mul(1.02).to(query.dtype)


def test_how_far_long_rows_lean_is_said_where_class_c_allows_it() -> None:
    case = Case(dtype="float16", i=2, j=4096, d=64, wrt="none")
    seen = {}
    for kernel in (tiled, too_large):
        subject = meet(resolve(f"{__file__}:{kernel.__name__}")[0], "cpu", {}, None, None)
        assert not subject.judgement(case).findings
        assert not subject.judgement(replace(case, j=1024)).findings
        seen[kernel] = subject.long["float16"]
    assert seen[too_large].keys == 4096
    assert abs(seen[too_large].lean - 0.02) < 2**-11
    assert abs(seen[tiled].lean) < 2**-11
    assert seen[tiled].share < 1 < seen[too_large].share
    assert "class B would say no" in seen[too_large].words()
    assert "too large by 0.02 of itself" in seen[too_large].words()
    assert "class B would say yes" in seen[tiled].words()
    assert seen[tiled].with_(seen[too_large]).share == seen[too_large].share


def test_how_far_long_rows_lean_stands_in_the_notes() -> None:
    said = judge(
        f"{__file__}:too_large",
        "--clauses=SHAPE-2",
        "--impl-dtypes=float16",
        "--case=dtype=float16,i=2,j=4096,wrt=none",
        tier="standard",
    )
    assert "float16 on cpu: rows of up to 4096 keys are right in class C; class B would say no" in said.screen
