"""Changes of a call of many sequences whose effect on the answer is known without a reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters import Answer
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, must_agree, must_answer, must_keep_bits
from attnspec.spec import Problem
from attnspec.spec.ragged import EACH, Carrier, alone


def carrier_of(problem: Problem) -> Carrier:
    """The carrier of a problem. Raises NotApplicable where it has none."""
    if problem.carrier is None:
        raise NotApplicable
    return problem.carrier


def carried(problem: Problem, **changes: Any) -> Problem:
    """The problem with its carrier changed."""
    return problem.replace(carrier=replace(carrier_of(problem), **changes))


def in_order(problem: Problem, order: list[int]) -> Problem:
    """Some batch items of a problem, in this order; each has its own lengths, rows and slopes along."""
    carrier, at = carrier_of(problem), torch.tensor(order, device=problem.q.device)
    own: dict[str, Any] = {name: tuple(x[n] for n in order) for name in EACH if (x := getattr(carrier, name, None))}
    own |= {"order": ()} if getattr(carrier, "order", None) else {}
    changes: dict[str, Any] = {name: getattr(problem, name)[at] for name in "qkv"}
    changes |= {name: x[at] for name in ("do", "dlse") if (x := getattr(problem, name)) is not None}
    if problem.alibi_slopes is not None and problem.alibi_slopes.ndim == 2:
        changes["alibi_slopes"] = problem.alibi_slopes[at]
    return problem.replace(carrier=replace(carrier, **own), **changes)


def with_one_more(problem: Problem, place: int) -> Problem:
    """The problem with a further sequence, which has neither queries nor keys, at a place."""
    carrier, n = carrier_of(problem), problem.b
    order = [*range(place), 0, *range(place, n)] if n else []
    if not order:
        raise NotApplicable
    found = in_order(problem, order) if not getattr(carrier, "slots", ()) else None
    if found is None:
        raise NotApplicable
    empty: dict[str, Any] = {
        name: (*x[:place], 0, *x[place + 1 :]) for name in EACH if name != "slots" and (x := getattr(found.carrier, name, None))
    }
    return carried(found, **empty)


def must_be_as(
    subject: Subject, before: Answer, after: Answer, problem: Problem, places: list[int], what: str, other: Problem | None = None
) -> None:
    """Each output of batch item n of a problem must agree with that of item places[n] of another call, within the bound of both."""
    exact = subject.solve(problem)
    for name in problem.outputs:
        x, y = before.output(name), after.output(name)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.ndim < 3 or x.shape[0] != problem.b:
            continue
        must_agree(subject, y[torch.tensor(places, device=y.device)], x, exact, name, what, other)


def asked(subject: Subject, case: Case, **levels: Any) -> Problem:
    """The problem of a small case in a form with these levels. Raises NotApplicable where they are not offered.

    Who takes only as many keys as queries gets sequences with as many keys as they have queries; who always appends gets new keys.
    """
    found = fit(
        replace(Case(dtype=case.dtype, heads="4/2", d=case.d, values="peaked", b=3, i=3, j=9, wrt="none"), **levels),
        subject.adapter,
    )
    wanted = {name: level for name, level in levels.items() if name in ("carrier", "lengths")}
    words = {*wanted["carrier"].split("+")}
    if "always_append" in subject.adapter.restrictions and words & {"cached", "paged"} and "append" not in words:
        wanted = {"carrier": found.carrier if words | {"append"} == {*found.carrier.split("+")} else ""}
    if "equal_lengths" in subject.adapter.restrictions:
        wanted.pop("lengths", None)
    if any(getattr(found, name) != level for name, level in wanted.items()):
        raise NotApplicable
    return subject.problem(found)


def must_not_see(subject: Subject, problem: Problem, **changes: Any) -> None:
    """Whatever stands where nothing may be read, the bits are the same. changes: of the carrier, first."""
    first = carried(problem, poison="nan", **changes)
    before = must_answer(subject, first)
    for poison, numbers in (("huge", "huge numbers"), ("lure", "numbers of others")):
        second = carried(first, poison=poison)
        after = must_answer(subject, second)
        for name in problem.outputs:
            what = f"rows that belong to no sequence hold {numbers} instead of NaN"
            must_keep_bits(subject, first, before.output(name), after.output(name), name, what, second)


def must_leave(subject: Subject, problem: Problem, what: str = "holds other rows than before and the new ones behind them") -> None:
    """A call must write what its carrier says, and nothing else. Raises Broken with what the memory holds in words."""
    answer = must_answer(subject, problem)
    if answer.changed:
        raise Broken(Finding("changed", "call", f"after the call {' and '.join(answer.changed)} {what}"), problem)


def one_token_after_another(problem: Problem, n: int, new: int) -> list[Problem]:
    """The calls that append each of the last `new` keys of batch item n alone, with the query that stands there."""
    found, one, whole = [], alone(problem, n), carrier_of(problem)
    rest: dict[str, Any] = {name: plain for name, plain in {"slots": (), "left": (), "spare": 0}.items() if hasattr(whole, name)}
    for a in range(new):
        keys = one.j - new + a + 1
        query = one.i - new + a
        if query < 0:
            raise NotApplicable
        part: dict[str, Any] = {"q": one.q[:, :, query : query + 1], "k": one.k[:, :, :keys], "v": one.v[:, :, :keys]}
        carrier = replace(whole, q_lengths=(1,), k_lengths=(keys,), new=(1,), **rest)  # type: ignore[call-arg]
        found.append(one.replace(**part, carrier=carrier))
    return found
