"""The covering arrays: rows that together hold all pairs, or all triples, of levels.

Those of the core are frozen (`arrays/core/versions.lock`), so that nobody's gate moves when an option is added: the extensions have
arrays of their own, each for itself and one for all together (`problems/extension.py`), which are asked of who offers them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.extension import ALONE, CARRIED, TOGETHER, asked_of
from attnspec.conformance.problems.factors import LEVELS, alike, level_of
from attnspec.conformance.problems.factors.ragged import form_of
from attnspec.conformance.problems.fit import decodes, fit

ARRAYS = Path(__file__).parent / "arrays"
EACH = 8  # of the rows that an extension has alone, beside those of all together


def read(folder: Path, name: str, levels: Mapping[str, tuple[Any, ...]]) -> tuple[Case, ...]:
    """The rows as they stand in a file, each with its number as the seed. Raises ValueError where they have other levels."""
    path = folder / f"{name}.csv"
    table = csv.reader(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    header, remedy = next(table), f"run conformance/problems/arrays/make.py {folder.name}"
    if header != list(levels):
        raise ValueError(f"arrays/{folder.name}/{name}.csv has the factors {header}, and there are {list(levels)}; {remedy}")
    known = {name: {str(x): x for level in some for x in FACTORS[name].values(level)} for name, some in levels.items()}
    try:
        return tuple(
            Case(**{factor: known[factor][text] for factor, text in zip(levels, row, strict=True)}, seed=n)
            for n, row in enumerate(table)
        )
    except KeyError as unknown:
        raise ValueError(f"arrays/{folder.name}/{name}.csv has {unknown}, which is not a level; {remedy}") from None


@cache
def core_rows(name: str) -> tuple[Case, ...]:
    """The rows of an array of the core."""
    return read(ARRAYS / "core", name, LEVELS)


def array(name: str, adapter: Adapter, dtypes: tuple[str, ...]) -> list[Case]:
    """The cases of a covering array ("pairs" or "triples"), fitted to what is offered: the core's, then the extensions'.

    A level that is not offered becomes one that is, so every combination of offered levels that the array holds is still
    there. Each row has its own seed. Of a row of few queries and more keys that asks for gradients stands another one half
    way round the array that does not, which is how such shapes are asked in use, and another way through a kernel.
    """
    cases, beside = _fitted(core_rows(name), adapter, dtypes), asked_of(frozenset(adapter.offers))
    if beside is not None:
        rows = read(ARRAYS / beside.name, name, beside.levels)
        if beside is TOGETHER:
            rows += tuple(row for one in ALONE.values() for row in read(ARRAYS / one.name, name, one.levels)[::EACH])
        cases += [case for case in _fitted(rows, adapter, dtypes) if TOGETHER.there(vars(case))]  # what is left the core asks
    for form, carried in CARRIED.items():
        if form in adapter.offers:
            some = _fitted(read(ARRAYS / form, name, carried.levels), adapter, dtypes)
            cases += [case for case in some if form_of(case) == form]
    return list(dict.fromkeys(cases))


def _fitted(rows: tuple[Case, ...], adapter: Adapter, dtypes: tuple[str, ...]) -> list[Case]:
    """The rows of one array as an adapter is asked them, with the twins of those that ask few queries for gradients."""
    cases = []
    for n, row in enumerate(rows):
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
