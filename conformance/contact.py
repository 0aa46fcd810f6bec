"""First contact: a plain call whose answer is right, were it read in another layout or taken out of a tuple."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from attnspec.adapters import Adapter, Call, ResolveError
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
    bare = Case(b=2, heads="3/3", d=subject.width, wrt="none")
    sizes = {(): ((5, 7), (4, 4)), ("equal_lengths",): ((4, 4), (6, 6))}  # the second where only as many keys as queries are taken
    readings = ((False, False), (False, True), (True, False), (True, True))
    for restrictions, lengths in sizes.items():
        cases = [fit(replace(bare, i=i, j=j, seed=n), subject.adapter) for n, (i, j) in enumerate(lengths)]
        problems = [subject.problem(case) for case in cases]
        for transposed, first in readings:
            if not all(_right(subject, problem, transposed, first) for problem in problems):
                continue
            if not (transposed or first):
                return
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
                + stub(function, subject.adapter.name, transposed, "[0]" if first else "", restrictions)
            )


class _Read(Adapter):
    """An adapter's calls with 4-D tensors transposed, or the first element of a tuple taken, or both."""

    def __init__(self, adapter: Adapter, transposed: bool, first: bool) -> None:
        self.adapter, self.transposed, self.first = adapter, transposed, first

    def call(self, problem: Problem) -> Call:
        """The adapter's call, read so."""
        call = self.adapter.call(problem)

        def function(**arguments: Any) -> Any:
            o = call.function(**arguments)
            return self._turned(o[0] if self.first and isinstance(o, tuple | list) and o else o)

        return replace(call, function=function, arguments={name: self._turned(x) for name, x in call.arguments.items()})

    def _turned(self, x: Any) -> Any:
        return x.transpose(1, 2) if self.transposed and isinstance(x, torch.Tensor) and x.ndim == 4 else x


def _right(subject: Subject, problem: Problem, transposed: bool, first: bool) -> bool:
    with subject.watching(problem):
        answer = subject.named(problem, _Read(subject.adapter, transposed, first).unchecked)
    return not judge(answer, solve(problem, subject.dialect), subject.required_class("float32")).findings
