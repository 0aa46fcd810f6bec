"""A mistake that is made in some sequences alone: those of one query, those behind the first, those that end with a block.

A kernel has several paths, and a fault is often in one of them. Then the mistake explains what fails, and would have shown as well
in what is right. Here each mistake is tried in the sequences of one kind alone. It has its name if nothing is left that it would
have shown in. Only calls of many sequences are looked at. Where a convention puts a dense problem as one, its batch items are
sequences of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.diagnosis.match import Seen, clearly, explains
from attnspec.spec import Problem

BY_ITEM = frozenset({"o", "lse", "dq", "dk", "dv"})  # outputs whose first axis is that of the sequences


class One(NamedTuple):
    """What a sequence is like: its place of how many, its queries and keys, how many of these are new, and the rows of a page."""

    place: int
    of: int
    queries: int
    keys: int
    new: int
    page: int


@dataclass(frozen=True)
class Kind:
    """A kind of sequences: in words, and which they are."""

    says: str
    holds: Callable[[One], bool]


def of_blocks(n: int) -> tuple[Kind, ...]:
    """Sequences by how their keys fill blocks of n."""
    return (
        Kind(f"where the number of keys is a multiple of {n}", lambda x: x.keys % n == 0 < x.keys),
        Kind(f"where the number of keys is no multiple of {n}", lambda x: x.keys % n > 0),
        Kind(f"where there are more than {n} keys", lambda x: x.keys > n),
        Kind(f"where there are {n} keys at most", lambda x: x.keys <= n),
    )


KINDS = (
    Kind("where there is one query", lambda x: x.queries == 1),
    Kind("where there are several queries", lambda x: x.queries > 1),
    Kind("where there is one new key", lambda x: x.new == 1),
    Kind("where there are several new keys", lambda x: x.new > 1),
    Kind("where there are new keys", lambda x: x.new > 0),
    Kind("where all keys are new", lambda x: x.new == x.keys > 0),
    Kind("in the first of several sequences", lambda x: x.place == 0 and x.of > 1),
    Kind("in all sequences but the first", lambda x: x.place > 0),
    Kind("in the last of several sequences", lambda x: 0 < x.place == x.of - 1),
    Kind("in the last of three sequences or more", lambda x: 1 < x.place == x.of - 1),
    Kind("in all sequences but the last", lambda x: x.place < x.of - 1),
    Kind("where there are two sequences or more", lambda x: x.of > 1),
    Kind("where there are three sequences or more", lambda x: x.of > 2),
    *(kind for n in (16, 32, 64, 128) for kind in of_blocks(n)),
    Kind("where there are several pages", lambda x: x.keys > x.page > 0),
    Kind("where the last page is full", lambda x: x.page > 0 and x.keys % x.page == 0 < x.keys),
    Kind("where the last page is not full", lambda x: x.page > 0 and x.keys % x.page > 0),
)
ALL = Kind("", lambda x: True)


def sequences(problem: Problem) -> list[One]:
    """The sequences of a problem, in the order of its batch items."""
    carrier, b = problem.carrier, problem.b
    if carrier is None:
        return [One(n, b, problem.i, problem.j, 0, 0) for n in range(b)]
    turn, page = list(getattr(carrier, "order", ()) or range(b)), int(getattr(carrier, "size", 0))
    new = getattr(carrier, "new", ()) or [0] * b
    return [One(turn.index(n), b, carrier.q_lengths[n], carrier.k_lengths[n], new[n], page) for n in range(b)]


class Narrow:
    """One problem as it was answered, of which the sequences of some kinds are looked at."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.each = seen, sequences(seen.problem)
        self.given: dict[str, list[dict[str, Array]]] = {}

    @property
    def carried(self) -> bool:
        """Whether the call is one of many sequences, if only as the convention puts it."""
        put = self.seen.presented
        return self.seen.problem.carrier is not None or (put is not None and put.problem.carrier is not None)

    @cached_property
    def failing(self) -> Array:
        """In which sequences something is wrong (b); in all where what is wrong belongs to none."""
        if not BY_ITEM.issuperset(self.seen.scope):
            return np.ones(len(self.each), bool)
        return np.any([self.seen.outside[name].any((1, 2, *range(3, self.seen.outside[name].ndim))) for name in self.seen.scope], 0)

    def are(self, kind: Kind) -> Array:
        """Which sequences are of a kind (b)."""
        return np.array([kind.holds(one) for one in self.each], bool)

    def allows(self, kind: Kind) -> bool:
        """Whether all that is wrong is in sequences of a kind."""
        return bool((self.are(kind) | ~self.failing).all())

    def right_where(self, name: str, kind: Kind) -> bool:
        """Whether a mistake that is made in the sequences of a kind alone shows nowhere but where the answer has it."""
        wrongs = self.given.setdefault(name, self.seen.given(name))
        made = [within(wrong, self.seen, self.are(kind)) for wrong in wrongs]
        if not self.seen.scope:
            return not made or not all(one is None or clearly(one, self.seen) for one in made)
        fits = [explains(one, self.seen) for one in made if one is not None]
        return any(one is not None and not one.spared for one in fits)


def within(wrong: dict[str, Array], seen: Seen, made: Array) -> dict[str, Array] | None:
    """What a mistake gives that is made in these sequences alone; None where it changes what belongs to no sequence."""
    if made.all():
        return wrong
    if not BY_ITEM.issuperset(wrong):
        return None
    right = seen.exact.values
    return {
        name: np.where(made.reshape(-1, *[1] * (x.ndim - 1)), x, right[name])
        for name, x in wrong.items()
        if name in right and x.shape == right[name].shape
    }


def narrowed(names: Iterable[str], seen: Sequence[Seen]) -> dict[str, tuple[str, ...]]:
    """Of these mistakes those that explain all problems, right ones among them, in the sequences of one kind: which kinds fit.

    None where a dense call fails, too. One that is right may have another kernel, and says nothing of calls of many sequences. No
    kind is told where a mistake explains all of these.
    """
    every = [Narrow(one) for one in seen]
    each = [one for one in every if one.carried]
    if not all(one.carried for one in every if one.seen.scope):
        return {}
    kinds = [kind for kind in KINDS if all(one.allows(kind) for one in each if one.seen.scope)]
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if all(one.right_where(name, ALL) for one in each):
            found[name] = ()
        elif fitting := tuple(kind.says for kind in kinds if all(one.right_where(name, kind) for one in each)):
            found[name] = fitting
    return found
