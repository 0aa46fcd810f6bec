"""Restrictions that nobody declared, and that refusals show.

A refusal is `Unsupported` from an adapter, and from a plain function an exception that its own code raises (`raise`, `assert`), or
NotImplementedError. A restriction is found where every problem of a kind is refused and everything that the restriction leaves of
the same sizes is answered rightly. What an operator throws on its way, as where sizes do not match, is no refusal but a crash.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from attnspec.adapters.restrictions import NO_BACKWARD
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject

SIZES = ((2, 3, 7), (1, 8, 4), (3, 5, 33))


def find(subject: Subject) -> None:
    """Add to the adapter's restrictions those that its refusals show; `found` says of each what was refused."""
    plain = Case(dtype=subject.dtypes[0], d=subject.width, heads="2/2", wrt="none")
    sizes = [replace(plain, b=b, i=i, j=j, seed=n) for n, (b, i, j) in enumerate(SIZES)]
    options = {"mask": {"mask": "padding"}, "bias": {"bias": "ij"}, "causal": {"causal": True}}
    given = {name: [replace(case, **change) for case in sizes] for name, change in options.items()}  # type: ignore[arg-type]
    if subject.offers("key_padding", "mask"):
        forms = [replace(case, mask=form) for case, form in zip(sizes, ("padding", "bhij", "ij"), strict=True)]
        _try(subject, "padding_only", forms, given["mask"], origin=False)
    if subject.offers("causal"):
        _try(subject, "always_causal", sizes, given["causal"])
    square = [replace(case, j=0) for case in sizes]
    _try(subject, "equal_lengths", sizes, square)
    _try(subject, "one_tensor", square, square)
    offered = {"mask": subject.offers("key_padding"), "bias": subject.offers("bias"), "causal": subject.offers("causal")}
    for a, b in (("mask", "bias"), ("mask", "causal"), ("bias", "causal")):
        if offered[a] and offered[b]:
            both = [replace(case, **options[b]) for case in given[a]]  # type: ignore[arg-type]
            _try(subject, f"{a}_or_{b}", both, given[a] + given[b])
    if subject.offers("backward"):
        graded = [replace(case, wrt="all") for case in sizes]
        _try(subject, "backward_method", graded, graded, origin=False)
        _try(subject, NO_BACKWARD + subject.device.split(":")[0], graded, sizes)


def _try(subject: Subject, name: str, refused: list[Case], left: list[Case], origin: bool = True) -> None:
    """Add a restriction if it is found. origin: only a refusal shows it; else any exception, since another form is answered."""
    adapter = subject.adapter
    if name in adapter.restrictions:
        return
    answers = (subject.run(subject.problem(fit(case, adapter))) for case in refused)
    reasons = []
    for answer in answers:
        if answer.refusal is None or answer.ended or (origin and not answer.refuses):  # what ends the process refuses nothing
            return
        reasons.append(answer.refusal)
    restricted = copy.copy(adapter)
    restricted.restrictions = frozenset({*adapter.restrictions, name})
    if name.startswith(NO_BACKWARD):
        restricted = restricted.on(subject.device)
    other = replace(subject, adapter=restricted, held={}, _judgements=type(subject._judgements)())
    if all(_right(other, fit(case, restricted)) for case in left):
        adapter.restrictions, adapter.offers = restricted.restrictions, restricted.offers
        subject.found[name] = reasons[0]


def _right(subject: Subject, case: Case) -> bool:
    problem = subject.problem(case)
    return not subject.judge(subject.run(problem), subject.solve(problem)).findings
