"""Simpler cases: one factor at a time, and a descent that takes the first that still fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS, OPEN_SIZES, SIMPLER_FIRST, level_of


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one factor made simpler, the greatest simplification first."""
    for name in SIMPLER_FIRST:
        value = getattr(case, name)
        options: Iterable[Any]
        if name == "heads":
            options = _simpler_heads(case)
        elif name == "seed":
            options = range(min(value, 2))
        elif name == "e":
            options = [0] if value else []
        elif name in OPEN_SIZES:
            least = 0 if name == "j" else 1
            options = sorted({least, 1, 2, 3, 4, value // 2, value // 2 + 1, value - 1}) if value > 1 else [least]
            options = [x for x in options if least <= x < value]
        else:
            known = LEVELS[name]
            level = level_of(name, value)
            options = known[: known.index(level) + (level != value)] if level in known else known[:2]
        if name == "i" and not case.j and case.i > 1:  # as many keys as before, fewer queries
            yield replace(case, i=1, j=case.keys)
        for option in options:
            yield replace(case, **{name: option})  # type: ignore[arg-type]


def _simpler_heads(case: Case) -> list[str]:
    """Fewer query heads that share keys and values in the same way, or in a simpler one."""
    fewer = sorted({n for n in (1, 2, 3, 4, case.h // 2, case.h // 2 + 1, case.h - 1) if 0 < n < case.h})
    if case.sharing == "gqa":
        groups = [f"{n}/{n // size}" for n in (4, 8, 16, 32) if n < case.h for size in (2, 4, 8) if n // size > 1]
        return ["1/1", "2/2", "2/1", *(heads for heads in groups if heads != case.heads)]
    if case.g is None:
        return [f"{n}/shared" for n in fewer]
    if case.sharing == "mqa":
        return ["1/1", "2/2", *(f"{n}/1" for n in fewer if n > 1)]
    return [f"{n}/{n}" for n in fewer]
