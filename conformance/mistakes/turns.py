"""Mistakes of calls that turn queries and new keys: by which position, which channels, how often (ROTARY)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from attnspec.conformance.mistakes.kernel import Wrong
from attnspec.conformance.mistakes.sequences import Sequences, sequences_at
from attnspec.conformance.mistakes.table import Chapter, Mistake, put_together
from attnspec.reference import Exact, solve
from attnspec.reference.ragged import RaggedExact
from attnspec.spec import Dialect, Problem
from attnspec.spec.ragged import Kept
from attnspec.spec.turns import turned

TURNS = Chapter()
Tensors = dict[str, torch.Tensor]


class Turn:
    """One sequence of a call that turns: what the call gets, and how it must turn it.

    q (1 h i d), k (1 g a d): queries and new keys before they are turned. at_q, at_k: their positions. old: keys that are there.
    """

    def __init__(self, x: Sequences, n: int) -> None:
        carrier = x.carrier
        assert isinstance(carrier, Kept)
        self.x, self.n, self.carrier, self.one = x, n, carrier, x.each[n]
        self.first, self.new, self.width = carrier.first_new(n), x.new[n], carrier.rotary
        self.old = x.j[n] - self.new
        placed = x.problem.causal or x.problem.window is not None
        alike = x.dialect.rotary_query == "first" and not placed
        self.at_q = [self.first + (0 if alike else i) for i in range(x.i[n])]
        self.at_k = [self.first + a for a in range(self.new)]
        self.interleaved = carrier.interleaved if carrier.told else x.dialect.rotary_pairs == "interleaved"
        self.rows = int(x.given["cos"].shape[0])
        self.q = self.turned(self.one.q, self.at_q, back=True)
        self.k = self.turned(self.one.k[:, :, self.old :], self.at_k, back=True)

    def turned(self, x: Any, at: Iterable[int], interleaved: bool | None = None, *, back: bool = False) -> torch.Tensor:
        """Tensor x (1 g n d) turned by these positions, by the call's pairs or by others."""
        pairs = self.interleaved if interleaved is None else interleaved
        return turned(x.detach(), list(at), self.width, pairs, self.carrier.steady, back)

    def again(self, keys: torch.Tensor) -> torch.Tensor:
        """All keys, of which these are the new ones."""
        return torch.cat([self.one.k[:, :, : self.old].detach(), keys], 2)


Change = Callable[[Turn], Tensors]


def enter(name: str, says: str, change: Change, *, special: bool = False) -> None:
    """Enter a mistake: the queries, keys or values (1 h n d) that a sequence has by it."""

    def wrong(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        carrier = problem.carrier
        if not isinstance(carrier, Kept) or not carrier.rotary or not carrier.new or not isinstance(exact, RaggedExact):
            return None
        x = sequences_at(problem, dialect)
        found: list[Wrong] = []
        for n in range(problem.b):
            one = x.each[n]
            changes = change(Turn(x, n)) if x.i[n] else {}
            differs = any(not torch.equal(y, getattr(one, name)) for name, y in changes.items())
            found.append(dict(solve(one.replace(**changes), dialect).values) if differs else None)
        return put_together(problem, exact, found)

    TURNS.add(Mistake(name, says, wrong, special=special))


def each(name: str, says: str, queries: Callable[[Turn], torch.Tensor], keys: Callable[[Turn], torch.Tensor], **of: Any) -> None:
    """Enter a mistake of the turn of queries and new keys, and of the turn of either of them alone."""
    enter(name, f"queries and new keys are {says}", lambda t: {"q": queries(t), "k": t.again(keys(t))}, **of)
    enter(f"{name}_of_queries", f"queries are {says}", lambda t: {"q": queries(t)}, **of)
    enter(f"{name}_of_keys", f"new keys are {says}", lambda t: {"k": t.again(keys(t))}, **of)


def at(name: str, says: str, change: Callable[[Turn, int], int], **of: Any) -> None:
    """Enter a mistake of the position by which queries and new keys are turned, as far as the tables go."""

    def changed(t: Turn, own: list[int]) -> list[int]:
        return [min(max(change(t, x), 0), max(t.rows - 1, 0)) for x in own]

    each(
        name,
        says,
        lambda t: t.turned(t.q, changed(t, t.at_q)),
        lambda t: t.turned(t.k, changed(t, t.at_k)),
        **of,
    )


# BY WHICH POSITION

at("turn_one_late", "turned by the position behind their own", lambda t, own: own + 1)
at("turn_one_early", "turned by the position before their own", lambda t, own: own - 1)
at("turn_within_the_call", "turned by positions that begin at 0 in each call", lambda t, own: own - t.first)
at(
    "turn_of_first_sequence",
    "turned by positions that begin where the first sequence's do",
    lambda t, own: own - t.first + t.carrier.first_new(0),
)
at(
    "turn_of_longest",
    "turned by positions that begin behind the longest sequence",
    lambda t, own: own - t.first + max(t.carrier.first_new(n) for n in range(t.x.b)),
)
at(
    "turn_of_shortest",
    "turned by positions that begin behind the shortest sequence",
    lambda t, own: own - t.first + min(t.carrier.first_new(n) for n in range(t.x.b)),
    special=True,
)
at("turn_behind_new_keys", "turned by positions to which the number of new keys is added", lambda t, own: own + t.new)
at(
    "turn_behind_new_keys_later",
    "turned by positions to which the number of new keys is added, behind keys of an earlier call alone",
    lambda t, own: own + t.new * (t.old > 0),
    special=True,
)
enter(
    "turn_each_of_queries",
    "each query is turned by its own position, and not like the first",
    lambda t: {"q": t.turned(t.q, [t.first + i for i in range(t.x.i[t.n])])},
)
at("turn_like_first", "all turned like the first", lambda t, own: t.first)
at("turn_like_last", "all turned like the last", lambda t, own: t.first + t.new - 1, special=True)
at("turn_backwards", "turned by positions that count backwards", lambda t, own: 2 * t.first + t.new - 1 - own, special=True)
at("turn_without_left", "turned by positions that leave out the rows before the first key", lambda t, own: own - t.x.left[t.n])
at("turn_of_row_in_page", "turned by the row of their page", lambda t, own: own % (t.x.size or own + 1), special=True)
for n in (16, 32, 64):
    at(
        f"turn_by_{n}_rows",
        f"turned by row {n - 1} of the tables from position {n} on",
        lambda t, own, n=n: min(own, n - 1),
        special=True,
    )

# WHICH CHANNELS


def half(t: Turn, x: torch.Tensor, own: list[int]) -> torch.Tensor:
    """The first half of the pairs turned."""
    pairs = torch.arange(t.width // 2) < max(t.width // 4, 1)
    stays = torch.ones(x.shape[-1], dtype=torch.bool)
    stays[: t.width] = ~(pairs.repeat_interleave(2) if t.interleaved else torch.cat([pairs, pairs]))
    return torch.where(stays.to(x.device), x, t.turned(x, own))


def across(t: Turn, x: torch.Tensor, own: list[int]) -> torch.Tensor:
    """Halves are those of all channels."""
    pairs, middle = t.width // 2, x.shape[-1] // 2
    if t.interleaved or t.width == x.shape[-1]:
        return t.turned(x, own)
    order, found = [*range(pairs), *range(middle, middle + pairs)], x.clone()
    found[..., order] = t.turned(x[..., order], own)
    return found


def first_head(t: Turn, x: torch.Tensor, own: list[int]) -> torch.Tensor:
    """One head turned."""
    return torch.cat([t.turned(x[:, :1], own), x[:, 1:]], 1)


for name, says, change, rare in (
    ("turn_missing", "not turned", lambda t, x, own: x, False),
    ("turn_twice", "turned twice", lambda t, x, own: t.turned(t.turned(x, own), own), False),
    ("turn_other_way", "turned the other way round", lambda t, x, own: t.turned(x, own, back=True), False),
    ("turn_other_pairs", "turned in the other pairs of channels", lambda t, x, own: t.turned(x, own, not t.interleaved), False),
    ("turn_half_of_pairs", "turned in the first half of the pairs alone", half, False),
    ("turn_across_all_channels", "turned in pairs of which one channel lies in each half of all channels", across, False),
    ("turn_of_first_head", "turned in the first head alone", first_head, False),
):
    each(
        name,
        says,
        lambda t, change=change: change(t, t.q, t.at_q),
        lambda t, change=change: change(t, t.k, t.at_k),
        special=rare,
    )

# WHAT ELSE IS TURNED

enter(
    "turn_of_keys_that_are_there",
    "keys of earlier calls are turned again",
    lambda t: {"k": torch.cat([t.turned(t.one.k[:, :, : t.old], range(t.first - t.old, t.first)), t.one.k[:, :, t.old :]], 2)},
)
enter(
    "turn_of_values",
    "new values are turned, too",
    lambda t: (
        {}
        if t.one.v.shape[-1] < t.width
        else {"v": torch.cat([t.one.v[:, :, : t.old], t.turned(t.one.v[:, :, t.old :], t.at_k)], 2)}
    ),
)
enter(
    "turn_of_single_query_missing",
    "a single query is not turned",
    lambda t: {"q": t.q} if t.x.i[t.n] == 1 else {},
    special=True,
)
