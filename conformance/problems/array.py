"""The covering arrays: rows that together hold all pairs, or all triples, of levels."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from importlib import resources

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS, alike, level_by_value, level_of
from attnspec.conformance.problems.fit import decodes, fit


@cache
def _rows(name: str) -> tuple[Case, ...]:
    """The rows as they stand in the file, each with its number as the seed."""
    text = (resources.files("attnspec.conformance.problems") / "arrays" / f"{name}.csv").read_text(encoding="utf-8")
    table = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    header = next(table)
    if header != list(LEVELS):
        raise ValueError(
            f"arrays/{name}.csv has the factors {header}, case.py has {list(LEVELS)}; run conformance/problems/arrays/make.py"
        )
    known = {factor: {str(value): value for value in level_by_value(factor)} for factor in LEVELS}
    try:
        return tuple(
            Case(**{factor: known[factor][text] for factor, text in zip(LEVELS, row, strict=True)}, seed=n)
            for n, row in enumerate(table)
        )
    except KeyError as unknown:
        raise ValueError(
            f"arrays/{name}.csv has {unknown}, which no level stands for; run conformance/problems/arrays/make.py"
        ) from None


def array(name: str, adapter: Adapter, dtypes: tuple[str, ...]) -> list[Case]:
    """The cases of a covering array ("pairs" or "triples"), fitted to what is offered.

    A level that is not offered becomes one that is, so every combination of offered levels that the array holds is still
    there. Each row has its own seed. Of a row of few queries and more keys that asks for gradients stands another one half
    way round the array that does not, which is how such shapes are asked in use, and another way through a kernel.
    """
    cases = []
    for n, row in enumerate(_rows(name)):
        dtype, d = dtypes[LEVELS["dtype"].index(row.dtype) % len(dtypes)], row.d
        if adapter.widths is not None and d not in adapter.widths:  # of the same level if there is one, else any, in turn
            widths = [x for x in alike("d", level_of("d", d)) if x in adapter.widths] or sorted(adapter.widths)
            d = widths[n % len(widths)]
        cases.append(fit(replace(row, dtype=dtype, d=d), adapter))
    there, half, asked = set(cases), len(cases) // 2, []
    for case, opposite in zip(cases, (*cases[half:], *cases[:half]), strict=True):
        asked.append(case)
        twin = fit(replace(opposite, wrt="none"), adapter)
        if decodes(opposite) and twin not in there:
            asked.append(twin)
    return asked
