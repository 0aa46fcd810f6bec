"""Mistakes of a cache: whose slot a sequence has, and what the rows before its first key are taken for (CACHE)."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.ragged import both, enter, longer, slopes_of
from attnspec.conformance.mistakes.sequences import Sequences


def slotted(x: Sequences) -> bool:
    """The call names a slot for each sequence."""
    return x.given.get("slots") is not None


def of_own_number(x: Sequences, n: int) -> Array:
    """The rows of the slot of the sequence's number."""
    return x.rows(n) % x.room + n * x.room


enter(
    "slots_ignored",
    "each sequence has the slot of its own number, whatever the call says",
    of_own_number,
    None,
    ("cached",),
    slotted,
)


def from_the_slot(x: Sequences, n: int) -> Array:
    """A sequence's rows and those before its first key."""
    begin = x.slot(n) * x.room
    return np.arange(begin, begin + x.left[n] + x.j[n])


both(
    "left_ignored",
    "the rows before the first key are attended to as keys",
    from_the_slot,
    ("cached",),
    holds=lambda x: any(x.left),
)
both(
    "left_ignored_beside_keys",
    "the rows before the first key are attended to as keys, where there is a key",
    lambda x, n: from_the_slot(x, n) if x.j[n] else x.rows(n),
    ("cached",),
    holds=lambda x: any(x.left),
    special=True,
    of="left_ignored",
)
both(
    "left_of_first",
    "as many rows before the first key are left out as in the first sequence",
    lambda x, n: (
        np.arange(x.rows(n)[0] - x.left[n] + min(x.left[0], x.left[n] + x.j[n]), x.rows(n)[-1] + 1) if x.j[n] else x.rows(n)
    ),
    ("cached",),
    holds=lambda x: any(x.left),
    special=True,
)
both(
    "length_by_slot",
    "lengths are looked up by the number of the slot",
    longer(lambda x, n: x.left[m := x.slot(n) % x.b] + x.j[m] - x.left[n]),
    ("cached",),
    holds=slotted,
    special=True,
)
both(
    "left_not_added",
    "each sequence's keys are read from the beginning of its slot, and as many as it has",
    lambda x, n: x.rows(n) - x.left[n],
    ("cached",),
    holds=lambda x: any(x.left),
    special=True,
)
both(
    "left_added_to_length",
    "the rows before the first key are added to the length, which counts them already",
    longer(lambda x, n: x.j[n] + x.left[n]),
    ("cached",),
    holds=lambda x: any(x.left),
    special=True,
)
both(
    "left_taken_twice",
    "the rows before the first key are taken off the length twice",
    longer(lambda x, n: x.j[n] - x.left[n]),
    ("cached",),
    holds=lambda x: any(x.left),
    special=True,
)
enter(
    "placed_with_left",
    "the queries stand at their rows of the slot, and the keys at their numbers from the first key on",
    None,
    lambda x, n: x.start(n) + x.left[n],
    ("cached",),
    lambda x: any(x.left),
)
enter(
    "placed_without_left",
    "the keys stand at their rows of the slot, and the queries at their numbers from the first key on",
    None,
    lambda x, n: x.start(n) - x.left[n],
    ("cached",),
    lambda x: any(x.left),
    special=True,
)
slopes_of("slopes_by_slot", "slopes are looked up by the number of the slot", lambda x, n: x.slot(n) % x.b, special=True)
