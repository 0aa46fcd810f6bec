"""Mistakes of the gradients of many sequences whose output is right (VARLEN)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Wrong
from attnspec.conformance.mistakes.ragged import RAGGED
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


def only(which: str, choose: Callable[[Sequences, int], bool]) -> Callable[[Sequences, dict[str, Array]], dict[str, Array]]:
    """Zero in this gradient of the sequences that are not chosen."""

    def change(x: Sequences, whole: Array, n: int, rows: int) -> None:
        if not choose(x, n):
            whole[n] = 0

    return each_of((which,), change)


def goes_on(x: Sequences, right: dict[str, Array]) -> dict[str, Array]:
    """The gradient of a sequence's last key added to that of the next one's first."""
    whole = right["dk"].copy() if "dk" in right else None
    for n, m in zip(x.turn, x.turn[1:], strict=False):
        if whole is not None and x.j[n] and x.j[m]:
            whole[m, :, 0] += right["dk"][n, :, x.j[n] - 1]
    return {} if whole is None else {"dk": whole}


def of_next(x: Sequences, right: dict[str, Array]) -> dict[str, Array]:
    """The last query's gradient is that of the first query of the next sequence."""
    whole = right["dq"].copy() if "dq" in right else None
    for n, m in zip(x.turn, x.turn[1:], strict=False):
        if whole is not None and x.i[n] and x.i[m]:
            whole[n, :, x.i[n] - 1] = right["dq"][m, :, 0]
    return {} if whole is None else {"dq": whole}


for which, says in (("dk", "of keys"), ("dv", "of values"), ("dq", "of queries")):
    gradients(
        f"{which}_of_last_missing",
        f"the gradients {says} are zero in the last sequence",
        only(which, lambda x, n: x.b < 2 or n != x.turn[-1]),
    )
gradients("dk_goes_on", "the first key of a sequence also gets the gradient of the last key of the one before", goes_on)
gradients("dq_of_next", "the last query of a sequence has the gradient of the next one's first query", of_next)


gradients(
    "dq_zero_beside_no_keys",
    "the gradients of queries are zero where some sequence has no keys",
    lambda x, right: {} if all(x.j) or "dq" not in right else {"dq": np.zeros_like(right["dq"])},
)


def as_in(name: str) -> None:
    """Enter a mistake that backward makes and forward does not."""
    forward = RAGGED.mistakes[name]

    def wrong(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        found = forward.wrong(problem, dialect, exact) if problem.differentiated else None
        return {key: value for key, value in (found or {}).items() if key not in ("o", "lse")} or None

    says = f"the gradients are those of a call that makes this mistake: {forward.says}"
    RAGGED_GRADIENTS.add(Mistake(f"{name}_in_backward", says, wrong, special=True))


for name in (
    "placed_at_zero",
    "placed_by_longest",
    "placed_by_longest_keys",
    "placed_by_room",
    "placed_by_slots",
    "slot_read_whole",
    "slot_read_whole_aligned",
    "length_of_longest",
    "no_borders",
):
    as_in(name)
