"""Which rows of the covering array a test asks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from attnspec.adapters.restrictions import SIZES
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import PLAIN, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.plan import Plan


def rows(run: Run, subject: Subject, dtype: str, plan: Plan) -> Iterable[Case]:
    """Rows of the array, narrowed to what a test wants: all of them, or the first ones.

    For a relation the most diverse ones, the first without any option if the test allows that.
    """
    if plan.once:  # a test that makes its own problems asks nothing of the array
        return [fit(Case(dtype=dtype, heads="2/2"), subject.adapter)]
    every = _rows(run, subject, dtype, plan)
    if run.case is not None and plan.comparison:
        return every
    fitting, most = plan.cases(every, subject), _most(run, plan)
    if run.budget is not None and plan.comparison:  # what another test has asked costs no time
        fitting = dict.fromkeys(sorted(fitting, key=lambda case: not subject.remembers(case)))
    if plan.comparison:
        return islice(fitting, most)
    some = list(islice(fitting, most))
    bare = (plan.narrow(replace(case, **PLAIN), subject) for case in some)
    return diverse(list(dict.fromkeys((*filter(None, bare), *some))), run.tier.rows)


def restricted(run: Run, subject: Subject, dtype: str, plan: Plan) -> int:
    """How many rows restrictions leave out that would be asked without them; others are asked instead."""
    free = copy.copy(subject.adapter)
    free.restrictions = [name for name in subject.adapter.restrictions if name.partition(":")[0] in SIZES]  # as widths are
    if plan.once or len(free.restrictions) == len(set(subject.adapter.restrictions)) or (run.case is not None and plan.comparison):
        return 0
    every = [case for case in array(run.tier.array, free, subject.dtypes) if case.dtype == dtype]
    unrestricted = islice(plan.cases(every, replace(subject, adapter=free)), _most(run, plan))
    left_out = sum(fit(case, subject.adapter) != case for case in unrestricted)
    # A relation is asked on a few of many rows: that it has none is what counts.
    none = not any(True for _ in islice(plan.cases(_rows(run, subject, dtype, plan), subject), 1))
    return left_out if plan.comparison else int(bool(left_out) and none)


def _rows(run: Run, subject: Subject, dtype: str, plan: Plan) -> Iterable[Case]:
    """The rows of a dtype; for what is asked in one only, those of all, as problems of that one."""
    if not plan.in_one_dtype(run.tier):
        return run.rows(subject, dtype)
    return list(dict.fromkeys(replace(case, dtype=dtype) for each in subject.dtypes for case in run.rows(subject, each)))


def _most(run: Run, plan: Plan) -> int | None:
    if not plan.comparison:
        return 12 * run.tier.rows
    return run.tier.narrowed if plan.like else None


def diverse(cases: list[Case], n: int) -> list[Case]:
    """As many of the cases: the plainest one, then always the one with most traits that none before it had."""
    left = {case: case.traits() for case in cases}
    chosen: list[Case] = []
    seen: set[str] = set()
    while left and len(chosen) < n:
        best = max(left, key=lambda case: len(left[case] - seen)) if chosen else min(left, key=lambda case: len(left[case]))
        seen |= left.pop(best)
        chosen.append(best)
    return chosen
