"""A failure, reduced and explained, and what it says of another."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters.within import PLAINLY, Within
from attnspec.conformance.diagnosis.names import Diagnosis
from attnspec.conformance.diagnosis.order import BY_ADDRESS
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.reduce import factor
from attnspec.reference import Exact
from attnspec.spec import Problem

LENGTHS = frozenset({"i<j", "i>j"})  # traits of lengths that differ
NUMBER = re.compile(r"[\d.]+")


def in_empty_row(finding: Finding, exact: Exact) -> bool:
    """Whether what was found may be about rows without a visible key: an output that is wrong in such a row, or all the rest."""
    return _in_one_of(exact.empty, finding)


def in_outranked_row(finding: Finding, exact: Exact) -> bool:
    """Whether numbers are wrong in a row whose visible keys all have the lowest number while others are hidden: SOFTMAX-7."""
    return finding.of_numbers and _in_one_of(exact.outranked, finding)


def _in_one_of(rows: Array, finding: Finding) -> bool:
    """Whether what was found may be about one of these rows (b h i): its own where an output is wrong there, else any of them."""
    return bool(rows[finding.index[:3] if not finding.of_gradient and len(finding.index) > 2 else ...].any())


def comparable(one: Finding, other: Finding) -> bool:
    """Whether one fault may show as both: as wrong numbers, or as two answers that differ; or else as the same kind of refusal."""
    return one.of_answers == other.of_answers and (one.of_answers or one.kind == other.kind)


def same_words(one: Finding, other: Finding) -> bool:
    """Whether two messages differ in their numbers alone."""
    return NUMBER.sub("#", one.message) == NUMBER.sub("#", other.message)


@dataclass(frozen=True)
class Explained:
    """A failure, reduced: the clause it breaks, the smallest case that still fails, and what is wrong there."""

    clause: str
    case: Case
    finding: Finding
    problem: Problem
    exact: Exact | None  # None where the problem is none that the reference would take
    by_case: bool = True  # False where the test made the problem itself
    margin: np.ndarray | None = None  # where two calls are compared: by how much they may differ, inf where they may at all
    failed_on: list[Case] = field(default_factory=list)  # the cases that failed so, the first first
    spared: set[str] = field(default_factory=set)  # traits of the case, and factors, that cases had not which were reduced to it
    diagnosis: Diagnosis | None = None
    earlier: tuple[Problem, ...] = ()  # the calls after which it is seen, and not before
    within: Within = PLAINLY  # what surrounds the call, and must not matter
    asked_by: str = ""  # the clause whose test asks for it, where a test of another one made the problem
    reduced: bool = True  # False where the time for explanations was used up

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two failures the same fault, whatever the dtype."""
        if self.finding.hint:
            return self.clause, self.finding.hint
        return self.clause, *self.finding.likeness

    @property
    def has_name(self) -> bool:
        """Whether a mistake is known that gives exactly these numbers."""
        return self.diagnosis is not None and bool(self.diagnosis.best)

    @property
    def by_address(self) -> bool:
        """Whether an earlier call's memory explains it, so that any problem may show it which lies there."""
        return self.finding.message == BY_ADDRESS

    def needs(self) -> frozenset[str]:
        """What another case must have to show the same fault, a bias of whatever form being "bias".

        Lengths that differ matter where a choice explains it.
        """
        traits = self.case.traits()
        needs = traits - self.spared | {factor(trait) for trait in traits & self.spared} - self.spared
        return needs if self.finding.hint else needs - LENGTHS

    def spare(self, met: Case) -> None:
        """Learn from a case that was reduced to this one what the fault does not need, where no name says what it is."""
        if not self.has_name:
            has = met.traits()
            missing = self.case.traits() - has
            self.spared.update(missing, {factor(trait) for trait in missing} - {factor(trait) for trait in has})


@dataclass(frozen=True)
class By:
    """A failure that accounts for a failing problem; `certain` where it is known to, and there is nothing else wrong with it."""

    explained: Explained
    certain: bool
