"""First contact: a plain call whose answer is right, were it read in another layout or taken out of a tuple."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from attnspec.adapters import Answer, ResolveError
from attnspec.adapters.contract import quiet
from attnspec.adapters.resolve import stub
from attnspec.conformance.case import Case, fit
from attnspec.conformance.judge import judge
from attnspec.conformance.subject import Subject
from attnspec.reference import solve
from attnspec.spec import Problem


def look(subject: Subject) -> None:
    """Raise ResolveError, with an adapter that fits, where plain calls are right in (b i h d), or as a tuple's first element.

    Only what a convention calls is looked at: an adapter says itself how it is called. Two problems must agree, of sizes that
    differ from each other.
    """
    function = getattr(subject.adapter, "function", getattr(subject.adapter, "kind", None))
    if function is None or not subject.offers("mha"):
        return
    plain = Case(b=2, heads="3/3", d=subject.width, wrt="none")
    cases = [fit(replace(plain, i=i, j=j, seed=n), subject.adapter) for n, (i, j) in enumerate(((5, 7), (4, 4)))]
    problems = [subject.problem(case) for case in cases]
    if all(_right(subject, problem, False, False) for problem in problems):
        return
    for transposed, first in ((False, True), (True, False), (True, True)):
        if all(_right(subject, problem, transposed, first) for problem in problems):
            where = " and ".join(
                words
                for words, so in (
                    ("its tensors are (b i h d), queries before heads, where (b h i d) is asked", transposed),
                    ("it returns a tuple whose first element is the output", first),
                )
                if so
            )
            raise ResolveError(
                f"{subject.adapter.name}: {where}: read so, plain calls are answered rightly, and as they stand they are not.\n\n"
                + stub(function, subject.adapter.name, transposed, "[0]" if first else "")
            )


def _right(subject: Subject, problem: Problem, transposed: bool, first: bool) -> bool:
    def ask(problem: Problem) -> Any:
        call = subject.adapter.call(problem)
        arguments = {
            name: x.transpose(1, 2) if transposed and isinstance(x, torch.Tensor) and x.ndim == 4 else x
            for name, x in call.arguments.items()
        }
        return call.function(**arguments)

    with quiet(), subject.watching(problem):
        try:
            o = subject.named(problem, ask)
        except Exception:
            return False
    o = o[0] if first and isinstance(o, tuple | list) and o else o
    if not isinstance(o, torch.Tensor):
        return False
    answer = Answer(o.transpose(1, 2) if transposed and o.ndim == 4 else o)
    return not judge(answer, solve(problem, subject.dialect), subject.required_class("float32")).findings
