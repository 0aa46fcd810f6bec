"""SINK: the reference in its three forms, bounds that honest kernels keep and wrong ones leave, and who is asked what."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import sunk
import torch
from mutants.base import load
from numpy.random import Generator, default_rng
from random_problems import CAPS, WINDOWS, draw, share

from attnspec.adapters import Adapter, resolve
from attnspec.adapters.conventions.signature import PARAMETERS
from attnspec.conformance import check
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.power import multiple
from attnspec.conformance.mistakes.sink import SINK as MISTAKES
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.sink import SINKS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.problems.tensors import build
from attnspec.reference import SampledRows, default_class, solve
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


def test_each_part_of_the_bound_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the sink's score is off by, or as if backward knew of no stored output, honest kernels would be accused."""
    eager = {"column, eager": sunk.HONEST["column, eager"]}
    after = {"after the fact": sunk.HONEST["after the fact"], "after storage": sunk.HONEST["after storage"]}
    for name, nothing, kernels, dtype in (
        ("bounds.output.sink_error", lambda x, a: np.zeros(x.abs_s.shape), eager, "bfloat16"),
        ("exact.with_sink", lambda x: iter((x,)), after, "float32"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(f"attnspec.reference.{name}", nothing)
            try:
                accused = outside(kernels, dtype, 72, 4)[1]
            except KeyError:  # a bound of the sinks' gradient that is not there
                accused = [name]
            assert accused, name


def test_the_rows_of_a_sink_are_bounded_as_by_one_more_key() -> None:
    """A sink of zero and a key of zeros: one output, and one bound."""
    for dtype, class_ in (("float32", "A"), ("bfloat16", "B"), ("float64", "A")):
        problem = build(Case(dtype=dtype, heads="4/2", b=2, i=5, j=9, sinks="zero", values="peaked", wrt="none"))
        more = {
            name: torch.cat([x, torch.zeros_like(x[..., :1, :])], -2) for name in "kv" if (x := getattr(problem, name)) is not None
        }
        with_it, written_out = solve(problem, CANONICAL), solve(problem.replace(sinks=None, **more), CANONICAL)
        assert np.allclose(with_it.o, written_out.o, rtol=1e-13, atol=1e-15)
        bound, like = (exact.tolerance(class_).bound["o"] for exact in (with_it, written_out))
        assert np.allclose(bound, like, rtol=0.05)


MUTANTS = (
    ("SinksIgnored", "o"),
    ("SinksTwice", "o"),
    ("SinksScaled", "o"),
    ("SinksOfKeyHeads", "o"),
    ("SinksMissingInBackward", "dq"),
    ("SinksCentred", "dk"),
    ("SinkGradientZero", "dsinks"),
    ("SinkGradientPositive", "dsinks"),
    ("SinkGradientOfLastItem", "dsinks"),
    ("SinkGradientAveraged", "dsinks"),
)


@pytest.mark.parametrize(("name", "output"), MUTANTS)
def test_wrong_kernels_are_outside(name: str, output: str) -> None:
    """In float32 and in both half types, in the class that they must hold."""
    adapter = resolve(load()[name].make())[0]
    for dtype in ("float32", "bfloat16", "float16"):
        problem = build(Case(dtype=dtype, heads="6/2", b=2, i=20, j=7, sinks="mixed", scale=0.3, do="expanded"))
        findings = judge(adapter.run(problem), solve(problem, CANONICAL), default_class(dtype)).findings
        assert output in {x.output for x in findings}, dtype


# WHO IS ASKED WHAT


@pytest.mark.parametrize("name", PARAMETERS["sinks"])
def test_a_parameter_offers_sinks(name: str) -> None:
    scope: dict = {}
    exec(f"def attend(q, k, v, mask=None, {name}=None): return q", scope)
    scope["attend"].__module__ = __name__
    adapter = resolve(scope["attend"])[0]
    assert {"sinks", "sinks_grad"} <= set(adapter.offers)
    problem = build(Case(sinks="normal", wrt="none"))
    assert adapter.call(problem).arguments[name] is problem.sinks


def test_an_adapter_offers_them_by_its_parameter() -> None:
    class Mine(Adapter):
        def attend(self, q, k, v, *, sinks=None): ...

    assert {"sinks", "sinks_grad"} <= set(Mine().offers)


def test_who_offers_none_is_asked_nothing_of_them() -> None:
    adapter = resolve(torch.nn.functional.scaled_dot_product_attention)[0]
    cases = array("pairs", adapter, DTYPES)
    assert all(case.sinks == "none" for case in cases)
    assert len(cases) < len(array("pairs", resolve(sunk.honest)[0], DTYPES))


@pytest.mark.parametrize("level", SINKS.levels)
def test_a_level_is_read_back(level: str) -> None:
    """As text, out of its problem, and from the bytes of that."""
    case = Case(heads="6/2", i=3, j=4, sinks=level)
    assert Case.parse(case.token()) == case
    problem = build(case)
    assert as_case(problem).sinks == level
    again = Problem.from_bytes(problem.to_bytes())
    assert (again.sinks is None) == (level == "none")
    assert level == "none" or torch.equal(again.sinks, problem.sinks)


def test_no_two_heads_of_a_group_have_one_sink() -> None:
    for level in ("normal", "above", "below", "mixed"):
        sinks = build(Case(heads="6/2", sinks=level)).sinks
        assert len(set(sinks.tolist())) == 6 - (level == "mixed" and int(sinks.isinf().sum()) - 1)
        assert sinks.dtype == torch.float32


def test_half_types_get_them_in_float32() -> None:
    assert {build(Case(dtype=dtype, sinks="normal")).sinks.dtype for dtype in DTYPES} == {torch.float32, torch.float64}


# MISTAKES

EACH = (
    "heads=4/2,b=2,i=5,j=7,scale=0.3,sinks=mixed",
    "heads=4/2,b=2,i=20,j=40,sinks=normal,mask=padding,holes=first_block",
    "heads=2/2,b=2,i=1,j=9,sinks=normal",
    "heads=2/2,i=7,j=3,sinks=normal,causal=True",
    "heads=2/2,i=9,j=300,sinks=normal,bias=ij",
    "heads=2/2,b=2,i=5,j=9,sinks=normal,mask=ij,holes=empty_row",
    "heads=4/2,i=3,j=9,sinks=above",
)


def test_each_mistake_of_a_sink_can_show() -> None:
    """None of them is another name of the right answer, and each gives what has the form of one."""
    left = set(MISTAKES.mistakes)
    for token in EACH:
        problem = build(Case.parse(token))
        if "above" in token:
            problem = problem.replace(sinks=problem.sinks * 5)
        exact = solve(problem, CANONICAL)
        for name, one in MISTAKES.mistakes.items():
            wrong = one.wrong(problem, CANONICAL, exact)
            left -= {name} if wrong is not None and multiple(wrong, exact, "A") > 1 else set()
    assert not left


def test_a_known_mistake_is_named() -> None:
    """Of mutants whose fault has a name, on one problem each."""
    result = check(load()["SinksOfKeyHeads"].make(), clauses="SINK-2", dtypes="float32", search=False, isolate=False)
    assert "SINK-2" in result.broken
    assert "number of its key head" in str(result)
