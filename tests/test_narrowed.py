"""A mistake that is made in some sequences alone has its name, and the words that say in which."""

from __future__ import annotations

import pytest
from many import Plan, Told, Wrong, each, kernel
from threads import one_thread  # noqa: F401  a fixture

from attnspec.adapters import resolve
from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.names import sentence
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.meeting import meet


def said(wrong: Wrong, form: str, token: str) -> str:
    """What is said of a kernel that is wrong in a form, and of no other."""
    subject = meet(resolve(kernel(wrong, form))[0], "cpu", {}, None, None)
    case = fit(Case.parse(f"heads=4/2,b=3,i=4,j=16,d=8,values=peaked,wrt=none,{token}"), subject.adapter)
    found = Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained
    return sentence(found.diagnosis) if found.diagnosis is not None else ""


def without_last(where: str) -> Wrong:
    """The last key is lost in some sequences."""

    def change(plan: Plan, told: Told, n: int) -> None:
        i, j, new = told.i[n], told.j[n], told.new[n] if told.new else 0
        holds = {"all": True, "one query": i == 1, "behind": n > 0, "sixteen": j % 16 == 0, "one new": new == 1}[where]
        plan.keys = plan.keys[:-1] if holds and j > 1 else plan.keys

    return each(change)


CASES = [
    ("packed", "one query", "carrier=packed,lengths=decode", "the last key is skipped, where there is one query;"),
    ("padded", "sixteen", "carrier=padded", "the last key is skipped, where the number of keys is a multiple of 16;"),
    ("packed", "behind", "carrier=packed,lengths=mixed", "the last key is skipped, in all sequences but the first;"),
    ("paged", "all", "carrier=paged+3,lengths=mixed", "the last key is skipped; this"),
]


@pytest.mark.parametrize(("form", "where", "token", "words"), CASES, ids=[case[1] for case in CASES])
def test_it_is_said_in_which_sequences_a_mistake_is_made(form: str, where: str, token: str, words: str) -> None:
    assert said(without_last(where), form, token).startswith(words)


def test_a_mistake_is_not_said_of_sequences_of_which_none_explains_all() -> None:
    """In those of three or of five keys, which is no kind of sequences, and half of what was asked speaks against it."""

    def change(plan: Plan, told: Told, n: int) -> None:
        plan.keys = plan.keys[:-1] if told.j[n] in (3, 5) else plan.keys

    assert "where" not in said(each(change), "packed", "carrier=packed,lengths=2:3/1:5")
