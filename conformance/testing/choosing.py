"""Whether an implementation follows one of the values of a choice at all, on the problem on which it is observed."""

from __future__ import annotations

import numpy as np

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import called, judge
from attnspec.conformance.subject.meeting import answered, followed, questions, shown_by
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered
from attnspec.reference import solve, to_float64
from attnspec.spec import CHOICES


def must_follow_a_choice(subject: Subject, choice: str, dtype: str) -> None:
    """Where nobody promised a value, the answer must be that of one. Raises Broken, with the numbers, NotOffered, NotApplicable."""
    every = questions(subject, choice, dtype)
    if not every:
        raise NotOffered(f"{CHOICES[choice].needs} is not offered")
    if choice not in subject.observed | subject.assumed:
        raise NotApplicable  # promised: what a promise is worth other clauses say
    asked, answer = answered(subject, every)
    if answer.refusal:
        raise NotApplicable  # the clause of what is refused says so
    if followed(subject, choice, asked.problem, answer) is not None:
        return
    plain = subject.run(asked.plain)
    if plain.refusal or judge(plain, subject.solve(asked.plain), subject.required_class(dtype)).findings:
        raise NotApplicable  # wrong whatever the choice
    output = shown_by(choice)
    if answer.output(output) is None or tuple(answer.output(output).shape) != asked.problem.shape_of(output):
        raise NotApplicable  # the clause of its form says so
    exacts = {
        value: solve(asked.problem, subject.dialect.with_choice(choice, value)).values[output] for value in CHOICES[choice].values
    }
    got = to_float64(answer.output(output))
    with np.errstate(invalid="ignore"):
        far = np.min(
            [np.where(got == x, 0.0, np.where(np.isfinite(got - x), np.abs(got - x), 1e300)) for x in exacts.values()], axis=0
        )
    at = tuple(int(n) for n in np.unravel_index(int(far.argmax()), far.shape))
    values = "; ".join(f"{value} gives {x[at]:.6g}" for value, x in exacts.items())
    what = f"the answer matches no value of {choice}: {called(output)} [{', '.join(map(str, at))}] = {got[at]:.6g}, where {values}"
    raise Broken(Finding("relation", output, what), asked.problem)
