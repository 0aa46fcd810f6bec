"""The same batch item or sequence in other company: alone, among others, in other room, and with other queries beside its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from attnspec.adapters import Answer
from attnspec.adapters.restrictions import forbidden
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import restricted
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.outcomes import NotApplicable, NotOffered, must_agree, must_answer, must_keep_bits, right
from attnspec.reference import Exact
from attnspec.spec import Problem
from attnspec.spec.ragged import FORMS, Kept
from attnspec.spec.words import RETURNED

# What of a form is room, and none of a sequence's business; the feature that it needs, "" for none but the form.
ROOM: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    "packed": (
        ("", "with 40 rows behind the last sequence", {"tail": 40}),
        ("", "where the longest lengths are told as 70 more", {"slack": 70}),
        ("packed_gaps", "with rows between the sequences", {"q_gap": 2, "k_gap": 33}),
    ),
    "padded": (),
    "cached": (
        ("", "in a cache with room for 256 more rows", {"room": 256}),
        ("cached_slots", "in another slot of a larger cache", {"spare": 3}),
    ),
    "paged": (
        ("", "in other pages of a larger pool", {"spare": 40, "seed": 3}),
        ("", "with 4 more columns of the table", {"columns": 4}),
    ),
}
AMONG = ((2, 0), (2, 1), (5, 2), (22, 17))  # how many are in the call, and which of them is looked at
FREE_QUERIES = {"packed": "packed", "padded": "padded_queries", "paged": "paged_queries"}  # of a form: who may have other numbers


@dataclass(frozen=True)
class Company:
    """A call with what is looked at in it: its batch item at `place`, or rows of it from `row` on."""

    what: str
    problem: Problem
    place: int = 0
    row: int = 0


Asked = Iterator[tuple[Problem, list[Company]]]  # what is alone, each with the calls in which it is looked at


def part(subject: Subject, case: Case, seed: int, **levels: Any) -> Problem:
    """One batch item by itself, of a dense problem with generic numbers."""
    wanted = {"b": 1, "heads": "4/2", "d": subject.width, "lse": "returned", "wrt": "none", **levels}
    return subject.problem(fit(Case(dtype=case.dtype, seed=seed, **wanted), subject.adapter))


def gathered(subject: Subject, form: str, parts: list[Problem], **words: Any) -> Problem | None:
    """The call of these batch items, in a form or ("") dense; None where a restriction leaves it out.

    Who always appends gets a new key for each query.
    """
    i, j = (max(getattr(one, name) for one in parts) for name in "ij")
    changes: dict[str, Any] = {"q": _stacked([one.q for one in parts], i)}
    changes |= {name: _stacked([getattr(one, name) for one in parts], j, -2) for name in "kv"}
    changes |= {name: _stacked([one.cotangents()[name] for one in parts], i) for name in parts[0].cotangents()}
    if form:
        counts = tuple(one.i for one in parts)
        if _kept(form) and "always_append" in subject.adapter.restrictions:
            words = {"new": counts, **words}
        changes["carrier"] = FORMS[form](counts, tuple(one.j for one in parts), **words)
    problem = parts[0].replace(**changes)
    if subject.adapter.restrictions:
        problem = restricted(problem, subject.adapter.restrictions)
    return None if forbidden(subject.adapter.restrictions, problem) else problem


def _stacked(tensors: list[Tensor], length: int, axis: int = 2) -> Tensor:
    """Along the batch, each filled with zeros up to this length of an axis; that of keys is the last but one."""
    shape = [len(tensors), *tensors[0].shape[1:]]
    shape[axis] = length
    out = tensors[0].new_zeros(shape)
    for n, x in enumerate(tensors):
        out[n : n + 1].narrow(axis, 0, x.shape[axis]).copy_(x)
    return out


def _kept(form: str) -> bool:
    """Whether keys are there before a call in this form."""
    return bool(form) and issubclass(FORMS[form], Kept)


def forms_of(subject: Subject) -> list[str]:
    """The forms of calls of many sequences that are offered."""
    return [form for form in FORMS if subject.offers(form)]


def dense_companies(subject: Subject, case: Case, **levels: Any) -> Asked:
    """Batch items alone, each with the calls in which it stands among others."""
    for causal in (False, True) if subject.offers("causal") else (False,):
        one, *others = (part(subject, case, n, i=5, j=300, causal=causal, **levels) for n in range(4))
        alone = gathered(subject, "", [one])
        if alone is None:
            continue
        found = []
        for count, place in AMONG:
            among = [others[n % len(others)] for n in range(count)]
            among[place] = one
            if (problem := gathered(subject, "", among)) is not None:
                found.append(Company(f"alone, and as item {place} of {count}", problem, place))
        yield alone, found


def carried_companies(subject: Subject, case: Case, form: str, **levels: Any) -> Asked:
    """Sequences alone, each with the calls in which it stands among shorter and longer ones, and in more room."""
    levels = levels if form in ("packed", "padded") else {}  # nobody asks the others for gradients
    for causal in (False, True) if subject.offers("causal") else (False,):
        free = subject.offers(FREE_QUERIES.get(form, "")) if form in FREE_QUERIES else False
        sizes = [(3, 140), (1 if free else 3, 5), (6 if free else 3, 600), (3, 140)]
        one, short, long, like = (part(subject, case, n, i=i, j=j, causal=causal, **levels) for n, (i, j) in enumerate(sizes))
        alone = None if one.shared else gathered(subject, form, [one])
        if alone is None:
            continue
        calls: list[tuple[str, list[Problem], int, dict[str, Any]]] = [
            ("alone, and behind a short sequence", [short, one], 1, {}),
            ("alone, and before a much longer sequence", [one, long], 0, {}),
            ("alone, and behind a much longer sequence", [long, one], 1, {}),
            ("alone, and as sequence 4 of 7", [like, short, long, like, one, short, like], 4, {}),
            ("alone, and as sequence 17 of 22", [like] * 17 + [one] + [like] * 4, 17, {}),
        ]
        for feature, what, words in ROOM[form]:
            if not feature or subject.offers(feature):
                calls.append((f"as it is, and {what}", [one], 0, words | ({"slots": (2,)} if "slots" in feature else {})))
        made = ((what, gathered(subject, form, parts, **words), place) for what, parts, place, words in calls)
        yield alone, [Company(what, problem, place) for what, problem, place in made if problem is not None]


def pieces(subject: Subject, case: Case, form: str) -> Asked:
    """Some queries of an item as a call of its own, where they stand, with the call of all of them."""
    for causal in (False, True) if subject.offers("causal") else (False,):
        one = part(subject, case, 0, i=5, j=140, causal=causal)
        whole = None if form and one.shared else gathered(subject, form, [one])
        if whole is None or one.i < 5:
            continue
        # Beside a cache the last query stands at the last key, whatever dense calls do.
        first = one.causal and subject.dialect.causal_alignment != "bottom_right" and not _kept(form)
        cuts = [(0, 1), (0, 2)] if first else [(4, 5), (3, 5)] if one.causal else [(0, 1), (4, 5), (1, 4)]
        for a, b in cuts:
            piece = gathered(subject, form, [one.replace(q=one.q[:, :, a:b])])
            if piece is not None:
                yield (
                    piece,
                    [
                        Company(
                            f"{'query' if b == a + 1 else f'{b - a} queries'} alone, and beside {5 - b + a} others", whole, row=a
                        )
                    ],
                )


def must_be_as_alone(
    subject: Subject, alone: Problem, before: Answer, company: Company, *, exact: Exact | None, gradients: bool = False
) -> None:
    """What is looked at in a call must be what it is alone: bit by bit, or within the bound of both.

    before: what came of it alone. exact: the answer alone, where it is the bound that counts. gradients: whether gradients are
    looked at, and not the output and the lse.
    """
    after = must_answer(subject, company.problem)
    for name in alone.outputs:
        x, y = before.output(name), after.output(name)
        if (name in RETURNED) == gradients or not isinstance(x, Tensor) or not isinstance(y, Tensor):
            continue
        a, b = company.place, company.row
        there = y[a : a + x.shape[0], :, b : b + x.shape[2]]
        if exact is None:
            must_keep_bits(subject, alone, x, there, name, company.what, company.problem, promised=True)
        else:
            must_agree(subject, there, x, exact, name, company.what, company.problem)


def must_be_the_same(subject: Subject, *asked: Asked, bits: bool, gradients: bool = False) -> None:
    """The same of all that is asked, in whatever form.

    What a convention has no words for is left out. So is what is wrong alone, where bits aren't asked for: another clause says so.
    Raises NotOffered or NotApplicable, with the reason, where nothing is left.
    """
    compared = wrong = 0
    refusal = f"restricted: {', '.join(sorted(subject.adapter.restrictions))}" if asked and subject.adapter.restrictions else ""
    for alone, companies in chain(*asked):
        try:
            exact = None if bits else right(subject, alone)
            if exact is None and not bits:
                wrong += 1
                continue
            before = must_answer(subject, alone)
        except NotOffered as found:
            refusal = str(found)
            continue
        for company in companies:
            try:
                must_be_as_alone(subject, alone, before, company, exact=exact, gradients=gradients)
                compared += 1
            except NotOffered as found:
                refusal = str(found)
    if compared:
        return
    if wrong:
        raise NotApplicable("what is asked alone is wrong already")
    raise NotOffered(refusal) if refusal else NotApplicable
