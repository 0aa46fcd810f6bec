"""A call of many sequences as a kernel gets it, taken apart, so that a sequence can be given other rows than its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.adapters.forms import BY_FEATURE
from attnspec.conformance.mistakes.kernel import Wrong
from attnspec.conformance.mistakes.table import put_together, sequences_of
from attnspec.reference import solve, to_float64
from attnspec.reference.ragged import RaggedExact
from attnspec.spec import Dialect, Problem

HELD_IN = {"packed": ("k", "v"), "padded": ("k", "v"), "cached": ("k_cache", "v_cache"), "paged": ("k_pages", "v_pages")}


class _LaidOut(Exception):
    """What a call gets."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given


def _spy(**given: Any) -> NoReturn:
    raise _LaidOut(given)


def laid_out(problem: Problem) -> dict[str, Any]:
    """The tensors that a call of a ragged problem gets, poison and all, by the names of its form's parameters."""
    carrier = problem.carrier
    assert carrier is not None
    fields = {name: x for name, x in carrier.data().items() if name != "form"}
    tensors = {name: getattr(problem, name).detach() for name in "qkv"}
    try:
        BY_FEATURE[carrier.feature].puts(_spy, **tensors, **fields)
    except _LaidOut as found:
        return found.given
    raise AssertionError("a form calls what it is given")


def contiguously(x: torch.Tensor) -> torch.Tensor:
    """What reads a tensor that takes its memory for contiguous."""
    strides = torch.empty(x.shape, device="meta").stride()
    return torch.as_strided(x, x.shape, strides, x.storage_offset())


class Read(NamedTuple):
    """What one sequence attends to: rows of the keys' memory, where its first query stands among them, and whose slopes it has.

    start: None where the alignment follows from how many rows are read. values: as many rows, where the values are of others than
    the keys.
    """

    rows: Array
    start: int | None
    slopes: int
    values: Array | None = None

    @property
    def of_values(self) -> Array:
        """The rows of the values."""
        return self.rows if self.values is None else self.values


class Sequences:
    """A ragged problem: which rows of memory each sequence has. Rows are numbered through all slots, pages or batch items.

    keys, values: (rows g d), as they are when attention begins, with new rows written. Behind them come the same rows as they were
    before the call: row r before is row `count` + r. Row 2 `count` + r is row r of who takes the memory for contiguous.
    """

    def __init__(self, problem: Problem, dialect: Dialect) -> None:
        assert problem.carrier is not None
        self.problem, self.dialect, self.carrier = problem, dialect, problem.carrier
        self.form, self.b = problem.carrier.feature, problem.b
        self.each = sequences_of(problem, dialect)
        self.i, self.j = list(self.carrier.q_lengths), list(self.carrier.k_lengths)
        self.new: list[int] = list(getattr(self.carrier, "new", ()) or [0] * self.b)
        self.left: list[int] = list(getattr(self.carrier, "left", ()) or [0] * self.b)
        self.given = laid_out(problem)
        keys, values = (self.given[name] for name in HELD_IN[self.form])
        both = (keys, keys[..., : problem.e] if values is None else values)  # of latents keys alone are there
        k, v = map(self._rows, both)
        flat_k, flat_v = (self._rows(contiguously(x)) for x in both)
        self.strided = not all(x.is_contiguous() for x in both)
        self.count, self.size = len(k), int(getattr(self.carrier, "size", 0))
        after_k, after_v = k.copy(), v.copy()
        for n in range(self.b):
            old = self.j[n] - self.new[n]
            for whole, own in ((after_k, self.each[n].k), (after_v, self.each[n].v)):
                written = to_float64(own[0, :, old : self.j[n]].detach()).swapaxes(0, 1)
                whole[self.rows(n)[old:]] = written
        self.keys, self.values = np.concatenate([after_k, k, flat_k]), np.concatenate([after_v, v, flat_v])

    def _rows(self, x: torch.Tensor) -> Array:
        whole = to_float64(x)
        if self.form == "packed":
            return whole
        if self.form == "padded":
            whole = whole.swapaxes(1, 2)
        return np.reshape(whole, (-1, *whole.shape[2:]))

    @cached_property
    def room(self) -> int:
        """How many rows a slot has: of a cache or of padding."""
        return int(self.given["k_cache"].shape[1]) if self.form == "cached" else self.problem.j

    def slot(self, n: int) -> int:
        """The slot of a sequence in a cache; its own number elsewhere."""
        return int((getattr(self.carrier, "slots", ()) or range(self.b))[n])

    @cached_property
    def table(self) -> Array:
        """The table of pages."""
        return np.array(self.given["table"].tolist(), int).reshape(self.b, -1)

    @cached_property
    def starts(self) -> list[int]:
        """Where each sequence begins in the pack of keys, in the order of the sequences; and where its queries do."""
        return self._starts("cu_k")

    @cached_property
    def query_starts(self) -> list[int]:
        """Where the queries of each sequence begin in their pack."""
        return self._starts("cu_q") if self.form == "packed" else [0] * self.b

    def _starts(self, name: str) -> list[int]:
        cumulative = self.given[name].tolist()
        return [cumulative[self.turn.index(n)] for n in range(self.b)]

    @cached_property
    def turn(self) -> list[int]:
        """The sequences in the order in which they are carried."""
        return list(getattr(self.carrier, "order", ()) or range(self.b))

    def neighbour(self, n: int, step: int = 1) -> int | None:
        """The sequence that is carried behind this one; None where there is none."""
        place = self.turn.index(n) + step
        return self.turn[place] if 0 <= place < self.b else None

    def rows(self, n: int, keys: int | None = None) -> Array:
        """The rows of a sequence's first keys, of as many as it has, or of others; rows that there are not are left out."""
        place = np.arange(self.j[n] if keys is None else max(keys, 0))
        if self.form == "packed":
            found = self.starts[n] + place
        elif self.form == "padded":
            found = np.where(place < self.room, n * self.room + place, -1)
        elif self.form == "cached":
            place = self.left[n] + place
            found = np.where(place < self.room, self.slot(n) * self.room + place, -1)
        else:
            found = self.in_pages(self.table[n], place)
        return found[(found >= 0) & (found < self.count)]

    def in_pages(self, pages: Array, place: Array) -> Array:
        """The rows of keys at these places of a sequence that has these pages; −1 where it has none."""
        column = np.minimum(place // self.size, max(len(pages) - 1, 0))
        page = pages[column] if len(pages) else np.full(len(place), -1)
        valid = (place // self.size < len(pages)) & (page >= 0) & (page * self.size < self.count)
        return np.where(valid, page * self.size + place % self.size, -1)

    def own(self, n: int) -> Read:
        """What a sequence is to read."""
        return Read(self.rows(n), self.start(n), n)

    def start(self, n: int, queries: int | None = None, keys: int | None = None) -> int:
        """Where the first query of a sequence stands; with other numbers of queries and keys."""
        if self.dialect.causal_alignment != "bottom_right":
            return 0
        return (self.j[n] if keys is None else keys) - (self.i[n] if queries is None else queries)

    @cached_property
    def placed(self) -> bool:
        """Whether anything depends on where queries and keys stand."""
        p = self.problem
        return bool(p.causal or p.window is not None or p.alibi_slopes is not None)

    @cached_property
    def owners(self) -> dict[int, tuple[int, int]]:
        """Whose key a row holds: the sequence and the place in it."""
        return {int(row): (n, at) for n in range(self.b) for at, row in enumerate(self.rows(n))}

    def reading(self, exact: RaggedExact, read: Callable[[int], Read | None]) -> Wrong:
        """The answer where each sequence reads something else; None where all read what they are to."""
        asked = [name for name in ("dk", "dv") if self.problem.differentiated and name in exact.values]
        gradients: dict[str, Array] = {name: np.zeros(exact.values[name].shape) for name in asked}
        found: list[Wrong] = []
        changed = False
        for n in range(self.b):
            own, other = self.own(n), read(n) if self.i[n] else None
            other = own if other is None else other
            if self._same(own, other):
                found.append(None)
                self._add(gradients, n, own, dict(exact.parts[n].values))
                continue
            wrong = self.attended(n, other)
            self._add(gradients, n, other, wrong)
            found.append({name: x for name, x in wrong.items() if name not in gradients})
            changed = True
        if not changed:
            return None
        return (put_together(self.problem, exact, found) or {}) | gradients

    def _same(self, own: Read, other: Read) -> bool:
        if np.array_equal(own.rows, other.rows) and np.array_equal(own.of_values, other.of_values):
            slopes = self.problem.alibi_slopes
            start = own.start if other.start is not None else None
            alike = slopes is None or slopes.ndim < 2 or own.slopes == other.slopes
            return alike and (not self.placed or start is None or start == other.start)
        return False

    def attended(self, n: int, read: Read) -> dict[str, Array]:
        """What the queries of a sequence give with these rows; NaN where one of them is not finite, whoever sees it."""
        one, rows = self.each[n], read.rows
        k, v = (x[of].swapaxes(0, 1)[None] for x, of in ((self.keys, rows), (self.values, read.of_values)))
        if not (np.isfinite(k).all() and np.isfinite(v).all()):
            exact = solve(one, self.dialect)
            return {
                name: np.full((*x.shape[:2], len(rows), x.shape[3]) if name in ("dk", "dv") else x.shape, np.nan)
                for name, x in exact.values.items()
            }
        given: dict[str, Any] = one.inputs() | one.cotangents()
        if self.problem.alibi_slopes is not None and self.problem.alibi_slopes.ndim == 2:
            given["alibi_slopes"] = self.problem.alibi_slopes[read.slopes : read.slopes + 1]
        given |= {"k": torch.from_numpy(k.copy()), "v": torch.from_numpy(v.copy())}
        changes: dict[str, Any] = {name: x.detach().double() for name, x in given.items()}
        if self.placed and read.start is not None:
            changes["q_start"] = read.start
        return dict(solve(one.replace(**changes), self.dialect).values)

    def _add(self, gradients: dict[str, Array], n: int, read: Read, values: dict[str, Array]) -> None:
        """Add the gradients of rows to those of the keys that they hold."""
        for name, total in gradients.items():
            for at, row in enumerate(read.rows if name == "dk" else read.of_values):
                owner = self.owners.get(int(row))
                if owner is not None:
                    total[owner[0], :, owner[1]] += values[name][0, :, at]


sequences_at = lru_cache(maxsize=4)(Sequences)


def reads(
    x: Sequences,
    rows: Callable[[int], Array | None],
    start: Callable[[int], int | None] | None = None,
    values: Callable[[int], Array | None] | None = None,
) -> Callable[[int], Read | None]:
    """Each sequence reads these rows, None for its own; its queries stand where they are to, or at `start`.

    values: as many rows, where the values are of others.
    """

    def read(n: int) -> Read | None:
        found = rows(n)
        if found is None:
            return None
        own = x.own(n)
        return Read(found, own.start if start is None else start(n), own.slopes, None if values is None else values(n))

    return read
