"""The cases: the arrays cover what they claim, what is not offered is fitted away, and a run says what it covered."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields, replace
from itertools import combinations, product
from pathlib import Path

import honest
import numpy as np
import pytest
from judging import judge
from situations import Everything

from attnspec.adapters import Adapter, Answer, resolve
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.conformance import check
from attnspec.conformance.problems import array as arrays
from attnspec.conformance.problems import extension
from attnspec.conformance.problems.array import array, core_rows
from attnspec.conformance.problems.arrays import make
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.coverage import Space, share_in_words
from attnspec.conformance.problems.extension import CARRIED, EXTENSIONS, Arrays, Extension
from attnspec.conformance.problems.factors import ALIKE, COST, LEVELS, NOT_DENSE, alike, level_of
from attnspec.conformance.problems.fit import SQUARE, decodes, fit
from attnspec.conformance.problems.reduce import descend, simpler, stripped
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing import clause as clauses
from attnspec.spec import Problem
from attnspec.spec.words import FEATURES

DTYPES = LEVELS["dtype"]


class Nothing(Adapter):
    """Offers multi-head attention without gradients, and nothing else."""

    offers = frozenset({"mha"})


class Carrying(Adapter):
    """Offers all that there is, calls of many sequences too."""

    offers = frozenset(FEATURES)


class Padding(Adapter):
    """What the Attend modules offer: key padding and causal."""

    offers = frozenset({"mha", "shared_kv", "strided", "key_padding", "causal", "backward"})


class Grouped(Adapter):
    """A decode kernel: groups of heads, a few widths, and a scale."""

    offers = frozenset({"mha", "gqa", "mqa", "scale", "causal", "value_width"})
    widths = (64, 128)


class OneWidth(Adapter):
    """Takes one width, which is none of the arrays'."""

    offers = frozenset({"mha", "shared_kv", "mask", "bias", "bias_grad", "backward"})
    widths = (72,)


# COVERING ARRAYS


@pytest.mark.parametrize(("name", "strength"), [("pairs", 2), ("triples", 3)])
def test_the_arrays_cover_what_they_claim(name: str, strength: int) -> None:
    """Every combination of levels of any two, or three, factors stands in some row, but where one makes no sense."""
    rows = core_rows(name)
    columns = {factor: [str(level_of(factor, getattr(case, factor))) for case in rows] for factor in LEVELS}
    missing = []
    for factors in combinations(LEVELS, strength):
        held = set(zip(*(columns[factor] for factor in factors), strict=True))
        every = set(product(*([str(level) for level in LEVELS[factor]] for factor in factors)))
        assert held <= every
        missing += [dict(zip(factors, levels, strict=True)) for levels in every - held]
    assert [levels for levels in missing if not senseless(levels)] == []
    assert not any(senseless({factor: columns[factor][n] for factor in LEVELS}) for n in range(len(rows)))


def senseless(levels: dict[str, str]) -> bool:
    """Holes without a mask, values of a bias that is not there or its gradient, a cotangent where nothing requires grad."""
    return (
        (levels.get("mask") == "none" and levels.get("holes", "random") != "random")
        or (levels.get("bias") == "none" and (levels.get("biases", "normal") != "normal" or levels.get("wrt") == "bias"))
        or (levels.get("wrt") == "none" and levels.get("do", "dense") != "dense")
    )


# What every array must hold, whatever is offered: lengths and widths, and every form that broadcasts to (b h i j).
LENGTHS = (1, 2, 3, 5, 7, 11, 13, *(block + n for block in (16, 32, 64, 128) for n in (-1, 0, 1)), 255, 256, 257, 513)
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 40, 59, 64, 80, 96, 128, 160, 192, 256, 512)
HEADS = {"8/8", "16/16", "32/32", "8/1", "32/8", "64/8"}
FORMS = {"".join(letters) or "one" for n in range(5) for letters in combinations("bhij", n)}


@pytest.mark.parametrize("name", ["pairs", "triples"])
@pytest.mark.parametrize("adapter", [Everything(), resolve(honest.tiled)[0]], ids=lambda adapter: type(adapter).__name__)
def test_every_size_and_every_form_occurs(name: str, adapter: Adapter) -> None:
    """And in the larger array in every dtype. A length of zero has tests of its own, in every tier: SHAPE-4 and EMPTY-5."""
    some = array(name, adapter, DTYPES)
    for cases in [some] if name == "pairs" else [[case for case in some if case.dtype == dtype] for dtype in DTYPES]:
        assert {case.i for case in cases} >= set(LENGTHS)
        assert {case.keys for case in cases} >= set(LENGTHS)
        assert {case.d for case in cases} == set(WIDTHS)
        assert {case.mask for case in cases} == FORMS | {"none", "padding", "rank3"}
        assert {case.bias for case in cases} == FORMS | {"none", "rank2", "rank3"}
        assert {case.e < case.d for case in cases if case.e} == {False, True}
        assert any(case.b != case.h and min(case.b, case.h) > 1 for case in cases)
        assert {"3/3", "6/2"} | HEADS <= {case.heads for case in cases}


@pytest.mark.parametrize("name", ["pairs", "triples"])
def test_few_queries_meet_long_keys(name: str) -> None:
    """Whatever two levels, but of i and j, a problem has: it is also one of at most eight queries, and more keys.

    Each such problem that asks for gradients is also asked without; the smaller array asks for them in other problems.
    """
    cases = array(name, Everything(), DTYPES)
    few = [case for case in cases if decodes(case)]
    lengths = (33, 64, 129, 256, 513, 1024, 2049, 4096)[: 6 if name == "pairs" else 8]
    others = [factor for factor in LEVELS if factor not in (("i", "j", "wrt", "do") if name == "pairs" else ("i", "j"))]
    columns = {factor: [level_of(factor, getattr(case, factor)) for case in few] for factor in others}
    for a, b in combinations(others, 2):
        missing = set(product(LEVELS[a], LEVELS[b])) - set(zip(columns[a], columns[b], strict=True))
        assert all(senseless({a: str(x), b: str(y)}) for x, y in missing), (a, b, missing)
    for other in others:
        assert {(level_of(other, getattr(case, other)), case.j) for case in few} >= set(product(LEVELS[other], lengths))
    asked = set(cases)
    assert all(fit(replace(case, wrt="none"), Everything()) in asked for case in few)
    assert sum(case.wrt == "none" for case in few) >= len(few) / 2


def test_zero_queries_and_zero_keys_are_asked_in_every_tier() -> None:
    """By tests of their own, which make their own problems."""
    sizes: set[tuple[str, int]] = set()

    class Listening(FunctionAdapter):
        def run(self, problem: Problem) -> Answer:
            sizes.update((name, getattr(problem, name)) for name in "bhij")
            return super().run(problem)

    check(Listening(honest.tiled, "tiled", ("",)), clauses="SHAPE-4,EMPTY-5", dtypes="float32")
    assert {("b", 0), ("h", 0), ("i", 0), ("j", 0)} <= sizes


def test_a_level_stands_for_itself_first_and_a_value_for_one_level() -> None:
    for factor, levels in ALIKE.items():
        assert levels.keys() <= set(LEVELS[factor])
        assert all(values[0] == level for level, values in levels.items())
        values = [value for level in LEVELS[factor] for value in alike(factor, level)]
        assert len(set(values)) == len(values)


def test_the_factors_of_a_case_are_those_of_the_arrays() -> None:
    """In the header of the files, which `read` compares, and in Case; the first level is the default."""
    own = {name for extension in (*EXTENSIONS, *(one.about for one in CARRIED.values())) for name in extension.levels}
    assert [f.name for f in fields(Case) if f.name not in own] == [*LEVELS, "seed", "numbers"]
    assert own == {name for name, factor in FACTORS.items() if factor.array not in ("", "core")}
    for name, levels in LEVELS.items():
        assert getattr(Case(), name) == levels[0]
        assert len(set(levels)) == len(levels)


# VERSIONS AND EXTENSIONS


def test_the_arrays_of_the_core_are_frozen() -> None:
    """Neither an array nor a level that it was made of changes without a new version: it would move everybody's gate."""
    versions = make.versions()
    assert list(versions) == list(range(1, len(versions) + 1))
    assert all(frozen.keys() == make.digests().keys() for frozen in versions.values())
    assert versions[len(versions)] == make.digests(), "run make.py core: it gives the arrays their next version"


STEEP = Extension("steep", "bias", {"biases": ("normal", "steep", "shift")}, ("mask",))
TEMPERED = Extension("tempered", "scale", {"scale": (None, 2.0, 0.7)}, ("causal", "layout"))
STEEPER = Extension("steeper", "bias", {"do": ("dense", "zeros", "one_row")}, ("causal",), needs={"scale": (2.0,)})
ALONE = {one.feature: Arrays(one.name, (one,)) for one in (STEEP, TEMPERED)}
TOGETHER = Arrays("together", (STEEP, TEMPERED, STEEPER))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arrays of the core, and those of extensions."""
    folder = tmp_path_factory.mktemp("arrays")
    shutil.copytree(arrays.ARRAYS / "core", folder / "core")
    for beside in (*ALONE.values(), TOGETHER):
        make.make(beside, folder)
    return folder


@pytest.fixture
def with_extensions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that are made up of factors that a case has."""
    monkeypatch.setattr(arrays, "ARRAYS", folder)
    monkeypatch.setattr(extension, "EXTENSIONS", TOGETHER.extensions)
    for name, value in {"ALONE": ALONE, "TOGETHER": TOGETHER, "CARRIED": {}}.items():
        monkeypatch.setattr(extension, name, value)
        monkeypatch.setattr(arrays, name, value)


@pytest.mark.usefixtures("with_extensions")
@pytest.mark.parametrize("adapter", [Grouped(), Padding(), Everything()], ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("name", make.STRENGTH)
def test_extensions_are_asked_of_who_offers_them(name: str, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rows of the core, which stay what they were. Who offers none is asked what he was asked before."""
    some = array(name, adapter, DTYPES)
    monkeypatch.setattr(extension, "EXTENSIONS", ())
    core = array(name, adapter, DTYPES)
    beside = some[len(core) :]
    assert some[: len(core)] == core
    scales = {case.scale for case in beside}
    assert scales == ({2.0, 0.7} if isinstance(adapter, Grouped) else set()) or isinstance(adapter, Everything)
    assert len(some) < 1.25 * len(core)
    assert all(TOGETHER.there(vars(case)) for case in beside)


@pytest.mark.parametrize(("name", "strength"), make.STRENGTH.items())
def test_an_extension_meets_what_it_names(name: str, strength: int, folder: Path) -> None:
    """Each of its levels stands with every combination of those of the core that it names."""
    alone = ALONE["scale"]
    assert holds(arrays.read(folder / alone.name, name, alone.levels), alone, strength) == []
    rows = arrays.read(folder / alone.name, name, alone.levels)
    assert {case.i for case in rows} >= {1, 3, 17}  # what it does not name takes its levels in turn
    assert {case.scale for case in rows} == {2.0, 0.7}


@pytest.mark.parametrize(("name", "strength"), make.STRENGTH.items())
def test_extensions_meet_each_other_and_what_they_need(name: str, strength: int, folder: Path) -> None:
    rows = arrays.read(folder / "together", name, TOGETHER.levels)
    assert holds(rows, TOGETHER, strength) == []
    pairs = {(case.scale, case.biases) for case in rows}
    assert pairs >= set(product((None, 2.0, 0.7), ("normal", "steep", "shift"))) - {(None, "normal")}
    assert {case.scale for case in rows if case.do != "dense"} == {2.0}


@pytest.mark.parametrize(("name", "strength"), make.STRENGTH.items())
@pytest.mark.parametrize(
    "beside", [*extension.ALONE.values(), *extension.CARRIED.values(), extension.TOGETHER], ids=lambda beside: beside.name
)
def test_each_array_that_there_is_meets_what_it_names(beside: Arrays, name: str, strength: int) -> None:
    """All of its combinations that make sense: what is not in them nobody asks."""
    assert holds(arrays.read(arrays.ARRAYS / beside.name, name, beside.levels), beside, strength) == []


def holds(rows: tuple[Case, ...], beside: Arrays, strength: int) -> list[dict[str, object]]:
    """The combinations that make sense and that none of the rows has; each row makes sense itself."""
    everything = Carrying()
    assert all(fit(case, everything) == case for case in rows)
    missing: list[dict[str, object]] = []
    for factors in beside.meetings(strength):
        held = {tuple(level_of(f, getattr(case, f)) if f in LEVELS else getattr(case, f) for f in factors) for case in rows}
        for levels in set(product(*(beside.levels[factor] for factor in factors))) - held:
            chosen = dict(zip(factors, levels, strict=True))
            cases = [replace(case, **chosen) for case in make.hosts(beside)]  # type: ignore[arg-type]
            if beside.there(chosen) and beside.goes(chosen) and any(fit(case, everything) == case for case in cases):
                missing.append(chosen)
    return missing


# COVERAGE

FITTED = pytest.mark.parametrize(
    "adapter",
    [Everything(), Nothing(), Padding(), Grouped(), OneWidth(), resolve(honest.tiled)[0]],
    ids=lambda adapter: type(adapter).__name__,
)


@FITTED
@pytest.mark.parametrize("dtypes", [DTYPES, ("float32", "bfloat16")], ids=len)
@pytest.mark.parametrize(("name", "strength"), [("pairs", 2), ("triples", 3)])
def test_every_combination_of_offered_levels_is_still_there(
    name: str, strength: int, adapter: Adapter, dtypes: tuple[str, ...]
) -> None:
    """What is not offered becomes something that is, and no combination of what is offered is lost by it."""
    some = array(name, adapter, dtypes)
    assert len(some) == len(set(some))
    assert all(fit(case, adapter) == case for case in some)
    held, possible = Space.of(adapter, dtypes).reached(some, strength)
    assert held == possible


@FITTED
@pytest.mark.parametrize("strength", [2, 3])
def test_what_can_be_asked_is_counted_right(strength: int, adapter: Adapter) -> None:
    """Nothing that is asked is taken for impossible, and what is taken for possible can be asked."""
    space, rng = Space.of(adapter, DTYPES), np.random.default_rng(strength)
    names = list(LEVELS)
    for _ in range(400):
        levels = {name: LEVELS[name][rng.integers(len(LEVELS[name]))] for name in LEVELS}
        if adapter.widths is not None:
            levels["d"] = list(adapter.widths)[rng.integers(len(list(adapter.widths)))]
        case = fit(Case(**levels), adapter)
        factors = tuple(names[n] for n in sorted(rng.choice(len(names), strength, replace=False)))
        at = tuple(space.levels[name].index(level_of(name, getattr(case, name))) for name in factors)
        assert space.possible(factors)[at], (factors, case)
    offers_all = Space.of(Everything(), DTYPES)
    for _ in range(400):
        factors = tuple(names[n] for n in sorted(rng.choice(len(names), strength, replace=False)))
        possible = space.possible(factors)
        at = tuple(rng.choice(np.argwhere(possible)))
        wanted = {name: space.levels[name][n] for name, n in zip(factors, at, strict=True)}
        if adapter.widths is not None:
            wanted.pop("d", None)  # levels of widths are asked by other values of theirs
        freest = Case(
            mask=next((x for x in space.levels["mask"] if x != "none"), "none"),
            bias=next((x for x in space.levels["bias"] if x != "none"), "none"),
            dtype="float32",
        )
        case = fit(replace(freest, **wanted), adapter)
        assert {name: getattr(case, name) for name in wanted} == wanted
        assert offers_all.possible(factors).sum() >= possible.sum()


def test_coverage_is_counted_one_by_one() -> None:
    """Beside a count with sets of tuples; a size that belongs to no level counts for nothing."""
    some = array("pairs", Everything(), DTYPES)[:40]
    space = Space.of(Everything(), DTYPES)
    for strength in (1, 2, 3):
        held = {
            tuple((name, level_of(name, getattr(case, name))) for name in factors)
            for factors in combinations(LEVELS, strength)
            for case in some
        }
        assert space.reached(some, strength)[0] == len(held)
    assert space.reached([], 2)[0] == 0
    assert space.reached([Case(j=77)], 1)[0] == len(LEVELS) - 1
    assert share_in_words(7, 7, "pairs") == "all 7 pairs"
    assert share_in_words(999_999, 1_000_000, "pairs") == "999999 of 1000000 pairs (99.9 %)"


def test_a_run_says_what_it_covered() -> None:
    """Of what was asked, not of the array: a clause that asks only causal problems covers no other."""
    whole, part = judge("sdpa-math", "--impl-dtypes=float32"), judge("sdpa-math", "--impl-dtypes=float32", "--clauses=CAUSAL-1")
    (said_whole,) = [x for x in whole.screen.splitlines() if x.startswith("  covered")]
    (said_part,) = [x for x in part.screen.splitlines() if x.startswith("  covered")]
    pairs, triples = r"all \d+ pairs", r"\d+ of \d+ triples \(\d+\.\d %\)"
    assert re.fullmatch(rf"  covered +{pairs} and {triples} of the levels .*, in \d+ problems", said_whole)
    assert re.fullmatch(r"  covered +\d+ of \d+ pairs \(\d+\.\d %\) and .*", said_part)
    assert {case.causal for case in part.run.subjects[0].compared} == {True}


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
        ("colour=red", r"unknown factor 'colour'; choose from dtype, heads"),
        ("mask=diagonal", r"mask can't be 'diagonal'; it can be none, padding"),
        ("causal=yes", r"causal can't be 'yes'; it can be False, True"),
        ("i=many", "i can't be 'many'; it is a whole number"),
        ("i=0", "i can't be 0; it is at least 1"),
        ("i=99999999999", "i can't be '99999999999'; it is a whole number below"),
        ("i=100000,j=1000000", "a case of 1e.11 elements in q, k, v and the scores is too large"),
        ("i=3,j=4,i=5", "i is given twice; give it once"),
        ("scale=big", "scale can't be 'big'; it is a finite number, such as 0.3"),
        ("scale=nan", "scale can't be 'nan'"),
        ("scale=-inf", "scale can't be '-inf'"),
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


def test_a_reduction_asks_for_nothing_that_costs_more() -> None:
    """j = 0 is as many keys as queries: of 4096 queries against two keys that is no simplification, but 8 GB an array."""
    case, asked = Case(heads="64/8", i=4096, j=2, mask="ij"), []

    def fails(trial: Case) -> bool:
        asked.append(trial)
        return len(asked) < 4 and trial.heads == case.heads

    descend(case, Everything(), fails)
    stripped(case, Everything(), lambda trial: bool(asked.append(trial)))
    assert asked
    assert max(trial.cost for trial in asked) <= max(case.cost, COST)


class Square(Everything):
    """Takes as many keys as queries only."""

    restrictions = ("equal_lengths",)


@pytest.mark.parametrize("adapter", [Everything(), Square(), Grouped()], ids=lambda adapter: type(adapter).__name__)
def test_no_test_makes_a_problem_large(adapter: Adapter) -> None:
    """As many keys as queries: of 4096 queries, the scores of 24 heads alone were 3 GB."""
    subject, grown = Subject(adapter), 0
    long = [row for row in array("triples", adapter, DTYPES) if max(row.i, row.keys) >= 256]
    for row in core_rows("triples") if adapter.widths is None else ():
        assert fit(row, adapter).cost <= max(SQUARE, row.cost)
    for test in clauses.tests_of(()):
        for row in long if test.plan.like else ():
            case = test.plan.narrow(row, subject)
            assert case is None or case.cost <= max(SQUARE, row.cost), (test.__name__, row.token())
            grown += case is not None and replace(row, **dict(test.plan.like)).cost > max(SQUARE, row.cost)
    assert grown >= 20 or adapter.restrictions or adapter.widths  # where nobody asks for it, nothing is shown


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
        assert problem.differentiated == (problem.wrt != ())
