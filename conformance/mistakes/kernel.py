"""An exact kernel taken apart, so that one thing in it can be done otherwise: for the mistakes beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.reference import dense, solve, to_float64
from attnspec.reference.stages import heads, lse, maps, sink, softmax
from attnspec.reference.stages.alibi import distances, per_head
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.scores import default_scale
from attnspec.reference.stages.visible import query_positions, reach, right_aligned
from attnspec.spec import Dialect, Problem

Wrong = dict[str, Array] | None  # outputs, as far as they may have changed; None where they cannot have


class Kernel:
    """What a kernel does at one problem: the reference's own steps, which a mistake re-enters, and other calls.

    Arrays are (b h i j), with one key/value head for each query head. Scores are −∞ where a key is hidden.
    """

    def __init__(self, problem: Problem, dialect: Dialect) -> None:
        self.problem, self.dialect, self.given = problem, dialect, Given(problem, dialect)
        self.b, self.h, self.g, self.i, self.j = problem.b, problem.h, problem.g, problem.i, problem.j
        self.q, self.k, self.v = (to_float64(x) for x in (problem.q, problem.k, problem.v))
        self.mask: Any = self.given.operand("mask")
        self.bias: Any = self.given.operand("bias")
        self.scale, self.default_scale = self.given.scale, default_scale(problem.d)
        self.far: Any = distances(self.given) if self.given.slopes is not None else 0.0  # (i j) or (b 1 i j)
        self.sloped: Any = 0.0 if self.given.slopes is None else per_head(self.given.slopes) * self.far  # what slopes add
        self.masked = self.full(self.mask)
        self.allowed = self.masked & self.placed()

        self.kv_head = heads.head_of_query(self.h, max(self.g, 1), dialect.head_grouping)
        self.heads_k, self.heads_v = (heads.per_query_head(x, self.h, dialect.head_grouping) for x in (self.k, self.v))
        self.forward = f = dense.forward(self.q, self.heads_k, self.heads_v, self.given)
        self.empty, self.m, self.p = f.empty[..., None], f.m[..., None], f.p
        self.s = np.where(f.visible, f.s, -inf)
        self.e = softmax.exponentials(f.s, f.visible, f.m)
        z = sink.logits(self.given)
        self.z = np.full((self.h, 1, 1), -inf) if z is None else z[..., None]
        self.e_sink: Array | float = 0.0 if z is None else softmax.exponential(self.z, self.m)
        if problem.differentiated:
            self.do = np.zeros(f.o.shape) if problem.do is None else to_float64(problem.do)
            self.lam = None if problem.dlse is None else lse.cotangent(to_float64(problem.dlse), f.bare, dialect)
            back = dense.backward(self.q, self.heads_k, self.heads_v, self.do, f, self.given, lam=self.lam)
            self.delta, self.ds = back.delta[..., None], back.ds
            self.dp = back.dp if self.lam is None else back.dp + self.lam[..., None]  # what D is subtracted from

    def full(self, mask: Array | None) -> Array:
        """A mask as (b h i j), all True where there is none."""
        return np.broadcast_to(True if mask is None else right_aligned(mask), (self.b, self.h, self.i, self.j))

    def triangle(self, shift: int = 0, keys: int | None = None, corner: str = "") -> Array:
        """The keys that causal lets each query see (i j) or (b 1 i j), `shift` more of them, of `keys` columns."""
        return np.arange(self.j if keys is None else keys) <= self.own(corner) + shift

    def own(self, corner: str = "") -> Array:
        """The positions of the queries (i 1), or (b 1 i 1) with a start for each batch item. corner: another alignment."""
        return query_positions(self.problem, corner or self.dialect.causal_alignment)[..., None]

    def band(self, keys: int | None = None) -> Array:
        """The keys that the window, if there is one, and first tokens show to each query (i j) or (b 1 i j), of `keys` columns."""
        own = self.own()
        left, right = reach(self.problem.window, self.dialect.window_count)
        j = np.arange(self.j if keys is None else keys)
        return ((j >= own - left) | (j < self.problem.first_tokens)) & (j <= own + right)

    def placed(self, keys: int | None = None) -> Array:
        """The keys that causal and window show to each query by their places (i j)."""
        band = self.band(keys)
        return band & self.triangle(keys=keys) if self.problem.causal else band

    @property
    def unplaced(self) -> Array:
        """The keys that all but causal show (b h i j)."""
        return self.masked & self.band()

    # STEPS

    def scores(self) -> Array:
        """The scores of all keys, of those that mask and causal hide, too."""
        return self.forward.s if self.bias is None else np.where(self.bias == -inf, -inf, self.forward.s)

    def weights(self, s: Array, pivot: Array | float | None = None) -> Array:
        """Softmax of scores with another maximum, in the range of float32; 0 where nothing is seen."""
        m = np.maximum(s.max(-1, keepdims=True), self.z) if pivot is None else pivot
        m = np.where(np.isfinite(m), m, 0.0)
        e, e_sink = (np.where(x > 3.4e38, inf, np.where(x < 1e-45, 0.0, x)) for x in (np.exp(s - m), np.exp(self.z - m)))
        total = e.sum(-1, keepdims=True) + e_sink
        return e / np.where(total == 0, 1.0, total)

    def over(self, e: Array, summed: Array, e_sink: Array | float | None = None) -> Array:
        """Weights over a row sum, with its sink's term, 0 where that is 0; in empty rows what the dialect says."""
        total = summed.sum(-1, keepdims=True) + (self.e_sink if e_sink is None else e_sink)
        p = np.where(self.empty, 0.0, e / np.where(total == 0, 1.0, total))
        return softmax.fill_empty_rows(p, self.forward.bare, self.dialect.empty_row, self.j)

    def of_scores(self, ds: Array, scale: float | None = None) -> dict[str, Array]:
        """dq, dk and what score maps add, from the gradient of the scores; nothing comes from an empty row. scale: another one."""
        dscores = maps.back_through(np.where(self.empty, 0.0, ds), self.forward.scores, self.given)
        dq, each = dense.product_gradients(self.q, self.heads_k, dscores[0], self.scale if scale is None else scale)
        return {"dq": dq, "dk": self.summed(each, self.k), **dense.operand_gradients(dscores, self.given)}

    def of_values(self, p: Array) -> dict[str, Array]:
        """dv from the probabilities."""
        return {"dv": self.summed(p.swapaxes(-1, -2) @ self.do, self.v)}

    def summed(self, each: Array, x: Array) -> Array:
        """The gradient of keys or values x from those per query head."""
        return heads.sum_over_group(each, x.shape, self.dialect.head_grouping)

    def with_weights(self, p: Array) -> dict[str, Array]:
        """The outputs with other probabilities."""
        f = replace(self.forward, p=p, w=p)
        wrong = {"o": p @ self.heads_v}
        if self.problem.differentiated:
            back = dense.backward(self.q, self.heads_k, self.heads_v, self.do, f, self.given, lam=self.lam)
            wrong |= {"dq": back.dq, "dk": self.summed(back.dk, self.k), "dv": self.summed(back.dv, self.v)}
            wrong |= dense.operand_gradients(back.dscores, self.given)
        return wrong

    # OTHER CALLS

    def on(self, dialect: Dialect | None = None, **changes: Any) -> dict[str, Array]:
        """The outputs where some fields of the problem are others; arrays become tensors."""
        there = {name: changes.get(name, getattr(self.problem, name)) is not None for name in self.problem.wrt}
        if not all(there.values()):  # what is not there asks for no gradient
            changes["wrt"] = tuple(name for name, present in there.items() if present)
        changes = {n: torch.from_numpy(np.array(x, order="C")) if isinstance(x, np.ndarray) else x for n, x in changes.items()}
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in changes.values()):  # values of no narrower dtype
            given = self.problem.inputs() | self.problem.cotangents() | changes
            changes |= {n: x.double() for n, x in given.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
        return dict(solve(self.problem.replace(**changes), dialect or self.dialect).values)

    def with_choice(self, choice: str, value: str) -> Wrong:
        """With another choice; None where it is the same."""
        return None if getattr(self.dialect, choice) == value else self.on(self.dialect.with_choice(choice, value))

    def seeing(self, mask: Array) -> Wrong:
        """With this (b h i j) in the place of mask, causal and window; None where it is the same."""
        differs = mask != self.allowed
        if self.bias is not None:  # what the bias hides stays hidden
            differs = differs & (self.bias != -inf)
        return self.on(mask=mask, causal=False, window=None) if differs.any() else None

    def with_mask(self, mask: Array | None) -> Wrong:
        """With another mask beside causal and window; None where it is none or the same."""
        if mask is None:
            return None
        return self.seeing(self.full(mask) & self.placed())

    def with_keys(self, index: Array) -> Wrong:
        """With the keys at `index`, where −1 is a key and value of zeros that is seen; gradients go where they belong.

        None where those are all keys, or no other are seen.
        """
        real, mask = index >= 0, self.allowed[..., index]
        # A kernel with causal or a window compares positions, also of what it fills a block with.
        mask[..., ~real] = self.placed(len(index))[..., ~real]
        changed = np.bincount(index[real], minlength=self.j) != 1
        if not (self.s > -inf)[..., changed].any() and not mask[..., ~real].any():
            return None
        changes: dict[str, Any] = {
            name: np.where(real[:, None], x[..., index, :], 0.0) for name, x in (("k", self.k), ("v", self.v))
        }
        along = {"dk": -2, "dv": -2}
        if self.bias is not None and self.bias.shape[-1] == self.j:
            changes["bias"], along["dbias"] = np.where(real, self.bias[..., index], 0.0), -1
        if self.given.slopes is not None:  # of the keys at their own places
            own = np.where(real, np.broadcast_to(self.sloped, self.s.shape)[..., index], 0.0)
            bias = changes.get("bias", 0.0 if self.bias is None else self.bias)
            changes |= {"bias": own + bias, "alibi_slopes": None, "wrt": ("q", "k", "v")}
            along.pop("dbias", None)
        wrong = self.on(**changes, mask=mask, causal=False, window=None)
        if self.given.slopes is not None:
            wrong.pop("dbias", None)
        for name in along.keys() & wrong.keys():
            each = np.moveaxis(wrong[name], along[name], 0)
            total = np.zeros((self.j, *each.shape[1:]))
            np.add.at(total, index[real], each[real])
            wrong[name] = np.moveaxis(total, 0, along[name])
        return wrong

    def with_kv(self, read: Callable[[Array], Array | None], back: Callable[[Array], Array]) -> Wrong:
        """With other keys and values, from whose gradients `back` makes theirs; None where that changes nothing."""
        k, v = read(self.k), read(self.v)
        if k is None or v is None:
            return None
        same = np.array_equal(k, self.k) and np.array_equal(v, self.v)  # as where a head was expanded: only gradients show it
        if same and not self.problem.differentiated:
            return None
        wrong = self.on(k=k, v=v)
        theirs = {name: back(wrong[name]) for name in wrong.keys() & {"dk", "dv"}}
        return theirs if same else wrong | theirs

    def with_bias(self, bias: Array | None, back: Callable[[Array], Any] | None = None) -> Wrong:
        """With another bias, from whose gradient `back` makes its own; None where it is none or the same.

        What is added to all keys that a row sees changes nothing but the bias's gradient, and that only through `back`; unless the
        row has a sink.
        """
        if bias is None or np.array_equal(bias, self.bias):
            return None
        wrong = self.on(bias=bias)
        if back is not None and "dbias" in wrong:
            wrong["dbias"] = back(wrong["dbias"])
        hidden = np.broadcast_to(self.bias == -inf, self.s.shape)
        seen, more = self.s > -inf, np.broadcast_to(bias, self.s.shape) - np.where(hidden, 0.0, self.bias)
        most, least = (choose(more, -1, initial=start, where=seen) for choose, start in ((np.max, -inf), (np.min, inf)))
        sunk = (self.z > -inf) & (np.where(seen.any(-1, keepdims=True), most[..., None], 0.0) != 0)  # a sink stays where it is
        if (most > least).any() or (self.allowed & hidden & (more > -inf)).any() or sunk.any():
            return wrong
        return {"dbias": wrong["dbias"]} if back is not None and "dbias" in wrong and bias.shape[-1] > 1 else None

    def with_scale(self, scale: float, given: bool | None = None) -> Wrong:
        """With another scale; None where it is the same, or `given` says that one is given or not, and it is not so."""
        same = scale == self.scale or given not in (None, self.problem.scale is not None)
        return None if same else self.on(scale=scale)

    def zeroed(self, place: Any) -> Wrong:
        """The output with zeros somewhere; None where there is nothing."""
        o = self.p @ self.heads_v
        o[place] = 0.0
        return {"o": o} if o[place].size else None
