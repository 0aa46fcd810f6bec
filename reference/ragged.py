"""The exact answer to a ragged problem: each sequence alone, as a dense problem, put where its batch item is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.reference import dense
from attnspec.reference.bounds.accuracy import Arithmetic
from attnspec.reference.exact import Exact, Tolerance
from attnspec.spec import Dialect, Problem, implements
from attnspec.spec.ragged import Kept, sequences
from attnspec.spec.turns import turned

OF_A_HEAD = ("dsinks", "dalibi_slopes")  # gradients that are sums over the sequences
Solve = Callable[[Problem], Exact]


@dataclass(frozen=True)
class RaggedExact(Exact):
    """Each sequence's own exact answer, in the shapes of the problem. Of rows that no sequence has it says zero.

    So the bound of a sequence is what it is alone: no companion, gap or padding is part of it.
    """

    parts: tuple[Exact, ...] = ()

    @property
    def outranked(self) -> Array:
        """Rows (b h i) of which SOFTMAX-7 speaks: none, for a ragged problem has no bias."""
        return np.zeros(self.forward.empty.shape, bool)

    @property
    def heads_of_values(self) -> Array:
        """The values that each query head has, (b h j e), zero behind a sequence's own."""
        p = self.problem
        return _scattered([x.heads_of_values for x in self.parts], (p.b, p.h, p.j, p.e))

    def promising_all(self) -> Exact:
        """The same answer with no element exempt for an intermediate that may overflow."""
        return replace(self, strict=True, parts=tuple(x.promising_all() for x in self.parts), _cache={})

    def terms(self, class_: str, name: str, index: tuple[int, ...]) -> dict[str, float]:
        """What the bound of one element is made of: for each term the share that is gone without it, the largest first."""
        if name in OF_A_HEAD:
            return self.parts[0].terms(class_, name, index)
        return self.parts[index[0]].terms(class_, name, (0, *index[1:]))

    def _tolerance(self, class_: str, dtype: str) -> Tolerance:
        own = [x.tolerance(class_, dtype) for x in self.parts]
        return Tolerance(
            {name: self._put(name, [x.bound[name] for x in own]) for name in (own[0].bound if own else {})},
            {name: self._put(name, [x.exempt[name] for x in own]) for name in (own[0].exempt if own else {})},
        )

    def bounds(self, a: Arithmetic) -> tuple[dict[str, Array], dict[str, Array]]:
        """The bounds of an arithmetic, once, and what it exempts, by output, in the shapes of the answer."""
        both = [x.bounds(a) for x in self.parts]
        found = [{name: self._put(name, [x[n][name] for x in both]) for name in (both[0][n] if both else {})} for n in (0, 1)]
        return found[0], found[1]

    def _put(self, name: str, parts: Sequence[Array]) -> Array:
        return joined(self.problem, name, parts, self.parts)


@implements("VARLEN-1", "VARLEN-2", "VARLEN-3", "VARLEN-4", "VARLEN-9", "VARLEN-12")
@implements("CACHE-1", "CACHE-2", "CACHE-6", "CACHE-7", "CACHE-8", "CACHE-10")
@implements("MLA-1", "MLA-2", "MLA-3", "MLA-7", "MLA-9")
@implements("PAGED-1", "PAGED-5", "PAGED-6", "PAGED-8", "PAGED-9")
def solve_ragged(problem: Problem, dialect: Dialect, each: Solve) -> RaggedExact:
    """The exact answer to a problem with a carrier. each: solves a dense problem."""
    parts = tuple(each(as_it_turns(problem, dialect, n, one)) for n, one in enumerate(sequences(problem)))

    def put(name: str, of: Callable[[Exact], Array]) -> Array:
        return joined(problem, name, [of(x) for x in parts], parts)

    names = ("o", *(("lse",) if problem.lse else ()), *(f"d{x}" for x in problem.wrt if problem.differentiated))
    values = {name: put(name, lambda x, name=name: x.values[name]) for name in names}  # type: ignore[misc]
    zero = {name: ~_there(problem, name) | put(name, lambda x, name=name: x.zero[name]) for name in names}  # type: ignore[misc]
    undefined = {name: put(name, lambda x, name=name: x.undefined[name]) for name in names}  # type: ignore[misc]
    rest = {
        name: put(name, lambda x, name=name: x.rest[name])  # type: ignore[misc]
        for name in names
        if parts and all(name in x.rest for x in parts)
    }
    rows, pairs = (problem.b, problem.h, problem.i), (problem.b, problem.h, problem.i, problem.j)
    fs = [x.forward for x in parts]
    forward = dense.Forward(
        (_scattered([f.z for f in fs], pairs), _scattered([f.s for f in fs], pairs)),
        _scattered([f.visible for f in fs], pairs, bool),
        _scattered([f.empty for f in fs], rows, bool),
        _scattered([f.p for f in fs], pairs),
        _scattered([f.w for f in fs], pairs),
        _scattered([f.m for f in fs], rows),
        _scattered([f.lse for f in fs], rows),
        values["o"],
        None if problem.sinks is None else _scattered([f.pi for f in fs], rows),  # type: ignore[misc]
    )
    lse = _scattered([x.lse for x in parts], rows)
    oracle = parts[0].oracle if parts else "float64"
    tile = parts[0]._tile if parts else None
    return RaggedExact(problem, dialect, forward, lse, values, zero, undefined, tile, oracle, rest=rest, parts=parts)  # type: ignore[arg-type]


@implements("ROTARY-1", "ROTARY-2", "ROTARY-3", "ROTARY-4", "ROTARY-5", "ROTARY-7", "ROTARY-9")
def as_it_turns(problem: Problem, dialect: Dialect, n: int, one: Problem) -> Problem:
    """A sequence as a call of this dialect sees it whose new keys and queries are turned.

    A problem holds them turned, by the pairs that its carrier names, and queries by positions of their own. Where the call does not
    name the pairs, and takes others, or turns all queries like the first, they are turned back, and as the call does it.
    """
    carrier = problem.carrier
    if not isinstance(carrier, Kept) or not carrier.rotary or not carrier.new:
        return one
    first, width, steady = carrier.first_new(n), carrier.rotary, carrier.steady
    pairs = carrier.interleaved if carrier.told else dialect.rotary_pairs == "interleaved"
    alike = dialect.rotary_query == "first" and not problem.causal and problem.window is None
    if pairs == carrier.interleaved and not alike:
        return one
    turn: Callable[..., torch.Tensor] = turned
    queries, keys = range(first, first + one.i), range(first, first + carrier.new[n])
    q = turn(one.q, queries, width, carrier.interleaved, steady, back=True)
    k_new = turn(one.k[:, :, one.j - carrier.new[n] :], keys, width, carrier.interleaved, steady, back=True)
    q = turn(q, [first] * one.i if alike else queries, width, pairs, steady)
    k = torch.cat([one.k[:, :, : one.j - carrier.new[n]], turn(k_new, keys, width, pairs, steady)], 2)
    return one.replace(q=q, k=k)


def _scattered(parts: Sequence[Array], shape: tuple[int, ...], dtype: type = float) -> Array:
    """Each part at the beginning of its batch item; zero, or False, elsewhere."""
    found: Array = np.zeros(shape, dtype)
    for n, part in enumerate(parts):
        found[n][tuple(slice(size) for size in part.shape[1:])] = part[0]
    return found


def joined(problem: Problem, name: str, parts: Sequence[Array], exacts: Sequence[Exact]) -> Array:
    """What is said of an output, sequence by sequence, in the output's shape; of a head's own gradient the sum, or any.

    The bound of a sum grows by the rounding of its terms.
    """
    if name not in OF_A_HEAD:
        like = np.asarray(parts[0]).dtype if parts else np.dtype(float)
        return _scattered(parts, problem.shape_of(name), bool if like.kind == "b" else float)
    if problem.shape_of(name)[0] == problem.b and len(problem.shape_of(name)) == 2:  # slopes (b h)
        return np.concatenate(list(parts)) if parts else np.zeros(problem.shape_of(name))
    total = np.sum(np.stack(list(parts)), axis=0) if parts else np.zeros(problem.shape_of(name))
    return total > 0 if parts and parts[0].dtype == bool else total


def _there(problem: Problem, name: str) -> Array:
    """Which elements of an output belong to a sequence."""
    carrier = problem.carrier
    if name in OF_A_HEAD or carrier is None:
        return np.ones(problem.shape_of(name), bool)
    lengths = carrier.k_lengths if name in ("dk", "dv") else carrier.q_lengths
    shape = problem.shape_of(name)
    row = np.arange(shape[2]) < np.array(lengths, int)[:, None]
    return np.broadcast_to(row.reshape(problem.b, 1, shape[2], *(1,) * (len(shape) - 3)), shape)
