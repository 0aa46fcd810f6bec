"""What a test made by itself and failed on: the same failure on a smaller problem, and whether it needs the calls before it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.shrink import as_case, shrink
from attnspec.reference import Exact
from attnspec.spec import Problem

if TYPE_CHECKING:
    from attnspec.adapters.within import Within
    from attnspec.conformance.subject.subject import Subject


class Made(NamedTuple):
    """A failing problem without a case, made as small as it gets, and what is wrong there; `met` as the test made it."""

    met: Problem
    problem: Problem
    finding: Finding
    exact: Exact

    @property
    def left(self) -> Case | None:
        """What is left of it, in the words of a case; None for sizes of zero, for which a case has no words."""
        sizes = [getattr(self.problem, name) for name in ("b", "h", "g", "i", "j", "d", "e")]
        return as_case(self.problem, self.met) if all(sizes) else None


def smallest(subject: Subject, problem: Problem, finding: Finding, within: Within) -> Made | None:
    """The smallest problem found that fails in the same way; None where the problem itself is right when it is asked again.

    That is so where the calls before it matter, and where the test asks for more than the judge does.
    """
    if problem.dropout and problem.training:  # what is right depends on what was drawn
        return None

    def alike(trial: Problem) -> tuple[Finding, Exact] | None:
        if not subject.same_side(as_case(problem), as_case(trial)):
            return None
        judgement, exact = subject.judged_now(trial, within)
        found = next((f for f in judgement.findings if f.likeness == finding.likeness), None)
        return None if found is None else (found, exact)

    def fails(trial: Problem) -> bool:
        """As the whole does, and without a row that sees no key, where that is nothing of the fault."""
        found = alike(trial)
        return found is not None and bool(found[1].empty.any()) <= has_empty

    first = alike(problem)
    if first is None:
        return None
    has_empty = bool(first[1].empty.any())
    small = shrink(problem, subject.adapter, fails)
    left = alike(small)
    if left is None:  # not repeatable
        return None
    told = f"first seen: {finding.message}" if finding.message and small is not problem else finding.message
    return Made(problem, small, replace(left[0], message=told), left[1])
