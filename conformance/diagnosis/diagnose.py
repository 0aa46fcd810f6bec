"""What an implementation does instead: the canonical mistake that gives its wrong answers, told apart from all others.

A mistake explains a failing problem where each element that is outside of its bound is what the mistake gives. Elements that
are right may stay right: a fault of one path, one head or one block is still that mistake, and where it shows is said.
What is said of a failure explains every problem that was asked about it: the one on which it was met, the one that it was
reduced to, others that failed alike, and probes that differ from them in one size or lack one option. A probe that is
answered rightly counts against a mistake that would have shown there, so that the narrowest name is left.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from attnspec.adapters.watch.spent import spent
from attnspec.conformance.diagnosis.blame import ROUNDED
from attnspec.conformance.diagnosis.dropped import dropped
from attnspec.conformance.diagnosis.evidence import (
    ENORMOUS,
    EVIDENCE,
    calmer,
    dense,
    finer,
    finite,
    poisoned,
    probes,
    shuffled,
    steady,
)
from attnspec.conformance.diagnosis.match import CLOSE, Fit, Seen, look, place, screen, shows, touches
from attnspec.conformance.diagnosis.names import COARSE, FEW, NARROWED, SPECIAL, Diagnosis, exceptions_of, names_to_print
from attnspec.conformance.diagnosis.narrowed import narrowed
from attnspec.conformance.mistakes.vocabulary import MISTAKES
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import Exact
from attnspec.spec import Problem

Asked = Case | Problem | Callable[[], Problem]  # what is evidence, or makes it

SECONDS = 4.0  # of this thread, for one failure: what a busy machine may not change
MOST = 24  # mistakes that are tried in some sequences alone, those with the fewest exceptions
CERTAIN = 7.0  # decimal digits by which failing elements must agree with a mistake rather than with the right answer, in all


class TimeUp(Exception):
    """The time for one failure was up."""


def diagnose(
    subject: Subject,
    problem: Problem,
    exact: Exact | None,
    cases: Iterable[Case],
    before: Iterable[str] = (),
    met: Problem | None = None,
) -> Diagnosis | None:
    """What explains a failing problem and the cases that fail like it; None where no canonical mistake does.

    The problem comes first; cases are the one on which it was met and others of the run. Probes are made of the first case.
    before: mistakes that were found already, which are enough where one of them explains all of it. met: the problem that a test
    made of the first case, before it was reduced; where the case by itself is answered rightly, such problems are the evidence.
    """
    if problem.training and problem.dropout:  # what is right depends on what was drawn
        found, asked = dropped(subject, problem)
        return Diagnosis(dict.fromkeys(found, 0.0), "", asked, True) if found else None
    already = frozenset(before)
    # In the order of all mistakes: a set has another one in each process, and a message names two in the order of their coming.
    cases, before = list(dict.fromkeys(cases)), [name for name in MISTAKES if name in already]

    @cache
    def seen_in(case: Case) -> Seen | None:
        return look(subject, subject.problem(case))

    def right(case: Case) -> bool:
        return (seen := seen_in(case)) is not None and not seen.scope

    if met is not None and problem.carrier is not None and (not cases or right(cases[0])):
        like = as_case(problem)  # a case that fails as well has probes
        cases = [like] if (seen := seen_in(like)) is not None and seen.scope else cases
    evidence = _evidence(subject, problem, cases, met, right)

    @cache
    def seen_at(n: int) -> Seen | None:
        this = evidence[n]
        if isinstance(this, Case):
            return seen_in(this)
        return look(subject, this if isinstance(this, Problem) else this(), None if n else exact)

    if not steady(subject, problem):
        drops = problem.dropout and steady(subject, problem.replace(dropout=0.0))
        return Diagnosis({"dropout_in_evaluation": 0.0}, "", 1, True) if drops else None
    try:
        known = _diagnose(seen_at, evidence, before) if before else None
        if known is not None and not min(exceptions_of(known.cost).values()):
            return known
        return _diagnose(seen_at, evidence, MISTAKES, before)
    except TimeUp:
        return Diagnosis(cut=True)


def _evidence(
    subject: Subject, problem: Problem, cases: list[Case], met: Problem | None, right: Callable[[Case], bool]
) -> list[Asked]:
    """What a mistake has to explain, the problem itself first. right: whether a case by itself is answered rightly."""
    alone = any(right(wide) for case in cases[:1] for wide in finer(case, subject, False)[:-1])
    calm = as_case(problem).biases not in ENORMOUS  # then what fails there fails without them, too
    small = problem.carrier is None or problem.carrier.poison != "huge"  # the same of what stands where nobody may read
    cases = [finite(case) if small else case for case in cases]
    first = (calmer(case) if calm else case for case in cases[:1])
    further = (calmer(case) for case in cases[1 : 1 + EVIDENCE])
    evidence: list[Asked] = []
    evidence += [x for case in (*first, *further) for x in finer(case, subject, alone)]
    evidence += [finer(probe, subject, alone)[0] for case in cases[:1] for probe in probes(case, subject)]
    # Copies are made when they are asked for: most failures need none.
    shared = bool(getattr(problem.carrier, "shared", 0))  # what lies in one place is the same in all sequences: it keeps its order
    others: list[Asked] = [] if shared else [partial(shuffled, problem, seed) for seed in range(6)]
    made: list[Asked] = [] if met is None else [met, *([] if shared else [partial(shuffled, met, seed) for seed in range(4)])]
    if made and cases and right(cases[0]):
        cases, evidence = [], []  # it is the test that makes it fail
    # Of NaN that comes through, numbers in its place say whether they have a weight.
    numbers: list[Asked] = [partial(poisoned, problem, "lure"), partial(poisoned, problem, "huge")] if problem.carrier else []
    return [problem, *made[:1], *dict.fromkeys(evidence), *numbers, partial(dense, problem), *made[1:], *others]


def _diagnose(
    seen_at: Callable[[int], Seen | None], evidence: Sequence[Any], among: Iterable[str], others: Sequence[str] = ()
) -> Diagnosis | None:
    """Which of these mistakes explain all of the evidence, the problem itself being the first of it.

    What fails by another fault, too, is no evidence: where one of the mistakes `others`, found already, gives what is wrong or
    is part of it, or in its output where the problem itself is wrong in its gradients alone.
    """
    alive, against, looked = _weighed(seen_at, evidence, among, others)
    asked = sum(bool(seen.scope) for seen in looked)
    narrow = _narrowed(alive, against, looked)
    cost = _costs(alive, against, asked, narrow)
    if not cost:
        return None
    best = (names_to_print(cost) or tuple(cost))[0]
    best = best if best in alive else next(name for name in cost if MISTAKES[name].of == best)  # that is what its like is called
    whole = not narrow.get(best) and not any(one.spared for one in alive[best])
    return Diagnosis(cost, place(best, seen_at(0)), asked, whole, {name: narrow[name] for name in cost if name in narrow})


def _weighed(
    seen_at: Callable[[int], Seen | None], evidence: Sequence[Any], among: Iterable[str], others: Sequence[str]
) -> tuple[dict[str, list[Fit]], dict[str, float], list[Seen]]:
    """The mistakes that explain it all, and how well; how much speaks against each; the problems that this rests on.

    Raises TimeUp where the time is up before all of it is read: what is left may speak against each.
    """
    started, cases = spent(), any(isinstance(this, Case) for this in evidence)
    alive: dict[str, list[Fit]] | None = None
    against: dict[str, float] = {}
    scope: tuple[str, ...] | None = None
    asked, looked = 0, []  # type: int, list[Seen]
    for n, this in enumerate(evidence):
        if alive is not None and not alive:
            break
        if spent() - started > SECONDS:
            raise TimeUp
        if n > 1 and cases and asked > 2 and not isinstance(this, Case):
            break  # only where it was the test that made the problem do cases say little of it
        seen = seen_at(n)
        if seen is None:
            continue
        if not seen.scope:
            for name in alive or ():
                against[name] = against.get(name, 0.0) + shows(name, seen)
            looked.append(seen)
            continue
        scope = seen.scope if scope is None else scope
        if "o" in seen.scope and "o" not in scope:
            continue
        fits = screen(seen, among if alive is None else alive)
        if fits is None or (alive and not fits and others and _by_others(seen, others)):
            continue
        alive = {name: [*(alive or {}).get(name, []), fits[name]] for name in fits if alive is None or name in alive}
        asked += 1
        looked.append(seen)
    return alive or {}, against, looked


def _narrowed(alive: dict[str, list[Fit]], against: dict[str, float], looked: Sequence[Seen]) -> dict[str, tuple[str, ...]]:
    """Where no mistake explains it all without an exception: those that do in the sequences of one kind, and of which kinds."""
    exceptions = {name: against.get(name, 0.0) + sum(one.spared for one in fits) for name, fits in alive.items()}
    if not all(exceptions.values()) or sum(bool(seen.scope) for seen in looked) < FEW:
        return {}
    with np.errstate(all="ignore"):
        return narrowed(sorted(exceptions, key=lambda name: exceptions[name])[:MOST], looked)


def _costs(
    alive: dict[str, list[Fit]], against: dict[str, float], asked: int, narrow: Container[str] = frozenset()
) -> dict[str, float]:
    """What each of the mistakes costs that may be named, the cheapest first. narrow: those that only some sequences have."""
    late = all(any(one.late for one in fits) for fits in alive.values())

    def may_be_named(name: str, fits: list[Fit]) -> bool:
        speaks, digits = 0.0 if name in narrow else against.get(name, 0.0), sum(one.digits for one in fits)
        close = (
            not name.startswith(ROUNDED) or np.mean([one.near for one in fits]) >= CLOSE
        )  # beside these any rounding is as small
        of_few = asked < FEW and bool(speaks or any(one.spared for one in fits) or MISTAKES[name].special)
        opposed = 2 * speaks >= max(asked, 2)  # not less than half as many problems speak against it
        return bool(digits >= CERTAIN and (late or not any(one.late for one in fits)) and close and not opposed and not of_few)

    cost = {
        name: (NARROWED if name in narrow else against.get(name, 0.0) + float(np.mean([one.spared for one in fits])))
        + SPECIAL * MISTAKES[name].special
        + COARSE * MISTAKES[name].coarse
        for name, fits in alive.items()
        if may_be_named(name, fits)
    }
    return dict(sorted(cost.items(), key=lambda item: item[1]))


def _by_others(seen: Seen, others: Sequence[str]) -> bool:
    """Whether mistakes that are known give what is wrong, or may be part of it."""
    return bool(screen(seen, others)) or any(touches(name, seen) for name in others)
