"""Whether an implementation follows one of the values of a choice at all, on the problem on which it is observed."""

from __future__ import annotations

import numpy as np

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.subject.meeting import answered, followed, questions
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
    exacts = {
        value: solve(asked.problem, subject.dialect.with_choice(choice, value)).values["o"] for value in CHOICES[choice].values
    }
    got = to_float64(answer.o)
    with np.errstate(invalid="ignore"):
        far = np.min([np.where(np.isfinite(got - x), np.abs(got - x), 1e300) for x in exacts.values()], axis=0)
    at = tuple(int(n) for n in np.unravel_index(int(far.argmax()), far.shape))
    values = "; ".join(f"{value} gives {x[at]:.6g}" for value, x in exacts.items())
    what = f"the answer matches no value of {choice}: output [{', '.join(map(str, at))}] = {got[at]:.6g}, where {values}"
    raise Broken(Finding("relation", "o", what), asked.problem)
