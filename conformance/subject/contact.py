"""First contact: a plain call whose answer is right, were it read in another layout, taken out of a tuple, or asked in arrays."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

from attnspec.adapters import Adapter, Call, ResolveError
from attnspec.adapters.stub import PLAINLY, Reading, stub
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
    function = getattr(subject.adapter, "function", getattr(subject.adapter, "kind", None))
    if function is None or not subject.offers("mha"):
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
            if reading == PLAINLY:
                return
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
                + stub(function, subject.adapter.name, reading, restrictions)
            )


class _Read(Adapter):
    """An adapter's calls with 4-D tensors transposed, the first element of a tuple taken, or arrays in the place of tensors."""

    def __init__(self, adapter: Adapter, reading: Reading) -> None:
        self.adapter, self.reading = adapter, reading

    def call(self, problem: Problem) -> Call:
        """The adapter's call, read so."""
        call = self.adapter.call(problem)

        def function(**arguments: Any) -> Any:
            if self.reading.arrays:
                arguments = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
            o = call.function(**arguments)
            o = o[0] if self.reading.first and isinstance(o, tuple | list) and o else o
            if self.reading.arrays and not isinstance(o, torch.Tensor) and hasattr(o, "__array__"):
                o = torch.from_numpy(np.array(o))
            return self._turned(o)

        return replace(call, function=function, arguments={name: self._turned(x) for name, x in call.arguments.items()})

    def _turned(self, x: Any) -> Any:
        return x.transpose(1, 2) if self.reading.transposed and isinstance(x, torch.Tensor) and x.ndim == 4 else x


def _right(subject: Subject, problem: Problem, reading: Reading) -> bool:
    with subject.watching(problem):
        answer = subject.ask_traceably(problem, _Read(subject.adapter, reading).unchecked)
    return not judge(answer, solve(problem, subject.dialect), subject.required_class("float32")).findings
