"""The factor of WINDOW-16: how many of the first keys a window does not hide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, whole
from attnspec.conformance.problems.factors.window import WINDOW

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case


def first_tokens_clause(case: Case, failing: Failing) -> str:
    """Of first tokens; where the window alone is wrong, a reduction has taken them away."""
    return "WINDOW-16" if case.first_tokens else ""


def other_first_tokens(case: Case) -> Mapping[str, Changes]:
    """With first tokens, without them, and with others."""
    if not case.first_tokens:
        return {"with first tokens": {"first_tokens": 1}} if case.window != "none" else {}
    return {"with other first tokens": {"first_tokens": case.first_tokens + 1}, "without its first tokens": {"first_tokens": 0}}


# One, a few, more than a block, and as many as many of the keys.
FIRST_TOKENS = Factor(
    "first_tokens",
    (0, 1, 4, 18),
    array="first_tokens",
    reads=whole("first_tokens", 0),
    needs="first_tokens",
    of=WINDOW,
    examples={"first_tokens": 1},
    turn=51,
    says=lambda case: f"{case.first_tokens} first tokens" if case.first_tokens else "",
    traits={"first_tokens": lambda case: case.first_tokens > 0},
    flags={"first_kept": lambda case: case.first_tokens > 0},  # the left end of the window does not hide them
    conditions=("first_kept",),
    option=True,
    probed=True,
    another=(1, 4),
    otherwise=other_first_tokens,
    blames={24: first_tokens_clause},
)
