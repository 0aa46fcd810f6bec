"""Mistakes of the gradients of many sequences whose output is right (VARLEN)."""

from __future__ import annotations

from collections.abc import Callable

from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Wrong
from attnspec.conformance.mistakes.sequences import Sequences, sequences_at
from attnspec.conformance.mistakes.table import Chapter, Mistake
from attnspec.reference import Exact
from attnspec.reference.ragged import RaggedExact
from attnspec.spec import Dialect, Problem

RAGGED_GRADIENTS = Chapter()


def gradients(
    name: str, says: str, change: Callable[[Sequences, dict[str, Array]], dict[str, Array]], *, special: bool = True
) -> None:
    """Enter a mistake of gradients alone: what it makes of the right ones."""

    def wrong(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        if problem.carrier is None or not problem.differentiated or not isinstance(exact, RaggedExact):
            return None
        right: dict[str, Array] = {key: exact.values[key].copy() for key in ("dq", "dk", "dv") if key in exact.values}
        return change(sequences_at(problem, dialect), right) or None

    RAGGED_GRADIENTS.add(Mistake(name, says, wrong, special=special))


def each_of(
    names: tuple[str, ...], change: Callable[[Sequences, Array, int, int], None]
) -> Callable[[Sequences, dict[str, Array]], dict[str, Array]]:
    """Changes these gradients of each sequence, of which there are so many rows."""

    def changed(x: Sequences, right: dict[str, Array]) -> dict[str, Array]:
        found = {name: right[name] for name in names if name in right}
        for name, whole in found.items():
            for n in range(x.b):
                change(x, whole, n, x.i[n] if name == "dq" else x.j[n])
        return found

    return changed


def without_last(x: Sequences, whole: Array, n: int, rows: int) -> None:
    """Zero in the last row of a sequence."""
    whole[n, :, max(rows - 1, 0) : rows] = 0


def without_others(x: Sequences, whole: Array, n: int, rows: int) -> None:
    """Zero in all sequences but the first."""
    if n != x.turn[0]:
        whole[n] = 0


for which, says in (("dk", "of keys"), ("dv", "of values"), ("dk dv", "of keys and values"), ("dq", "of queries")):
    stem = "".join(which.split())
    names = tuple(which.split())
    gradients(f"{stem}_without_last_row", f"the gradients {says} lack the last row of each sequence", each_of(names, without_last))
    gradients(
        f"{stem}_of_first_alone",
        f"the gradients {says} are those of the first sequence, zero elsewhere",
        each_of(names, without_others),
    )
