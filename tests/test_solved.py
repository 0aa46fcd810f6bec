"""The last exact answer is remembered, and only where the problem is still the same."""

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject import subject as module
from attnspec.conformance.subject.subject import Subject
from attnspec.spec import Dialect


def test_the_last_exact_answer_is_remembered() -> None:
    """Once solved, it is the same object; another problem takes its place."""
    subject = Subject(Adapter())
    problem, other = build(Case(i=3)), build(Case(i=3))
    first = subject.solve(problem)
    assert subject.solve(problem) is first
    assert subject.solve(other) is not first
    assert subject.solve(problem) is not first


def test_other_numbers_another_dialect_and_balls_are_solved_anew() -> None:
    """Some tests write into the tensors of a problem, as an implementation may in this process."""
    subject = Subject(Adapter())
    problem = build(Case(dtype="float64", i=3, wrt="all"))
    first = subject.solve(problem)
    assert subject.solve(problem, certain=True) is not first
    first = subject.solve(problem)
    problem.v[0, 0, 0, 0] += 1  # through a view
    second = subject.solve(problem)
    assert second is not first
    assert second.values["o"].flat[0] != first.values["o"].flat[0]
    subject.dialect = Dialect(empty_row="uniform")
    assert subject.solve(problem) is not second


def test_what_is_large_is_not_remembered(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Two of them might be more than the memory there is."""
    monkeypatch.setattr(module, "REMEMBERED", 8)
    subject = Subject(Adapter())
    problem = build(Case(i=3))
    assert subject.solve(problem) is not subject.solve(problem)
