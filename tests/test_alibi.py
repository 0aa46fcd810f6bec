"""ALIBI: the reference in its forms, bounds that honest kernels keep and wrong ones leave, and who is asked what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sloped
import torch
from mutants.base import load
from numpy.random import Generator, default_rng
from random_problems import SLOPES, draw, share

from attnspec.adapters import Adapter, resolve
from attnspec.conformance import check
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.alibi import ALIBI as MISTAKES
from attnspec.conformance.mistakes.power import multiple
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.alibi import ALIBI, published
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.meeting import meet
from attnspec.reference import SampledRows, solve
from attnspec.reference.bounds import accuracy
from attnspec.reference.stages.alibi import Alibi
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import CHOICES, Dialect, Problem

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
FORMS = CHOICES["alibi_form"].values
TOP_LEFT = Dialect(causal_alignment="top_left")
PER_REGIME = 2  # problems of each regime of values and dtype, put to all kernels


def f64(*numbers: object) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# THE REFERENCE


@pytest.mark.parametrize("form", FORMS)
def test_balls_hold_every_form(form: str) -> None:
    """The exact answer in ball arithmetic lies within the bound of class A in float64; test_reference.py has the second form."""
    pytest.importorskip("flint")
    for seed in range(12):
        dialect = Dialect(("bottom_right", "top_left")[seed % 2], alibi_form=form)
        drawn = draw(default_rng([53, seed]), slopes=SLOPES[2:])
        keep = drawn.keep.numpy()
        exact, balls = solve(drawn.problem, dialect, keep), enclose(drawn.problem, dialect, keep)
        tolerance = exact.tolerance("A")
        assert "dalibi_slopes" in exact.values
        for name, value in exact.values.items():
            worst = share(balls.nearest(name)[0], value, tolerance.bound[name], exact.undefined[name])
            assert worst <= 1, f"{name} is at {worst:.3g} of the bound: {drawn.choices}"


def test_by_hand() -> None:
    """One query at position 1 of three keys whose products are all zero, slope ln 2: weights 1/4, 1/2, 1/4 by distance."""
    q, k, v = f64([[[0.0]] * 3]), f64([[[1.0]] * 3]), f64([[[1.0], [10.0], [100.0]]])
    problem = Problem(q, k, v, alibi_slopes=f64(np.log(2)), do=f64([[[0.0], [1.0], [0.0]]]))
    distance, signed, column = (solve(problem, Dialect(alibi_form=form)) for form in FORMS)
    assert np.isclose(distance.o[0, 0, 1, 0], 1 / 4 + 10 / 2 + 100 / 4, rtol=1e-14)
    for exact in (signed, column):
        assert np.isclose(exact.o[0, 0, 1, 0], 1 / 7 + 20 / 7 + 400 / 7, rtol=1e-14)
    assert np.isclose(distance.lse[0, 0, 1], np.log(2), rtol=1e-14)
    assert np.isclose(signed.lse[0, 0, 1], np.log(3.5), rtol=1e-14)
    assert np.isclose(column.lse[0, 0, 1], np.log(7), rtol=1e-14)
    # Weights p and values v: Σ p w (v − o), with w = −1, 0, −1.
    mean = distance.o[0, 0, 1, 0]
    assert np.isclose(distance.values["dalibi_slopes"].item(), -(1 - mean) / 4 - (100 - mean) / 4, rtol=1e-13)


def test_under_causal_all_forms_are_one() -> None:
    """For the output and every gradient; their lse are not."""
    for i, j in ((5, 5), (3, 7), (6, 4)):
        problem = build(Case(dtype="float64", b=2, i=i, j=j, alibi_slopes="bh", causal=True))
        first, *others = (solve(problem, Dialect(alibi_form=form)) for form in FORMS)
        for other in others:
            for name, value in first.values.items():
                np.testing.assert_allclose(other.values[name], value, rtol=1e-11, atol=1e-13)
        assert not np.allclose(others[1].lse[~first.empty], first.lse[~first.empty])


@pytest.mark.parametrize(
    ("slopes", "message"),
    [
        (torch.ones(3), "neither"),
        (torch.ones(1, 2), "neither"),
        (torch.ones(2, 1), "neither"),
        (torch.ones(2).half(), "as wide as q, and as float32"),
        (torch.ones(2, dtype=torch.int32), "as wide as q, and as float32"),
        (torch.tensor([1.0, float("inf")]), "finite"),
        (torch.tensor([1.0, float("nan")]), "finite"),
    ],
)
def test_what_are_no_slopes_is_refused(slopes: torch.Tensor, message: str) -> None:
    x = torch.zeros(3, 2, 4, 4)
    with pytest.raises(ValueError, match=message):
        Problem(x, x, x, alibi_slopes=slopes)


def test_slopes_of_float32_are_too_narrow_for_float64() -> None:
    x = torch.zeros(3, 2, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="as wide as q"):
        Problem(x, x, x, alibi_slopes=torch.ones(2))


def test_slopes_stay_as_bytes_and_on_the_way_to_another_process() -> None:
    from attnspec.adapters.remote.protocol import options_of, problem_of, tensors_of

    problem = build(Case(b=2, i=3, j=4, alibi_slopes="bh"))
    again = Problem.from_bytes(problem.to_bytes())
    sent = problem_of({"options": options_of(problem)}, tensors_of(problem))
    for other in (again, sent):
        assert other.alibi_slopes is not None
        assert torch.equal(other.alibi_slopes, problem.alibi_slopes)
        assert other.wrt == problem.wrt


def test_the_published_slopes() -> None:
    """Press et al.: a geometric series; of twelve heads those of eight, then every other one of sixteen."""
    eight = [2.0**-n for n in range(1, 9)]
    assert published(8).tolist() == eight
    assert published(1).tolist() == [2.0**-8]
    assert published(2).tolist() == [2.0**-4, 2.0**-8]
    np.testing.assert_allclose(published(12), [*eight, 2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5], rtol=1e-15)
    np.testing.assert_allclose(published(3), [2.0**-4, 2.0**-8, 2.0**-2], rtol=1e-15)
    np.testing.assert_allclose(published(6), [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3], rtol=1e-15)


# TABLES


def test_a_table_of_distances_gets_the_gradient_of_its_bias() -> None:
    """Gathered by torch in front of the kernel: T5's buckets (h r), Swin's two dimensions, and the slopes themselves."""
    i, j, h = 6, 6, 3
    ahead = torch.arange(j) - torch.arange(i)[:, None]
    buckets = torch.clamp((1 + ahead.abs()).double().log2().floor().long() * 2 + (ahead > 0), max=5)
    row, column = torch.arange(6) // 3, torch.arange(6) % 3  # a window of 2 by 3
    swin = (row[:, None] - row + 1) * 5 + column[:, None] - column + 2
    case = Case(dtype="float64", heads=f"{h}/{h}", b=2, i=i, j=j)
    for index, size in ((buckets, 6), (swin, 15), (ahead + i - 1, i + j - 1)):
        table = torch.linspace(-1, 1, h * size, dtype=torch.float64).reshape(h, size).requires_grad_()
        plain = build(case)
        q, k, v = (x.clone() for x in (plain.q, plain.k, plain.v))
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=table[:, index][None])
        (gradient,) = torch.autograd.grad(o, table, plain.do)
        for shape in ((1, h, i, j), (2, h, i, j), (h, i, j)):
            bias = table.detach()[:, index].expand(shape).contiguous()
            exact = solve(plain.replace(bias=bias, wrt=("bias",)), TOP_LEFT)
            np.testing.assert_allclose(exact.o, o.detach().numpy(), rtol=1e-12, atol=1e-14)
            dbias = torch.from_numpy(exact.values["dbias"]).reshape(-1, h, i * j).sum(0)
            scattered = torch.zeros(h, size, dtype=torch.float64).index_add(1, index.reshape(-1), dbias)
            np.testing.assert_allclose(scattered.numpy(), gradient.numpy(), rtol=1e-11, atol=1e-13)
    # A table of −a·distance: the gradient of the slope is that of the table times −distance.
    slopes = f64(*[0.5, 0.25, 0.125])
    far = -(torch.arange(i + j - 1) - (i - 1)).abs().double()
    exact = solve(plain.replace(alibi_slopes=slopes), TOP_LEFT)
    as_bias = solve(plain.replace(bias=(slopes[:, None] * far)[:, ahead + i - 1]), TOP_LEFT)
    np.testing.assert_allclose(exact.o, as_bias.o, rtol=1e-13, atol=1e-15)
    of_table = torch.zeros(h, i + j - 1, dtype=torch.float64).index_add(
        1, (ahead + i - 1).reshape(-1), torch.from_numpy(as_bias.values["dbias"]).reshape(h, -1)
    )
    np.testing.assert_allclose(exact.values["dalibi_slopes"], (of_table * far).sum(1).numpy(), rtol=1e-11, atol=1e-13)


# BOUNDS


def random_case(rng: Generator, dtype: str, values: str) -> Case:
    """Any level of the factors that change numbers, at sizes that take milliseconds, with slopes."""
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 40)),
        "dtype": dtype,
        "values": values,
        "j": int(rng.choice([0, 1, 2, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "alibi_slopes": str(rng.choice(ALIBI.levels[1:])),
        "wrt": "all",
    }
    return fit(Case(**level, seed=int(rng.integers(1 << 16))), resolve(sloped.honest)[0])


def outside(kernels: dict[str, Any], dialect: Dialect, dtype: str, seed: int, per_regime: int) -> tuple[int, list[str]]:
    """How many answers were judged, and what of them is outside of the class that they belong to."""
    rng, broken, asked = default_rng([seed, DTYPES.index(dtype)]), [], 0
    adapters = {name: resolve(one)[0] for name, (one, _) in kernels.items()}
    for values in LEVELS["values"]:
        for _ in range(per_regime):
            case = random_case(rng, dtype, values)
            assert case.alibi_slopes != "none"
            problem = build(case)
            exact = solve(problem, dialect)
            for name, (_, class_) in kernels.items():
                asked += 1
                for x in judge(adapters[name].run(problem), exact, class_ if dtype in HALF else "A").findings:
                    broken.append(f"{name}, {x.output}: {x.ratio:.3g} of the bound ({x.kind} {x.message}) {case.token()}")
    return asked, broken


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_honest_kernels_stay_inside_their_class(dtype: str, form: str) -> None:
    kernels = {"distance": sloped.HONEST, "signed": sloped.SIGNED, "column": sloped.COLUMN}[form]
    dialect = Dialect(causal_alignment="top_left", alibi_form=form)
    asked, broken = outside(kernels, dialect, dtype, 63, PER_REGIME)
    assert asked >= 130
    assert not broken, "\n".join(broken)


def long_row(keys: int, slope: float, window: int | None = None) -> tuple[Problem, np.ndarray]:
    """The last of many causal queries, alone, in float32, with a window maybe; and what a kernel answers that adds a·j."""
    rng = torch.Generator().manual_seed(keys)
    q, k, v = (torch.randn(1, 1, n, 16, generator=rng) for n in (1, keys, keys))
    slopes = torch.tensor([slope])
    s = q @ k.mT / 4 + slopes[:, None, None] * torch.arange(keys, dtype=torch.float32)
    if window is not None:
        s[..., : keys - 1 - window] = -torch.inf
    sides = None if window is None else (window, None)
    return Problem(q, k, v, causal=True, window=sides, alibi_slopes=slopes), (torch.softmax(s, -1) @ v).double().numpy()


def test_the_column_of_a_long_row_is_honest() -> None:
    """In float32 a·j is off by u·a·j for the nearest keys: what flash-attention loses there is in the bound."""
    for keys in (1 << 12, 1 << 16, 1 << 20):
        for window in (None, 4):
            problem, o = long_row(keys, 0.5, window)
            (part,) = (x for x in SampledRows(problem, Dialect(), [0]).parts("A") if x.output == "o")
            assert (np.abs(o - part.values) <= part.bound).all()


def test_without_the_column_honest_kernels_would_be_accused() -> None:
    """The last five of 65536 keys: the term is needed, and named; without causal nobody has it who says that he adds distances."""
    problem, o = long_row(1 << 16, 0.5, 4)
    exact = solve(problem, Dialect())
    wide, column = exact.tolerance("A").bound["o"], "ALiBi by the column of the key"
    assert column in list(exact.terms("A", "o", (0, 0, 0, 0)))[:2]
    narrow = exact.bounds(accuracy.without(accuracy.arithmetic("A", "float32"), column))[0]["o"]
    assert (narrow < wide / 100).all()
    assert (np.abs(o - exact.o) > narrow).any()
    assert (np.abs(o - exact.o) <= wide).all()
    free = problem.replace(causal=False)
    bounds = [solve(free, Dialect(alibi_form=form)).tolerance("A").bound["o"] for form in FORMS]
    assert (bounds[0] < wide / 100).all()
    assert (bounds[1] > bounds[0] * 100).all()
    assert (bounds[2] > bounds[0] * 100).all()


def test_what_the_map_rounds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are slopes alone: a bound without what the map rounds is narrower, of the output and of the gradients."""
    problem = build(Case(dtype="bfloat16", heads="2/2", i=40, j=40, d=8, alibi_slopes="steep"))
    whole = solve(problem, Dialect()).tolerance("C").bound
    monkeypatch.setattr(Alibi, "constant", lambda self, given, a: None)
    less = solve(problem, Dialect()).tolerance("C").bound
    for name in ("o", "dq", "dk", "dv", "dalibi_slopes"):
        assert (less[name] <= whole[name]).all()
        assert (less[name] < whole[name]).any()


def test_no_row_has_anything_in_common_inside_a_cap() -> None:
    """A cap behind the slopes bends what they add: no form stands for another there."""
    problem = build(Case(i=5, j=40, causal=True, alibi_slopes="h", softcap=3.1))
    for order, nothing in (("before_bias", False), ("after_bias", True)):
        tile = solve(problem, Dialect(softcap_order=order))._tile
        assert (tile.common is None) is nothing


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_in_common_beside_a_sink(form: str) -> None:
    """A sink stays where it is: a column is then another function, also under causal, and outside of the bound."""
    problem = build(Case(i=9, j=9, heads="2/2", causal=True, alibi_slopes="steep"))
    beside = problem.replace(sinks=torch.zeros(problem.h))
    exact, others = solve(beside, Dialect(alibi_form=form)), [solve(beside, Dialect(alibi_form=x)) for x in FORMS if x != form]
    assert solve(problem, Dialect(alibi_form=form))._tile.common is not None
    assert exact._tile.common is None
    assert Alibi().common(exact._tile.given) == (0.0, 0.0)
    bound = exact.tolerance("A").bound
    for other in others:
        same = {form, other.dialect.alibi_form} == {"distance", "signed"}  # which differ behind the query alone
        for name in ("o", "dq", "dalibi_slopes"):
            assert same is bool((np.abs(other.values[name] - exact.values[name]) <= bound[name]).all()), name


def test_a_wrong_slope_is_outside() -> None:
    """By one in a thousand, in each output, in each dtype that can tell."""
    for dtype, by in (("float64", 1e-9), ("float32", 1e-3), ("float16", 0.1), ("bfloat16", 0.2)):
        problem = build(Case(dtype=dtype, heads="2/2", i=30, j=30, d=8, alibi_slopes="h", values="peaked"))
        answer = resolve(sloped.honest)[0].run(problem.replace(alibi_slopes=problem.alibi_slopes * (1 + by)))
        found = judge(answer, solve(problem, TOP_LEFT), "B" if dtype in HALF else "A").findings
        assert {x.output for x in found} >= {"o"}, dtype


def test_the_zeros_of_a_gradient() -> None:
    """A query that sees its own key alone has no distance: exactly zero for who adds distances, and rounded for a column."""
    problem = build(Case(heads="2/2", i=1, j=1, alibi_slopes="h"))
    exact = solve(problem, Dialect())
    assert exact.zero["dalibi_slopes"].all()
    causal = solve(problem.replace(causal=True), Dialect())
    assert not causal.zero["dalibi_slopes"].any()
    hidden = solve(problem.replace(mask=torch.zeros(problem.b, 1, dtype=torch.bool), causal=True), Dialect())
    assert hidden.zero["dalibi_slopes"].all()


# WHO IS ASKED WHAT


def test_what_parameters_mean_slopes() -> None:
    def takes(name: str, value: str = "=None") -> frozenset[str]:
        scope: dict[str, Any] = {"__name__": __name__}
        exec(f"def attend(q, k, v, causal=False, {name}{value}): ...", scope)
        return frozenset(resolve(scope["attend"])[0].offers)

    for name in ("alibi_slopes", "alibi_slope", "slopes"):
        assert {"alibi", "alibi_batch", "alibi_grad"} <= takes(name), name
    for name in ("alibi", "use_alibi", "alibi_bias"):
        assert not takes(name) & {"alibi", "alibi_batch", "alibi_grad"}, name


def test_a_class_takes_slopes_in_its_call_alone() -> None:
    """In a constructor they are a setting of the model."""

    class Call:
        def __init__(self, causal: bool = False) -> None: ...

        def __call__(self, q, k, v, alibi_slopes=None):
            return q

    class Made(Call):
        def __init__(self, causal: bool = False, alibi_slopes: Any = None) -> None: ...

        def __call__(self, q, k, v):
            return q

    for kind, there in ((Call, True), (Made, False)):
        (adapter,) = resolve(kind)
        assert ("alibi" in adapter.offers) is there


def test_who_offers_no_slopes_is_asked_what_it_was() -> None:
    class Without(Adapter):
        offers = frozenset({"mha", "causal", "backward", "mask", "key_padding"})

    assert all(case.alibi_slopes == "none" for case in array("pairs", Without(), DTYPES))
    subject = meet(resolve(torch.nn.functional.scaled_dot_product_attention)[0], "cpu", {}, None, ("float32",))
    assert "alibi_form" not in subject.sources


def test_an_adapter_without_slopes_of_a_batch_is_asked_for_none() -> None:
    class OfHeads(Adapter):
        offers = frozenset({"mha", "causal", "backward", "alibi"})

    levels = {case.alibi_slopes for case in array("pairs", OfHeads(), DTYPES)}
    assert "bh" not in levels
    assert {"h", "steep", "mixed"} <= levels


@pytest.mark.parametrize("form", ["distance", "signed"])
def test_the_form_is_seen(form: str) -> None:
    """A column is seen as signed: the output is one."""
    kernels = {"distance": [sloped.HONEST], "signed": [sloped.SIGNED, sloped.COLUMN]}[form]
    for some in kernels:
        subject = meet(resolve(some["tiled"][0])[0], "cpu", {}, None, ("float32",))
        assert subject.dialect.alibi_form == form
        assert subject.sources["alibi_form"].startswith("observed")


def test_the_alignment_and_the_order_are_seen_through_slopes() -> None:
    """Of a kernel that has no causal and no bias."""

    class Bare(Adapter):
        def attend(self, q, k, v, *, alibi_slopes=None, softcap=None):
            ahead = torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None]
            s = q @ k.mT * q.shape[-1] ** -0.5
            if alibi_slopes is not None:
                s = s - alibi_slopes.to(q.dtype).reshape(-1, q.shape[1], 1, 1) * ahead.abs()
            return torch.softmax(s if softcap is None else softcap * torch.tanh(s / softcap), -1) @ v

    subject = meet(Bare(), "cpu", {}, None, ("float32",))
    assert subject.dialect.causal_alignment == "top_left"
    assert subject.dialect.softcap_order == "after_bias"
    assert subject.dialect.alibi_form == "distance"


def test_a_kernel_of_another_form_than_promised_is_told_which() -> None:
    class Promised(Adapter):
        dialect = {"alibi_form": "distance", "causal_alignment": "top_left"}

        def attend(self, q, k, v, *, causal=False, alibi_slopes=None):
            return sloped.SIGNED["tiled"][0](q, k, v, is_causal=causal, alibi_slopes=alibi_slopes)

    result = check(Promised(), clauses="ALIBI-2", dtypes="float32", search=False, isolate=False)
    assert "ALIBI-2" in result.broken
    assert "alibi_form=signed" in str(result)


def test_levels_are_read_as_they_are_written() -> None:
    for level in ALIBI.levels[1:]:
        case = Case(b=2, heads="4/4", i=3, j=5, alibi_slopes=level)
        assert Case.parse(case.token()) == case
        problem = build(case)
        assert problem.alibi_slopes is not None
        assert problem.alibi_slopes.shape == ((2, 4) if level == "bh" else (4,))
        assert as_case(problem).alibi_slopes == level
        assert "alibi_slopes" in problem.wrt
    only = build(Case(i=3, j=5, alibi_slopes="h", wrt="alibi_slopes"))
    assert only.wrt == ("alibi_slopes",)
    with pytest.raises(ValueError, match="alibi_slopes can't be"):
        Case.parse("alibi_slopes=b")


# MISTAKES

EACH = (
    "i=9,alibi_slopes=h,heads=4/4",
    "i=40,alibi_slopes=bh,b=2,causal=True,heads=2/2",
    "i=3,j=9,alibi_slopes=mixed,heads=4/2,mask=padding,b=2",
    "i=70,alibi_slopes=steep,bias=ij,causal=True,softcap=3.1",
    "i=1,j=300,alibi_slopes=h,heads=3/shared",
    "i=9,j=3,alibi_slopes=bh,b=3,heads=4/1,window=2:1",
    "i=5,j=140,alibi_slopes=h,scale=0.3",
    "b=2,i=5,j=9,alibi_slopes=h,q_start=3/0",
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_canonical_mistake_of_slopes_is_shown(dtype: str) -> None:
    """By at least four problems of the smaller array in each dtype, in the class that it must hold."""
    adapter, least = resolve(sloped.honest)[0], 4
    canonical = {name for name, one in MISTAKES.mistakes.items() if not one.special}
    shown = dict.fromkeys(canonical - {"alibi_form_distance"}, 0)  # which is right
    for case in array("pairs", adapter, (dtype,)):
        if case.alibi_slopes == "none" or case.wrt == "none":
            continue
        problem = build(case)
        exact = solve(problem, TOP_LEFT)
        for name in shown:
            wrong = MISTAKES.mistakes[name].wrong(problem, TOP_LEFT, exact)
            shown[name] += wrong is not None and multiple(wrong, exact, "C" if dtype in HALF else "A") > 1
    assert min(shown.values()) >= least, shown


def test_each_mistake_of_slopes_can_show() -> None:
    """None of them is another name of the right answer, and each gives what has the form of one."""
    left = set(MISTAKES.mistakes)
    for dialect in (TOP_LEFT, Dialect(), Dialect(alibi_form="signed", softcap_order="after_bias")):
        for token in EACH:
            problem = build(Case.parse(token))
            exact = solve(problem, dialect)
            for name, one in MISTAKES.mistakes.items():
                with np.errstate(all="ignore"):
                    wrong = one.wrong(problem, dialect, exact)
                left -= {name} if wrong is not None and multiple(wrong, exact, "A") > 1 else set()
    assert not left


# OTHER PEOPLE'S


def test_torchs_flex_attention_agrees() -> None:
    """Its score_mod is a slope as its documentation writes one; in float32, eager, with and without causal."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    for n, (i, j, causal, form) in enumerate(
        (i, j, causal, form) for i in (5, 130) for j in (5, 33) for causal in (False, True) for form in FORMS
    ):
        offset = j - i
        problem = build(
            Case(dtype="float32", b=2, heads="3/3", i=i, j=j, d=16, alibi_slopes="bh", causal=causal, seed=n, wrt="none")
        )
        slopes = problem.alibi_slopes

        def score_mod(score, b, h, q_idx, kv_idx, slopes=slopes, offset=offset, form=form):
            ahead = kv_idx - q_idx - offset
            return score + slopes[b, h] * {"distance": -ahead.abs(), "signed": ahead, "column": kv_idx}[form]

        def mask_mod(b, h, q_idx, kv_idx, offset=offset):
            return kv_idx - q_idx - offset <= 0

        block_mask = create_block_mask(mask_mod, None, None, i, j, device="cpu") if causal else None
        o = flex_attention(problem.q, problem.k, problem.v, score_mod=score_mod, block_mask=block_mask)
        exact = solve(problem, Dialect(alibi_form=form))
        bound = exact.tolerance("A").bound["o"]
        shown = np.broadcast_to(~exact.empty[..., None], bound.shape)
        assert (np.abs(o.numpy() - exact.o) <= bound)[shown].all()


# BESIDE A START


def test_distances_begin_at_a_start() -> None:
    """By hand: the slope ln 2, three equal keys, and one query, which stands at 2 in one item and at −1 in the other."""
    q, k = torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.ones(2, 1, 3, 1, dtype=torch.float64)
    v = f64([[[1.0], [10.0], [100.0]]]).expand(2, 1, 3, 1)
    problem = Problem(q, k, v, alibi_slopes=f64(np.log(2)), q_start=(2, -1))
    at_the_end, before = solve(problem, Dialect()).o.ravel()
    assert np.isclose(at_the_end, (1 + 2 * 10 + 4 * 100) / 7, rtol=1e-14)
    assert np.isclose(before, (4 * 1 + 2 * 10 + 100) / 7, rtol=1e-14)


def test_a_start_is_as_far_as_a_column_may_be() -> None:
    """What a row may have in common grows with the start, and so does the bound of a kernel that adds a·j to keys from 0 on."""
    problem = build(Case(i=3, j=5, heads="2/2", causal=True, alibi_slopes="h", q_start="0"))
    near, far = (solve(problem.replace(q_start=start), Dialect())._tile.common for start in (0, 1000))
    assert (far == near * 1005 / 5).all()


def test_an_honest_kernel_with_a_start_passes_and_others_are_told() -> None:
    """Each mutant of a start breaks the clause of distances from a start, the honest kernel none."""
    asked = {"clauses": "ALIBI-24,POSITION-5,POSITION-9,POSITION-14", "dtypes": "float32", "search": False, "isolate": False}
    assert not check(sloped.at_a_start, **asked).broken
    for name in ("alibi_does_not_read_the_start", "alibi_of_the_first_start"):
        assert "ALIBI-24" in check(load()[name].make(), **asked | {"clauses": "ALIBI-24"}).broken
