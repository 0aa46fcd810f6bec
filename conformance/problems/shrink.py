"""A failing problem that a test made by itself, made smaller: what :func:`subject.descend` is for cases, for tensors.

Options go first, then whole heads, batch items, queries, keys and channels. What a tensor has in its memory and strides it
keeps, and two names for one tensor stay one tensor. :func:`as_case` says what is left in the words of a case, so that the
clause of such a problem is found in the same way as that of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import FACTORS, Case
from attnspec.conformance.problems.factors.ragged import lengths_written
from attnspec.conformance.problems.tensors import GIVEN_BY_CASE, MADE_BY_FACTOR
from attnspec.spec import OPTIONS, SCALARS, Problem, differentiable
from attnspec.spec.memory import expanded
from attnspec.spec.ragged import cut

TRIALS = 120  # answers that the reduction of one problem may ask for
LARGE = 80.0  # scores beyond which exp leaves float32
OF_OPTIONS = {name: own.axes for name, own in OPTIONS.items() if own.tensor}
AXES = {"q": "bhid", "k": "bgjd", "v": "bgje", **OF_OPTIONS, "do": "bhie", "dlse": "bhi"}
BY_FACTOR = (*GIVEN_BY_CASE, *MADE_BY_FACTOR)
LEFT_OUT = ("bias", "mask", *(name for name in OF_OPTIONS if name not in ("bias", "mask")))  # in the order in which they go
# What is cut, the axes of one entry together: as many queries as keys, and values as wide as queries, stay so as long as they can.
TOGETHER = (("b",), ("i", "j"), ("j",), ("i",), ("d", "e"), ("d",), ("e",))


def shrink(problem: Problem, adapter: Adapter, fails: Callable[[Problem], bool]) -> Problem:
    """Greedy descent: what can go goes, one thing after the other, until nothing can or TRIALS were asked.

    What `fails` is asked needs nothing that the adapter does not offer. `problem` itself comes back where nothing simpler fails.
    """
    whole, left = problem, TRIALS

    def try_it(trial: Problem | None) -> bool:
        nonlocal left
        if trial is None or not left or not (_offered(trial, adapter) and _same_tensors(whole, trial)):
            return False
        left -= 1
        return fails(trial)

    while left:
        before = problem
        for simplify in (_without_options, _with_fewer_heads):
            tried: set[int] = set()
            while (found := _first(simplify(problem, adapter), tried, try_it)) is not None:
                problem = found
        for axes in TOGETHER:
            for from_end in (False, True):
                problem = _shortest(problem, axes, from_end, try_it)
        if problem is before:
            break
    return problem


def _first(
    options: Iterable[tuple[int, Problem | None]], tried: set[int], fails: Callable[[Problem | None], bool]
) -> Problem | None:
    """The first of the options that fails, of those that were not tried in vain."""
    for number, trial in options:
        if number in tried:
            continue
        if fails(trial):
            return trial
        tried.add(number)
    return None


def _shortest(problem: Problem, axes: tuple[str, ...], from_end: bool, fails: Callable[[Problem | None], bool]) -> Problem:
    """The problem with as little of these axes as it still fails with, of their beginning or their end, by bisection."""
    sizes = {getattr(problem, axis) for axis in axes}
    if len(sizes) != 1:
        return problem
    size = sizes.pop()

    def part(n: int) -> Problem | None:
        return _part(problem, dict.fromkeys(axes, slice(size - n, size) if from_end else slice(0, n)))

    least, most = 0, size  # fewer than these were right, these fail
    for n in (2**m for m in range((size - 1).bit_length())):  # of a fault that shows in full blocks only, some must be seen
        if fails(part(n)):
            most = n
            break
        least = n
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if fails(part(middle)) else (middle, most)
    if most == size and size > 1 and fails(part(size - 1)):
        most = size - 1
    found = part(most) if most < size else None
    return problem if found is None else found


# OPTIONS


def _without_options(problem: Problem, adapter: Adapter) -> Iterator[tuple[int, Problem | None]]:
    every = _every_gradient(problem, adapter)
    if every and set(problem.wrt) != set(every):  # as for cases, the plainest is that all inputs ask for a gradient
        do = torch.ones_like(_output(problem)) if not problem.differentiated else problem.do
        yield 0, problem.replace(wrt=every, do=do)
    given = problem.given()
    for n, name in enumerate(LEFT_OUT, 1):
        if name in given and problem.wrt != (name,):
            yield n, problem.replace(**{name: None}, wrt=tuple(other for other in problem.wrt if other != name))
    for n, name in enumerate(SCALARS, 50):
        if name in given and not (name == "dropout" and problem.training):  # first without training, which has it do nothing
            yield n, problem.replace(**{name: OPTIONS[name].default, **_without_lse(problem, name)})
    if problem.training:
        yield 100, problem.replace(training=False)
    tensors = problem.inputs() | problem.cotangents()
    if not all(_plain(x) for x in tensors.values()):
        once: dict[int, Tensor] = {}
        yield 101, problem.replace(**{name: once.setdefault(id(x), _compact(x)) for name, x in tensors.items()})


def _without_lse(problem: Problem, name: str) -> dict[str, Any]:
    """What goes with the lse: its cotangent, and where there is no other, the gradients that are asked for."""
    if name != "lse" or problem.dlse is None:
        return {}
    return {"dlse": None} if problem.do is not None else {"dlse": None, "wrt": ()}


def _every_gradient(problem: Problem, adapter: Adapter) -> tuple[str, ...]:
    return tuple(name for name in differentiable(adapter.offers) if getattr(problem, name) is not None)


def _output(problem: Problem) -> Tensor:
    return problem.q.new_empty((problem.b, problem.h, problem.i, problem.e))


# SIZES


def _with_fewer_heads(problem: Problem, adapter: Adapter) -> Iterator[tuple[int, Problem | None]]:
    h, g = problem.h, problem.g
    if h < 2 or not g:
        return
    fewer = [n for n in (1, 2, 3, h - 1) if n < (h if problem.shared else g)]
    parts = [part for n in dict.fromkeys(fewer) for part in (torch.arange(n), torch.arange(-n, 0) % (h if problem.shared else g))]
    of_group = torch.arange(h).view(1 if problem.shared else g, -1)  # in the usual grouping; in the other one `fails` decides, too
    for n, part in enumerate(parts):
        yield n, _part(problem, {"h": part} if problem.shared else {"g": part, "h": of_group[part].flatten()})
    if 1 <= g < h and not problem.shared:
        for n, columns in enumerate((slice(0, 1), slice(-1, None), slice(0, 2))):  # of each group one query head, or two
            if of_group[:, columns].numel() < h:
                yield 100 + n, _part(problem, {"h": of_group[:, columns].flatten()})


def _part(problem: Problem, places: dict[str, Any]) -> Problem | None:
    """The problem at some places of its axes b, h, g, i, j, d, e; None where its tensors don't fit together there."""
    once: dict[tuple[int, str], Tensor] = {}
    changes: dict[str, Any] = {}
    for name, letters in AXES.items():
        x = getattr(problem, name)
        if x is None:
            continue
        own = letters.replace("g", "") if problem.shared and name in "kv" else letters
        own = "bj" if name == "mask" and x.ndim == 2 else own[len(own) - x.ndim :]
        sizes = {"b": problem.b, "h": problem.h, "g": problem.g, "i": problem.i, "j": problem.j, "d": problem.d, "e": problem.e}
        kept = x
        for axis, letter in enumerate(own):
            if letter in places and x.shape[axis] == sizes[letter] and (x.shape[axis] > 1):
                kept = _at(kept, axis, places[letter])
        key = (id(x), str(tuple(kept.shape)))
        changes[name] = once.setdefault(key, _compact(kept) if _plain(x) else kept)
    if problem.carrier is not None:
        changes["carrier"] = cut(problem.carrier, places)
    if "b" in places and isinstance(problem.q_start, tuple):
        changes["q_start"] = tuple(_at(torch.tensor(problem.q_start), 0, places["b"]).tolist())
    try:
        return problem.replace(**changes)
    except ValueError:
        return None


def _at(x: Tensor, axis: int, places: Any) -> Tensor:
    if isinstance(places, slice):
        return x.narrow(axis, places.start, places.stop - places.start)
    return x.index_select(axis, places.to(x.device))


def _plain(x: Tensor) -> bool:
    """In memory of its own, one element after the other."""
    return x.is_contiguous() and not x.storage_offset() and x.untyped_storage().nbytes() == x.numel() * x.element_size()


def _compact(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format)


# WHAT MAY BE ASKED


def _offered(problem: Problem, adapter: Adapter) -> bool:
    offers = set(adapter.offers)
    if as_case(problem).sharing not in offers or (problem.e != problem.d and "value_width" not in offers):
        return False
    return adapter.widths is None or problem.d in adapter.widths


def _same_tensors(before: Problem, after: Problem) -> bool:
    """Whether names that stood for one tensor still do."""
    tensors = [[getattr(problem, name) for name in "qkv"] for problem in (before, after)]
    pairs = ((0, 1), (0, 2), (1, 2))
    return all((tensors[0][m] is tensors[0][n]) == (tensors[1][m] is tensors[1][n]) for m, n in pairs)


# IN THE WORDS OF A CASE


def as_case(problem: Problem, larger: Problem | None = None) -> Case:
    """The levels of a problem, as far as they can be seen in it: a case that is like it, with other numbers.

    Sizes of zero have no level: an empty problem comes back with the sizes that a case gives it. larger: what the problem was made
    smaller from, which says what of an axis of one is a mask's or a bias's own.
    """
    dtype = str(problem.dtype)[6:]
    case = Case(
        dtype=dtype,
        heads=f"{problem.h}/{'shared' if problem.shared else problem.g}",
        b=problem.b,
        i=problem.i,
        j=problem.j if problem.j != problem.i else 0,
        d=problem.d,
        e=problem.e if problem.e != problem.d else 0,
        layout=_layout(problem),
        values=_values(problem),
        wrt=_wrt(problem),
        do=_cotangent(problem),
        **{name: FACTORS[name].found(x) for name in BY_FACTOR if (x := getattr(problem, name)) is not None},
    )
    if problem.carrier is not None:
        case = replace(case, lengths=lengths_written(problem.carrier), poison=problem.carrier.poison)
    if problem.dlse is not None:
        case = replace(case, lse="alone" if problem.do is None else "both")
    if problem.mask is not None:
        every = bool(problem.mask.all())
        mask = {2: "padding", 3: "rank3"}.get(problem.mask.ndim) or _letters("mask", problem, larger)
        case = replace(case, mask=mask, holes="all" if every else "random")
    if problem.bias is not None:
        rank = {2: "rank2", 3: "rank3"}.get(problem.bias.ndim)
        case = replace(case, bias=rank or _letters("bias", problem, larger), biases=_biases(problem.bias))
    return case


def _letters(name: str, problem: Problem, larger: Problem | None = None) -> str:
    """The axes over which a mask or a bias varies; of those that are as long as one, what it had when they were longer."""

    def own(problem: Problem) -> list[str]:
        x = getattr(problem, name)
        return [letter for n, letter in enumerate("bhij"[4 - x.ndim :]) if x.shape[n] == getattr(problem, letter)]

    before = "bhij" if larger is None or getattr(larger, name).ndim != getattr(problem, name).ndim else own(larger)
    return "".join(letter for letter in own(problem) if letter in before or getattr(problem, letter) > 1) or "one"


def _biases(bias: Tensor) -> str:
    if bool((bias <= torch.finfo(bias.dtype).min / 2).logical_and(~bias.isinf()).any()):
        return "lowest"
    if bool((bias == float("-inf")).any()):
        return "inf"
    far = bias.numel() > 0 and float(bias.abs().min()) > 15
    return "shift" if far and bool((bias == bias[..., :1]).all()) else "normal"


def _layout(problem: Problem) -> str:
    tensors = [x for x in (problem.q, problem.k, problem.v) if x.numel()]
    if any(map(expanded, tensors)):
        return "expanded"
    if any(x.shape[-1] > 1 and x.stride(-1) != 1 for x in tensors):
        return "turned" if any(x.ndim > 1 and x.stride(-2) == 1 for x in tensors) else "strided"
    if any(x.storage_offset() for x in tensors):
        return "offset"
    return "contiguous" if all(x.is_contiguous() for x in tensors) else "bihd"


def _values(problem: Problem) -> str:
    q, k = problem.q.detach().double().nan_to_num(), problem.k.detach().double().nan_to_num()
    if not q.numel() or not k.numel() or q.shape[2] * k.shape[-2] > 1 << 20:
        return "normal"
    k = k.unsqueeze(1) if problem.shared else k
    scale = problem.d**-0.5 if problem.scale is None else problem.scale
    scores = scale * (q @ k.repeat_interleave(problem.h // k.shape[1], 1).mT)
    return "large" if float(scores.max()) > LARGE else "negative" if float(scores.max()) < -LARGE else "normal"


def _wrt(problem: Problem) -> str:
    if {"q", "k", "v"} <= set(problem.wrt):
        return "all"
    return problem.wrt[0] if len(problem.wrt) == 1 else "".join(name for name in problem.wrt if name not in OF_OPTIONS) or "none"


def _cotangent(problem: Problem) -> str:
    do = problem.do
    if do is None or not do.numel() or not problem.wrt:
        return "dense"
    if do.shape[-1] > 1 and do.stride(-1) != 1:
        return "expanded" if do.stride(-1) == 0 else "turned"
    return "one_row" if do.shape[2] > 1 and int((do != 0).any(-1).any(1).any(0).sum()) == 1 else "dense"
