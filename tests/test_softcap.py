"""SOFTCAP: the reference in its three forms, bounds that honest kernels keep and wrong ones leave, and who is asked what."""

from __future__ import annotations

import capped
import numpy as np
import pytest
import torch
from numpy.random import Generator, default_rng
from random_problems import CAPS, draw, share

from attnspec.adapters import resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import Exact, solve
from attnspec.reference.bounds import gradients as gradient_bounds
from attnspec.reference.bounds import output as output_bounds
from attnspec.reference.bounds import score_gradient
from attnspec.reference.bounds.accuracy import arithmetic
from attnspec.reference.stages import maps, softcap
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import Dialect, Problem

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
BEFORE, AFTER = (Dialect(causal_alignment="top_left", softcap_order=order) for order in ("before_bias", "after_bias"))
PER_REGIME = 3  # problems of each regime of values and dtype, put to all kernels


# THE REFERENCE


@pytest.mark.parametrize("dialect", [BEFORE, AFTER], ids=lambda d: d.softcap_order)
def test_balls_hold_both_forms(dialect: Dialect) -> None:
    """The exact answer in ball arithmetic lies within the bound of class A in float64; test_reference.py has the second form."""
    pytest.importorskip("flint")
    for seed in range(24):
        drawn = draw(default_rng([51, seed]), caps=CAPS[1:])
        keep = drawn.keep.numpy()
        exact, balls = solve(drawn.problem, dialect, keep), enclose(drawn.problem, dialect, keep)
        tolerance = exact.tolerance("A")
        for name, value in exact.values.items():
            worst = share(balls.nearest(name)[0], value, tolerance.bound[name], exact.undefined[name])
            assert worst <= 1, f"{name} is at {worst:.3g} of the bound: {drawn.choices}"


def test_by_hand() -> None:
    """Two keys: scores 6 and 0 under a cap of 2, a bias of 1 on the second."""
    q, k = torch.tensor([[[[3.0]]]]).double(), torch.tensor([[[[2.0], [0.0]]]]).double()
    v, bias = torch.tensor([[[[1.0], [0.0]]]]).double(), torch.tensor([[0.0, 1.0]]).double()
    problem = Problem(q, k, v, bias=bias, scale=1.0, softcap=2.0)
    for dialect, gap in ((BEFORE, 2 * np.tanh(3) - 1), (AFTER, 2 * np.tanh(3) - 2 * np.tanh(0.5))):
        assert np.isclose(solve(problem, dialect).o.item(), 1 / (1 + np.exp(-gap)), rtol=1e-14)


@pytest.mark.parametrize("value", [0.0, -3.0, float("inf"), float("nan")])
def test_what_is_no_cap_is_refused(value: float) -> None:
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="softcap is a positive finite number, or None for none"):
        Problem(x, x, x, softcap=value)


# BOUNDS


def test_the_curvature_is_the_largest() -> None:
    """4√3/(9c), where tanh² is a third; numerically, by second differences."""
    x = torch.zeros(1, 1, 1, 1)
    given = softcap.Given(Problem(x, x, x, softcap=1.7), BEFORE)
    z = np.linspace(-9, 9, 200_001)
    slope = softcap.Softcap().slope(z, given)
    steepest = np.abs(np.diff(slope) / np.diff(z)).max()
    assert np.isclose(softcap.Softcap().curvature(given), steepest, rtol=1e-6)
    assert np.isclose(slope.max(), softcap.Softcap().steepest(given))
    assert np.isclose(softcap.Softcap().curvature(given), 4 * 3**0.5 / (9 * 1.7))


def random_case(rng: Generator, dtype: str, values: str) -> Case:
    """Any level of the factors that change numbers, at sizes that take milliseconds."""
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 30)),
        "dtype": dtype,
        "values": values,
        "j": int(rng.choice([0, 1, 2, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "softcap": float(rng.choice([0.01, 0.7, 3.1, 15.0, 50.0, 3000.0])),
        "wrt": "all",
    }
    return fit(Case(**level, seed=int(rng.integers(1 << 16))), resolve(capped.honest)[0])


def outside(kernels: dict, dialect: Dialect, dtype: str, seed: int, per_regime: int) -> tuple[int, list[str]]:
    """How many answers were judged, and what of them is outside of the class that they belong to."""
    rng, broken, asked = default_rng([seed, DTYPES.index(dtype)]), [], 0
    adapters = {name: resolve(one)[0] for name, (one, _) in kernels.items()}
    for values in LEVELS["values"]:
        for _ in range(per_regime):
            case = random_case(rng, dtype, values)
            assert case.softcap is not None
            problem = build(case)
            exact = solve(problem, dialect)
            for name, (_, class_) in kernels.items():
                asked += 1
                for x in judge(adapters[name].run(problem), exact, class_ if dtype in HALF else "A").findings:
                    broken.append(
                        f"{name}, {x.output}: {x.ratio:.3g} of the bound at {x.index} ({x.kind} {x.message}) {case.token()}"
                    )
    return asked, broken


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dialect", [BEFORE, AFTER], ids=lambda d: d.softcap_order)
def test_honest_kernels_stay_inside_their_class(dtype: str, dialect: Dialect) -> None:
    asked, broken = outside(capped.HONEST if dialect is BEFORE else capped.AFTER, dialect, dtype, 61, PER_REGIME)
    assert asked >= 180
    assert not broken, "\n".join(broken)


def generic(dtype: str, cap: float, seed: int = 1) -> Problem:
    return build(Case(dtype=dtype, i=9, j=17, d=8, softcap=cap, bias="bhij", values="peaked", seed=seed))


def findings(kernel, dtype: str, cap: float, class_: str, dialect: Dialect = BEFORE) -> set[str]:
    problem = generic(dtype, cap)
    return {x.output for x in judge(resolve(kernel)[0].run(problem), solve(problem, dialect), class_).findings}


def test_the_tanh_of_one_instruction_is_for_half_types() -> None:
    """Class B and C have it in half types, and A has it nowhere."""
    kernel = capped.kernel(capped.Tiled(), tanh=capped.one_instruction)
    assert findings(kernel, "float32", 50.0, "A") >= {"o", "dv"}
    assert findings(kernel, "bfloat16", 50.0, "B") == set()
    wide = capped.kernel(capped.unfused_wide, tanh=capped.one_instruction)
    assert "o" in findings(wide, "float16", 50.0, "A")


def test_the_other_order_is_outside() -> None:
    for dtype, class_ in (("float32", "A"), ("bfloat16", "C")):
        assert findings(capped.AFTER["tiled"][0], dtype, 3.1, class_) >= {"o", "dq", "dk", "dv", "dbias"}
        assert findings(capped.HONEST["tiled"][0], dtype, 3.1, class_, AFTER) >= {"o", "dq", "dk", "dv", "dbias"}


def test_each_part_of_the_bound_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the map rounds, its curvature or the rounding of its slope, honest kernels would be accused."""
    kernels = {"tiled, one instruction": capped.HONEST["tiled, one instruction"], "eager": capped.HONEST["eager"]}
    quotients = {"quotient of exponentials": capped.HONEST["quotient of exponentials"]}
    for name, nothing, dtype, some in (
        ("rounding", lambda self, a: (), "bfloat16", kernels),
        ("constant", lambda self, given, a: None, "float32", quotients),
        ("slope_rounding", lambda self, a: 0.0, "bfloat16", kernels),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(softcap.Softcap, name, nothing)
            assert outside(some, BEFORE, dtype, 71, 6)[1], name


def test_the_error_of_delta_meets_the_slopes() -> None:
    """Keys whose Σ P k is nothing, and whose Σ P k · slope is not: what D is off by shows in dq."""
    q, v, do = torch.tensor([[[[1.0]]]]), torch.tensor([[[[1.0], [-2.0], [1.0]]]]), torch.ones(1, 1, 1, 1)
    k = torch.tensor([[[[4.0], [-0.5], [0.1]]]])
    problem = Problem(q, k, v, scale=1.0, softcap=1.0, do=do, wrt=("q", "k", "v"))
    p, slope = (x[0, 0, 0] for x in _weights(solve(problem, BEFORE)))
    last = -(p[0] * k[0, 0, 0, 0] + p[2] * k[0, 0, 2, 0]) / p[1]
    for _ in range(50):  # a key for which the mean is nothing
        problem = problem.replace(k=torch.tensor([[[[4.0], [float(last)], [0.1]]]]))
        p, slope = (x[0, 0, 0] for x in _weights(solve(problem, BEFORE)))
        last = -(p[0] * 4.0 + p[2] * 0.1) / p[1]
    exact = solve(problem, BEFORE)
    key = problem.k[0, 0, :, 0].numpy().astype(float)
    assert abs((p * key).sum()) < 0.01 * abs((p * slope * key).sum())
    a, tiles = arithmetic("B", "bfloat16"), lambda _: (exact._tile,)
    w = output_bounds.forward_bound(tiles, problem.j, a)
    delta = score_gradient.row_sums(tiles, w, a).delta.item()
    bound = gradient_bounds.backward_bound(tiles, w, exact.values["dq"], a, 1, 1)
    list(bound.of_keys)
    assert bound.dq.item() > delta * abs((p * slope * key).sum())


def _weights(exact: Exact) -> tuple[np.ndarray, np.ndarray]:
    f, given = exact.forward, exact._tile.given
    return f.p, maps.active(given)[0].slope(f.z, given)
