"""Simpler cases: one factor at a time, and a descent that takes the first that still fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import COST, LEVELS, OPEN_SIZES, SIMPLER_FIRST, level_of
from attnspec.conformance.problems.fit import fit


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one factor made simpler, the greatest simplification first."""
    for name in SIMPLER_FIRST:
        value = getattr(case, name)
        options: Iterable[Any]
        if name == "heads":
            options = _simpler_heads(case)
        elif name == "seed":
            options = range(min(value, 2))
        elif name == "e":
            options = [0] if value else []
        elif name in OPEN_SIZES:
            least = 0 if name == "j" else 1
            options = sorted({least, 1, 2, 3, 4, value // 2, value // 2 + 1, value - 1}) if value > 1 else [least]
            options = [x for x in options if least <= x < value]
        else:
            known = LEVELS[name]
            level = level_of(name, value)
            options = known[: known.index(level) + (level != value)] if level in known else known[:2]
        if name == "i" and not case.j and case.i > 1:  # as many keys as before, fewer queries
            yield replace(case, i=1, j=case.keys)
        for option in options:
            yield replace(case, **{name: option})  # type: ignore[arg-type]


def _simpler_heads(case: Case) -> list[str]:
    """Fewer query heads that share keys and values in the same way, or in a simpler one."""
    fewer = sorted({n for n in (1, 2, 3, 4, case.h // 2, case.h // 2 + 1, case.h - 1) if 0 < n < case.h})
    if case.sharing == "gqa":
        groups = [f"{n}/{n // size}" for n in (4, 8, 16, 32) if n < case.h for size in (2, 4, 8) if n // size > 1]
        return ["1/1", "2/2", "2/1", *(heads for heads in groups if heads != case.heads)]
    if case.g is None:
        return [f"{n}/shared" for n in fewer]
    if case.sharing == "mqa":
        return ["1/1", "2/2", *(f"{n}/1" for n in fewer if n > 1)]
    return [f"{n}/{n}" for n in fewer]


REDUCTIONS = 120  # answers that the reduction of one failure may ask for
SMALL = ((1, 2), (2, 2), (2, 3), (3, 2), (4, 5), (5, 9))  # queries and keys of the problems that a reduction tries first


def factor(trait: str) -> str:
    """The factor of a case that a trait speaks of: "bias" of "bias=hj"; a trait without a value is its own."""
    return trait.partition("=")[0]


FACTOR = {"scale≤0": "scale", "e≠d": "e", "b>1": "b", "h>1": "heads", "i<j": "j", "i>j": "j"} | dict.fromkeys(
    ("mqa", "gqa", "shared_kv"), "heads"
)  # of a trait, where it is not called as the trait is


def without(case: Case, needs: frozenset[str]) -> Iterator[Case]:
    """The case without one of the things that a failure needs, each in turn, and without all of them."""
    changes: dict[str, Any] = {}
    for need in sorted(needs):
        name = FACTOR.get(need, factor(need))
        plain = getattr(Case(), name)
        if name == "heads" and need != "h>1":
            plain = f"{case.h}/{case.h}"
        changes[name] = plain
        yield replace(case, **{name: plain})
    if len(changes) > 1:
        yield replace(case, **changes)


def grows(trial: Case, case: Case) -> bool:
    """Whether a simpler case costs more than a case, and more than a problem may: j = 0 means as many keys as queries."""
    return trial.cost > max(COST, case.cost)


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
    asked, tried, began = 0, {case}, time.thread_time()
    while True:
        for trial in (fit(simple, adapter) for simple in simpler(case)):
            if trial in tried or grows(trial, case):
                continue
            tried.add(trial)
            asked += 1
            if asked > most or time.thread_time() - began > seconds:
                return case
            if fails(trial):
                case = trial
                break
        else:
            return case
