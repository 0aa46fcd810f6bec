"""Inherited failures: those of a kernel of torch, met in what does nothing but call it.

An issue that is known of torch is inherited by a failure only if that is proven, on the problem on which it was met and on the
one to which it was reduced: nothing but that kernel computes, and the shipped adapter of that kernel, asked the same problem,
gives the same wrong numbers. What a caller does wrong by itself gives others.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from attnspec.adapters import Adapter, Answer
from attnspec.adapters.reading import readable
from attnspec.adapters.shipped.sdpa import OPERATORS, pinned
from attnspec.adapters.within import PLAINLY, Within
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.judging.judge import compare, judge, together
from attnspec.conformance.known.file import read
from attnspec.conformance.known.issues import Issue
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import Exact, solve, to_float64
from attnspec.spec import Dialect, Problem

SHIPPED = Path(__file__).parent.parent / "known-issues-torch.toml"
VERSION = ".".join(torch.__version__.split(".")[:2])
COUNT = re.compile(r"\d+ of \d+ elements")


@dataclass(frozen=True)
class Origin:
    """What a failure is inherited from."""

    issue: Issue

    def __str__(self) -> str:
        return f"torch {VERSION} {self.issue.backend.removeprefix('sdpa-')} ({self.issue.clause})"


@dataclass
class Inherited:
    """Which failures of a run are inherited; `accepted`: they are noted, and do not decide."""

    accepted: bool = False
    _proven: dict[tuple[int, int, Case], bool] = field(default_factory=dict)

    def origin(self, subject: Subject, met: Case, explained: Explained, other: Problem | None) -> Origin | None:
        """What a failure is inherited from, or None. `other`: the second problem, where a test compares two calls."""
        if explained.earlier or explained.within != PLAINLY:
            return None
        for issue in issues(subject):
            if issue.clause != explained.clause:
                continue
            if issue.region is not None:
                proven = explained.by_case and self._case(issue, subject, met) and self._case(issue, subject, explained.case)
            else:
                proven = (
                    not explained.by_case
                    and other is not None
                    and COUNT.sub("#", issue.found) == COUNT.sub("#", " ".join(explained.finding.message.split()))
                    and _proof(lambda issue=issue: _same_misfits(issue, subject, (explained.problem, other)))  # type: ignore[misc]
                )
            if proven:
                return Origin(issue)
        return None

    def same_side(self, subject: Subject) -> Callable[[Case, Case], bool]:
        """Whether a failure met on one case may be explained by another: not if one of them is inherited, and one is not."""
        regions = [issue for issue in issues(subject) if issue.region is not None]

        def same(met: Case, other: Case) -> bool:
            return all(self._case(issue, subject, met) == self._case(issue, subject, other) for issue in regions)

        return same if regions else lambda met, other: True

    def _case(self, issue: Issue, subject: Subject, case: Case) -> bool:
        """Whether a case lies in the region, and its answer is that of the kernel, as wrong."""
        if not issue.covers(case):
            return False
        key = (id(subject), issue.number, case)
        if key not in self._proven:
            self._proven[key] = _proof(lambda: _same_answer(issue, subject, subject.problem(case)))
        return self._proven[key]


@functools.cache
def shipped() -> tuple[Issue, ...]:
    """The issues of torch that this package knows, for the torch that runs."""
    known = read(SHIPPED, {"sdpa"}).issues
    return tuple(x for x in known if x.backend and VERSION in x.torch and x.expiry >= datetime.date.today())


def issues(subject: Subject) -> list[Issue]:
    """The issues that a subject may inherit: of the kernels that a plain call of it ran. What is torch's own inherits nothing."""
    adapter = subject.adapter
    if str(getattr(adapter.kernel, "__module__", "")).partition(".")[0] in ("torch", "torch._ops") or subject.backend is None:
        return []
    ran = subject.backend.operators
    return [x for x in shipped() if x.concerns(subject) and any(OPERATORS[x.backend] in name for name in ran)]


# THE PROOF


def _proof(holds: Callable[[], bool]) -> bool:
    """Whether it holds; what can't be shown does not."""
    with contextlib.suppress(Exception):
        return holds()
    return False


def _same_answer(issue: Issue, subject: Subject, problem: Problem) -> bool:
    """Whether the kernel is all of the call, and its own adapter gives the same numbers, wrong in the same way."""
    kernel, theirs = _kernel(issue, subject), _with_heads(problem)
    exact = subject.solve(problem)
    own = solve(theirs, Dialect(**kernel.dialect))
    if not np.array_equal(exact.values["o"], own.values["o"], equal_nan=True):  # it promises another choice than the kernel makes
        return False
    class_ = subject.required_class(str(problem.dtype)[6:])
    mine, other = subject.run(problem), kernel.run(theirs)
    if other.refusal is not None:  # a layout that it does not take, and of which the caller makes a copy
        other = kernel.run(theirs.replace(**{name: x.contiguous() for name, x in theirs.inputs().items()}))
    other = _reshaped(other, problem)
    found = [judge(answer, exact, class_).findings for answer in (mine, other)]
    if not all(found) or found[0][0].likeness != found[1][0].likeness or not _equal(mine, other, exact, class_):
        return False
    return _is_all_of(issue, subject, problem)


def _same_misfits(issue: Issue, subject: Subject, problems: tuple[Problem, ...]) -> bool:
    """The same for problems that are none, for their sizes contradict each other: bit by bit."""
    kernel = _kernel(issue, subject)
    for problem in problems:
        mine = subject.run(problem, Within(checked=False))
        other = kernel.unchecked(_with_heads(problem))
        if not (readable(mine.o) and readable(other.o)) or mine.o.shape != other.o.shape:
            return False
        if not np.array_equal(to_float64(mine.o), to_float64(other.o), equal_nan=True):
            return False
    return all(_is_all_of(issue, subject, problem) for problem in problems)


def _kernel(issue: Issue, subject: Subject) -> Adapter:
    """The shipped adapter of the kernel."""
    (adapter,) = pinned(issue.backend, {})
    return adapter.on(subject.device)


def _is_all_of(issue: Issue, subject: Subject, problem: Problem) -> bool:
    """Whether the call for a problem went wholly to the kernel."""
    return OPERATORS[issue.backend] in subject.adapter.wholly(problem)


def _with_heads(problem: Problem) -> Problem:
    """The problem, its one shared head (b j d) written as (b 1 j d), which is how torch takes it."""
    if not problem.shared:
        return problem
    from attnspec.conformance.problems.tensors import misfit

    return misfit(problem, k=problem.k[:, None], v=problem.v[:, None])


def _reshaped(answer: Answer, problem: Problem) -> Answer:
    """The answer with gradients in the shapes of the problem's inputs."""
    if not problem.shared:
        return answer
    gradients = {name: x if x is None or name not in ("dk", "dv") else x[:, 0] for name, x in answer.gradients.items()}
    return replace(answer, gradients=gradients)


def _equal(mine: Answer, other: Answer, exact: Exact, class_: str) -> bool:
    """Whether two answers are the same: NaN where the other is NaN, and no number differs by more than two right ones may."""
    if mine.gradients.keys() != other.gradients.keys():
        return False
    tolerance = exact.tolerance(class_)
    for name in ("o", *mine.gradients):
        a, b = mine.output(name), other.output(name)
        if a is None or b is None:
            return a is b
        _, bound, _ = together(exact, tolerance.bound, tolerance.exempt, name)
        margin = np.where(np.isfinite(bound), 2 * bound, 0.0)
        if compare(to_float64(a), to_float64(b), margin, np.zeros(bound.shape, bool), name)[0] is not None:
            return False
    return True
