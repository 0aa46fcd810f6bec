"""What failing problems have in common: the clause by which they are filed, where nothing can be asked again and reduced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.reduce import factor
from attnspec.conformance.vectors.answers import Judged
from attnspec.reference import solve
from attnspec.spec import CHOICES, Dialect, index

Blame = Callable[[Case, Finding, Dialect, bool], str]  # of a reduced case, and of whether it has a row without a visible key
KEPT = ("dtype", "i", "j", "d", "seed", "numbers")
UNSEEN = ("do=turned", "do=expanded")  # memory, which files do not have


@dataclass(frozen=True)
class Fault:
    """Failing problems that are wrong in one way: the clause, the smallest of them first, and what all of them have."""

    clause: str
    finding: Finding  # of the smallest
    failing: tuple[Judged, ...]
    shared: tuple[str, ...]


def faults(every: Iterable[Judged], dialect: Dialect, blame: Blame) -> list[Fault]:
    """The failing problems by what is wrong with them, each once. A run would ask again to tell them apart; this can't.

    What there was no memory for is no failure.
    """
    alike: dict[tuple[str, ...], list[Judged]] = {}
    passing = []
    for one in every:
        if one.finding is None and one.judgement is not None:
            passing.append(one)
        elif one.finding is not None and one.finding.kind != "memory":
            alike.setdefault(one.finding.likeness, []).append(one)
    return [_fault(some, passing, dialect, blame) for some in alike.values()]


def _fault(failing: list[Judged], passing: list[Judged], dialect: Dialect, blame: Blame) -> Fault:
    cases = {one.vector.id: Case.parse(one.vector.case) for one in failing}
    ordered = sorted(failing, key=lambda one: (len(cases[one.vector.id].traits()), cases[one.vector.id].elements))
    finding = ordered[0].finding
    assert finding is not None
    comparable = [one for one in passing if finding.output in ("call", *one.vector.outputs)]
    everywhere = frozenset.intersection(*(having(case) for case in cases.values()))
    shared = telling(everywhere, [having(Case.parse(one.vector.case)) for one in comparable], len(failing))
    hints = [hint for hint in hints_of(ordered[0], dialect) if hint.partition("=")[0] in _choices(failing)]
    finding = replace(finding, hint=hints[0]) if hints else finding
    empty, order = all(map(in_empty_row, failing)), list(index())
    # Of the clauses that some of them would say the most basic one.
    clauses = {blame(bare(case, shared), finding, dialect, empty) for case in cases.values()}
    clause = min(clauses, key=lambda id_: (not index()[id_].binding, order.index(id_)))
    if not index()[clause].binding:  # what a MUST asks for is wrong, whatever else could be said of it
        clause = next((id_ for id_ in ordered[0].vector.clauses if index()[id_].binding), clause)
    said = everywhere - {factor(trait) for trait in everywhere if "=" in trait} if len(failing) > 1 else ()
    return Fault(clause, finding, tuple(ordered), tuple(sorted(said)))


def having(case: Case) -> frozenset[str]:
    """What is special about a case: its traits, and the factors of which they are, in whatever form."""
    traits = case.traits() - set(UNSEEN)
    return traits | {factor(trait) for trait in traits}


def telling(everywhere: frozenset[str], passing: list[frozenset[str]], failing: int) -> frozenset[str]:
    """Of what all failing problems have, that which the fewest of the right ones have.

    It tells something where it is there in several failing ones, and in no more right ones.
    """
    also = {trait: sum(trait in has for has in passing) for trait in everywhere}
    least = min(also.values(), default=0)
    tells = len(passing) > 0 and failing > 1 and least <= failing
    return frozenset(trait for trait, n in also.items() if n == least and tells)


def bare(case: Case, shared: frozenset[str]) -> Case:
    """The case without what not all of the failing ones have."""
    for name, own in FACTORS.items():
        simpler = replace(case, **{name: own.plain})
        if name not in KEPT and shared <= having(simpler):
            case = simpler
    return case if shared else replace(case, i=2, j=0)  # lengths are nothing special where nothing is


def in_empty_row(one: Judged) -> bool:
    """Whether what was found may be about rows without a visible key."""
    finding, empty = one.finding, one.exact.empty if one.exact is not None else None
    if finding is None or empty is None:
        return False
    return bool(empty[finding.index[:3] if not finding.of_gradient and len(finding.index) > 2 else ...].any())


def _choices(failing: Iterable[Judged]) -> frozenset[str]:
    """The choices that matter to all of these problems."""
    return frozenset.intersection(*(frozenset(one.vector.dialect) for one in failing))


def hints_of(one: Judged, dialect: Dialect) -> list[str]:
    """The other values of its choices with which an answer would be right, choice=value."""
    found: list[str] = []
    if one.exact is None or one.answer is None or one.finding is None or not one.finding.of_numbers:
        return found
    for name in one.vector.dialect:
        for value in CHOICES[name].values:
            other = dialect.with_choice(name, value)
            if other != dialect and not judge(one.answer, solve(one.exact.problem, other), one.vector.class_).findings:
                found.append(f"{name}={value}")
    return found
