"""What faults hide behind is drawn, and as often as tests/situations.py says.

A stated probability is refuted where so few successes have a probability of FALSE_ALARM or less under it. The successes are
independent: one for each search with a seed of its own, as a test makes it in tier standard, or for each seed of a problem.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from situations import BUILT, PLAIN, SITUATIONS, Drawn, Everything, searches, tail

from attnspec.adapters import Adapter
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.factors import LEVELS, OPEN_SIZES, level_of
from attnspec.conformance.problems.factors.ragged import form_of
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.search import cases
from attnspec.conformance.run.tier import TIERS
from attnspec.spec.words import FEATURES

FALSE_ALARM = 1e-6  # of one test, where the stated probability is the true one; a higher one makes it rarer
SEARCHES = 120
DTYPES = LEVELS["dtype"]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scores of float16 problems in float64


class Narrow(Adapter):
    """A kernel for two widths, without masks."""

    offers = frozenset({"mha", "causal", "backward"})
    widths = (64, 128)


@pytest.fixture(scope="module", params=["float32", "float16"])
def searched(request: pytest.FixtureRequest) -> list[list[Drawn]]:
    """The draws of so many searches."""
    return searches(SEARCHES, TIERS["standard"].searched, request.param)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Drawn]]:
    """Both arrays, with everything offered."""
    return {name: [Drawn(case) for case in array(name, Everything(), DTYPES)] for name in ("pairs", "triples")}


@pytest.mark.parametrize("what", SITUATIONS)
def test_a_search_draws_it(what: str, searched: list[list[Drawn]]) -> None:
    stated, holds = SITUATIONS[what].drawn, SITUATIONS[what].holds
    found = sum(any(holds(drawn) for drawn in search) for search in searched)
    chance = tail(found, len(searched), stated)
    assert chance > FALSE_ALARM, f"{found} of {len(searched)} searches; {stated} is stated, which makes this {chance:.1g} likely"


@pytest.mark.parametrize("what", SITUATIONS)
def test_the_arrays_hold_it(what: str, rows: dict[str, list[Drawn]]) -> None:
    """Whatever the seed: in smoke in some dtype, in standard in each."""
    one = SITUATIONS[what]
    assert min(one.pairs, one.triples) >= 1
    assert sum(map(one.holds, rows["pairs"])) >= one.pairs
    for dtype in DTYPES:
        assert sum(one.holds(row) for row in rows["triples"] if row.case.dtype == dtype) >= one.triples, dtype


@pytest.mark.parametrize("what", BUILT)
def test_a_problem_built_for_it_has_it(what: str) -> None:
    levels, stated = BUILT[what]
    like: dict[str, Any] = levels
    found = sum(SITUATIONS[what].holds(Drawn(replace(PLAIN, seed=seed, **like))) for seed in range(60))
    chance = tail(found, 60, stated)
    assert chance > FALSE_ALARM, f"{found} of 60 problems; {stated} is stated, which makes this {chance:.1g} likely"


def test_a_plain_problem_has_none_of_them() -> None:
    """The levels bring them, not the rest of the problem."""
    for seed in range(20):
        assert [what for what in BUILT if SITUATIONS[what].holds(Drawn(replace(PLAIN, seed=seed)))] == []


def test_too_few_would_be_seen() -> None:
    """A tenth of what is stated refutes it, for all but the rarest; and the tail is the binomial one."""
    for one in SITUATIONS.values():
        if one.drawn >= 0.15:
            assert tail(int(one.drawn * SEARCHES / 10), SEARCHES, one.drawn) < FALSE_ALARM
    coins = np.random.default_rng(1).binomial(20, 0.3, 100_000)
    for k in range(12):
        assert tail(k, 20, 0.3) == pytest.approx(np.mean(coins <= k), abs=0.01)
    without = searches(SEARCHES, TIERS["standard"].searched, "float32", Narrow())
    missed = [
        what
        for what, one in SITUATIONS.items()
        if tail(sum(any(map(one.holds, search)) for search in without), SEARCHES, one.drawn) <= FALSE_ALARM
    ]
    assert {"a mask and causal", "a bias of −∞", "groups of heads (GQA)", "values narrower than keys", "a negative scale"} <= set(
        missed
    )
    assert not {"more than 128 keys", "causal, i > j", "a width of 64 or more", "a stride of zero in k and v"} & set(missed)


def test_the_search_asks_for_nothing_that_is_not_offered() -> None:
    """Also where a problem was made smaller."""
    drawn = [x.case for search in searches(60, 6, "float32", Narrow()) for x in search]
    assert {case.d for case in drawn} == {64, 128}
    assert all(fit(case, Narrow()) == case for case in drawn)


def test_a_search_draws_every_level(searched: list[list[Drawn]]) -> None:
    for name in LEVELS.keys() - {*OPEN_SIZES, "dtype"}:
        drawn = {level_of(name, getattr(x.case, name)) for search in searched for x in search}
        assert drawn == set(LEVELS[name]), name


def test_searches_differ_by_seed_and_repeat_by_it(searched: list[list[Drawn]]) -> None:
    first = [[x.case for x in search] for search in searched[:5]]
    again = [[x.case for x in search] for search in searches(5, TIERS["standard"].searched, first[0][0].dtype)]
    assert first == again
    assert len({case for search in first for case in search}) >= 25


class Many(Everything):
    """Takes many sequences in one call, too."""

    offers = frozenset(FEATURES)


def test_a_search_draws_calls_of_many_sequences() -> None:
    """In every form and with every kind of lengths; as many problems are dense."""
    drawn: list[Case] = []

    @settings(max_examples=400, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @hypothesis_seed(1)
    @given(cases(Many(), "float32"))
    def draw(case: Case) -> None:
        drawn.append(case)

    draw()
    carried = [case for case in drawn if case.carrier != "none"]
    assert 0.3 < len(carried) / len(drawn) < 0.7
    assert {form_of(case) for case in carried} == {"packed", "padded", "cached", "paged"}
    assert {case.lengths for case in carried} >= set(FACTORS["lengths"].levels)
    assert {case.poison for case in carried} == set(FACTORS["poison"].levels)
