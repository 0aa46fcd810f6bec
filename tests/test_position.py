"""POSITION: the reference in its three forms, bounds that honest kernels keep, what parameters mean, and who is asked what."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import positioned
import pytest
import torch
from numpy.random import Generator, default_rng
from random_problems import STARTS, WINDOWS, draw, share

from attnspec.adapters import Adapter, Unsupported, resolve
from attnspec.adapters.conventions.wording import Wording
from attnspec.conformance.diagnosis.order import _more_items
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.position import POSITION as MISTAKES
from attnspec.conformance.mistakes.power import multiple
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.factor import Offer
from attnspec.conformance.problems.factors.start import START, meant, offered, written
from attnspec.conformance.problems.factors.window import WINDOW
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.shrink import _part, as_case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.testing.relations import one_item
from attnspec.reference import SampledRows, solve
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import Dialect, Problem

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
TOP_LEFT = Dialect(causal_alignment="top_left")
DIALECTS = (Dialect(), TOP_LEFT)


def shaped(i: int, j: int, b: int = 1, **options: Any) -> Problem:
    """Queries of zeros and one-hot values: the output reads out which keys are seen."""
    q, k = torch.zeros(b, 1, i, 2).double(), torch.randn(b, 1, j, 2, generator=torch.Generator().manual_seed(0)).double()
    return Problem(q, k, torch.eye(j).double().expand(b, 1, j, j), **options)


# THE REFERENCE


@pytest.mark.parametrize("start", [0, 1, 3, 6, 20, -1, -4, -20])
def test_which_keys_are_seen(start: int) -> None:
    """Against the sentence, key by key, in each alignment: it says nothing beside a start."""
    for dialect, (i, j), causal, window in product(
        DIALECTS, ((3, 7), (5, 5), (9, 3), (1, 6)), (False, True), (None, (1, None), (2, 1), (None, 0))
    ):
        for starts in (start, (start, 2 - start)):
            problem = shaped(i, j, 2, q_start=starts, causal=causal, window=window)
            seen = solve(problem, dialect).forward.visible[:, 0]
            for item, row, key in product(range(2), range(i), range(j)):
                behind = key - (start if isinstance(starts, int) else starts[item]) - row
                left, right = (99 if side is None else side for side in window or (None, None))
                assert seen[item, row, key] == (-left <= behind <= right and (behind <= 0 or not causal)), (starts, i, j, window)


def test_the_output_counts_the_keys() -> None:
    exact = solve(shaped(4, 3, q_start=-1, causal=True), Dialect())
    assert exact.o[0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3]
    assert exact.empty[0, 0].tolist() == [True, False, False, False]


def test_a_start_takes_the_place_of_the_alignment() -> None:
    """Bottom-right and top-left are two starts, whichever of them a dialect follows."""
    for i, j in ((3, 7), (7, 3), (4, 4)):
        for start, alignment in ((j - i, "bottom_right"), (0, "top_left")):
            plain = solve(shaped(i, j, causal=True), Dialect(causal_alignment=alignment)).o
            for dialect in DIALECTS:
                np.testing.assert_array_equal(solve(shaped(i, j, causal=True, q_start=start), dialect).o, plain)


def test_balls_hold_the_reference() -> None:
    """The exact answer in ball arithmetic lies within the bound of class A in float64; test_reference.py has the second form."""
    pytest.importorskip("flint")
    for seed in range(24):
        drawn = draw(default_rng([53, seed]), windows=WINDOWS, starts=STARTS[2:])
        dialect, keep = DIALECTS[seed % 2], drawn.keep.numpy()
        exact, balls = solve(drawn.problem, dialect, keep), enclose(drawn.problem, dialect, keep)
        tolerance = exact.tolerance("A")
        for name, value in exact.values.items():
            worst = share(balls.nearest(name)[0], value, tolerance.bound[name], exact.undefined[name])
            assert worst <= 1, f"{name} is at {worst:.3g} of the bound: {drawn.choices}"


@pytest.mark.parametrize(
    "value", [1.0, True, "3", [0, 1], (0,), (0, 1, 2), (0, 1.0), (0, True), (0, None), 1 << 30, (0, -(1 << 30)), torch.zeros(2)]
)
def test_what_is_no_start_is_refused(value: Any) -> None:
    x = torch.zeros(2, 1, 1, 1)
    with pytest.raises(ValueError, match="a q_start is one whole number, or a tuple of one for each of 2 batch items"):
        Problem(x, x, x, q_start=value)


def test_a_start_stays_one_as_bytes_and_on_the_way_to_another_process() -> None:
    from attnspec.adapters.remote.protocol import options_of, problem_of, tensors_of

    for start in (0, -3, (2, -1)):
        problem = shaped(3, 4, 2, q_start=start)
        assert Problem.from_bytes(problem.to_bytes()).q_start == start
        said = {name: list(x) if isinstance(x, tuple) else x for name, x in options_of(problem).items()}
        assert problem_of({"options": said}, tensors_of(problem)).q_start == start


def test_no_batch_item_has_a_start_for_each() -> None:
    empty = shaped(3, 4, 0, q_start=(), causal=True)
    assert solve(empty, Dialect()).o.shape == (0, 1, 3, 4)


def test_the_bound_counts_visible_keys() -> None:
    """A row that sees three of 1000 keys has the bound of a row of three, but for what a sweep may rescale."""
    x = build(Case(dtype="float32", i=1, j=3, d=8, seed=3))
    many = x.replace(
        k=torch.cat([x.k, torch.zeros(x.b, x.k.shape[1], 997, x.d)], 2),
        v=torch.cat([x.v, torch.zeros(x.b, x.v.shape[1], 997, x.e)], 2),
    )
    bounds = [solve(p, Dialect()).tolerance("A").bound["o"].max() for p in (x, many.replace(causal=True, q_start=2))]
    assert bounds[0] <= bounds[1] < 1.5 * bounds[0]


def test_sampled_rows_are_rows_of_the_whole() -> None:
    """A few rows of a long problem, a start for each batch item, in tiles of keys."""
    problem = build(Case(dtype="float32", b=2, heads="2/2", i=12, j=700, d=8, causal=True, window="90:", seed=5))
    rows = [0, 3, 11]
    do = torch.zeros_like(problem.do)
    do[:, :, rows] = problem.do[:, :, rows]
    problem = problem.replace(do=do, q_start=(400, -5))
    exact = solve(problem, Dialect())
    assert exact.empty[1, 0].tolist() == [True] * 5 + [False] * 7
    for part in SampledRows(problem, Dialect(), rows).parts("A"):
        value = exact.lse if part.output == "lse" else exact.values[part.output]
        np.testing.assert_allclose(part.values, value[part.at], rtol=1e-12, atol=1e-14, err_msg=part.output)


def test_chunks_of_queries_are_the_whole() -> None:
    """In any order, one after the other or as a zig-zag; dk and dv are sums."""
    problem = build(Case(dtype="float64", b=2, heads="4/2", i=11, j=17, d=8, causal=True, window="6:", mask="padding", seed=1))
    problem = problem.replace(q_start=(3, -2))
    whole = solve(problem, Dialect())
    for cuts in ((0, 1, 3, 7, 11), (0, 5, 11), tuple(range(12))):
        total = {name: np.zeros_like(whole.values[name]) for name in ("dk", "dv")}
        for a, b in reversed(list(pairwise(cuts))):
            each = solve(
                problem.replace(q=problem.q[:, :, a:b], do=problem.do[:, :, a:b], q_start=tuple(x + a for x in problem.q_start)),
                Dialect(),
            ).values
            for name in ("o", "dq"):
                np.testing.assert_allclose(each[name], whole.values[name][:, :, a:b], rtol=1e-12, atol=1e-14)
            for name in total:
                total[name] += each[name]
        for name, x in total.items():
            np.testing.assert_allclose(x, whole.values[name], rtol=1e-12, atol=1e-14)


def test_parts_of_the_keys_merged_are_the_whole() -> None:
    """A ring: chunks of queries against chunks of keys, weighted by their lse; an empty part weighs nothing."""
    problem = build(Case(dtype="float64", b=2, heads="2/2", i=11, j=17, d=8, causal=True, seed=1)).replace(
        do=None, wrt=(), q_start=4
    )
    whole = solve(problem, Dialect())
    for a, b in pairwise((0, 4, 11)):
        o, lse = np.zeros((2, 2, b - a, 8)), np.full((2, 2, b - a), -np.inf)
        for c, d in pairwise((0, 2, 9, 13, 17)):
            part = solve(
                problem.replace(q=problem.q[:, :, a:b], k=problem.k[:, :, c:d], v=problem.v[:, :, c:d], q_start=4 + a - c),
                Dialect(),
            )
            both = np.logaddexp(lse, part.lse)
            with np.errstate(invalid="ignore"):
                weights = (np.where(x == -np.inf, 0.0, np.exp(x - both))[..., None] for x in (lse, part.lse))
            o, lse = sum(w * x for w, x in zip(weights, (o, part.o), strict=True)), both
        np.testing.assert_allclose(o, whole.o[:, :, a:b], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse, whole.lse[:, :, a:b], rtol=1e-12, atol=1e-14)


# BOUNDS


def random_case(rng: Generator, dtype: str, values: str) -> Case:
    """Any level of the factors that change numbers, at sizes that take milliseconds, with a start that moves something."""
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 40)),
        "dtype": dtype,
        "values": values,
        "j": int(rng.choice([0, 1, 2, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "window": str(rng.choice(WINDOW.levels)),
        "q_start": str(rng.choice(START.levels[1:])),
        "first_tokens": int(rng.choice([0, 0, 1, 3])),
        "wrt": "all",
    }
    level["causal"] = level["window"] == "none" or bool(rng.random() < 0.5)
    return fit(Case(**level, seed=int(rng.integers(1 << 16))), resolve(positioned.honest)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_stay_inside_their_class(dtype: str) -> None:
    rng, broken, asked = default_rng([63, DTYPES.index(dtype)]), [], 0
    adapters = {name: resolve(one)[0] for name, (one, _) in positioned.HONEST.items()}
    for values in LEVELS["values"]:
        for _ in range(2):
            case = random_case(rng, dtype, values)
            assert case.q_start != "none"
            problem = build(case)
            exact = solve(problem, TOP_LEFT)
            for name, (_, class_) in positioned.HONEST.items():
                asked += 1
                for x in judge(adapters[name].run(problem), exact, class_ if dtype in HALF else "A").findings:
                    broken.append(f"{name}, {x.output}: {x.ratio:.3g} of the bound ({x.kind} {x.message}) {case.token()}")
    assert asked == 20 * len(positioned.HONEST)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("off", [1, -1])
def test_one_position_too_many_or_too_few_is_outside(off: int) -> None:
    """In each dtype, in each output, for one start and for several."""

    def shifted(
        query, key, value, attn_mask=None, is_causal=False, window_size=(-1, -1), q_start: int | torch.Tensor | None = None
    ):
        at = None if q_start is None else q_start + off
        return positioned.honest(query, key, value, attn_mask, is_causal=is_causal, window_size=window_size, q_start=at)

    for dtype, start, how in product(DTYPES, ("3", "3/1"), ({"causal": True}, {"window": "2:2"})):
        problem = build(Case(dtype=dtype, b=2, i=4, j=9, d=8, q_start=start, values="peaked", **how))
        found = judge(resolve(shifted)[0].run(problem), solve(problem, TOP_LEFT), "C" if dtype in HALF else "A").findings
        assert {x.output for x in found} >= {"o", "dq", "dk", "dv"}, (dtype, start, how)


# PARAMETERS


def said(signature: str) -> tuple[Wording | None, Any]:
    scope: dict[str, Any] = {"Tensor": torch.Tensor, "Sequence": list, "__name__": __name__}
    exec(f"def attend(q, k, v, causal=False, *, {signature}): return q", scope)
    (adapter,) = resolve(scope["attend"])
    return adapter.signature.said.get("q_start"), adapter


@pytest.mark.parametrize(
    ("parameter", "one", "many", "features"),
    [
        ("q_start=None", 3, "takes one number for all batch items", {"q_start", "q_start_negative"}),
        ("q_offset: int = 0", 3, "takes one number", {"q_start", "q_start_negative"}),
        ("start_q: 'Tensor | None' = None", [3, 3], [3, -1], {"q_start", "q_start_negative", "q_start_batch"}),
        ("query_start: 'int | Tensor' = 0", 3, [3, -1], {"q_start", "q_start_negative", "q_start_batch"}),
        ("position_offset: 'list[int] | None' = None", (3, 3), (3, -1), {"q_start", "q_start_negative", "q_start_batch"}),
        ("q_start: 'int | Sequence[int]' = 0", 3, (3, -1), {"q_start", "q_start_negative", "q_start_batch"}),
        ("start_pos=0", 3, "not less than nothing", {"q_start"}),
        ("past_length: 'Tensor | None' = None", [3, 3], "not less than nothing", {"q_start", "q_start_batch"}),
    ],
)
def test_what_a_parameter_is_given(parameter: str, one: Any, many: Any, features: set[str]) -> None:
    """One number as itself or as b of them; several as a list, (…) here, or as a tensor of int32, […] here."""
    start, adapter = said(parameter)
    assert {x for x in adapter.offers if x.startswith("q_start")} == features
    name = parameter.partition(":")[0].partition("=")[0]
    for value, expected in ((3, one), ((3, -1), many)):
        problem = shaped(2, 4, 2, causal=True, q_start=value)
        if isinstance(expected, str):
            with pytest.raises(Unsupported, match=expected):
                adapter.call(problem)
            continue
        given = adapter.call(problem).arguments[name]
        if isinstance(expected, list):
            assert given.dtype == torch.int32
            assert given.tolist() == expected
        else:
            assert given == (list(expected) if isinstance(expected, tuple) else expected)
    assert name not in adapter.call(shaped(2, 4, 2, causal=True)).arguments
    assert start is not None


def test_a_start_that_must_be_given_is_0() -> None:
    """As gpt-oss has it: a call without a start is then aligned top-left, and the convention promises it."""
    start, adapter = said("start_q: 'Tensor'")
    assert start is not None
    assert adapter.dialect["causal_alignment"] == "top_left"
    assert adapter.call(shaped(2, 4, 2, causal=True)).arguments["start_q"].tolist() == [0, 0]


def test_a_start_is_merged_into_torchs_mask() -> None:
    """With torch's parameters causal goes into the mask beside it, from the position that the start says."""
    for start in (2, (2, -1)):
        problem = build(Case(b=2, heads="2/2", i=4, j=7, d=8, causal=True, mask="padding", wrt="none")).replace(q_start=start)
        adapter = resolve(positioned.honest)[0]
        assert not adapter.call(problem).arguments.get("is_causal")
        assert not judge(adapter.run(problem), solve(problem, TOP_LEFT), "A").findings


class Module(torch.nn.Module):
    """An `Attend` of the seeds' kind that is told where its queries start."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q, k, v, q_offset: torch.Tensor | None = None):
        i, j = q.shape[2], k.shape[2]
        own = torch.arange(i) + (j - i if q_offset is None else q_offset.view(-1, 1, 1, 1).transpose(-1, -2))
        hidden = torch.arange(j) > (own[:, None] if q_offset is None else own.mT)
        s = (q @ k.mT) * q.shape[-1] ** -0.5
        return (s.masked_fill(hidden, -1e30).softmax(-1) if self.causal else s.softmax(-1)) @ v


def test_a_module_is_told_where_its_queries_start() -> None:
    adapter = resolve(Module)[0]
    assert {"q_start", "q_start_batch", "q_start_negative"} <= set(adapter.offers)
    for start in (2, (2, 4), None):
        problem = build(Case(b=2, heads="2/2", i=4, j=7, d=8, causal=True, wrt="none")).replace(q_start=start)
        assert not judge(adapter.run(problem), solve(problem, Dialect()), "A").findings, start


def test_a_start_that_is_written_to_is_seen() -> None:
    """A tensor and a list, in forward and in backward."""

    class Counts(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out, start):
            ctx.start = start
            return out.clone()

        @staticmethod
        def backward(ctx, cotangent):
            ctx.start.add_(1)
            return cotangent, None

    def forward(q, k, v, causal=False, q_start: torch.Tensor | None = None):
        out = positioned.honest(q, k, v, is_causal=causal, q_start=q_start)
        if q_start is not None:
            q_start += 1
        return out

    def backward(q, k, v, causal=False, q_start: torch.Tensor | None = None):
        out = positioned.honest(q, k, v, is_causal=causal, q_start=q_start)
        return out if q_start is None else Counts.apply(out, q_start)

    def a_list(q, k, v, causal=False, q_start: list[int] | None = None):
        out = positioned.honest(q, k, v, is_causal=causal, q_start=None if q_start is None else torch.tensor(q_start))
        if q_start is not None:
            q_start.append(1)
        return out

    problem = build(Case(b=2, heads="2/2", i=4, j=7, d=8, causal=True, q_start="3/1"))
    for one in (forward, backward, a_list):
        assert resolve(one)[0].run(problem).changed == ("q_start",), one.__name__
    assert resolve(backward)[0].run(problem.replace(do=None, wrt=())).changed == ()
    assert resolve(positioned.honest)[0].run(problem).changed == ()


# WHO IS ASKED WHAT


def test_who_offers_no_start_is_asked_what_it_was() -> None:
    class Without(Adapter):
        offers = frozenset({"mha", "causal", "backward", "mask", "key_padding", "window", "window_right"})

    for name in ("pairs", "triples"):
        assert all(case.q_start == "none" for case in array(name, Without(), DTYPES))


def test_a_start_is_fitted_to_what_is_offered() -> None:
    def offer(*names: str) -> Offer:
        return Offer(frozenset({"q_start", *names}))

    around = Case(b=3, i=4, j=9, q_start="around")  # 5, −2, 4
    assert offered(around, Offer(frozenset())) == "none"
    assert offered(around, offer()) == "5"
    assert offered(around, offer("q_start_batch")) == "5/0/4/"
    assert offered(around, offer("q_start_batch", "q_start_negative")) == "around"
    assert offered(Case(i=9, j=4, q_start="end"), offer()) == "0"
    assert offered(Case(i=9, j=4, q_start="end"), offer("q_start_negative")) == "end"


def test_levels_are_read_as_they_are_written() -> None:
    for level in (*START.levels, "7", "-3", "3/-1", "4/"):
        case = Case(b=2, i=4, j=9, q_start=level)
        assert Case.parse(case.token()) == case
        problem = build(case)
        assert problem.q_start == meant(case)
        if problem.q_start is not None:
            assert meant(replace(case, q_start=written(problem.q_start))) == problem.q_start
            assert as_case(problem).q_start == written(problem.q_start)
    assert [meant(Case(b=2, i=4, j=9, q_start=x)) for x in ("none", "end", "half", "past", "each", "3/-1", "4/")] == [
        None,
        5,
        4,
        10,
        (4, 0),
        (3, -1),
        (4, 4),
    ]
    for wrong in ("", "two", "1:2", "/", "3//1", "--1"):
        with pytest.raises(ValueError, match="q_start can't be"):
            Case.parse(f"q_start={wrong}")


def test_a_part_of_the_batch_keeps_its_starts() -> None:
    """Where a failure is reduced, where items are asked alone, and where they are repeated."""
    problem = build(Case(b=3, heads="2/2", i=4, j=9, causal=True, q_start="3/-1/5"))
    assert one_item(problem, 1).q_start == (-1,)
    assert _part(problem, {"b": slice(1, 3)}).q_start == (-1, 5)
    assert _part(problem, {"b": torch.tensor([2, 0])}).q_start == (5, 3)
    assert _more_items(problem, 2).q_start == (3, -1, 5, 3, -1, 5)


# MISTAKES


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_canonical_mistake_of_a_start_is_shown(dtype: str) -> None:
    """By at least three problems of the smaller array in each dtype, in the class that it must hold."""
    adapter = resolve(positioned.honest)[0]
    shown = {name: 0 for name, one in MISTAKES.mistakes.items() if not one.special}
    for case in array("pairs", adapter, (dtype,)):
        if case.q_start == "none" or case.wrt == "none":
            continue
        problem = build(case)
        exact = solve(problem, TOP_LEFT)
        for name in shown:
            wrong = MISTAKES.mistakes[name].wrong(problem, TOP_LEFT, exact)
            shown[name] += wrong is not None and multiple(wrong, exact, "C" if dtype in HALF else "A") > 1
    assert min(shown.values()) >= 3, shown


EACH = (
    "b=2,i=4,j=9,causal=True,q_start=3",
    "b=2,i=4,j=9,causal=True,q_start=3/1",
    "b=2,i=4,j=9,causal=True,q_start=1/5",
    "b=2,i=4,j=9,causal=True,q_start=-2,mask=padding,bias=ij",
    "b=2,i=4,j=9,causal=True,q_start=-2/7",
    "b=2,i=1,j=9,causal=True,q_start=3",
    "b=2,i=4,j=9,causal=True,q_start=3,window=2:,mask=padding",
    "b=2,i=4,j=9,q_start=past,window=4:",
    "b=2,i=4,j=9,q_start=7,window=1:",
    "b=2,i=4,j=9,q_start=3,window=1:1",
    "b=2,i=4,j=9,q_start=3",
    "b=2,i=4,j=9,causal=True,q_start=7",
    "b=2,i=4,j=300,causal=True,q_start=170",
)


def test_each_mistake_of_a_start_can_show() -> None:
    """None of them is another name of the right answer, and each gives what has the form of one."""
    left = set(MISTAKES.mistakes)
    for dialect, token in product(DIALECTS, EACH):
        problem = build(Case.parse(f"heads=2/2,values=peaked,{token}"))
        exact = solve(problem, dialect)
        for name in sorted(left):
            wrong = MISTAKES.mistakes[name].wrong(problem, dialect, exact)
            left -= {name} if wrong is not None and multiple(wrong, exact, "A") > 1 else set()
    assert left == set()


# OTHER PEOPLE'S


def test_torchs_flex_attention_agrees() -> None:
    """Its mask_mod with an offset for each batch item, as its users write it: causal, and a window; in float32, eager."""
    from torch.nn.attention.flex_attention import flex_attention

    adapter, asked = resolve(flex_attention)[0], 0
    for n, (i, j, start, how) in enumerate(
        product((1, 5, 130), (33, 150), ("0", "half", "end", "-2", "past", "around"), ({"causal": True}, {"window": "3:1"}))
    ):
        problem = build(Case(dtype="float32", b=2, heads="2/2", i=i, j=j, d=16, q_start=start, wrt="none", seed=n, **how))
        found = judge(adapter.run(problem), solve(problem, TOP_LEFT), "A").findings
        assert not found, (problem.q_start, i, j, how, found)
        asked += 1
    assert asked == 72
