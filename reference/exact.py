"""Holds the exact answer to a problem: values, bounds by class, what must be zero, and what is undefined."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy import ndarray as Array

from attnspec.reference import dense, zeros
from attnspec.reference.bounds.accuracy import LARGEST, TERMS, UNDERFLOW, UNIT, Arithmetic, arithmetic, kappa, kappas, without
from attnspec.reference.bounds.gradients import backward_bound
from attnspec.reference.bounds.output import eager_lse, forward_bound
from attnspec.reference.bounds.overflow import LOG2_E, may_overflow
from attnspec.reference.bounds.tile import Tile, with_sink
from attnspec.reference.stages import heads
from attnspec.reference.stages import lse as stage
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.stage import ScoreMap
from attnspec.spec import OPTIONS, Dialect, Problem

# float64's own error in the reference is that of class A in float64 (docs/certificate.md: a fifth of it). Every term of a
# bound grows at least linearly in u, and u is 2^29 times larger for float32, so a millionth covers it there. Enclosures are
# made as narrow as that.
REFERENCE_SHARE = 2.0**-20


@dataclass(frozen=True)
class Tolerance:
    """By output name, in the shape of the output. bound: the largest error that a class allows, in the unit of the output.

    exempt: True for elements that are not judged: a legal intermediate of the class may overflow, or they are undefined.
    """

    bound: dict[str, Array]
    exempt: dict[str, Array]


def limits(values: Array, bound: Array, zero: Array, exempt: Array, dtype: str, share: float) -> tuple[Array, Array]:
    """What one output is judged by: its bound, `share` times as wide beside a reference that errs too, and what is exempt."""
    with np.errstate(invalid="ignore", over="ignore"):
        bound = np.where(zero, 0.0, np.where(np.isnan(values), np.nan, bound * share))
        return bound, exempt | (np.abs(values) + bound > LARGEST[dtype])


def bound_of_keys(
    head: Array, stored: Array, value: Array, touched: Array, like: tuple[int, ...], grouping: str, a: Arithmetic
) -> tuple[Array, Array]:
    """Bound and exemption of dk or dv (shape `like`): the whole, or some keys of it.

    head is the bound of each query head (b h j ·), and stored how large what is stored of it may be; value is the sum over a group.
    touched (b h) says in which heads an intermediate may overflow.
    """
    bound = heads.sum_over_group(head, like, grouping)
    exempt = heads.sum_over_group(touched[..., None, None].astype(float), (*like[:-2], 1, 1), grouping) > 0
    # A head's own gradient may be stored, and that of some heads together; dk before the scale, too.
    exempt = exempt | (heads.sum_over_group(stored, like, grouping) > LARGEST[a.dtype])
    if head.shape[1] != (1 if len(like) == 3 else like[1]):
        bound = bound + a.u_out * (np.abs(value) + bound)
    return bound, exempt


@dataclass
class Reduced:
    """The gradient of a score map's own tensor, of shape `like`, such as a bias: what is summed of it, tile by tile.

    axes: its dimensions. a: the arithmetic of the bound.
    """

    like: tuple[int, ...]
    axes: str
    a: Arithmetic
    weighed: bool  # what is summed is multiplied with something first
    bound: Array | float = 0.0  # of what is summed
    size: Array | float = 0.0  # how large that is, in all
    count: Array | float = 0.0  # how much of it can be anything but zero
    touched: Array | bool = False  # where an intermediate may overflow

    def add(self, of_sum: Array, each: Array, rows: Array) -> None:
        """of_sum (b h i j) is what each element adds to it, or how large that is; each is the bound of that.

        rows (b h i) says in which an intermediate may overflow.
        """
        touched = self.reduced(np.broadcast_to(rows[..., None], each.shape).astype(float)) > 0
        self.bound, self.count = self.bound + self.reduced(each), self.count + self.reduced((each > 0).astype(float))
        self.size, self.touched = self.size + self.reduced(np.abs(of_sum) + each), self.touched | touched
        if self.weighed and self.a.u_s:  # the products may be stored
            self.touched = self.touched | (self.size > LARGEST[self.a.dtype])

    def reduced(self, x: Array) -> Array:
        """What (b h i j) is summed to."""
        return dense.reduce_to(x, self.like, self.axes)

    def limits(self, value: Array, terms: int) -> tuple[Array, Array]:
        """Bound and exemption of the gradient, whose value this is; `terms` elements are summed in all, zeros too."""
        a, total, repeated = self.a, np.asarray(self.bound), terms // max(1, int(np.prod(self.like)))
        if self.weighed:  # slopes are no narrower than float32, and so is what their gradient is summed in
            total = total + kappas(np.asarray(self.count), a.u_acc) * self.size + a.u_out * (np.abs(value) + total)
        elif repeated > 1:
            roundings = kappa(repeated, a.u_acc) + kappa(repeated // a.block + 1, a.u_grad)
            total = total + roundings * self.size + a.u_out * (np.abs(value) + total)
        return total, np.asarray(self.touched)


def reduced(one: ScoreMap, given: Given, a: Arithmetic) -> Reduced:
    """That of a map, of which nothing is summed yet."""
    like = tuple(getattr(given.problem, one.option).shape)
    return Reduced(like, OPTIONS[one.option].axes, a, one.weight(given) is not None)


def of_sinks(given: Given, a: Arithmetic) -> Reduced:
    """That of the sinks, of which nothing is summed yet. Of each row it is given one element, (b h i 1)."""
    return Reduced((given.problem.h,), OPTIONS["sinks"].axes, a, weighed=False)


def weighed_bound(one: ScoreMap, of_sum: Array, each: Array, given: Given, a: Arithmetic) -> tuple[Array, Array]:
    """How large what each element adds to the gradient of a map's own tensor may be, and its bound, (b h i j), once it is weighed.

    The weights may have a number in common (:meth:`ScoreMap.common`), which cancels in a row that sums to zero but for rounding.
    """
    weight = one.weight(given)
    if weight is None:
        return np.abs(of_sum), each
    size = np.abs(weight) + a.column * one.common(given)[1]
    terms, each = np.abs(of_sum) * size, each * size
    # The product is rounded; the eager classes store it, its factors, and the sum over a batch that comes before it.
    lost = np.where(each > 0, a.eta_acc + a.eta_s * (1 + size), 0.0)
    return terms, each + (kappa(2, a.u_acc) + (kappa(4, a.u_s) if a.u_s else 0.0)) * (terms + each) + lost


def returned_bound(natural: Array, value: Array, problem: Problem, dialect: Dialect, a: Arithmetic) -> Array:
    """The bound of the lse as it is returned, (b h i), from that of the natural one: converted to its base, and stored.

    It is stored in the dtype that the choice says, which may be narrower than what it was computed in.
    """
    unit, dtype = stage.unit(dialect), stage.dtype_of(problem, dialect)
    size = np.where(np.isfinite(value), np.abs(value), 0.0)
    natural = natural + eager_lse(problem.j, dialect, a)
    converted = natural / unit + (kappa(3, a.u_acc) * size if unit != 1 else 0.0)
    return np.where(np.isfinite(value), converted + UNIT[dtype] * (size + converted) + UNDERFLOW[dtype], 0.0)


def beyond_base_2(bound: Array, lse: Array, a: Arithmetic) -> Array:
    """Rows (b h i) whose scores leave the range of the accumulators where they are kept in base 2."""
    inside = LARGEST["float64" if a.dtype == "float64" or a.name == "R" else "float32"] / 1.1
    finite: Array = np.isfinite(lse)
    return finite & (LOG2_E * (np.abs(np.where(finite, lse, 0.0)) + bound) > inside)


@dataclass(frozen=True)
class Exact:
    """The exact answer: float64 arrays in the shapes of the implementation's answer.

    o (b h i e), lse (b h i), the natural one, −∞ in a row without key and sink; dq, dk, dv, dbias and dsinks in the shapes
    of their inputs, or None if the problem asks for none.
    values: the same by name; lse only where it is returned, and then in the base and with the empty rows that the dialect says.
    zero: by name, True for elements that must be exactly zero.
    undefined: by name, True for elements of which the clauses promise nothing: a visible operand is not finite, or a row that is
    NaN by rule, or open by EMPTY-1, reaches them.
    rest: what `values` leave of the exact answer; with the oracle "arb", values are the float64 numbers nearest to it.
    """

    problem: Problem
    dialect: Dialect
    forward: dense.Forward
    lse: Array
    values: dict[str, Array]
    zero: dict[str, Array]
    undefined: dict[str, Array]
    _tile: Tile
    oracle: str = "float64"
    of_keys: Exact | None = None  # the answer without sinks, where the lse is that of the keys alone
    rest: dict[str, Array] = field(default_factory=dict)
    strict: bool = False  # nothing is exempt for an intermediate that may overflow
    _cache: dict[tuple[str, str], Tolerance] = field(default_factory=dict)

    @property
    def o(self) -> Array:
        """The output (b h i e)."""
        return self.values["o"]

    @property
    def dq(self) -> Array | None:
        """The gradient of the queries, in their shape."""
        return self.values.get("dq")

    @property
    def dk(self) -> Array | None:
        """The gradient of the keys, in their shape."""
        return self.values.get("dk")

    @property
    def dv(self) -> Array | None:
        """The gradient of the values, in their shape."""
        return self.values.get("dv")

    @property
    def dbias(self) -> Array | None:
        """The gradient of the bias, in its shape."""
        return self.values.get("dbias")

    @property
    def dsinks(self) -> Array | None:
        """The gradient of the sinks, (h)."""
        return self.values.get("dsinks")

    @cached_property
    def empty(self) -> Array:
        """Rows without a visible key, (b h i) bool."""
        return self.forward.empty

    @cached_property
    def outranked(self) -> Array:
        """Rows (b h i) of which SOFTMAX-7 speaks: all their visible keys have the lowest number, beside hidden ones."""
        return zeros.outranked(Given(self.problem, self.dialect), self.forward)

    def promising_all(self) -> Exact:
        """The same answer with no element exempt for an intermediate that may overflow."""
        return replace(self, strict=True, _cache={})

    @property
    def reaches_hidden(self) -> bool:
        """Some row may take from keys that it does not see: empty under another rule than zero, or open (EMPTY-1, SOFTMAX-7)."""
        bare = self.forward.bare.any() and self.dialect.empty_row != "zero"
        return bool(bare or self.undefined["o"].any() or self.outranked.any())

    @property
    def heads_of_values(self) -> Array:
        """The values that each query head has, (b h j e)."""
        return self._tile.v

    def tolerance(self, class_: str, dtype: str | None = None) -> Tolerance:
        """The bound of each output for an accuracy class (docs/bounds.md); 0 for elements that must be exactly zero.

        dtype: the dtype whose rounding the bound allows (default: that of the problem). Raises ValueError for an unknown class.
        """
        dtype = dtype or str(self.problem.dtype).removeprefix("torch.")
        if (class_, dtype) not in self._cache:
            self._cache[class_, dtype] = self._tolerance(class_, dtype)
        return self._cache[class_, dtype]

    def terms(self, class_: str, name: str, index: tuple[int, ...]) -> dict[str, float]:
        """What the bound of one element is made of: for each of TERMS the share that is gone without it, the largest first."""
        a = arithmetic(class_, str(self.problem.dtype).removeprefix("torch."))

        def size(a: Arithmetic) -> float:
            return float(self.bounds(a)[0][name][index])

        gone = {term: size(a) - size(without(a, term)) for term in TERMS}
        total = sum(x for x in gone.values() if x > 0)
        return {term: x / total for term, x in sorted(gone.items(), key=lambda item: -item[1]) if x > 0}

    def _tolerance(self, class_: str, dtype: str) -> Tolerance:
        share = 1 + (1.0 if dtype == self.oracle == "float64" else REFERENCE_SHARE)
        bound, exempt = self.bounds(arithmetic(class_, dtype))
        if "lse" not in self.values:
            bound["lse"] = share * bound["lse"]
        for name, value in self.values.items():
            skip = self.undefined[name] if self.strict else exempt[name] | self.undefined[name]
            stored = stage.dtype_of(self.problem, self.dialect) if name == "lse" else dtype
            bound[name], exempt[name] = limits(value, bound[name], self.zero[name], skip, stored, share)
            if name == "lse":  # infinite by rule in a row without a key, which is no overflow
                exempt[name] = np.where(self.forward.bare, self.undefined[name], exempt[name])
        if self.of_keys is not None:
            alone = self.of_keys._tolerance(class_, dtype)
            bound["lse"], exempt["lse"] = alone.bound["lse"], alone.exempt["lse"]
        return Tolerance(bound, exempt)

    def bounds(self, a: Arithmetic) -> tuple[dict[str, Array], dict[str, Array]]:
        """The bounds of an arithmetic, once, and what it exempts, by output, in the shapes of the answer.

        Elements that must be zero have a bound here as well; :meth:`tolerance` is what an answer is judged by.
        """
        problem, grouping, back = self.problem, self.dialect.head_grouping, self._tile.backward

        all_tiles = tuple(with_sink(self._tile))

        def tiles(_: bool) -> tuple[Tile, ...]:
            return all_tiles

        # A row that is NaN by rule has no bound; it is compared as NaN.
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            w = forward_bound(tiles, problem.j, a)
            row, both = may_overflow(tiles, a)
            # D = Σ do·o of a stored output that is infinite: with dropout it may be, and 0 · ∞ reaches rows without a cotangent.
            both = both | (np.abs(self.values["o"]) + w.o > LARGEST[a.dtype]).any(-1)
            bound, exempt = {"o": w.o, "lse": w.lse}, {"o": np.broadcast_to(row[..., None], w.o.shape), "lse": row}
            if "lse" in self.values:
                bound["lse"] = returned_bound(w.lse, self.values["lse"], problem, self.dialect, a)
                exempt["lse"] = row | beyond_base_2(w.lse, self.lse, a)
            if back is None:
                return bound, exempt
            g = backward_bound(tiles, w, back.dq, a, problem.h // max(problem.g, 1), problem.i)
            (keys,) = g.of_keys
            touched = both.any(-1)
            bound["dq"] = g.dq
            exempt["dq"] = both[..., None] | (g.stored > LARGEST[a.dtype])
            for name, head, like in (("dk", keys.dk, problem.k.shape), ("dv", keys.dv, problem.v.shape)):
                value = self.values[name]
                bound[name], exempt[name] = bound_of_keys(head, keys.stored[name], value, touched, tuple(like), grouping, a)
            for one, of_sum in zip(self._tile.maps, back.dscores[1:], strict=True):
                if one.gradient:
                    output = f"d{one.option}"
                    sums = reduced(one, self._tile.given, a)
                    sums.add(*weighed_bound(one, of_sum, keys.of_maps[one.option], self._tile.given, a), both)
                    bound[output], exempt[output] = sums.limits(self.values[output], of_sum.size)
            if g.dsink is not None and back.dsink is not None:
                sums = of_sinks(self._tile.given, a)
                sums.add(back.dsink[..., None], g.dsink, both)
                bound["dsinks"], exempt["dsinks"] = sums.limits(self.values["dsinks"], back.dsink.size)
        return bound, exempt
