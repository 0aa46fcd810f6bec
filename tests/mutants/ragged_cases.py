"""Calls of many sequences that a witness is looked for among, and witnesses that one call is not enough for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from attnspec.adapters import Adapter
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.ragged import CARRIER, LENGTHS
from attnspec.conformance.problems.tensors import build
from attnspec.reference import Exact, default_class, solve
from attnspec.spec import Dialect, Problem

DIALECT = Dialect(causal_alignment="bottom_right")
OPTIONS: tuple[dict[str, Any], ...] = (
    {"causal": True, "alibi_slopes": "bh", "lse": "returned"},
    {"window": "2:1", "sinks": "normal", "scale": 0.5, "lse": "both"},
    {"softcap": 0.7, "wrt": "none", "e": 5},
    {"alibi_slopes": "h", "lse": "returned", "wrt": "none", "poison": "lure"},
)
SIZES: tuple[dict[str, Any], ...] = (
    {"i": 3, "j": 20},
    {"i": 1, "j": 33},
    {"i": 17, "j": 80},
    {"i": 9, "j": 4},
)
CASES = tuple(
    Case(b=3, heads="4/2", d=8, values="peaked", carrier=carrier, lengths=lengths, **size, **options)
    for size in SIZES
    for options in OPTIONS
    for carrier in CARRIER.levels[1:]
    for lengths in LENGTHS.levels
)


@cache
def _asked(case: Case, changes: tuple[tuple[str, Any], ...]) -> tuple[Problem, Exact]:
    problem = build(case)
    assert problem.carrier is not None
    if shared := dict(changes).get("shared", 0) * getattr(problem.carrier, "size", 0):
        k, v = problem.k.clone(), problem.v.clone()
        k[:, :, :shared], v[:, :, :shared] = k[:1, :, :shared].clone(), v[:1, :, :shared].clone()
        problem = problem.replace(k=k, v=v)
    problem = problem.replace(carrier=replace(problem.carrier, **dict(changes)))
    return problem, solve(problem, DIALECT)


def wrong_for(*asked: Case | tuple[Case, dict[str, Any]]) -> Callable[[type[Adapter]], bool]:
    """A witness: one adapter answers case after case, with its carrier changed; some answer is wrong, or something is changed."""

    def shows(kind: type[Adapter]) -> bool:
        adapter, found = kind(), False
        for one in asked:
            case, changes = one if isinstance(one, tuple) else (one, {})
            problem, exact = _asked(case, tuple(changes.items()))
            found |= bool(judge(adapter.run(problem), exact, default_class(case.dtype)).findings)
        return found

    return shows


def lengths(form: str, *each: str, **levels: Any) -> tuple[Case, ...]:
    """Calls of a form in tensors of the same shapes, with these lengths one after the other."""
    plain: dict[str, Any] = {"b": 3, "i": 3, "j": 9, "heads": "4/2", "values": "peaked", "causal": True, "wrt": "none"}
    return tuple(Case(**{**plain, **levels}, carrier=form, lengths=x) for x in each)
