"""The suite's own problems show canonical mistakes, none is blind, and few of their elements are exempt."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_sink
import torch
from mutants.base import load
from random_problems import draw
from threads import one_thread  # noqa: F401  a fixture

from attnspec.adapters import Adapter, resolve
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.alibi import ALIBI
from attnspec.conformance.mistakes.kernel import Kernel
from attnspec.conformance.mistakes.lse import LSE
from attnspec.conformance.mistakes.position import POSITION
from attnspec.conformance.mistakes.power import multiple, power
from attnspec.conformance.mistakes.sink import SINK
from attnspec.conformance.mistakes.softcap import SOFTCAP
from attnspec.conformance.mistakes.vocabulary import MISTAKES, OF_SEQUENCES
from attnspec.conformance.mistakes.window import WINDOW
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import TOGETHER
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import Exact, default_class, solve, to_float64
from attnspec.spec import CANONICAL, CHOICES, Dialect, Problem
from attnspec.spec.words import FEATURES

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
TORCH = Dialect(causal_alignment="top_left")
Found = list[tuple[Case, dict[str, float]]]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # wrong answers overflow


class Padding(Adapter):
    """What the Attend modules offer."""

    offers = frozenset({"mha", "shared_kv", "strided", "key_padding", "causal", "backward"})


class Everything(Adapter):
    """Offers all that there is."""

    offers = frozenset(FEATURES)


FITTED: dict[str, tuple[Adapter, Dialect]] = {"sdpa-math": (resolve("sdpa-math")[0], TORCH), "padding": (Padding(), CANONICAL)}


def powers(name: str, fitted: str, every: int = 1) -> Found:
    """The power of every problem of an array in its default class."""
    adapter, dialect = FITTED[fitted]
    return [(case, powers_of(case, dialect)) for case in array(name, adapter, DTYPES)[::every]]


def powers_of(case: Case, dialect: Dialect) -> dict[str, float]:
    problem = build(case)
    return power(problem, solve(problem, dialect), default_class(case.dtype))


@pytest.fixture(scope="module")
def triples() -> Found:
    return powers("triples", "sdpa-math", every=3)


# NO BLIND PROBLEMS


@pytest.mark.parametrize("fitted", FITTED)
@pytest.mark.parametrize(("name", "every"), [("pairs", 1), ("triples", 5)])
def test_every_problem_shows_more_than_coarse_mistakes(name: str, every: int, fitted: str) -> None:
    for case, found in powers(name, fitted, every):
        shown = {mistake for mistake, times in found.items() if times > 1}
        assert any(not MISTAKES[mistake].coarse for mistake in shown), case.token()


@pytest.mark.parametrize("fitted", FITTED)
def test_scores_matter_in_most_problems(fitted: str) -> None:
    """Where some query sees two keys and the scale is not 0; four of five problems are such."""
    some = [found["scores_ignored"] > 1 for _, found in powers("pairs", fitted)]
    assert np.mean(some) >= 0.75


@pytest.mark.parametrize("name", ["pairs", "triples"])
@pytest.mark.parametrize("fitted", FITTED)
def test_some_query_sees_two_keys_wherever_it_can(name: str, fitted: str) -> None:
    """But where −∞ in the bias hides keys, too, in small problems."""
    adapter, dialect = FITTED[fitted]
    for case in array(name, adapter, DTYPES):
        one_key = case.keys == 1 or (case.causal and case.i == 1 and dialect.causal_alignment == "top_left")
        if not one_key and case.biases != "inf":
            visible = Kernel(build(replace(case, wrt="none")), dialect).allowed
            assert (visible.sum(-1) > 1).any(), case.token()


# EVERY MISTAKE IS SHOWN

# The share of the problems to which a mistake applies that show it, at least, in each dtype (a third of them is looked at: a
# smaller share is one that chance gives in less than one case of a hundred); others, where the class allows
# rounding that is nearly as large: a scale rounded by a class C kernel, and sums of many terms in bfloat16.
LEAST = 0.4
LESS: dict[str, float] = {
    "scale_off": 0.0,
    "key_tail_not_in_dq": 0.15,
    "query_tail_not_in_dk": 0.3,
    "dbias_averaged": 0.2,
    "dbias_of_first": 0.3,
}
NEVER = {"empty_row_zero"}  # it is what torch promises
RARE = {"mask_by_item", "bias_inf_finite"}  # in few problems of a dtype, if any; in some of the whole array


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_mistake_is_shown(dtype: str, triples: Found) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    for case, found in triples:
        for mistake, multiple_ in found.items():
            if case.dtype == dtype:
                times[mistake].append(multiple_)
    # Of an option that these implementations do not offer its own tests say it.
    own = SOFTCAP.mistakes | WINDOW.mistakes | LSE.mistakes | ALIBI.mistakes | SINK.mistakes | POSITION.mistakes | OF_SEQUENCES
    canonical = {name for name, mistake in MISTAKES.items() if not mistake.special and name not in own}
    assert canonical - times.keys() - RARE == NEVER
    short = {}
    for mistake, x in times.items():
        least = LESS.get(mistake, LEAST) if dtype in HALF else LEAST
        n, shown = len(x), int((np.array(x) > 1).sum())
        if sum(comb(n, k) * least**k * (1 - least) ** (n - k) for k in range(shown + 1)) < 0.01:
            short[mistake] = f"{shown} of {n}"
    assert short == {}


@pytest.mark.parametrize("mistake", sorted(RARE))
def test_a_rare_mistake_is_shown(mistake: str) -> None:
    adapter, dialect = FITTED["sdpa-math"]
    some = (case for case in array("triples", adapter, DTYPES) if case.biases == "inf" or case.mask == "bij")
    assert any(powers_of(case, dialect).get(mistake, 0.0) > 1 for case in some)


@pytest.mark.parametrize("dtype", HALF)
def test_a_finer_class_shows_more(dtype: str) -> None:
    """And a scale that is off by 0.1 %, which class C may round away, shows in class A."""
    off = []
    for case in array("pairs", FITTED["sdpa-math"][0], (dtype,))[::4]:
        problem = build(case)
        exact = solve(problem, TORCH)
        coarse, middle, fine = (power(problem, exact, class_) for class_ in "CBA")
        assert coarse.keys() == middle.keys() == fine.keys()
        assert all(max(coarse[name], middle[name]) <= fine[name] for name in fine)
        off += [fine["scale_off"] > 1] if "scale_off" in fine else []
    assert np.mean(off) > 0.3


# MISTAKES ARE WHAT THEY SAY


def test_the_right_answer_has_no_power() -> None:
    """Neither the reference's nor that of a kernel whose steps are all as they should be. Of many sequences each has its own."""
    for case in array("pairs", Everything(), DTYPES):
        problem = build(replace(case, carrier="none"))
        for dialect in (TORCH, Dialect(empty_row="uniform", head_grouping="strided")):
            exact, kernel = solve(problem, dialect), Kernel(problem, dialect)
            assert multiple(dict(exact.values), exact, "A") == 0
            assert multiple(kernel.with_weights(kernel.p), exact, "A") < 0.5
            assert multiple(kernel.of_scores(kernel.ds) if problem.differentiated else {}, exact, "A") < 0.5


def test_mistakes_have_the_shapes_of_the_answer() -> None:
    """For every form of problem, also with sizes of zero and shared tensors."""
    rng = np.random.default_rng(3)
    drawn = [draw(rng).problem.replace(dropout=0.0, training=False) for _ in range(150)]
    cases = [build(case) for n, case in enumerate(array("pairs", Everything(), DTYPES)) if n % 3 == 0 or TOGETHER.there(vars(case))]
    q = torch.randn(1, 2, 17, 3, generator=torch.Generator().manual_seed(1))
    twice = Problem(q, q, q, causal=True, do=torch.ones_like(q), wrt=("q", "k", "v"))
    # Longer than the blocks of all special cases, and mask and bias as parts of larger tensors.
    rest = torch.randn(1, 1, 601, 601, generator=torch.Generator().manual_seed(2))[..., 1:, 1:]
    x = torch.randn(1, 1, 600, 2, generator=torch.Generator().manual_seed(3))
    long = Problem(x, x.clone(), x.clone(), mask=(rest > 0), bias=rest, causal=True, do=x.clone(), wrt=("q", "bias"))
    masked = Problem(x, x.clone(), x.clone(), mask=(torch.arange(601 * 601).reshape(601, 601) % 3 > 0)[None, 1:, 1:])
    applied = set()
    windowed = Problem(x, x.clone(), x.clone(), window=(200, 100), do=x.clone(), wrt=("q",))
    sunk = [build(Case.parse(token)) for token in test_sink.EACH]
    sunk.append(sunk[-1].replace(sinks=sunk[-1].sinks * 5))
    slopes = ("heads=2/2,b=2,i=4,j=7,alibi_slopes=h", "heads=2/2,b=2,i=4,j=7,alibi_slopes=h,q_start=each")
    placed = [build(Case.parse(token)) for token in (*slopes, "i=1,j=9,causal=True,q_start=3")]
    sloped = windowed.replace(window=None, alibi_slopes=torch.ones(1), wrt=("alibi_slopes",))
    for n, problem in enumerate([*drawn, *cases, twice, long, masked, windowed, *sunk, *3 * [sloped, *placed]]):
        dialect = Dialect(*(choice.values[n % len(choice.values)] for choice in CHOICES.values()))
        exact = solve(problem, dialect)
        for mistake in MISTAKES.values():
            wrong = mistake.wrong(problem, dialect, exact)
            applied |= {mistake.name} if wrong is not None else set()
            for name, value in (wrong or {}).items():
                assert value.shape == exact.values[name].shape, (mistake.name, name, n)
        assert not any(np.isnan(times) for times in power(problem, exact, "A").values())
    # Those of many sequences have problems of their own: tests/test_ragged_diagnosis.py.
    assert {name for name in MISTAKES if not name.startswith("dropout_")} - applied - OF_SEQUENCES.keys() == set()


# The mistake, the mutant that makes it, and the levels with which it makes nothing else: torch's convention
# merges mask, bias and causal where there is more than one.
SAME: list[tuple[str, str, dict[str, Any]]] = [
    ("tail_of_16_dropped", "tail_of_16_keys_dropped", {"causal": False}),
    ("scale_of_model", "scale_from_model_width", {}),
    ("scale_ignored", "scale_ignored", {}),
    ("bias_scaled", "bias_scaled", {}),
    ("mask_inverted", "mask_inverted", {"bias": "none", "causal": False}),
    ("mask_as_lengths", "mask_as_prefix_length", {"bias": "none", "causal": False}),
    ("mask_by_item", "rank_3_mask_per_batch_item", {"bias": "none", "causal": False, "mask": "rank3", "b": 3, "heads": "3/3"}),
    ("causal_one_less", "causal_off_by_one", {"mask": "none", "bias": "none"}),
    ("causal_corner", "causal_bottom_right", {"mask": "none", "bias": "none"}),
    ("head_map", "heads_interleaved", {}),
    ("maximum_missing", "softmax_without_maximum", {"wrt": "none"}),
    ("maximum_from_zero", "softmax_maximum_starts_at_zero", {"wrt": "none"}),
    ("delta_missing", "gradient_without_delta", {}),
    ("dbias_averaged", "bias_gradient_averaged", {"mask": "none", "causal": False, "wrt": "bias"}),
    ("strides_of_k", "key_read_without_strides", {}),
    ("strides_of_do", "cotangent_read_without_strides", {}),
]


@pytest.mark.parametrize(("mistake", "fault", "like"), SAME, ids=lambda x: x if isinstance(x, str) else "")
def test_a_mistake_is_what_a_mutant_gives(mistake: str, fault: str, like: dict[str, Any]) -> None:
    """In float64 the two agree, and where there is no mistake to make the kernel is right.

    Not where the bias is the dtype's lowest number: what is left of a score beside it depends on the order of operations.
    """
    adapter = FunctionAdapter(load()[fault].make(), fault, ("",))
    differ = 0
    for row in array("triples", adapter, ("float64",))[::3]:
        case = fit(replace(row, **like), adapter)
        if case.biases == "lowest" or differ == 20:
            continue
        problem = build(case)
        exact = solve(problem, TORCH)
        answer, wrong = adapter.run(problem), MISTAKES[mistake].wrong(problem, TORCH, exact)
        assert answer.refusal is None
        if wrong is None:
            if "strides" not in mistake:  # beyond the end of the memory there is nothing that both would read
                assert not judge(answer, exact, "A").findings, case.token()
            continue
        differ += multiple(wrong, exact, "A") > 1
        for name, got in (("o", answer.o), *answer.gradients.items()):
            assert agree(to_float64(got), wrong.get(name, exact.values[name]), exact, name), (case.token(), name)
    assert differ == 20


def agree(got: np.ndarray, expected: np.ndarray, exact: Exact, name: str) -> bool:
    """A million times closer to each other than the mistake is to the right answer, but for what class A rounds.

    The mistake's own gradient may be zero where the right one is not: 1e-11 is what rounding leaves there in float64.
    """
    right, bound = exact.values[name], exact.tolerance("A").bound[name]
    far = np.abs(expected - right)
    near = 2 * bound + 1e-11 + 1e-6 * far.max(initial=0.0, where=np.isfinite(far))
    with np.errstate(invalid="ignore"):
        return bool(((got == expected) | (np.isnan(got) & np.isnan(expected)) | (np.abs(got - expected) <= near)).all())


# EXEMPT ELEMENTS


@pytest.mark.parametrize("name", ["pairs", "triples"])
@pytest.mark.parametrize(("adapter", "dialect"), [(FITTED["sdpa-math"][0], TORCH), (Everything(), Dialect(empty_row="uniform"))])
def test_few_elements_are_exempt(name: str, adapter: Adapter, dialect: Dialect) -> None:
    """Less than one in a hundred of each dtype, also where what −∞ gives in a row without a key is open.

    But for a bias at the dtype's lowest number: a row that sees nothing else is as good as empty there (SOFTMAX-2),
    and most rows see something else.
    """
    exempt: dict[tuple[str, bool], list[np.ndarray]] = defaultdict(list)
    for case in array(name, adapter, DTYPES):
        problem = build(case)
        tolerance = solve(problem, dialect).tolerance(default_class(case.dtype))
        lowest = case.bias != "none" and case.biases == "lowest"
        exempt[case.dtype, lowest] += [tolerance.exempt[output].ravel() for output in problem.outputs]
    for (dtype, lowest), each in exempt.items():
        assert np.concatenate(each).mean() < (0.5 if lowest else 0.01), (dtype, lowest)


def test_the_page_counts_the_mistakes_that_it_measures():
    text = (Path(__file__).parent.parent / "docs" / "resolving.md").read_text(encoding="utf-8")
    table = text.partition("## In the default class")[2].partition("⁽¹⁾ A coarse")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    (said,) = re.findall(r"^(\d+) known mistakes", text, re.MULTILINE)
    assert int(said) == len(rows) - 2  # a header and a rule
