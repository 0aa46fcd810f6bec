"""WINDOW: the reference in its three forms, bounds that honest kernels keep, what parameters mean, and who is asked what."""

from __future__ import annotations

import inspect
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import windowed
from numpy.random import Generator, default_rng
from random_problems import WINDOWS, draw, share

from attnspec.adapters import Adapter, Unsupported, resolve
from attnspec.adapters.conventions.signature import Signature
from attnspec.adapters.conventions.windows import Said
from attnspec.conformance import check
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.power import multiple
from attnspec.conformance.mistakes.window import WINDOW as MISTAKES
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.first_tokens import FIRST_TOKENS
from attnspec.conformance.problems.factors.window import WINDOW, meant
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.meeting import meet
from attnspec.reference import solve
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import CHOICES, Dialect, Problem

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
TOP_LEFT = Dialect(causal_alignment="top_left")
COUNTS = CHOICES["window_count"].values
PER_REGIME = 3  # problems of each regime of values and dtype, put to all kernels


def shaped(i: int, j: int, **options: Any) -> Problem:
    """Queries of zeros and one-hot values: the output reads out which keys are seen."""
    q, k = torch.zeros(1, 1, i, 2).double(), torch.randn(1, 1, j, 2, generator=torch.Generator().manual_seed(0)).double()
    return Problem(q, k, torch.eye(j).double().view(1, 1, j, j), **options)


# THE REFERENCE


@pytest.mark.parametrize("alignment", ["bottom_right", "top_left"])
@pytest.mark.parametrize("count", COUNTS)
def test_which_keys_are_seen(alignment: str, count: str) -> None:
    """Against the sentence, key by key: more keys than queries, as many, and fewer by more than one."""
    dialect = Dialect(alignment, window_count=count)
    for (i, j), left, right, causal in product(
        ((3, 7), (5, 5), (9, 3)), (None, 0, 1, 2, 3, 9), (None, 0, 1, 2, 3, 9), (False, True)
    ):
        seen = solve(shaped(i, j, window=(left, right), causal=causal), dialect).forward.visible[0, 0]
        for row, key in product(range(i), range(j)):
            behind = key - row - (j - i if alignment == "bottom_right" else 0)
            inside = {
                "inclusive": -(99 if left is None else left) <= behind <= (99 if right is None else right),
                "total": -(99 if left is None else left) < behind < (99 if right is None else right),
                "exclusive": -(99 if left is None else left) < behind <= (99 if right is None else right),
            }[count]
            assert seen[row, key] == (inside and (behind <= 0 or not causal)), (i, j, left, right, causal, row, key)


@pytest.mark.parametrize("alignment", ["bottom_right", "top_left"])
@pytest.mark.parametrize("count", COUNTS)
def test_first_tokens_are_seen_beside_the_window(alignment: str, count: str) -> None:
    """Against the rule: with causal the window and { j < n, j <= p }; without it the right end of the window limits them."""
    dialect = Dialect(alignment, window_count=count)
    for (i, j), left, right, causal in product(((3, 7), (5, 5), (9, 3)), (None, 1, 3), (None, 1, 2), (False, True)):
        plain = shaped(i, j, window=(left, right), causal=causal)
        for n in (0, 1, 2, 9):
            seen, without, unlimited = (
                solve(x, dialect).forward.visible[0, 0]
                for x in (plain.replace(first_tokens=n), plain, plain.replace(window=(None, right)))
            )
            position = np.arange(i)[:, None] + (j - i if alignment == "bottom_right" else 0)
            first = np.arange(j) < n
            assert (seen == (without | (unlimited & first))).all()
            if causal and (right is None or right > 1):
                assert (seen == (without | (first & (np.arange(j) <= position)))).all()


def test_first_tokens_as_published() -> None:
    """The two limits and the condition of flash-attention 3, hopper/mask.h; its window has two limits, and causal is right = 0."""
    for i, j, left, right, n in product(range(1, 6), range(1, 6), range(5), range(5), range(6)):
        row, col = np.arange(i)[:, None], np.arange(j)
        limit_right, limit_left = row + 1 + j - i + right, row + j - i - left
        hidden = (col >= limit_right) | ((col < limit_left) & (col >= n))
        seen = solve(shaped(i, j, window=(left, right), first_tokens=n), Dialect()).forward.visible[0, 0]
        assert (seen == ~hidden).all(), (i, j, left, right, n)


def test_the_output_counts_the_keys() -> None:
    exact = solve(shaped(9, 3, window=(1, 0)), Dialect())
    assert exact.o[0, 0].tolist() == [[0] * 3] * 6 + [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert exact.empty[0, 0].tolist() == [True] * 6 + [False] * 3


@pytest.mark.parametrize("count", COUNTS)
def test_balls_hold_the_reference(count: str) -> None:
    """The exact answer in ball arithmetic lies within the bound of class A in float64; test_reference.py has the second form."""
    pytest.importorskip("flint")
    for seed in range(12):
        dialect = Dialect(("bottom_right", "top_left")[seed % 2], window_count=count)
        drawn = draw(default_rng([52, seed]), windows=WINDOWS[2:])
        keep = drawn.keep.numpy()
        exact, balls = solve(drawn.problem, dialect, keep), enclose(drawn.problem, dialect, keep)
        tolerance = exact.tolerance("A")
        for name, value in exact.values.items():
            worst = share(balls.nearest(name)[0], value, tolerance.bound[name], exact.undefined[name])
            assert worst <= 1, f"{name} is at {worst:.3g} of the bound: {drawn.choices}"


@pytest.mark.parametrize("value", [-1, 1.0, True, None, (1,)])
def test_what_is_no_number_of_first_tokens_is_refused(value: Any) -> None:
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="first_tokens is a whole number from 0 on"):
        Problem(x, x, x, window=(1, 1), first_tokens=value)


@pytest.mark.parametrize("value", [3, (1,), (1, 2, 3), (-1, 0), (0, -1), (1.0, 0), (True, 0), [1, 0], "1:0"])
def test_what_is_no_window_is_refused(value: Any) -> None:
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="a window is two whole numbers from 0 on"):
        Problem(x, x, x, window=value)


def test_a_window_stays_one_as_bytes_and_on_the_way_to_another_process() -> None:
    from attnspec.adapters.remote.protocol import options_of, problem_of, tensors_of

    problem = shaped(3, 4, window=(2, None), first_tokens=1)
    kept = Problem.from_bytes(problem.to_bytes())
    assert (kept.window, kept.first_tokens) == ((2, None), 1)
    said = {name: list(x) if isinstance(x, tuple) else x for name, x in options_of(problem).items()}
    assert problem_of({"options": said}, tensors_of(problem)).window == (2, None)


def test_the_bound_counts_visible_keys() -> None:
    """A row of 1000 keys that sees three has the bound of a row of three, but for what a sweep may rescale."""
    few = Case(dtype="float32", i=1, j=3, d=8, seed=3)
    x = build(few)
    many = x.replace(
        k=torch.cat([torch.zeros(x.b, x.k.shape[1], 997, x.d), x.k], 2),
        v=torch.cat([torch.zeros(x.b, x.v.shape[1], 997, x.e), x.v], 2),
    )
    bounds = [solve(p, Dialect()).tolerance("A").bound["o"].max() for p in (x, many.replace(window=(2, 0)))]
    assert bounds[0] <= bounds[1] < 1.5 * bounds[0]


# BOUNDS


def random_case(rng: Generator, dtype: str, values: str) -> Case:
    """Any level of the factors that change numbers, at sizes that take milliseconds, with a window."""
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 40)),
        "dtype": dtype,
        "values": values,
        "j": int(rng.choice([0, 1, 2, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "window": str(rng.choice(WINDOW.levels[1:])),
        "first_tokens": int(rng.choice(FIRST_TOKENS.levels)),
        "wrt": "all",
    }
    return fit(Case(**level, seed=int(rng.integers(1 << 16))), resolve(windowed.honest)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_stay_inside_their_class(dtype: str) -> None:
    rng, broken, asked = default_rng([62, DTYPES.index(dtype)]), [], 0
    adapters = {name: resolve(one)[0] for name, (one, _) in windowed.HONEST.items()}
    for values in LEVELS["values"]:
        for _ in range(PER_REGIME):
            case = random_case(rng, dtype, values)
            assert case.window != "none"
            problem = build(case)
            exact = solve(problem, TOP_LEFT)
            for name, (_, class_) in windowed.HONEST.items():
                asked += 1
                for x in judge(adapters[name].run(problem), exact, class_ if dtype in HALF else "A").findings:
                    broken.append(f"{name}, {x.output}: {x.ratio:.3g} of the bound ({x.kind} {x.message}) {case.token()}")
    assert asked >= 150
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("off", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_one_key_too_many_or_too_few_is_outside(off: tuple[int, int]) -> None:
    """In each dtype, in each output."""

    def attend(*inputs: Any) -> Any:
        *others, (left, right) = inputs
        return windowed.honest(*others, (left + off[0], right + off[1]))

    def shifted(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, window_size=None):
        return attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window_size)

    for dtype in DTYPES:
        problem = build(Case(dtype=dtype, i=9, j=9, d=8, window="2:2", values="peaked"))
        found = judge(resolve(shifted)[0].run(problem), solve(problem, TOP_LEFT), "C" if dtype in HALF else "A").findings
        assert {x.output for x in found} >= {"o", "dq", "dk", "dv"}, (dtype, off)


# PARAMETERS


def said(signature: str) -> Said | None:
    scope: dict[str, Any] = {}
    exec(f"def attend({signature}): ...", scope)
    found = Signature.of(scope["attend"]).said.get("window")
    assert found is None or isinstance(found, Said)
    return found


@pytest.mark.parametrize(
    ("parameter", "window", "value"),
    [
        ("window_size=(-1, -1)", (2, None), (2, -1)),  # flash-attention 2 and 3, torch's varlen_attn, aiter without its third
        ("window_size=(-1, -1)", (None, 1), (-1, 1)),
        ("window_size=(None, None)", (2, None), (2, None)),  # flash-attention 4
        ("window_size=None", (2, None), (2, -1)),  # vLLM's fork, TransformerEngine
        ("window=None", (2, None), (2, None)),
        ("local_window_size=None", (3, 1), (3, 1)),  # JAX
        ("local_window_size=None", (3, None), (3, 5)),  # a number that reaches over all
        ("window_left=-1", (3, None), 3),  # FlashInfer
        ("window_left=-1", (3, 0), "does not limit what is behind"),
        ("sliding_window=None", (3, None), "without causal it is not known"),
        ("sliding_window: int = 0", (0, None), "none of them is no window"),
    ],
)
def test_what_a_parameter_is_given(parameter: str, window: Any, value: Any) -> None:
    found = said(f"q, k, v, {parameter}")
    assert found is not None
    if isinstance(value, str):
        with pytest.raises(Unsupported, match=value):
            found.value(shaped(5, 5, window=window, causal=parameter.endswith("= 0")))
    else:
        assert found.value(shaped(5, 5, window=window)) == value


def test_a_window_that_a_function_calculates_with_is_one_number() -> None:
    """Its name alone would make it (left, right), and every call with a window would raise."""

    def subtracted(q, k, v, causal=False, window=None):
        return q if window is None else q - window

    def compared(q, k, v, causal=False, window_size=None):
        return q if window_size is None else (window_size > q)

    def taken_apart(q, k, v, causal=False, window=None):
        return q if window is None or window == (-1, -1) else q - window[0]

    for function, value in ((subtracted, 2), (compared, 2), (taken_apart, (2, None))):
        found = Signature.of(function).said["window"]
        assert found.value(shaped(5, 5, window=(2, None), causal=True)) == value
        assert found.dialect == ({"window_count": "inclusive"} if isinstance(value, tuple) else {})


def test_first_tokens_are_a_parameter_or_the_third_number_of_a_window() -> None:
    def as_flash_attention_3_has_them(q, k, v, causal=False, window_size=(-1, -1), sink_token_length=0): ...

    def as_aiter_has_them(q, k, v, causal=False, window_size=(-1, -1, 0)): ...

    def alone(q, k, v, causal=False, window_size=(-1, -1)): ...

    problem = shaped(5, 5, window=(1, None), causal=True)
    for function, said in (
        (as_flash_attention_3_has_them, {"window_size": (1, -1), "sink_token_length": 2}),
        (as_aiter_has_them, {"window_size": (1, -1, 2)}),
    ):
        (adapter,) = resolve(function)
        assert "first_tokens" in adapter.offers
        assert adapter.call(problem.replace(first_tokens=2)).arguments.items() >= said.items()
        assert "sink_token_length" not in adapter.call(problem).arguments
        assert "window_size" not in adapter.call(problem.replace(window=None, first_tokens=0)).arguments
    (adapter,) = resolve(as_aiter_has_them)
    assert adapter.call(problem).arguments["window_size"] == (1, -1, 0)
    (adapter,) = resolve(alone)
    assert "first_tokens" not in adapter.offers
    with pytest.raises(Unsupported, match="no parameter for first_tokens"):
        adapter.call(problem.replace(first_tokens=2))


@pytest.mark.parametrize(
    ("parameter", "pair", "count"),
    [
        ("window_size=(-1, -1)", True, "inclusive"),
        ("window_size=-1", False, ""),
        ("window: int | None = None", False, ""),
        ("window: 'tuple[int, int] | None' = None", True, "inclusive"),
        ("window_left=-1", False, "inclusive"),
        ("sliding_window=None", False, "total"),
        ("sliding_window_size=None", False, ""),
    ],
)
def test_what_a_parameter_counts(parameter: str, pair: bool, count: str) -> None:
    found = said(f"q, k, v, {parameter}")
    assert found is not None
    assert (found.pair, found.count) == (pair, count)


def test_a_window_that_is_on_by_default_is_turned_off() -> None:
    def attend(q, k, v, causal=False, sliding_window=4):
        return q, sliding_window

    (adapter,) = resolve(attend)
    call = adapter.call(shaped(5, 5, causal=True))
    assert call.arguments["sliding_window"] is None


class Kernel:
    """One number, counted in one way, beside causal; the alignment is bottom-right."""

    def __init__(self, extra: int) -> None:
        self.extra = extra

    def __call__(self, q, k, v, causal, window):
        i, j = q.shape[2], k.shape[2]
        sides = (-1 if window is None else window - self.extra, 0 if causal else -1)
        shown = windowed.band(i, j, sides, j - i)
        if window is not None and sides[0] < 0:
            shown &= False
        s = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~shown, -torch.inf)
        return torch.nan_to_num(s.softmax(-1), 0.0) @ v


def of_one_number(name: str, extra: int) -> Any:
    kernel = Kernel(extra)
    scope: dict[str, Any] = {"kernel": kernel, "__name__": __name__}
    exec(f"def attend(q, k, v, causal=False, {name}: int | None = None): return kernel(q, k, v, causal, {name})", scope)
    return scope["attend"]


@pytest.mark.parametrize(
    ("name", "extra", "count", "how"),
    [
        ("sliding_window", 1, "total", "promised"),
        ("window_left", 0, "inclusive", "promised"),
        ("window_size", 1, "total", "observed"),
        ("window_size", 0, "inclusive", "observed"),
    ],
)
def test_the_count_is_promised_or_seen(name: str, extra: int, count: str, how: str) -> None:
    (adapter,) = resolve(of_one_number(name, extra))
    assert {"window", "causal"} <= set(adapter.offers)
    assert "window_right" not in adapter.offers
    subject = meet(adapter, "cpu", {}, None, ("float32",))
    assert subject.dialect.window_count == count
    assert subject.sources["window_count"].startswith(how)


def test_the_count_of_two_numbers_is_seen() -> None:
    """A kernel whose two numbers count its own key, behind an adapter that promises nothing."""
    for count, (left, right) in {"inclusive": (0, 0), "total": (1, 1), "exclusive": (1, 0)}.items():

        class Counting(Adapter):
            def attend(self, q, k, v, *, window=None, off=(left, right)):
                sides = (-1, -1) if window is None else tuple(-1 if x is None else x - y for x, y in zip(window, off, strict=True))
                return windowed.honest(q, k, v, window_size=sides)

        adapter = Counting()
        assert {"window", "window_right"} <= set(adapter.offers)
        assert meet(adapter, "cpu", {}, None, ("float32",)).dialect.window_count == count


# WHO IS ASKED WHAT


def test_who_offers_no_window_is_asked_what_it_was() -> None:
    class Without(Adapter):
        offers = frozenset({"mha", "causal", "backward", "mask", "key_padding"})

    cases = array("pairs", Without(), DTYPES)
    assert all(case.window == "none" for case in cases)
    subject = meet(resolve(torch.nn.functional.scaled_dot_product_attention)[0], "cpu", {}, None, ("float32",))
    assert "window_count" not in subject.sources


def test_levels_are_read_as_they_are_written() -> None:
    for level in (*WINDOW.levels, "5:7", ":0"):
        case = Case(window=level)
        assert Case.parse(case.token()) == case
        build(case)
    assert [meant(x) for x in ("none", "2:1", "2:", ":1", ":")] == [None, (2, 1), (2, None), (None, 1), (None, None)]
    for wrong in ("2", "-1:0", "a:b", "1:2:3"):
        with pytest.raises(ValueError, match="window can't be"):
            Case.parse(f"window={wrong}")
    assert "window" in inspect.signature(Case).parameters


# MISTAKES


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_canonical_mistake_of_a_window_is_shown(dtype: str) -> None:
    """By at least four problems of the smaller array in each dtype, in the class that it must hold.

    Of first tokens by two: they have 33 rows, in many of which no window has a limit before the query that hides one.
    """
    adapter = resolve(windowed.honest)[0]
    canonical = {name for name, one in MISTAKES.mistakes.items() if not one.special}
    shown = dict.fromkeys(canonical - {"window_count_inclusive"}, 0)  # which is right
    for case in array("pairs", adapter, (dtype,)):
        if case.window == "none" or case.wrt == "none":
            continue
        problem = build(case)
        exact = solve(problem, TOP_LEFT)
        for name in shown:
            wrong = MISTAKES.mistakes[name].wrong(problem, TOP_LEFT, exact)
            shown[name] += wrong is not None and multiple(wrong, exact, "C" if dtype in HALF else "A") > 1
    assert {name: n for name, n in shown.items() if n < (2 if name.startswith("first_tokens") else 4)} == {}


@pytest.mark.parametrize("causal", [False, True])
def test_each_mistake_of_a_window_can_show(causal: bool) -> None:
    """None of them is another name of the right answer, and each gives what has the form of one."""
    left = set(MISTAKES.mistakes)
    for dialect in (TOP_LEFT, Dialect(), Dialect(window_count="total")):
        for token in (*EACH, "i=140,window=2:1", "i=140,window=135:"):
            problem = build(Case.parse(token + (",causal=True" if causal else "")))
            exact = solve(problem, dialect)
            for name, one in MISTAKES.mistakes.items():
                wrong = one.wrong(problem, dialect, exact)
                left -= {name} if wrong is not None and multiple(wrong, exact, "A") > 1 else set()
    of_causal = {name for name in left if "causal" in name}
    of_right_end = {"window_right_one_more", "window_right_ignored", "window_right_on_both_sides"}
    of_right_end |= {name for name in MISTAKES.mistakes if name.startswith("window_ends_early") or "right_end" in name}
    assert left <= of_causal | (of_right_end if causal else set())


EACH = (
    "i=9,window=2:1",
    "i=40,window=3:",
    "i=9,j=3,window=:4",
    "i=3,j=9,window=9:9",
    "i=3,j=9,window=1:,mask=padding",
    "i=70,window=3:0,mask=padding,bias=ij",
    "i=1,j=20,window=2:0",
    "i=9,window=0:0",
    "i=9,j=3,window=5:1",
    "i=9,window=:0",
    "i=40,window=1:,first_tokens=4",
    "i=9,window=1:1,first_tokens=4,mask=bhij",
)


def test_a_kernel_that_counts_otherwise_than_it_promises_is_told_how() -> None:
    """The failure says which count the answers are exactly those of, and how to declare it."""
    kernel = of_one_number("window_left", 1)  # promised to be inclusive
    result = check(kernel, clauses="WINDOW-2", dtypes="float32", search=False, isolate=False)
    assert "WINDOW-2" in result.broken
    assert "window_count=" in str(result)
