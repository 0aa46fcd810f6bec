"""What a test says of a problem, and what it demands of an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from attnspec.adapters import Answer, same_bits
from attnspec.adapters.within import PLAINLY, Within
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import compare, ending, independent, no_answer, together
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import Exact, to_float64
from attnspec.spec import Problem
from attnspec.spec.words import OUTPUTS


class Broken(Exception):
    """A clause does not hold: what was found, and the problems that show it.

    other: the second one where two are compared. earlier: those that were asked before, and within: what surrounds the call,
    where that must not matter. alone: whether the problem is wrong also by itself, where the test has seen that.
    """

    def __init__(
        self,
        finding: Finding,
        problem: Problem | None = None,
        exact: Exact | None = None,
        other: Problem | None = None,
        margin: np.ndarray | None = None,
        earlier: tuple[Problem, ...] = (),
        within: Within = PLAINLY,
        alone: bool | None = None,
    ) -> None:
        super().__init__(finding.message)
        self.finding, self.problem, self.exact, self.other, self.margin = finding, problem, exact, other, margin
        self.earlier, self.within, self.alone = earlier, within, alone


class NotOffered(Exception):
    """What the test asks for is neither promised nor answered."""


class TooLarge(Exception):
    """There was no memory for an answer."""


class NotApplicable(Exception):
    """This case can't show the clause; the message says why, where a reader would not guess."""


def answer_of(subject: Subject, problem: Problem, within: Within = PLAINLY) -> Answer:
    """The implementation's answer, whatever it is. Raises NotOffered where the convention has no words for the problem."""
    return offered(subject.run(problem, within))


def offered(answer: Answer) -> Answer:
    """The answer. Raises NotOffered where the convention has no words for the problem."""
    if answer.unsupported is not None:
        raise NotOffered(answer.unsupported)
    return answer


def refused(answer: Answer, problem: Problem) -> str | None:
    """Why a call was refused; None where it was answered. What ends the process refuses nothing: raises Broken."""
    finding = ending(answer)
    if finding is not None and answer.ended:
        raise Broken(finding, problem)
    return answer.refusal


def right(subject: Subject, problem: Problem) -> Exact | None:
    """The exact answer where the implementation's agrees with it, else None.

    Raises NotOffered where the convention has no words for the problem.
    """
    answer, exact = subject.answered(problem)
    return None if subject.judge(offered(answer), exact).findings else exact


def is_right(subject: Subject, problem: Problem) -> bool:
    """Whether the answer agrees with the reference. Raises NotOffered where the convention has no words for the problem."""
    return right(subject, problem) is not None


def must_be_right(
    subject: Subject,
    problem: Problem,
    what: str,
    outputs: tuple[str, ...] = OUTPUTS,
    exact: Exact | None = None,
    earlier: tuple[Problem, ...] = (),
    within: Within = PLAINLY,
    alone: bool | None = None,
) -> Answer:
    """The implementation's answer, which must agree with the reference. Raises Broken, its message beginning with `what`.

    earlier: the problems that the test asked before. within: what the call is put into. alone: False where the test has seen a
    right answer to the same numbers in other memory.
    """
    answer, exact = subject.answered(problem, within, exact)
    offered(answer)
    findings = subject.judge(answer, exact).of(outputs)
    if findings:
        first = findings[0]
        there_was_memory(first)
        said = replace(first, message=f"{what}: {first.message}" if first.message else what)
        raise Broken(said, problem, exact, earlier=earlier, within=within, alone=alone)
    return answer


def must_answer(subject: Subject, problem: Problem, within: Within = PLAINLY, *, any_dtype: bool = False) -> Answer:
    """An answer of the right form and of whatever value. Raises Broken where there is none.

    within: what the call is put into. any_dtype: its dtype is free.
    """
    answer = answer_of(subject, problem, within)
    wrong = no_answer(answer, problem)
    if wrong is not None and not (any_dtype and wrong.kind == "dtype" and answer.o.is_floating_point()):
        there_was_memory(wrong)
        exact = None if wrong.ended else subject.solve(problem)
        raise Broken(wrong, problem, exact, within=within)
    return answer


def may_answer(subject: Subject, problem: Problem) -> Answer:
    """The same where another clause speaks of what is refused or malformed: raises NotApplicable there."""
    answer = answer_of(subject, problem)
    if no_answer(answer, problem) is not None:
        raise NotApplicable
    return answer


def there_was_memory(finding: Finding) -> None:
    """Raise TooLarge where there was none: this says nothing about the implementation."""
    if finding.kind == "memory":
        raise TooLarge(finding.message)


def must_agree(
    subject: Subject, got: Any, expected: Any, exact: Exact, output: str, what: str, other: Problem | None = None, select: Any = ...
) -> None:
    """Two results of the implementation must differ by no more than both may differ from the exact answer."""
    like = exact.values[output].shape
    if getattr(got, "shape", None) != like or getattr(expected, "shape", None) != like:
        raise NotApplicable  # no two answers to compare; the clause of what is missing says so
    tolerance = exact.tolerance(subject.required_class(str(exact.problem.dtype)[6:]))
    _, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, output)
    finding, _ = compare(to_float64(got)[select], to_float64(expected)[select], 2 * bound[select], exempt[select], output)
    if finding is not None:
        margin = np.full(bound.shape, np.inf)
        margin[select] = np.where(exempt, np.inf, 2 * bound)[select]
        raise Broken(replace(finding, kind="relation", message=what), exact.problem, exact, other, margin)


def must_keep_bits(
    subject: Subject,
    problem: Problem,
    before: Any,
    after: Any,
    output: str,
    what: str,
    other: Problem | None = None,
    select: Any = ...,
    *,
    promised: bool = False,
) -> None:
    """Two results must be the same bit by bit, unless the implementation does not repeat its own bits; then it must say so.

    promised: it said that these bits are the same, whatever it repeats.
    """
    if before is None and after is None and independent(problem, output):
        return
    if before is None or after is None:
        raise Broken(Finding("missing", output, f"{what}: the gradient is None"), problem, None, other)
    a, b = before[select], after[select]
    if same_bits(a, b):
        return
    repeated = None if promised or subject.repeats(output) else subject.run(problem).output(output)
    if repeated is not None and not same_bits(before, repeated):
        exact = subject.solve(problem)
        must_agree(subject, after, before, exact, output, what + " (beyond what its own repetitions differ by)", other, select)
        return
    x, y = to_float64(a), to_float64(b)
    differ = ~((x == y) | ((x != x) & (y != y)))
    if not differ.any():
        return  # the sign of zero, or another NaN
    at = tuple(int(n[0]) for n in differ.nonzero())
    margin = np.full(tuple(before.shape), np.inf)
    margin[select] = 0.0
    raise Broken(
        Finding("relation", output, what, at, float(y[at]), float(x[at]), 0.0, float("inf"), int(differ.sum()), x.size),
        problem,
        None,
        other,
        margin,
    )
