"""Cases that Hypothesis draws, beside those of the covering arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import COST, LEVELS, OPEN_SIZES, alike
from attnspec.conformance.problems.fit import decodes, fit

SHORT = (1, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)
LONG = (63, 64, 65, 127, 128, 129, 255, 256, 257, 513, 1024, 2049, 4096)


def cases(adapter: Adapter, dtype: str) -> st.SearchStrategy[Case]:
    """Any case that is offered, with open sizes whose product stays below COST.

    With what probability it draws what faults hide behind stands in tests/situations.py and docs/coverage.md. What is rare
    among the levels stands here more than once.
    """
    length = st.one_of(st.integers(1, 40), st.sampled_from(SHORT), st.sampled_from(LONG))
    often = {
        "values": (*_values("values"), "large", "large", "needle", "needle", "negative", "peaked"),
        "mask": (*_values("mask"), *16 * ("padding",), *8 * ("rank3",)),
        "holes": (*_values("holes"), "single", "single", "single", "empty_row", "empty_row", "inner_blocks"),
    }
    levels = {name: st.sampled_from(often.get(name, _values(name))) for name in LEVELS if name not in (*OPEN_SIZES, "dtype")}
    drawn = st.builds(
        Case,
        dtype=st.just(dtype),
        b=st.integers(1, 3),
        i=length,
        j=st.one_of(st.just(0), length, st.sampled_from(LONG)),
        d=st.sampled_from([8, 1, 2, 3, 4, 5, 6, 7, 16, 24, 32, 40, 59, 64, 72, 80, 96, 128, 160, 192, 256, 512]),
        e=st.sampled_from([0, 0, 1, 5, 24, 40, 72, 160]),
        seed=st.integers(0, 2**16),
        **levels,
    )

    def asked(case: Case) -> Case:
        # Every other problem of few queries and more keys asks for no gradients, as such problems do in use.
        case = replace(case, wrt="none") if decodes(case) and case.seed % 2 else case
        return _affordable(fit(case, adapter), adapter.widths)

    return drawn.map(asked)


def _values(factor: str) -> tuple[Any, ...]:
    """The values of a factor, as many for each level, so that a level is no likelier for standing for more."""
    most = max(len(alike(factor, level)) for level in LEVELS[factor])
    return tuple(alike(factor, level)[n % len(alike(factor, level))] for level in LEVELS[factor] for n in range(most))


def _affordable(case: Case, widths: Iterable[int] | None) -> Case:
    """The same case with widths, then lengths, halved until it costs no more than a problem may. Offered widths stay."""
    while case.cost > COST:
        if case.d > 16 and widths is None:
            case = replace(case, d=case.d // 2, e=case.e // 2)
        elif case.e > 16:
            case = replace(case, e=case.e // 2)
        elif not case.j:
            case = replace(case, i=case.i // 2)
        else:  # the shorter one, as long as there is something left of it: long rows matter
            queries = (case.i <= case.j) == (min(case.i, case.j) > 3)
            case = replace(case, i=case.i // 2) if queries else replace(case, j=case.j // 2)
    return case


def search(drawn: st.SearchStrategy[Case], n: int, seed: int, ask: Callable[[Case], bool]) -> None:
    """Ask about n drawn cases, or until `ask` says no.

    Reduction is not left to Hypothesis: what fails is reduced by the same descent as a row of the array, which it does not do
    for explicit examples.
    """
    asked, going = 0, True

    @hypothesis_seed(seed)
    @settings(max_examples=n + 1, database=None, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(drawn)
    def look(case: Case) -> None:
        nonlocal asked, going
        asked += 1
        if asked > 1 and going:  # what is drawn first is always the simplest case
            going = ask(case)

    look()
