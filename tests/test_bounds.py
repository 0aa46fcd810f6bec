"""The bounds hold for every honest kernel, are ordered as the classes are, and tell right from wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from chains import FILLED, torchs_math_in_half, with_sdpa_signature
from honest import eager, tiled
from numpy.random import Generator, default_rng
from random_problems import draw
from threads import one_thread  # noqa: F401  a fixture
from torch import Tensor
from variants import HONEST, tf32

from attnspec.adapters import Answer, resolve
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import default_class, solve, to_float64
from attnspec.reference.bounds.output import NEGLIGIBLE
from attnspec.reference.stages.scores import default_scale
from attnspec.reference.witnesses.autograd import attend
from attnspec.spec import CANONICAL, CHOICES, Dialect, Problem
from attnspec.spec.words import CLASSES

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
TORCH = Dialect(causal_alignment="top_left")
LADDERS = {dtype: ["R", "A", "B", "C", "D"] for dtype in DTYPES} | {
    "tf32": ["A", "T"],
    "float16*": ["B", "B*"],
    "bfloat16*": ["C", "C*"],
}
PER_REGIME = 15  # problems per dtype and value regime of the suite: 600 in all


# ORDER


@pytest.mark.parametrize("name", LADDERS)
def test_a_milder_class_allows_everything_that_a_stricter_one_does(name: str) -> None:
    """A ≤ B ≤ C ≤ D, and A ≤ T in float32, for every element of every output, but for the hull that small Δ do without."""
    rng = default_rng([4, len(name)])
    dtype = "float32" if name == "tf32" else name.removesuffix("*")
    for n in range(120):
        x = draw(rng, getattr(torch, dtype), longest=20, widest=9, least=1)
        dialect = Dialect(*(choice.values[n % len(choice.values)] for choice in CHOICES.values()))
        exact = solve(x.problem, dialect, x.keep.numpy())
        bounds = [exact.tolerance(class_).bound for class_ in LADDERS[name]]
        for output in exact.values:
            for strict, mild, class_ in zip(bounds, bounds[1:], LADDERS[name][1:], strict=False):
                ok = np.isnan(strict[output]) | (strict[output] <= mild[output] * np.exp(2 * NEGLIGIBLE))
                assert ok.all(), f"{output} of class {class_} is stricter than the class before it: {x.choices}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_is_zero_exactly_where_the_answer_must_be(dtype: str) -> None:
    """In every class: where nothing contributes, and nowhere else."""
    rng = default_rng([5, len(dtype)])
    zeros = 0
    for n in range(120):
        x = draw(rng, getattr(torch, dtype), longest=8)
        exact = solve(x.problem, Dialect(empty_row=("zero", "uniform")[n % 2]), x.keep.numpy())
        second = attend(x.problem, exact.dialect, x.keep)
        for class_ in CLASSES:
            for output, bound in exact.tolerance(class_).bound.items():
                if output == "lse":
                    np.testing.assert_array_equal(bound == 0, exact.empty)
                    continue
                np.testing.assert_array_equal(bound == 0, exact.zero[output])
                assert not np.isnan(bound).any()
                assert not exact.values[output][bound == 0].any()
                assert not second[output].numpy()[bound == 0].any()
                zeros += int((bound == 0).sum())
    assert zeros > 10_000


# HONEST KERNELS


@cache
def adapt(kernel: Callable[..., Tensor]) -> FunctionAdapter:
    adapter = resolve(kernel)[0]
    assert isinstance(adapter, FunctionAdapter)
    return adapter


def random_case(rng: Generator, dtype: str, values: str) -> Case:
    """Any level of the factors that change numbers, at sizes that take milliseconds."""
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 36)),
        "dtype": dtype,
        "values": values,
        "j": int(rng.choice([0, 1, 2, 16, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "wrt": "all",
    }
    return fit(Case(**level, seed=int(rng.integers(1 << 16))), adapt(tiled))


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_stay_inside_their_class(dtype: str, record_property) -> None:
    """Every style and every legal variant, forward and gradients, in every regime of values."""
    rng = default_rng([6, DTYPES.index(dtype)])
    adapters = {name: adapt(kernel) for name, (kernel, _) in HONEST.items()}
    worst: dict[str, dict[str, float]] = {}
    broken = []
    for values in LEVELS["values"]:
        for _ in range(PER_REGIME):
            case = random_case(rng, dtype, values)
            problem = build(case)
            exact = solve(problem, TORCH)
            for name, (_, class_) in HONEST.items():
                class_ = class_ if dtype in HALF else "A"
                judgement = judge(adapters[name].run(problem), exact, class_)
                broken += [
                    f"{name} in class {class_}, {x.output}: {x.ratio:.3g} of the bound at {x.index} ({x.kind} "
                    f"{x.message}) {case.token()}"
                    for x in judgement.findings
                ]
                shares = worst.setdefault(f"{name} {class_}", {})
                for output, ratio in judgement.worst.items():
                    shares[output] = max(shares.get(output, 0.0), ratio)
    record_property("worst share of the bound", worst)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_dropout_stays_inside(dtype: str) -> None:
    """With the keep mask that the kernel drew: drawn again from the same seed."""
    rng = default_rng([11, DTYPES.index(dtype)])
    for n in range(20):
        case = random_case(rng, dtype, LEVELS["values"][n % 10])
        problem = build(case).replace(dropout=(0.1, 0.5, 0.9, 1.0)[n % 4], training=True)
        torch.manual_seed(n)
        keep = torch.rand(problem.b, problem.h, problem.i, problem.j) >= problem.dropout
        exact = solve(problem, TORCH, keep.numpy())
        for name, (kernel, class_) in HONEST.items():
            torch.manual_seed(n)
            judgement = judge(adapt(kernel).run(problem), exact, class_ if dtype in HALF else "A")
            assert not judgement.findings, f"{name}, {case.token()}: {judgement.findings}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_who_fills_with_the_lowest_number_stays_inside(dtype: str) -> None:
    """Where a row without a key is the mean of all values; also beside biases of −∞ and of the lowest number."""
    rng = default_rng([13, DTYPES.index(dtype)])
    uniform, empty, low = Dialect(causal_alignment="top_left", empty_row="uniform"), 0, 0
    for n in range(40):
        case = random_case(rng, dtype, LEVELS["values"][n % 10])
        if n % 2:  # all forms of a bias, and of what hides
            case = fit(replace(case, mask="none", bias="bhij", biases=("lowest", "inf")[n // 2 % 2]), adapt(tiled))
        problem = build(case)
        exact = solve(problem, uniform)
        empty += int(exact.empty.any())
        low += int(exact.undefined["o"].any())
        for name, (kernel, class_) in FILLED.items():
            judgement = judge(adapt(kernel).run(problem), exact, class_ if dtype in HALF else "A")
            assert not judgement.findings, f"{name}, {case.token()}: {judgement.findings}"
    assert empty
    assert low


@pytest.mark.parametrize("dtype", HALF)
def test_heads_may_be_rounded_before_their_sum(dtype: str) -> None:
    """dk and dv of each query head are stored before the sum over the group: many heads, and not vacuously."""
    kernel, class_ = HONEST["heads stored"]
    rng = default_rng([7, len(dtype)])
    worst = 0.0
    for values in LEVELS["values"]:
        case = random_case(rng, dtype, values)
        problem = build(fit(Case(**vars(case) | {"heads": "6/2"}), adapt(tiled)))
        judgement = judge(adapt(kernel).run(problem), solve(problem, TORCH), class_)
        assert not judgement.findings, case.token()
        worst = max(worst, judgement.worst["dk"], judgement.worst["dv"])
    assert worst > 0.2


def lopsided(rng: Generator, dtype: str) -> Problem | None:
    """One operand of the scores is tiny, subnormal too, another one large, as the scale may be, and scores are ordinary."""
    low, high = {"float16": (-24, 15), "bfloat16": (-132, 126), "float32": (-148, 126)}[dtype]
    i, j, d, e = (int(rng.choice(sizes)) for sizes in ((1, 3), (2, 5, 17), (1, 3, 16, 40), (1, 3)))
    score, of_q = rng.uniform(-4, 5), rng.uniform(low, high)
    of_k = rng.uniform(low, high) if rng.random() < 2 / 3 else score - of_q
    scale = 2.0 ** np.clip(score - of_q - of_k, -1000, 1000) * d**-0.5
    if not low <= of_k <= high or not 2.0**-120 < scale < 2.0**120:
        return None

    def numbers(n: int, width: int, power: float) -> Tensor:
        signs = rng.choice([-1.5, -1.0, -0.5, 0.5, 1.0, 1.5], (1, 1, n, width))
        shape = signs if rng.random() < 0.5 else rng.standard_normal(signs.shape)
        return torch.from_numpy(shape * 2.0**power).to(getattr(torch, dtype))

    q, k, v, do = numbers(i, d, of_q), numbers(j, d, of_k), numbers(j, e, 0), numbers(i, e, float(rng.choice([0, -8, 8])))
    if not (q.isfinite().all() and k.isfinite().all()):
        return None
    return Problem(q, k, v, scale=float(scale * rng.choice([1, 1, 1, -1])), do=do, wrt=("q", "k", "v"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_underflows_meets_the_other_operand(dtype: str) -> None:
    """A tiny operand that is scaled, stored and lost, beside a large one. (11 million times the bound without that term.)"""
    rng = default_rng([12, DTYPES.index(dtype)])
    kernels = HONEST | ({"torch's math in half": (with_sdpa_signature(torchs_math_in_half), "C")} if dtype in HALF else {})
    problems = [problem for _ in range(150) if (problem := lopsided(rng, dtype)) is not None][:30]
    assert len(problems) == 30
    broken, judged = [], 0
    for problem in problems:
        exact = solve(problem, TORCH)
        for name, (kernel, class_) in kernels.items():
            judgement = judge(adapt(kernel).run(problem), exact, class_ if dtype in HALF else "A")
            broken += [
                f"{name}, {x.output}: {x.ratio:.3g}, |q| {problem.q.abs().max():.2g}, |k| {problem.k.abs().max():.2g}, "
                f"scale {problem.scale:.2g}, d {problem.d}"
                for x in judgement.findings
            ]
        judged += not exact.tolerance("C").exempt["dq"].any()
    assert not broken, "\n".join(broken)
    assert judged > 8


@pytest.mark.parametrize("dtype", HALF)
def test_a_scale_of_zero_leaves_the_gradient_of_a_bias(dtype: str) -> None:
    """It was exempt in half types: what scale · dS loses, over the scale, is nothing that a bias sees."""
    problem = build(Case(dtype=dtype, i=3, j=5, bias="bhij", scale=0.0))
    tolerance = solve(problem, TORCH).tolerance("C")
    assert not tolerance.exempt["dbias"].any()
    assert (tolerance.bound["dbias"] < 0.1).all()


# WRONG ANSWERS


def generic(rng: Generator, dtype: str) -> Problem:
    """Standard normal numbers without mask or bias: ten to forty keys, causal."""
    i, d = int(rng.integers(10, 41)), int(rng.choice([8, 16, 32]))
    q, k, v, do = (torch.from_numpy(rng.standard_normal((1, 2, i, d))).to(getattr(torch, dtype)) for _ in range(4))
    return Problem(q, k, v, causal=True, do=do, wrt=("q", "k", "v"))


def answer(values: dict[str, Any], problem: Problem) -> Answer:
    """Exact numbers, rounded once to the dtype of a problem."""
    o, *rest = (torch.as_tensor(values[name]).to(problem.dtype) for name in ("o", "dq", "dk", "dv"))
    return Answer(o, dict(zip(("dq", "dk", "dv"), rest, strict=True)))


def of(change: Callable[[Problem], Problem]) -> Callable[[Problem], Answer]:
    """The right answer to another problem."""
    return lambda problem: answer(solve(change(problem), CANONICAL).values, problem)


def visible(i: int, last: int) -> Tensor:
    return torch.ones(1, 1, i, i, dtype=torch.bool).tril(last)


def last_key_dropped(problem: Problem) -> Problem:
    mask = torch.ones(1, problem.j, dtype=torch.bool)
    mask[:, -1] = False
    return problem.replace(mask=mask)


def delta_dropped(problem: Problem) -> Answer:
    exact = solve(problem, CANONICAL)
    p, dp = exact.forward.p, to_float64(problem.do) @ to_float64(problem.v).swapaxes(-1, -2)
    ds = problem.d**-0.5 * p * dp
    wrong = {"dq": ds @ to_float64(problem.k), "dk": ds.swapaxes(-1, -2) @ to_float64(problem.q)}
    return answer(exact.values | wrong, problem)


def bfloat16_probabilities(problem: Problem) -> Answer:
    exact = solve(problem, CANONICAL)
    p = to_float64(torch.from_numpy(exact.forward.p).to(torch.bfloat16))
    wrong = {"o": p @ to_float64(problem.v), "dv": p.swapaxes(-1, -2) @ to_float64(problem.do)}
    return answer(exact.values | wrong, problem)


WRONG: dict[str, Callable[[Problem], Answer]] = {
    "mean of the values": of(lambda p: p.replace(q=torch.zeros_like(p.q))),
    "last key dropped": of(last_key_dropped),
    "no scale": of(lambda p: p.replace(scale=1.0)),
    "causal sees one key more": of(lambda p: p.replace(causal=False, mask=visible(p.i, 1))),
    "causal sees one key less": of(lambda p: p.replace(causal=False, mask=visible(p.i, -1))),
    "not causal": of(lambda p: p.replace(causal=False)),
    "gradients without D": delta_dropped,
}
# Smaller than the roundings that class C allows.
ONLY_WIDE: dict[str, Callable[[Problem], Answer]] = {
    "scale off by 0.1 %": of(lambda p: p.replace(scale=1.001 * default_scale(p.d))),
    "probabilities in bfloat16": bfloat16_probabilities,
}
ONLY_FLOAT32: dict[str, Callable[[Problem], Answer]] = {
    "operands in tf32": of(lambda p: p.replace(q=tf32(p.q), k=tf32(p.k), v=tf32(p.v))),
}
SHARE = 1.0  # of the generic problems, on which each of them must leave the bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_answers_leave_the_bound(dtype: str) -> None:
    """On generic problems, in the class that an implementation without a claim is held to."""
    rng = default_rng([8, DTYPES.index(dtype)])
    problems = [generic(rng, dtype) for _ in range(25)]
    exacts = [solve(problem, CANONICAL) for problem in problems]
    wrong = WRONG | ({} if dtype in HALF else ONLY_WIDE) | (ONLY_FLOAT32 if dtype == "float32" else {})
    assert not any(judge(answer(x.values, x.problem), x, "R").findings for x in exacts)
    shares = {
        name: np.mean(
            [bool(judge(answer_of(p), exact, default_class(dtype)).findings) for p, exact in zip(problems, exacts, strict=True)]
        )
        for name, answer_of in wrong.items()
    }
    assert {name: share for name, share in shares.items() if share < SHARE} == {}


def test_tf32_is_right_in_class_t() -> None:
    """Operands rounded to tf32 stay inside T, by a margin that shows that T is not vacuous."""
    rng = default_rng(9)
    worst = 0.0
    for _ in range(25):
        problem = generic(rng, "float32")
        judgement = judge(ONLY_FLOAT32["operands in tf32"](problem), solve(problem, CANONICAL), "T")
        assert not judgement.findings
        worst = max(worst, judgement.worst["o"])
    assert worst > 0.02


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_elements_are_exempt(dtype: str) -> None:
    """What no class can promise is skipped: nothing of generic problems, under 1 % of the suite's normal ones."""
    rng = default_rng([10, DTYPES.index(dtype)])
    for problem in (generic(rng, dtype) for _ in range(5)):
        assert not any(x.any() for x in solve(problem, CANONICAL).tolerance("D").exempt.values())
    exempt = total = 0
    for _ in range(30):
        case = fit(random_case(rng, dtype, "normal"), adapt(eager))
        tolerance = solve(build(case), TORCH).tolerance(default_class(dtype))
        exempt += sum(int(x.sum()) for x in tolerance.exempt.values())
        total += sum(x.size for x in tolerance.exempt.values())
    assert exempt <= total / 100, f"{exempt} of {total}"
