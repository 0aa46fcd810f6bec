"""SINK: the reference in its three forms, bounds that honest kernels keep and wrong ones leave, and who is asked what."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import sunk
import torch
from numpy.random import Generator, default_rng
from random_problems import CAPS, WINDOWS, draw, share

from attnspec.adapters import resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.sink import SINKS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import SampledRows, solve
from attnspec.reference.witnesses import autograd
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import CANONICAL, Dialect, Problem

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
TOP_LEFT = Dialect(causal_alignment="top_left")
RULES = ("zero", "uniform", "nan")
NUMBERS = (0.0, -inf, 1.3, -0.7, 5.0, 30.0, -30.0, 100.0, 800.0)
PER_REGIME = 2  # problems of each regime of values and dtype, put to all kernels


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Problem, torch.Tensor]:
    """A small random problem of any form with sinks, and the keep mask of its dropout."""
    rng = default_rng([52, seed])
    one = draw(rng, dtype, caps=CAPS, windows=WINDOWS)
    sinks = torch.from_numpy(rng.choice(NUMBERS, one.problem.h)).to(torch.promote_types(dtype, torch.float32))
    return one.problem.replace(sinks=sinks, wrt=(*one.problem.wrt, "sinks")), one.keep


# THE REFERENCE


@pytest.mark.parametrize("rule", RULES)
def test_three_forms_give_one_answer(rule: str) -> None:
    """By hand, by autograd row by row, and in ball arithmetic, within the bound of class A in float64."""
    pytest.importorskip("flint")
    for seed in range(40):
        (problem, keep), dialect = drawn(seed), Dialect(empty_row=rule, softcap_order=("before_bias", "after_bias")[seed % 2])
        exact = solve(problem, dialect, keep.numpy())
        tolerance, forms = exact.tolerance("A"), {"autograd": autograd.attend(problem, dialect, keep)}
        if seed < 15:
            balls = enclose(problem, dialect, keep.numpy())
            forms["balls"] = {name: torch.from_numpy(balls.nearest(name)[0]) for name in exact.values}
        for form, answer in forms.items():
            for name, value in exact.values.items():
                worst = share(answer[name].numpy(), value, tolerance.bound[name], exact.undefined[name])
                assert worst <= 1, f"{form}: {name} is at {worst:.3g} of the bound, seed {seed}"
            lse = answer["lse"].numpy() if "lse" in answer else exact.lse
            assert np.allclose(np.where(exact.undefined["o"].any(-1), 0, lse), np.where(exact.undefined["o"].any(-1), 0, exact.lse))


def test_by_hand() -> None:
    """Two keys with scores 1 and 0 and a sink of 2."""
    x = torch.ones(1, 1, 1, 1).double()
    k, v = torch.tensor([[[[1.0], [0.0]]]]).double(), torch.tensor([[[[3.0], [5.0]]]]).double()
    problem = Problem(x, k, v, scale=1.0, sinks=torch.tensor([2.0]).double(), do=x, wrt=("q", "k", "v", "sinks"))
    exact, total = solve(problem, CANONICAL), np.exp(1) + 1 + np.exp(2)
    o = (3 * np.exp(1) + 5) / total
    assert np.isclose(exact.o.item(), o, rtol=1e-14)
    assert np.isclose(exact.lse.item(), np.log(total), rtol=1e-14)
    assert exact.dsinks is not None
    assert np.isclose(exact.dsinks.item(), -np.exp(2) / total * o, rtol=1e-13)
    assert np.isclose(exact.forward.p.sum(), 1 - np.exp(2) / total, rtol=1e-13)


def test_the_published_formula_of_gpt_oss() -> None:
    """sdpa of gpt-oss, restated: QK times the scale, the mask, S as one more column, softmax, W without it, times V."""
    for seed in range(6):
        problem = build(Case(dtype="float64", heads="4/2", b=1, i=5, j=5, sinks="mixed", causal=True, scale=0.3, seed=seed))
        q, k, v = (x[0].permute(1, 0, 2).numpy() for x in (problem.q, problem.k, problem.v))  # (n heads d)
        n, groups = q.shape[0], k.shape[1]
        q = q.reshape(n, groups, -1, q.shape[-1])
        k, v = (np.repeat(x[:, :, None, :], q.shape[2], 2) for x in (k, v))
        s = np.broadcast_to(problem.sinks.numpy().reshape(groups, q.shape[2], 1, 1), (groups, q.shape[2], n, 1))
        qk = np.einsum("qhmd,khmd->hmqk", q, k) * 0.3
        qk = np.concatenate([qk + np.triu(np.full((n, n), -inf), 1)[None, None], s], -1)
        w = np.exp(qk - qk.max(-1, keepdims=True))
        w = (w / w.sum(-1, keepdims=True))[..., :-1]
        o = np.einsum("hmqk,khmd->qhmd", w, v).reshape(n, -1, v.shape[-1]).transpose(1, 0, 2)[None]
        assert np.allclose(solve(problem, CANONICAL).o, o, rtol=1e-12, atol=1e-14)


def test_after_the_fact_is_the_same() -> None:
    """o · sigmoid(lse − z) of the call without sinks, and its lse from that with them."""
    for seed in range(30):
        problem, _ = drawn(seed)
        problem = problem.replace(dropout=0.0, training=False, do=None, wrt=())
        with_it, without = solve(problem, CANONICAL), solve(problem.replace(sinks=None), CANONICAL)
        z = np.broadcast_to(problem.sinks.numpy()[:, None], with_it.lse.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            kept = np.where(z == -inf, 1.0, 1 / (1 + np.exp(z - without.lse)))
        assert np.allclose(with_it.o, without.o * kept[..., None], rtol=1e-11, atol=1e-300)
        assert np.array_equal(with_it.forward.lse_of_keys, without.lse)


def test_a_long_row_has_the_answer_of_all_rows() -> None:
    """Tile by tile, sampled rows against the whole problem, with sinks that matter and −∞."""
    for dtype, sinks in (("float64", "mixed"), ("float32", "normal"), ("bfloat16", "above")):
        problem = build(Case(dtype=dtype, heads="6/2", b=2, i=9, j=700, sinks=sinks, do="one_row", values="peaked"))
        mask = torch.ones(2, 700, dtype=torch.bool)
        mask[1] = False
        problem = problem.replace(mask=mask)
        rows = [n for n in range(problem.i) if (problem.do[:, :, n] != 0).any()]
        whole = solve(problem, CANONICAL)
        tolerance, seen = whole.tolerance("C"), set()
        for part in SampledRows(problem, CANONICAL, rows).parts("C"):
            seen.add(part.output)
            values = whole.lse if part.output == "lse" else whole.values[part.output]
            assert np.allclose(part.values, values[part.at], rtol=1e-9, atol=1e-14), part.output
            if dtype != "float64":  # there the bound is as small as what it is computed with
                near = {"o": 0.3}.get(part.output, 1e-2)
                np.testing.assert_allclose(part.bound, tolerance.bound[part.output][part.at], rtol=near, err_msg=part.output)
        assert seen == {"o", "lse", "dq", "dk", "dv", "dsinks"}


def test_what_are_no_sinks_is_refused() -> None:
    x = torch.zeros(1, 4, 2, 2)
    for sinks, words in (
        (torch.zeros(2), "one number for each query head, \\(4,\\); found \\(2,\\)"),
        (torch.zeros(1, 4), "one number for each query head"),
        (torch.zeros(4, dtype=torch.int32), "floats as wide as q"),
        (torch.zeros(4, dtype=torch.bfloat16), "floats as wide as q"),
    ):
        with pytest.raises(ValueError, match=words):
            Problem(x, x, x, sinks=sinks)


def test_nothing_is_promised_of_a_sink_that_is_no_number() -> None:
    """+∞ and NaN: the other heads keep their bounds."""
    for number in (inf, float("nan")):
        problem = build(Case(heads="2/2", i=3, j=4, sinks="normal"))
        problem.sinks[1] = number
        exact = solve(problem, CANONICAL)
        tolerance = exact.tolerance("A")
        assert not tolerance.exempt["o"][:, 0].any()
        assert np.isfinite(tolerance.bound["o"][:, 0]).all()
        assert tolerance.exempt["o"][:, 1].all()
        assert tolerance.exempt["dsinks"].tolist() == [False, True]


# BOUNDS


def random_case(rng: Generator, dtype: str, values: str) -> Case:
    """Any level of the factors that change numbers, at sizes that take milliseconds."""
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 20)),
        "dtype": dtype,
        "values": values,
        "j": int(rng.choice([0, 1, 2, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "sinks": SINKS.levels[1:][int(rng.integers(len(SINKS.levels) - 1))],
        "wrt": "all",
    }
    return fit(Case(**level, seed=int(rng.integers(1 << 16))), resolve(sunk.honest)[0])


def near(problem: Problem, rng: Generator) -> Problem:
    """Some problems with sinks that are near their largest scores, whatever these are."""
    if problem.sinks is None or rng.random() < 0.5:
        return problem
    f = solve(problem, TOP_LEFT).forward
    top = np.where(f.visible, f.s, -inf).max((0, 2, 3), initial=-1e4) + rng.choice([-2.0, 0.0, 3.0, 20.0, 80.0], problem.h)
    limit = 6e4 if problem.dtype == torch.float16 else 1e30
    return problem.replace(sinks=torch.from_numpy(np.clip(top, -limit, limit)).to(problem.sinks.dtype))


def outside(kernels: dict, dtype: str, seed: int, per_regime: int) -> tuple[int, list[str]]:
    """How many answers were judged, and what of them is outside of the class that they belong to."""
    rng, broken, asked = default_rng([seed, DTYPES.index(dtype)]), [], 0
    adapters = {name: resolve(one)[0] for name, (one, _) in kernels.items()}
    for values in LEVELS["values"]:
        for _ in range(per_regime):
            case = random_case(rng, dtype, values)
            assert case.sinks != "none"
            problem = near(build(case), rng)
            exact = solve(problem, TOP_LEFT)
            for name, (_, class_) in kernels.items():
                asked += 1
                for x in judge(adapters[name].run(problem), exact, class_ if dtype in HALF else "A").findings:
                    broken.append(
                        f"{name}, {x.output}: {x.ratio:.3g} of the bound at {x.index} ({x.kind} {x.message}) {case.token()}"
                    )
    return asked, broken


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_stay_inside_their_class(dtype: str) -> None:
    asked, broken = outside(sunk.HONEST, dtype, 62, PER_REGIME)
    assert asked >= 200
    assert not broken, "\n".join(broken)
