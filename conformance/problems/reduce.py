"""Simpler cases: one factor at a time, and a descent that takes the first that still fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from attnspec.adapters import Adapter
from attnspec.adapters.watch.spent import spent
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.fit import fit, grows

TURNS = sorted((factor for factor in FACTORS.values() if factor.turn is not None), key=lambda factor: factor.turn or 0)


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one factor made simpler, the greatest simplification first."""
    for factor in TURNS:
        for changes in factor.simplified(case):
            yield replace(case, **changes)


REDUCTIONS = 120  # answers that the reduction of one failure may ask for
SMALL = ((1, 2), (2, 2), (2, 3), (3, 2), (4, 5), (5, 9))  # queries and keys of the problems that a reduction tries first


def factor(trait: str) -> str:
    """The factor of a case that a trait speaks of: "bias" of "bias=hj"; a trait without a value is its own."""
    return trait.partition("=")[0]


# Of a trait that is not called after its factor.
FACTOR = {trait: name for name, own in FACTORS.items() for trait in own.traits}


def without(case: Case, needs: frozenset[str]) -> Iterator[Case]:
    """The case without one of the things that a failure needs, each in turn, and without all of them."""
    changes: dict[str, Any] = {}
    for need in sorted(needs):
        name = FACTOR.get(need, factor(need))
        plain = FACTORS[name].plain
        if name == "heads" and need != "h>1":
            plain = f"{case.h}/{case.h}"
        changes[name] = plain
        yield replace(case, **{name: plain})
    if len(changes) > 1:
        yield replace(case, **changes)


def stripped(case: Case, adapter: Adapter, fails: Callable[[Case], bool]) -> Case:
    """The case without each trait that it need not have to fail. Each is asked once: no reduction, but each trait has its part."""
    for trait in sorted(case.traits()):
        for trial in (fit(other, adapter) for other in without(case, frozenset({trait}))):
            if trial != case and not grows(trial, case) and fails(trial):
                case = trial
    return case


def small_cases(case: Case, adapter: Adapter, own: Callable[[Case], bool]) -> Iterator[Case]:
    """Small cases that have of a case only what `own` asks for."""
    bare = descend(case, adapter, own, 1 << 20)
    for i, j in SMALL:
        small = fit(replace(bare, i=i, j=0 if i == j else j), adapter)
        if own(small):
            yield small


def descend(case: Case, adapter: Adapter, fails: Callable[[Case], bool], most: int = REDUCTIONS, seconds: float = math.inf) -> Case:
    """Greedy descent: take the first simpler case that still fails, until none does, `most` were asked or the time is up."""
    asked, tried, began = 0, {case}, spent()
    while True:
        for trial in (fit(simple, adapter) for simple in simpler(case)):
            if trial in tried or grows(trial, case):
                continue
            tried.add(trial)
            asked += 1
            if asked > most or spent() - began > seconds:
                return case
            if fails(trial):
                case = trial
                break
        else:
            return case
