"""Calls that turn new keys and queries by tables of cos and sin, and how problems become such calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import ragged
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.outcomes import NotApplicable
from attnspec.conformance.testing.sequences import asked, carried, carrier_of
from attnspec.spec import Problem
from attnspec.spec.ragged import Carrier, Kept
from attnspec.spec.turns import turned

KINDS = ("cached", "paged")


def appended(case: Case) -> bool:
    """A cache or pages, and a new key for each query."""
    return _a_key_for_each_query(ragged.carrier_of(case))


def _a_key_for_each_query(carrier: Carrier | None) -> bool:
    """Whether each sequence has as many new keys as queries: where a query without one stands, documentation leaves open."""
    new = carrier.new if isinstance(carrier, Kept) else ()
    return carrier is not None and bool(new) and all(q in (0, own) for q, own in zip(carrier.q_lengths, new, strict=True))


def placed(case: Case) -> bool:
    """Causal, or a window: each query has a position."""
    return case.causal or case.window != "none"


def kinds(subject: Subject, *features: str) -> list[str]:
    """The forms in which a subject turns new keys."""
    return [kind for kind in KINDS if subject.offers(f"{kind}_rotary", f"{kind}_append", *features)]


def pairs(subject: Subject) -> list[dict[str, bool]]:
    """Which channels may be turned together: those of its choice where a call does not name them, and both where it can."""
    own = [{"interleaved": subject.dialect.rotary_pairs == "interleaved", "told": False}]
    return own + ([{"interleaved": x, "told": True} for x in (False, True)] if subject.offers("rotary_told") else [])


def widths(subject: Subject, d: int) -> list[int]:
    """How many channels may be turned: about half of them, and all. Raises NotApplicable where there are too few."""
    step = 2 if subject.offers("rotary_any_width") else 16
    found = sorted({width for width in (d // 2 // step * step, d // step * step) if width})
    if not found:
        raise NotApplicable
    return found


def turning(subject: Subject, problem: Problem, **changes: Any) -> Problem:
    """The problem as a call that turns new keys and queries by itself. Raises NotApplicable where it has none, or others."""
    carrier = carrier_of(problem)
    if not _a_key_for_each_query(carrier) or not subject.offers(f"{carrier.feature}_rotary"):
        raise NotApplicable
    changes = {"rotary": widths(subject, problem.d)[0], **pairs(subject)[0]} | changes
    return carried(problem, **changes)


def small(subject: Subject, case: Case, kind: str, d: int = 0, word: str = "", **levels: Any) -> Problem:
    """A small problem in a form with new keys, as a call that turns them."""
    d = d or max(case.d, 32 if not subject.offers("rotary_any_width") else 8)
    if subject.adapter.widths is not None and d not in subject.adapter.widths:
        d = next((x for x in sorted(subject.adapter.widths) if x >= d), 0)
    if not d:
        raise NotApplicable
    levels = {"lengths": "3:9/3:4/3:8", "carrier": f"{kind}+append{word}"} | levels
    return turning(subject, asked(subject, replace(case, d=d), **levels))


def by_hand(problem: Problem, positions: list[int], name: str, back: bool = False) -> Any:
    """A tensor of the problem, of one batch item, turned as its carrier says by these positions."""
    carrier = carrier_of(problem)
    assert isinstance(carrier, Kept)
    return turned(getattr(problem, name), positions, carrier.rotary, carrier.interleaved, carrier.steady, back)
