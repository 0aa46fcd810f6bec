"""Which problems of the array the comparisons with the reference ask, and of which clauses each of them speaks, in files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from attnspec.adapters import Answer
from attnspec.adapters.within import PLAINLY, Within
from attnspec.conformance.judging.finding import Judgement
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import dtypes_of, ids_of, tests_of
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered, TooLarge
from attnspec.conformance.testing.rows import rows
from attnspec.conformance.vectors.format import Comparison
from attnspec.reference import Exact
from attnspec.reference.stages.lse import dtype_of
from attnspec.spec import Clause, Problem, index
from attnspec.spec.words import OUTPUTS

# Of what else a file holds nothing: on which device an answer was, in which memory a cotangent lay, a rate of dropout.
UNSEEN = ("DTYPE-3", "GRAD-6", "DROPOUT-3")


def seen_in_files(clause: Clause) -> bool:
    """Whether right numbers in a file can show a clause: it is none of conduct, nor of the memory in which inputs lie."""
    return clause.kind != "conduct" and clause.chapter != "LAYOUT" and clause.id not in UNSEEN


def dense(case: Case) -> Case:
    """The case as a file has it, whose tensors are all dense."""
    turned = case.do == "turned"  # in memory alone; the numbers of another cotangent are others
    return replace(case, layout=FACTORS["layout"].plain, do=FACTORS["do"].plain if turned else case.do)


def comparisons(run: Run, subject: Subject) -> dict[Case, list[Comparison]]:
    """The problems that a run of this tier compares with the reference, without the search, and what files show of each."""
    found: dict[str, dict[Case, list[Comparison]]] = {dtype: {} for dtype in subject.dtypes}
    for test in tests_of(run.clauses, run.spec):
        plan, clauses = test.plan, [index()[id_] for id_ in ids_of(test, run.spec)]
        ids = tuple(clause.id for clause in clauses if seen_in_files(clause) and not subject.exempt_from(clause))
        if not plan.comparison or not ids or not subject.offers(*plan.offering):
            continue
        asks = Comparison(ids, plan.outputs, plan.form)
        for dtype in subject.dtypes:
            for case in rows(run, subject, dtype, plan):
                own = found[dtype].setdefault(dense(case), [])
                if asks not in own:  # two rows may be one where both are dense
                    own.append(asks)
    return {case: asks for of_dtype in found.values() for case, asks in of_dtype.items()}


# WHAT TESTS MAKE THEMSELVES


@dataclass
class Recorder(Subject):
    """Answers with the exact numbers, and keeps what its answers were compared for."""

    compared_with: list[Problem] = field(default_factory=list)

    def begin(self, problem: Problem, within: Within = PLAINLY) -> Callable[[], Answer]:
        """The exact answer, rounded once."""
        exact = self.solve(problem)
        given = {name: torch.from_numpy(np.array(x)) for name, x in exact.values.items()}
        gradients = {
            f"d{name}": given[f"d{name}"].to(getattr(problem, name).dtype) for name in problem.wrt if problem.differentiated
        }
        lse = given["lse"].to(getattr(torch, dtype_of(problem, exact.dialect))) if problem.lse else None
        answer = Answer(given["o"].to(problem.dtype), gradients, lse=lse)
        return lambda: answer

    def judge(self, answer: Answer, exact: Exact) -> Judgement:
        """What the judge says, and what it was asked."""
        self.compared_with.append(exact.problem)
        return judge(answer, exact, self.required_class(str(exact.problem.dtype)[6:]))


def made(run: Run, subject: Subject) -> Iterator[tuple[Case, Problem, str, Comparison]]:
    """The problems that tests of a value make themselves and compare: a case that is like it, the problem, the test, what is asked.

    Where one tensor stands for several there is none: files hold each by itself, and a board would give each its own gradient.
    """
    for test in tests_of(run.clauses, run.spec):
        clauses = [index()[id_] for id_ in ids_of(test, run.spec)]
        ids = tuple(x.id for x in clauses if x.kind == "value" and seen_in_files(x) and not subject.exempt_from(x))
        if not test.plan.once or test.plan.dangerous or not ids or not subject.offers(*test.plan.offering):
            continue
        for dtype in dtypes_of(test, run, subject):
            recorder = Recorder(subject.adapter, dialect=subject.dialect, claim=subject.claim, dtypes=subject.dtypes)
            for case in rows(run, recorder, dtype, test.plan):
                with contextlib.suppress(Broken, NotOffered, NotApplicable, TooLarge):
                    test.asking(run, recorder, dtype).test(recorder, case)
            for problem in dict.fromkeys(recorder.compared_with):
                inputs = problem.inputs()
                if len({id(x) for x in inputs.values()}) == len(inputs) and problem.q.numel() and problem.v.numel():
                    yield readable(dense(as_case(problem))), problem, test.__name__, Comparison(ids, OUTPUTS)


def readable(case: Case) -> Case:
    """The case with levels that a token can name alone: a problem may ask for gradients that no level asks for."""
    for name, own in FACTORS.items():
        try:
            own.read(str(getattr(case, name)))
        except ValueError:
            case = replace(case, **{name: own.plain})
    return case
