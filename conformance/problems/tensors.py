"""The tensors of a case: values that can show a fault, in the memory layout that the case asks for."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.random import Generator, default_rng
from torch import Tensor

from attnspec.adapters.conventions.layout import AS_IT_IS, AXES, Reading
from attnspec.conformance.problems.case import OPTIONS, Case
from attnspec.conformance.problems.factors.lse import GRADED
from attnspec.conformance.problems.factors.start import meant
from attnspec.spec import DIFFERENTIABLE, SCALARS, TENSORS, Problem, memory_of

GARBAGE = {torch.float64: 1e30, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 3e4}
LOWEST = -1e5  # a shift of all scores of a row; float16 gets what it can hold
SMALL = 32  # queries times keys
BLOCKS = (16, 32, 64, 128, 256, 512)  # keys that a kernel takes at once
GIVEN_BY_CASE = tuple(name for name in SCALARS if name in OPTIONS)  # options whose value is the level of a factor
MADE_BY_FACTOR = tuple(name for name, own in OPTIONS.items() if own.makes is not None)  # options that are tensors
STREAMS = ("q", "k", "v", "mask", "bias", "do", *MADE_BY_FACTOR)


def build(case: Case, device: str = "cpu", gradients: tuple[str, ...] = DIFFERENTIABLE, reading: Reading = AS_IT_IS) -> Problem:
    """The problem that a case describes, asking for none but these gradients.

    Every tensor has its own stream of numbers, so that a smaller case is calm. reading: what is contiguous is so in its order of
    axes, as those who call such an implementation have it.
    """
    rng = {name: default_rng([case.seed, n]) for n, name in enumerate(STREAMS)}
    dtype = getattr(torch, case.dtype)
    made = dict(part.split(":") for part in case.numbers.split("+")) if case.numbers else {}
    q, k, v = (simple(x, made.get(name, "")) for name, x in zip("qkv", values(case, rng), strict=True))
    # What stands in the problem is rounded once, here; the layout copies bits.
    to = {"dtype": dtype, "device": device}
    q_, k_, v_ = lay_out([torch.from_numpy(x).to(**to) for x in (q, k, v)], case.layout, case.g is None, reading.layout)
    shown = holes(case, rng["mask"]) if case.mask != "none" else None
    mask = None if shown is None else torch.from_numpy(shown).to(device)
    bias = (
        torch.from_numpy(simple(biases(case, rng["bias"], shown), made.get("bias", ""))).to(**to) if case.bias != "none" else None
    )
    do: Tensor | None = None
    dlse: Tensor | None = None
    wrt: tuple[str, ...] = ()
    wide = torch.promote_types(dtype, torch.float32)
    own: dict[str, Any] = {
        name: torch.from_numpy(simple(makes(case, rng[name]), made.get(name, ""))).to(device=device, dtype=wide)
        for name in MADE_BY_FACTOR
        if (makes := OPTIONS[name].makes) is not None and getattr(case, name) != OPTIONS[name].plain
    }
    there = {"q", "k", "v", *own} | (set() if bias is None else {"bias"})
    there &= {"q", "k", "v"} if case.carrier != "none" else there  # of what all sequences share a carrier has no gradient
    present = tuple(name for name in gradients if name in there)
    if present and case.wrt != "none":
        if case.lse != "alone":
            do = cotangent(case, rng["do"], made.get("do", "")).to(device)
            do = in_order(do, reading.layout) if do.is_contiguous() else do
        if case.lse in GRADED:
            dlse = cotangent_of_lse(case, rng["do"].spawn(1)[0], made.get("dlse", "")).to(device)
        wrt = asked(case.wrt, present)
    options = given(case)
    if getattr(options.get("carrier"), "latent", False):
        v_ = k_[..., : v_.shape[-1]]
    return Problem(q_, k_, v_, mask, bias, do=do, dlse=dlse, wrt=wrt, **own, **options)


def asked(wrt: str, present: tuple[str, ...]) -> tuple[str, ...]:
    """Of the inputs with a gradient those that a level asks for: all, one that is an option of the call, or some of q, k and v."""
    if wrt == "all":
        return present
    return tuple(name for name in present if name == wrt or (name in "qkv" and wrt not in present and name in wrt))


def given(case: Case) -> dict[str, Any]:
    """The options of a problem whose values are the levels of factors."""
    return {name: stands(case) if (stands := OPTIONS[name].given) else getattr(case, name) for name in GIVEN_BY_CASE}


def restricted(problem: Problem, restrictions: Iterable[str]) -> Problem:
    """The problem in the form that every call has: causal, or with values that are keys, in whole or in part."""
    if "one_tensor" in restrictions and problem.q.shape == problem.k.shape == problem.v.shape:
        problem = problem.replace(k=problem.q, v=problem.q)
    if "latent_values" in restrictions and not problem.shared and problem.e <= problem.d:
        problem = problem.replace(v=problem.k[..., : problem.e].clone(memory_format=torch.contiguous_format))
    causal = "always_causal" in restrictions or ("window_with_causal" in restrictions and problem.window is not None)
    return problem.replace(causal=True) if causal and not problem.causal else problem


# VALUES


def values(case: Case, rng: dict[str, Generator]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q (b h i d), k (b g j d), v (b g j e) in float64, or k and v without the head axis."""
    b, h, i, j, d, e = case.b, case.h, case.i, case.keys, case.d, case.width
    heads = () if case.g is None else (case.g,)
    q = rng["q"].standard_normal((b, h, i, d))
    k = rng["k"].standard_normal((b, *heads, j, d))
    v = rng["v"].standard_normal((b, *heads, j, e))
    root = d**0.5
    # The last query and every second before it: what rounding leaves of large scores in a half type is next to nothing.
    some = (np.arange(i) % 2 == (i - 1) % 2)[:, None]
    match case.values:
        case "peaked":
            q = np.where(some, 3 * q, q)
        case "needle":  # each query has one key, at a block edge or anywhere, that takes about half of the weight
            owner = rng["q"].choice(sorted({min(x, j - 1) for x in (0, 15, 16, 31, 32, 63, 64, 127, j - 1)}), (b, h, i))
            of_head = k if case.g is None else k[:, :1]
            own = np.take_along_axis(of_head.reshape(b, 1, j, d), owner[..., None], axis=2)
            q = own * root * np.log(j + 1) / np.maximum((own**2).sum(-1, keepdims=True), 0.1)
        case "integers":
            q, k, v = np.round(q), np.round(k), np.round(4 * v)
        case "one_hot":
            v = np.broadcast_to(np.arange(j)[:, None] % max(e, 2) == np.arange(e), v.shape).astype(float)
            q *= 2
        case "ties":
            k = k[..., rng["k"].permutation(np.arange(j) % max(2, j // 3)) % j, :]
        case "large":  # scores of hundreds to thousands, inside float16 before the scale; elsewhere some beyond 10⁴
            size = np.where((rng["q"].random((b, h, i, 1)) < 0.3) & (case.dtype != "float16"), 160**2, 24**2)
            q = np.where(some, size * q / root, q)
        case "negative":  # every score far below zero: −100 … −400
            k = -(1 + np.abs(k))
            q = np.where(some, (1 + np.abs(q)) * 100 / root, q)
        case "offset":  # the half types can't hold 50 and a tenth
            v = 8 + v if case.dtype in ("float16", "bfloat16") else 50 + 0.1 * v
        case "tiny":
            v *= 2.0**-10
    limit = {"float16": 3e4}.get(case.dtype, 1e30)
    return tuple(np.ascontiguousarray(np.clip(x, -limit, limit)) for x in (q, k, v))  # type: ignore[return-value]


def simple(x: np.ndarray, how: str) -> np.ndarray:
    """Simpler numbers in the place of x, where those are finite.

    zeros, ones, rounded to integers, hot (one 1 in each row, at the row's number) or at3: zeros but for a 1 at place 3.
    """
    if not how or not x.size:
        return x
    plain = {"zeros": np.zeros_like, "ones": np.ones_like, "rounded": np.round}
    if how in plain:
        new = plain[how](x)  # type: ignore[operator]
    elif how == "hot":
        new = np.broadcast_to(np.arange(x.shape[-2])[:, None] % x.shape[-1] == np.arange(x.shape[-1]), x.shape).astype(float)
    else:
        new = np.zeros(x.shape)
        new.reshape(-1)[int(how[2:]) % x.size] = 1.0
    return np.ascontiguousarray(np.where(np.isfinite(x), new, x))


def form(case: Case, kind: str) -> tuple[int, ...]:
    """The shape of a mask or bias whose letters say over which of b, h, i, j it varies."""
    sizes = {"b": case.b, "h": case.h, "i": case.i, "j": case.keys}
    if kind == "padding":
        return case.b, case.keys
    if kind in ("rank2", "rank3"):
        return tuple(sizes[letter] for letter in "bhij"[4 - int(kind[-1]) :])
    return tuple(size if letter in kind else 1 for letter, size in sizes.items())


def holes(case: Case, rng: Generator) -> np.ndarray:
    """A bool mask in the case's form. But for `empty_row` a row of it always has a True, and some query sees two keys."""
    shape = form(case, case.mask)
    j = shape[-1]
    key = np.arange(j)
    row = np.arange(shape[-2])[:, None] if len(shape) > 2 else np.arange(shape[0])[:, None]
    match case.holes:
        case "prefix":  # right padding, another length for each row of the mask
            mask = key < rng.integers(1, j + 1, (*shape[:-1], 1))
        case "suffix":  # left padding
            mask = key >= rng.integers(0, j, (*shape[:-1], 1))
        case "band":
            mask = np.broadcast_to((key - row) % max(j, 1) < max(1, j // 3), shape)
        case "single":  # one key, at a block edge where there is one
            edges = [x for x in (0, 15, 16, 31, 32, 63, 64, 127, 128, j - 1) if x < j]
            mask = key == rng.choice(edges, (*shape[:-1], 1))
        case "first_block":  # as long as the kernels' blocks, of those that leave half of the keys
            mask = np.broadcast_to(key >= max((x for x in BLOCKS if x <= j // 2), default=j // 2), shape)
        case "inner_blocks":  # whole blocks hidden between keys that are not
            ends = max(1, min(16, j // 4))
            mask = np.broadcast_to((key < ends) | (key >= j - ends), shape)
        case "all":
            mask = np.ones(shape, bool)
        case _:
            mask = rng.random(shape) < 0.6
            if case.holes == "random":
                mask[..., :1] |= ~mask.any(-1, keepdims=True)
            else:
                mask[rng.random(shape[:-1]) < 0.4] = False
    return with_a_choice(np.array(mask, order="C"), case)


def seen(mask: np.ndarray | None, case: Case, windowed: bool = False) -> list[np.ndarray]:
    """What mask and causal allow (b h i j), and a window whose ends are part of it, in each alignment or for each start."""
    shape = (case.b, case.h, case.i, case.keys)
    full = np.array(True) if mask is None else mask[:, None, None] if mask.ndim == 2 else mask
    window = given(case)["window"] if windowed else None
    start = meant(case)
    starts = {0, case.keys - case.i} if start is None else {start} if isinstance(start, int) else {*start}
    offsets = sorted(starts) if case.causal or window else [case.keys]
    allowed = []
    for offset in offsets:
        places = np.arange(case.keys) - np.arange(case.i)[:, None] - offset  # of the keys, from each query
        left, right = (np.inf if side is None else side for side in window or (None, None))
        first = np.arange(case.keys) < case.first_tokens
        keys = ((places >= -left) | first) & (places <= (min(right, 0) if case.causal else right))
        allowed.append(np.broadcast_to(full & keys, shape))
    return allowed


def with_a_choice(mask: np.ndarray, case: Case) -> np.ndarray:
    """The mask, or where no query would see two keys, one that lets the last query see two, in any alignment.

    A query that sees one key gives its value whatever the scores are: nothing that is wrong with them could show.
    """
    last = min(case.i, case.keys) if case.causal and case.i > 1 else case.keys
    if any((x.sum(-1) < 2).all() and (most.sum(-1) > 1).any() for x, most in zip(seen(mask, case), seen(None, case), strict=True)):
        mask.reshape(-1, mask.shape[-1])[-1, -1 if mask.shape[-1] == 1 else last - 2 : last] = True
    return mask


def biases(case: Case, rng: Generator, mask: np.ndarray | None = None) -> np.ndarray:
    """A bias in the case's form, float64, to go with a mask."""
    shape = form(case, case.bias)
    bias = rng.standard_normal(shape)
    match case.biases:
        case "steep":
            bias *= 8
        case "inf":
            hidden = rng.random(shape) < 0.4
            hidden[..., :1] &= shape[-1] > 1
            hidden[..., -1:] = False
            bias[hidden & ~emptied(hidden, case, mask)] = -np.inf
        case "shift":  # one number for a whole row, far from zero; the farthest leave nothing of the scores in a half type
            low = -3e4 if case.dtype == "float16" else LOWEST
            bias[:] = rng.choice([-20.0, -200.0, low, 200.0, 2e4], (*shape[:-1], 1))
        case "lowest":  # the dtype's lowest number as a mask
            hidden = rng.random(shape) < 0.3
            hidden.reshape(-1)[-1] = False
            bias[hidden] = torch.finfo(getattr(torch, case.dtype)).min
    return bias


def emptied(hidden: np.ndarray, case: Case, mask: np.ndarray | None) -> np.ndarray:
    """Where −∞ would stand in a row without a key, in the bias's form; nowhere in small problems without a window or a start.

    What such a row gives is open under one rule for empty rows, and with it the gradients of all that its head sees.
    """
    if case.i * case.keys <= SMALL and case.window == "none" and meant(case) is None:
        return np.zeros_like(hidden)
    spare = np.zeros((case.b, case.h, case.i, case.keys), bool)
    for keys in seen(mask, case, windowed=True):
        empty = ~(keys & ~hidden).any(-1, keepdims=True)
        # Of a row that only −∞ empties, the keys are shown that it would see; of others, all.
        spare |= empty & (keys | ~keys.any(-1, keepdims=True))
    size = (1,) * (4 - hidden.ndim) + hidden.shape
    repeated = tuple(n for n in range(4) if size[n] == 1)
    return np.asarray(np.any(spare, axis=repeated, keepdims=True)).reshape(hidden.shape)


def cotangent(case: Case, rng: Generator, made: str = "") -> Tensor:
    """The cotangent (b h i e): another number for each channel, unless it is expanded along the channels on purpose."""
    shape = (case.b, case.h, case.i, case.width)
    do = torch.from_numpy(simple(rng.standard_normal(shape), made)).to(getattr(torch, case.dtype))
    match case.do:
        case "turned":
            return do.transpose(1, 3).contiguous().transpose(1, 3)
        case "expanded":
            return do[..., :1].expand(shape)
        case "one_row":  # the last, or one at a block edge
            mask = torch.zeros(case.i, 1, dtype=do.dtype)
            mask[int(rng.choice([case.i - 1, *(x for x in (15, 16, 31) if x < case.i)]))] = 1
            return do * mask
    return do


def cotangent_of_lse(case: Case, rng: Generator, made: str = "") -> Tensor:
    """The cotangent of the lse (b h i): float32 or float64, with numbers that the dtype of the queries holds, too."""
    drawn = torch.from_numpy(simple(rng.standard_normal((case.b, case.h, case.i)), made)).to(getattr(torch, case.dtype))
    return drawn if case.dtype == "float64" else drawn.float()


# LAYOUT


def lay_out(qkv: list[Tensor], layout: str, shared: bool, order: str = AXES) -> list[Tensor]:
    """The same values in other memory. `expanded` makes values of one batch item or head serve all. order: of contiguous axes."""
    q, k, v = qkv
    match layout:
        case "bihd":  # the usual projection output (b i h d), seen as (b h i d); another where that is the order of the axes
            return [in_order(x, "b i h d" if order != "b i h d" else "i b h d") for x in qkv]
        case "contiguous":
            return [in_order(x, order) for x in qkv]
        case "fused":
            if q.shape == k.shape == v.shape:
                together = torch.stack([rearrange(x, "b h i d -> b i h d") for x in qkv], dim=2)
                return list(rearrange(together, "b i n h d -> n b h i d"))
            return [_inside(x, 1) for x in qkv]
        case "offset":
            return [_inside(x, n) for n, x in enumerate(qkv, 1)]
        case "strided":  # the last dimension is not dense
            return [torch.stack([x, torch.full_like(x, 7.0)], dim=-1)[..., 0] for x in qkv]
        case "turned":  # stored (… d j)
            return [stored(x, "... j d -> ... d j") for x in qkv]
        case "expanded":
            axis = 0 if shared or k.shape[1] == 1 else 1
            return [q, *(x.narrow(axis, 0, 1).expand(x.shape) for x in (k, v))]
    return qkv


def in_order(x: Tensor, order: str) -> Tensor:
    """The same values in memory that has the axes in this order; one shared head as it is."""
    return x if x.ndim == 3 or order == AXES else stored(x, f"{AXES} -> {order}")


def stored(x: Tensor, pattern: str) -> Tensor:
    """The same values in memory that has the order of the right side of an einops pattern."""
    given, order = pattern.split(" -> ")
    there: Tensor = rearrange(rearrange(x, pattern).contiguous(), f"{order} -> {given}")
    return there


def _inside(x: Tensor, margin: int) -> Tensor:
    """The tensor as a slice of a larger one, whose other elements are wrong numbers."""
    outer = torch.full((*x.shape[:-2], x.shape[-2] + margin + 1, x.shape[-1] + margin), 7.0, dtype=x.dtype, device=x.device)
    inner = outer[..., margin:-1, margin:]
    inner.copy_(x)
    return inner


SHIFTS = itertools.cycle(range(251))


def surrounded(problem: Problem, number: float, shown: bool) -> Problem:
    """The problem with its tensors inside larger memory, which holds `number` around and between their elements.

    Masks have `shown` there. Strides stay, and what is one tensor stays one. There is room enough on both sides for a kernel
    that takes a size of one tensor for that of another. Each time there is more of it, so that hardly any address comes again: a
    kernel may know a tensor by it.
    """
    more = 64 * next(SHIFTS)

    def inside(x: Tensor) -> Tensor:
        span = len(memory_of(x))
        room = 4096 + 64 * (span // 16) + more  # keeps to what kernels want to be aligned
        fill = shown if x.dtype == torch.bool else number
        memory = torch.full((room + span + room,), fill, dtype=x.dtype, device=x.device)
        places = torch.arange(room, room + span, device=x.device).as_strided(x.shape, x.stride(), x.storage_offset())
        memory[places] = x.detach()
        return memory.as_strided(x.shape, x.stride(), x.storage_offset() + room)

    names = [name for name in TENSORS if (x := getattr(problem, name)) is not None and x.numel()]
    moved = {id(getattr(problem, name)): inside(getattr(problem, name)) for name in names}
    return misfit(problem, **{name: moved[id(getattr(problem, name))] for name in names})


def in_memory(dtype: torch.dtype) -> tuple[tuple[float, bool], ...]:
    """What may lie around the tensors of a problem: plain numbers, and others that would change an answer which they reach."""
    return (1.0, False), (float("nan"), True), (GARBAGE[dtype], False)


def misfit(problem: Problem, **changes: Any) -> Problem:
    """The problem with some fields changed, whether they fit or not."""
    other = copy.copy(problem)
    for name, value in changes.items():
        object.__setattr__(other, name, value)
    return other
