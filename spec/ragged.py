"""Many sequences in one call: how a problem whose batch items have lengths of their own is carried. Importing this needs no torch.

A ragged call is many dense calls in one. A problem (b h i d) has a batch item for each sequence, and a carrier that says how long
each is and in which tensors they are handed over. Rows behind a length are no part of the problem: no tensor of the call holds
them. The reference answers each sequence alone; the carrier lays the inputs out, puts poison where nothing may be read, reads the
answer back, and looks at what may not have been written (attnspec/adapters/forms).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from attnspec.spec.problem import Problem

# What stands where nothing may be read: NaN, numbers that no input has, or finite numbers that could be anybody's.
POISONS = ("nan", "huge", "lure")


@dataclass(frozen=True)
class Carrier:
    """How long each sequence is.

    q_lengths, k_lengths: queries and keys of each batch item, of which a problem has i and j at most. poison: of POISONS.
    """

    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]
    poison: str = "nan"
    feature: ClassVar[str] = ""  # who offers it takes such a call

    def needs(self) -> set[str]:
        """The features that a call in this form needs."""
        return {self.feature}

    def check(self, problem: Problem) -> None:
        """Raise ValueError, with what was found and what was expected, where it does not fit a problem."""
        for name, most, what in (("q_lengths", problem.i, "queries"), ("k_lengths", problem.j, "keys")):
            lengths = getattr(self, name)
            if len(lengths) != problem.b or not all(_whole(x) and x <= most for x in lengths):
                raise ValueError(f"{name} are {problem.b} whole numbers up to {most}, the {what} of the problem; found {lengths!r}")
        if self.poison not in POISONS:
            raise ValueError(f"poison is one of {', '.join(POISONS)}; found {self.poison!r}")
        for name in ("mask", "bias"):
            if getattr(problem, name) is not None:
                raise ValueError(f"a ragged call has no {name}: its lengths say what is there")
        if problem.shared:
            raise ValueError("a ragged call has keys and values with heads, (b g j d); found one shared head (b j d)")
        self._check(problem)

    def _check(self, problem: Problem) -> None:
        """The same of what only one form has."""

    def data(self) -> dict[str, Any]:
        """As plain data, which :func:`carrier_from` reads."""
        return {"form": self.feature} | dataclasses.asdict(self)


@dataclass(frozen=True)
class Padded(Carrier):
    """Dense tensors (b h i d), and the lengths beside them: what lies behind a length is padding."""

    feature: ClassVar[str] = "padded"

    def needs(self) -> set[str]:
        """The features that a call in this form needs."""
        return {"padded"} | ({"padded_queries"} if len(set(self.q_lengths)) > 1 else set())


@dataclass(frozen=True)
class Packed(Carrier):
    """All sequences one behind the other: q (n h d), k (m g d), v (m g e), and where each begins (chapter VARLEN).

    q_gap, k_gap: rows behind each sequence that belong to none, in its own slot: the lengths are told beside where slots begin.
    tail: rows behind the last one. slack: by how much the longest lengths that are told exceed the true ones. order: which
    sequence comes first, second, …; () for their own order. long: where they begin is told in int64. fused: keys and values are
    views of one tensor, in which they stand side by side.
    """

    q_gap: int = 0
    k_gap: int = 0
    tail: int = 0
    slack: int = 0
    order: tuple[int, ...] = ()
    long: bool = False
    fused: bool = False
    feature: ClassVar[str] = "packed"

    def needs(self) -> set[str]:
        """The features that a call in this form needs."""
        there = {"packed_gaps": self.q_gap or self.k_gap, "packed_long": self.long, "strided": self.fused}
        return {"packed", *(name for name, given in there.items() if given)}

    def _check(self, problem: Problem) -> None:
        _counts(self, "q_gap", "k_gap", "tail", "slack")
        _is_an_order(self.order, problem.b)


@dataclass(frozen=True)
class Kept(Carrier):
    """What a cache and pages have in common: new keys, which a call may turn before it writes them (chapter ROTARY), and latents.

    new: how many of each sequence's keys the call gets beside those that are there, and appends: the last ones; () for none.
    rotary: how many channels of new keys and of queries the call turns by their positions; the problem holds them turned.
    interleaved: whether the pairs that turn are (2r, 2r + 1). told: whether the call names the pairs. steady: the turns grow by the
    same for each position. latent: keys alone are there, of one head, and their first e channels are the values (chapter MLA).
    """

    new: tuple[int, ...] = ()
    rotary: int = 0
    interleaved: bool = False
    told: bool = False
    steady: bool = False
    latent: bool = False

    def first_new(self, n: int) -> int:
        """The position of the first new key of a sequence, which is that of its first query: the rows that are there before."""
        return self.k_lengths[n] - (self.new or (0,) * (n + 1))[n]

    def _needs(self) -> set[str]:
        there = {
            f"{self.feature}_append": self.new,
            f"{self.feature}_latent": self.latent,
            "rotary": self.rotary,
            f"{self.feature}_rotary": self.rotary,
            "rotary_told": self.rotary and self.told,
            "rotary_any_width": self.rotary % 16,
        }
        return {self.feature, *(name for name, given in there.items() if given)}

    def _check(self, problem: Problem) -> None:
        _counts(self, "rotary")
        _are_counts(self, "new")
        if any(a > b for a, b in zip(self.new, self.k_lengths, strict=bool(self.new))):
            raise ValueError(f"new keys are some of each sequence's {self.k_lengths!r}; found {self.new!r}")
        if self.rotary % 2 or self.rotary > problem.d:
            raise ValueError(f"rotary is an even number of the {problem.d} channels; found {self.rotary}")
        if self.rotary and not self.new:
            raise ValueError("a call turns new keys, and there are none")
        if self.latent and (problem.g != 1 or problem.e > problem.d):
            found = f"{problem.g} heads, {problem.d} channels and {problem.e} of values"
            raise ValueError(f"latents are keys of one head, whose first channels are the values; found {found}")


@dataclass(frozen=True)
class Cached(Kept):
    """A cache of keys and values (slots, capacity, g, d), of which each sequence has a slot (chapter CACHE).

    left: rows of the slot before the first key; () for none. room: rows of the capacity behind the longest sequence.
    slots: the slot of each sequence; () for its own number, and then no slots are told. spare: slots that no sequence has.
    fused: the caches are views of one tensor, in which they stand side by side.
    """

    left: tuple[int, ...] = ()
    room: int = 0
    slots: tuple[int, ...] = ()
    spare: int = 0
    fused: bool = False
    feature: ClassVar[str] = "cached"

    def needs(self) -> set[str]:
        """The features that a call in this form needs."""
        there = {"cached_left": self.left, "cached_slots": self.slots or self.spare, "strided": self.fused}
        return self._needs() | {name for name, given in there.items() if given}

    def first_new(self, n: int) -> int:
        """The same with the rows before the first key, which count."""
        return super().first_new(n) + (self.left[n] if self.left else 0)

    @property
    def capacity(self) -> int:
        """Rows of each slot."""
        left = self.left or (0,) * len(self.k_lengths)
        return max((a + b for a, b in zip(left, self.k_lengths, strict=True)), default=0) + self.room

    def _check(self, problem: Problem) -> None:
        super()._check(problem)
        _counts(self, "room", "spare")
        if set(self.q_lengths) - {problem.i}:
            raise ValueError(f"a call with a cache has {problem.i} queries for each sequence; found {self.q_lengths!r}")
        _are_counts(self, "left")
        if len(set(self.new)) > 1:
            raise ValueError(f"new keys of a cache are as many for each sequence; found {self.new!r}")
        if self.slots:
            _is_an_order(self.slots, problem.b + self.spare, problem.b)


@dataclass(frozen=True)
class Paged(Kept):
    """A pool of pages (pages, size, g, d), and a table that says which pages each sequence has (chapter PAGED).

    The queries are packed. size: rows of a page. spare: pages that nobody has. columns: columns of the table behind those that are
    used. unused: what stands in entries that are not used. seed: by which pages are dealt out; 0 for one after the other. shared:
    so many pages at the beginning of each sequence are those of the first one, whose keys and values are the same. fused: the pages
    of keys and of values are views of one pool, in which they stand side by side.
    """

    size: int = 16
    spare: int = 0
    columns: int = 0
    unused: int = 0
    seed: int = 0
    shared: int = 0
    fused: bool = False
    feature: ClassVar[str] = "paged"

    def needs(self) -> set[str]:
        """The features that a call in this form needs."""
        there = {
            "paged_queries": len(set(self.q_lengths)) > 1,
            "paged_any_size": self.size % 16,
            "paged_any_entry": self.unused,
            "strided": self.fused,
        }
        return self._needs() | {name for name, given in there.items() if given}

    @property
    def pages(self) -> tuple[int, ...]:
        """How many pages each sequence has."""
        return tuple(-(-length // self.size) for length in self.k_lengths)

    def _check(self, problem: Problem) -> None:
        super()._check(problem)
        _counts(self, "spare", "columns", "seed", "shared")
        if not _whole(self.size) or not self.size:
            raise ValueError(f"a page has at least one row; found size {self.size!r}")
        whole = min((length // self.size for length in self.k_lengths), default=0)
        if self.shared > whole or (self.shared and any(self.new)):
            raise ValueError(f"shared pages are full, and not written: at most {whole} of them; found {self.shared}")


FORMS: dict[str, type[Carrier]] = {kind.feature: kind for kind in (Padded, Packed, Cached, Paged)}
EACH = ("q_lengths", "k_lengths", "new", "left", "slots")  # fields that hold a number for each sequence
FEATURES = {
    "padded": "dense tensors with a number of keys for each batch item",
    "padded_queries": "dense tensors with a number of queries for each batch item",
    "packed": "sequences one behind the other, and where each begins",
    "packed_gaps": "room between packed sequences",
    "packed_long": "where packed sequences begin in int64",
    "cached": "a cache of keys and values with a length for each sequence",
    "cached_append": "new keys that the call writes into the cache",
    "cached_left": "rows of a cache before the first key",
    "cached_slots": "a slot of the cache for each sequence",
    "paged": "pages of keys and values, and a table of each sequence's",
    "paged_append": "new keys that the call writes into pages",
    "paged_queries": "sequences with different numbers of queries beside pages",
    "paged_any_size": "pages of any size, and not of multiples of 16 alone",
    "paged_any_entry": "any number in table entries that are not used",
    "rotary": "tables of cos and sin by which queries and new keys are turned",
    "cached_rotary": "queries and new keys that are turned before the keys are written into a cache",
    "paged_rotary": "queries and new keys that are turned before the keys are written into pages",
    "rotary_told": "a call that names the pairs of channels that are turned",
    "cached_latent": "a cache of latents, whose first channels are the values",
    "paged_latent": "pages of latents, whose first channels are the values",
    "rotary_any_width": "any even number of channels that are turned, and not multiples of 16 alone",
}


def carrier_from(data: Mapping[str, Any]) -> Carrier:
    """The carrier that :meth:`Carrier.data` wrote. Raises ValueError for what is none."""
    given = dict(data)
    kind = FORMS.get(str(given.pop("form", "")))
    if kind is None:
        raise ValueError(f"a carrier has a form of {', '.join(FORMS)}; found {data.get('form')!r}")
    known = {field.name for field in dataclasses.fields(kind)}
    if given.keys() - known:
        raise ValueError(
            f"a {data['form']} carrier has no {', '.join(sorted(given.keys() - known))}; it has {', '.join(sorted(known))}"
        )
    made: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
    return kind(**made)


def alone(problem: Problem, n: int) -> Problem:
    """Batch item n of a ragged problem as a dense problem of its own: without a carrier, and no longer than the sequence is."""
    carrier = problem.carrier
    if carrier is None:
        raise ValueError("this problem has no carrier: its batch items have all one length")
    i, j = carrier.q_lengths[n], carrier.k_lengths[n]
    changes: dict[str, Any] = {"carrier": None, "q": problem.q[n : n + 1, :, :i]}
    changes |= {name: getattr(problem, name)[n : n + 1, :, :j] for name in "kv"}
    if isinstance(carrier, Kept) and carrier.latent:  # the call gets no values
        changes["v"] = changes["k"][..., : problem.e]
    changes |= {name: x[n : n + 1, :, :i] for name in ("do", "dlse") if (x := getattr(problem, name)) is not None}
    if problem.alibi_slopes is not None and problem.alibi_slopes.ndim == 2:
        changes["alibi_slopes"] = problem.alibi_slopes[n : n + 1]
    if isinstance(problem.q_start, tuple):
        changes["q_start"] = problem.q_start[n : n + 1]
    return problem.replace(**changes)


def cut(carrier: Carrier, places: Mapping[str, Any]) -> Carrier:
    """The carrier of a problem of which only some places of b, i and j, slices, are left: lengths are no more than there are."""
    changes: dict[str, Any] = {}
    if isinstance(places.get("b"), slice):
        changes |= {name: x[places["b"]] for name in EACH if (x := getattr(carrier, name, None))}
        changes |= {name: () for name in ("order", "slots") if getattr(carrier, name, None)}
    for axis, name in (("i", "q_lengths"), ("j", "k_lengths")):
        if isinstance(places.get(axis), slice):
            most = places[axis].stop - places[axis].start
            changes[name] = tuple(min(x, most) for x in changes.get(name, getattr(carrier, name)))
    if getattr(carrier, "new", ()):
        k_lengths: tuple[int, ...] = changes.get("k_lengths", carrier.k_lengths)
        new: tuple[int, ...] = changes.get("new") or getattr(carrier, "new", ()) or ()
        changes["new"] = tuple(min(a, b) for a, b in zip(new, k_lengths, strict=True))
    return dataclasses.replace(carrier, **changes)


def repeated_carrier(carrier: Carrier, times: int) -> Carrier:
    """The carrier of a problem that has each batch item so many times: those that are new have slots and places of their own."""
    own: dict[str, Any] = {name: x * times for name in EACH if (x := getattr(carrier, name, None))}
    own |= {name: () for name in ("order", "slots") if getattr(carrier, name, None)}
    return dataclasses.replace(carrier, **own)


def sequences(problem: Problem) -> tuple[Problem, ...]:
    """The sequences of a ragged problem, each as a dense problem of its own."""
    return tuple(alone(problem, n) for n in range(problem.b))


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _counts(carrier: Carrier, *names: str) -> None:
    for name in names:
        if not _whole(getattr(carrier, name)):
            raise ValueError(f"{name} of a {carrier.feature} carrier is a whole number from 0 on; found {getattr(carrier, name)!r}")


def _are_counts(carrier: Carrier, *names: str) -> None:
    for name in names:
        each, n = getattr(carrier, name), len(carrier.k_lengths)
        if each and (len(each) != n or not all(map(_whole, each))):
            raise ValueError(f"{name} are {n} whole numbers, one for each sequence, or () for none; found {each!r}")


def _is_an_order(order: tuple[int, ...], n: int, most: int | None = None) -> None:
    if order and not (len(order) == (most or n) == len(set(order)) and all(_whole(x) and x < n for x in order)):
        raise ValueError(f"an order has {most or n} different numbers below {n}, or is () for their own; found {order!r}")
