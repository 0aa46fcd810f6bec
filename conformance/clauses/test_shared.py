"""SHARED: several query heads use one head of keys and values."""

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import may_answer, must_agree, must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import written_out
from attnspec.spec.words import OUTPUTS


@clause("SHARED-1")
@agrees(*OUTPUTS, offering=("mqa",), where=lambda case: case.sharing == "mqa")
def test_one_head_for_all(subject: Subject, case: Case) -> None:
    """g = 1 with an axis of its own."""


@clause("SHARED-2")
@agrees(*OUTPUTS, offering=("gqa",), where=lambda case: case.sharing == "gqa")
def test_a_group_uses_one_head(subject: Subject, case: Case) -> None:
    """4/2, 6/2 and 6/3: the two groupings differ in all of them."""


@clause("SHARED-3")
@agrees(*OUTPUTS, offering=("shared_kv",), where=lambda case: case.g is None)
def test_keys_and_values_without_a_head_axis(subject: Subject, case: Case) -> None:
    """k (b j d) and v (b j e)."""


@clause("SHARED-4")
@agrees("dk", "dv", offering=("backward",), where=lambda case: case.sharing != "mha" and case.wrt in ("all", "k", "v", "qv"))
def test_gradients_of_a_shared_head_are_summed(subject: Subject, case: Case) -> None:
    """Over all the query heads that use it."""


@clause("SHARED-5")
@on_cases(offering=("mha",), where=lambda case: case.sharing != "mha")
def test_the_same_as_written_out(subject: Subject, case: Case) -> None:
    """Keys and values repeated for each query head."""
    problem = subject.problem(case)
    full = written_out(problem, subject.dialect.head_grouping)
    exact = subject.solve(problem)
    shared, repeated = may_answer(subject, problem), must_be_right(subject, full, "with keys and values written out for each head")
    must_agree(subject, repeated.o, shared.o, exact, "o", "heads shared, and written out", full)
    if shared.gradients.get("dq") is not None:
        must_agree(subject, repeated.gradients["dq"], shared.gradients["dq"], exact, "dq", "heads shared, and written out", full)


@clause("SHARED-5")
@on_cases(where=lambda case: case.sharing != "mha")
def test_other_queries_do_not_change_a_head(subject: Subject, case: Case) -> None:
    """The first query head's output, when all other query heads ask something else."""
    problem = subject.problem(case)
    q = problem.q.clone()
    q[:, 1:] = 1 - q[:, 1:]
    other = problem.replace(q=q, do=None, wrt=())
    exact = subject.solve(problem)
    must_agree(
        subject,
        must_be_right(subject, other, "with other queries in all heads but the first", ("o",)).o,
        may_answer(subject, problem).o,
        exact,
        "o",
        "the first head, when the queries of the others change",
        other,
        (slice(None), slice(0, 1)),
    )


@clause("SHARED-2")
@once("gqa")
def test_one_of_the_groupings_is_followed(subject: Subject, case: Case) -> None:
    """The problem on which the grouping is observed: four query heads, two key/value heads."""
    must_follow_a_choice(subject, "head_grouping", case.dtype)
