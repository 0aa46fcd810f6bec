"""First contact: a plain call whose answer is right, were it read in another layout, taken out of a tuple, or asked in arrays."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from attnspec.adapters import ResolveError
from attnspec.adapters.within import AS_IT_IS, Reading, Within
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import solve
from attnspec.spec import Problem


def look(subject: Subject) -> None:
    """Raise ResolveError, with an adapter that fits, where plain calls are right if they are read otherwise.

    In (b i h d), as a tuple's first element, or in arrays of another framework, which NumPy carries there and back.
    Only what a convention calls is looked at: an adapter says itself how it is called. Two problems must agree, of sizes that
    differ from each other.
    """
    if subject.adapter.kernel is None or not subject.offers("mha"):
        return
    bare = Case(b=2, heads="3/3", d=subject.width, wrt="none")
    sizes = {(): ((5, 7), (4, 4)), ("equal_lengths",): ((4, 4), (6, 6))}  # the second where only as many keys as queries are taken
    for restrictions, lengths in sizes.items():
        cases = [fit(replace(bare, i=i, j=j, seed=n), subject.adapter) for n, (i, j) in enumerate(lengths)]
        problems = [subject.problem(case) for case in cases]
        for arrays, transposed, first in product((False, True), repeat=3):
            reading = Reading(transposed, first, arrays)
            if not all(_right(subject, problem, reading) for problem in problems):
                continue
            if reading == AS_IT_IS or all(_right(subject, problem, AS_IT_IS) for problem in problems):
                return  # right as it is; where only now, its answers vary, and how they are read is not why
            where = " and ".join(
                words
                for words, so in (
                    ("its tensors are (b i h d), queries before heads, but the suite passes (b h i d)", transposed),
                    ("it returns a tuple whose first element is the output", first),
                    ("it returns an array of another framework, and no tensor of torch", arrays),
                )
                if so
            )
            raise ResolveError(
                f"{subject.adapter.name}: {where}: read this way, its answers to plain calls are right; else they are wrong.\n\n"
                + subject.adapter.stub(reading, restrictions)
            )


def _right(subject: Subject, problem: Problem, reading: Reading) -> bool:
    answer = subject.run(problem, Within(reading=reading, checked=False))
    return not judge(answer, solve(problem, subject.dialect), subject.required_class("float32")).findings
