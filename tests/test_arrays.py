"""The cases: the arrays cover what they claim, what is not offered is fitted away, the search finds what matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import combinations

import honest
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from attnspec.adapters import FEATURES, Adapter, resolve
from attnspec.conformance.case import LEVELS, NOT_DENSE, OPEN_SIZES, Case, _rows, array, cases, fit, simpler
from attnspec.conformance.tensors import build
from attnspec.reference import solve
from attnspec.spec import CANONICAL, Problem

DTYPES = LEVELS["dtype"]


class Everything(Adapter):
    """Offers all that there is."""

    offers = frozenset(FEATURES)


class Nothing(Adapter):
    """Offers multi-head attention without gradients, and nothing else."""

    offers = frozenset({"mha"})


class Padding(Adapter):
    """What the Attend modules offer: key padding and causal."""

    offers = frozenset({"mha", "shared_kv", "strided", "key_padding", "causal", "backward"})


class Grouped(Adapter):
    """A decode kernel: groups of heads, a few widths, and a scale."""

    offers = frozenset({"mha", "gqa", "mqa", "scale", "causal", "value_width"})
    widths = (64, 128)


# COVERING ARRAYS


@pytest.mark.parametrize(("name", "strength"), [("pairs", 2), ("triples", 3)])
def test_the_arrays_cover_what_they_claim(name: str, strength: int) -> None:
    """Every combination of levels of any two, or three, factors stands in some row."""
    rows, sizes = np.array(_rows(name)), [len(levels) for levels in LEVELS.values()]
    assert rows.shape[1] == len(LEVELS)
    assert (rows >= 0).all()
    assert (rows < sizes).all()
    missing = []
    for columns in combinations(range(len(sizes)), strength):
        of = [sizes[n] for n in columns]
        code = np.ravel_multi_index(tuple(rows[:, n] for n in columns), of)
        if len(np.unique(code)) != np.prod(of):
            missing.append([list(LEVELS)[n] for n in columns])
    assert missing == []


def test_the_factors_of_a_case_are_those_of_the_arrays() -> None:
    """In the header of the files, which `_rows` compares, and in Case; the first level is the default."""
    assert [f.name for f in fields(Case)] == [*LEVELS, "seed"]
    for name, levels in LEVELS.items():
        assert getattr(Case(), name) == levels[0]
        assert len(set(levels)) == len(levels)


@pytest.mark.parametrize(
    "adapter", [Everything(), Nothing(), Padding(), Grouped(), resolve(honest.tiled)[0]], ids=lambda adapter: type(adapter).__name__
)
def test_every_pair_of_offered_levels_is_still_there(adapter: Adapter) -> None:
    """Of the factors that do not depend on each other: what is not offered becomes something that is."""
    some = array("pairs", adapter, DTYPES)
    assert len(some) == len(set(some))
    assert all(fit(case, adapter) == case for case in some)
    factors = ["dtype", "b", "i", "j", "causal", "scale", "values", "mask", "heads", "bias", "layout", "d", "wrt"]
    biased = Case(bias="bhij")
    offered = {name: {getattr(fit(replace(biased, **{name: level}), adapter), name) for level in LEVELS[name]} for name in factors}
    missing = []
    for one, two in combinations(factors, 2):
        seen = {(getattr(case, one), getattr(case, two)) for case in some}
        expected = {(x, y) for x in offered[one] for y in offered[two] if not impossible({one: x, two: y})}
        missing += [(one, two, *pair) for pair in expected - seen]
    assert missing == []


def impossible(levels: dict[str, object]) -> bool:
    """The gradient of a bias that is not there."""
    return levels.get("wrt") == "bias" and levels.get("bias") == "none"


@pytest.mark.parametrize("adapter", [Nothing(), Padding(), Grouped()], ids=lambda adapter: type(adapter).__name__)
def test_nothing_is_asked_that_is_not_offered(adapter: Adapter) -> None:
    for case in array("triples", adapter, DTYPES):
        offers = set(adapter.offers)
        assert case.sharing in offers
        assert case.mask == "none" or ("key_padding" if case.mask == "padding" else "mask") in offers
        assert case.bias == "none" or "bias" in offers
        assert not case.causal or "causal" in offers
        assert case.scale is None or "scale" in offers
        assert case.wrt == "none" or "backward" in offers
        assert case.e == 0 or "value_width" in offers
        assert case.layout not in NOT_DENSE or "strided" in offers
        assert adapter.widths is None or case.d in adapter.widths


def test_an_array_keeps_to_the_dtypes_of_the_run() -> None:
    assert {case.dtype for case in array("pairs", Everything(), ("float64",))} == {"float64"}


# TOKENS


def test_a_case_is_read_from_its_token() -> None:
    for case in array("pairs", Everything(), DTYPES):
        assert Case.parse(case.token()) == case
    assert Case().token() == "simplest"
    assert Case.parse("simplest") == Case()
    assert Case.parse("i=1000,scale=0.125,seed=7") == Case(i=1000, scale=0.125, seed=7)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("colour=red", r"no factor is called 'colour'; there are dtype, heads"),
        ("mask=diagonal", r"mask can't be 'diagonal'; it can be none, padding"),
        ("causal=yes", r"causal can't be 'yes'; it can be False, True"),
        ("i=many", "many"),
        ("scale=big", "big"),
    ],
)
def test_a_token_that_says_nothing_is_refused(token: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case.parse(token)


def test_a_reduction_ends() -> None:
    """Whatever a case is made simpler by, one step after the other, ends at a case that cannot be made simpler."""
    for case in array("pairs", Everything(), DTYPES):
        steps = 0
        while options := list(simpler(case)):
            assert case not in options
            case, steps = options[steps % len(options)], steps + 1
            assert steps < 200


# TENSORS


def test_every_case_can_be_built() -> None:
    """In the dtype and the sizes that it says, with finite numbers, the same each time."""
    for case in array("pairs", Everything(), DTYPES):
        problem, again = build(case), build(case)
        assert str(problem.dtype) == f"torch.{case.dtype}"
        assert (problem.b, problem.h, problem.i, problem.j, problem.d, problem.e) == (
            case.b,
            case.h,
            case.i,
            case.keys,
            case.d,
            case.width,
        )
        assert problem.shared == (case.g is None)
        assert all(x.isfinite().all() for x in (problem.q, problem.k, problem.v))
        assert problem.to_bytes() == again.to_bytes()
        assert (problem.do is None) == (problem.wrt == ())


# SEARCH

# What the search must be able to draw, and in at least which share of its draws, in percent.
DISCOVERIES: dict[str, tuple[float, Callable[[Case, Problem], bool]]] = {
    "a row without a key": (5, lambda case, x: bool(solve(x, CANONICAL).empty.any())),
    "a row without a key beside one with": (4, lambda case, x: 0 < solve(x, CANONICAL).empty.mean() < 1),
    "more queries than keys": (20, lambda case, x: x.i > x.j),
    "fewer queries than keys": (20, lambda case, x: x.i < x.j),
    "causal with other lengths": (20, lambda case, x: x.causal and x.i != x.j),
    "a single query": (2, lambda case, x: x.i == 1),
    "a stride of zero": (5, lambda case, x: any(0 in t.stride() for t in (x.k, x.v) if t.numel() > 1)),
    "a last dimension that is not dense": (10, lambda case, x: x.d > 1 and x.q.stride(-1) != 1),
    "an offset": (8, lambda case, x: x.k.storage_offset() > 0),
    "a bias of minus infinity": (5, lambda case, x: x.bias is not None and bool((x.bias == -np.inf).any())),
    "a score beyond 88": (1.5, lambda case, x: beyond(x, 88)),
    "a score below -88": (10, lambda case, x: beyond(x, -88)),
    "one visible key": (8, lambda case, x: bool((solve(x, CANONICAL).forward.visible.sum(-1) == 1).any())),
    "groups of heads, unlike the batch": (10, lambda case, x: x.g > 1 and x.g != x.h != x.b),
    "a mask and causal": (15, lambda case, x: x.causal and x.mask is not None),
    "a mask and a bias": (30, lambda case, x: x.mask is not None and x.bias is not None),
    "a width that is no multiple of eight": (15, lambda case, x: x.d % 8 > 0),
    "a length one past a block": (5, lambda case, x: x.j > 16 and x.j % 16 == 1),
    "values of another width": (20, lambda case, x: x.e != x.d),
    "more than 128 keys": (3, lambda case, x: x.j > 128),
}


def beyond(problem: Problem, limit: int) -> bool:
    f = solve(problem.replace(do=None, wrt=()), CANONICAL).forward
    return bool((f.s[f.visible] / limit > 1).any())


@pytest.fixture(scope="module")
def searched() -> list[tuple[Case, Problem]]:
    """Three hundred draws with a fixed seed."""
    drawn: list[Case] = []

    @seed(1)
    @settings(max_examples=300, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=cases(Everything(), "float32"))
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return [(case, build(case)) for case in drawn]


@pytest.mark.parametrize("what", DISCOVERIES)
def test_the_search_draws_what_matters(what: str, searched: list[tuple[Case, Problem]]) -> None:
    least, shows = DISCOVERIES[what]
    assert len(searched) >= 250
    share = 100 * np.mean([shows(case, problem) for case, problem in searched])
    assert share >= least, f"{share:.1f} % of {len(searched)} draws"


def test_the_search_draws_every_level(searched: list[tuple[Case, Problem]]) -> None:
    for name in LEVELS.keys() - {*OPEN_SIZES, "dtype"}:
        assert {getattr(case, name) for case, _ in searched} == set(LEVELS[name]), name
