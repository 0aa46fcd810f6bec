"""Which problems of the array the comparisons with the reference ask, and of which clauses each of them speaks, in files."""

from __future__ import annotations

from dataclasses import replace

from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import ids_of, tests_of
from attnspec.conformance.testing.rows import rows
from attnspec.conformance.vectors.format import Comparison
from attnspec.spec import Clause, index

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
