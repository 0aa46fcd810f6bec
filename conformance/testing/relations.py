"""Changes of a problem whose effect on the answer is known without a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnspec.conformance.problems.tensors import GARBAGE
from attnspec.conformance.testing.outcomes import NotApplicable
from attnspec.reference import Exact
from attnspec.reference.stages import heads
from attnspec.spec import Problem, twin
from attnspec.spec.memory import expanded


def hidden_keys(exact: Exact) -> np.ndarray:
    """Keys that no query may attend to, in the shape of the keys without their width: (b g j) or (b j).

    Raises NotApplicable where there is none, or where a row may reach what is hidden.
    """
    problem = exact.problem
    if exact.reaches_hidden:
        raise NotApplicable
    seen = np.asarray(exact.forward.visible.any(-2))[..., None].astype(float)
    hidden = heads.sum_over_group(seen, (*problem.k.shape[:-1], 1), exact.dialect.head_grouping)[..., 0] == 0
    if not hidden.any() or hidden.all():
        raise NotApplicable
    return hidden


def garbage(problem: Problem) -> float:
    """A large number whose products with queries and cotangents a kernel may still keep in the dtype."""
    rows = [float(x.abs().sum(-1).max()) for x in (problem.q, problem.do) if x is not None and x.numel()]
    return min(GARBAGE[problem.dtype], torch.finfo(problem.dtype).max / 2 / max(1.0, *rows))


def with_hidden(problem: Problem, hidden: np.ndarray, number: float, names: tuple[str, ...] = ("k", "v")) -> Problem:
    """The problem with every hidden key and value replaced by one number.

    Raises NotApplicable where one element of memory is several of a tensor, some of which may be visible.
    """
    places = torch.from_numpy(hidden).to(problem.q.device)
    return problem.replace(**{name: _filled(getattr(problem, name), places, number) for name in names})


def _filled(x: Tensor, places: Tensor, number: float) -> Tensor:
    if expanded(x):
        raise NotApplicable
    x = twin(x)
    x[places] = number
    return x


def permuted(problem: Problem, order: Tensor) -> Problem:
    """The problem with its keys in another order, values, mask and bias along with them."""

    def along(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.shape[-1] == 1 else x[..., order]

    return problem.replace(
        k=problem.k[..., order, :], v=problem.v[..., order, :], mask=along(problem.mask), bias=along(problem.bias)
    )


def with_more_keys(problem: Problem, count: int) -> Problem:
    """The problem with `count` further keys of large numbers, hidden by a key padding mask."""

    def more(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x[..., :1, :], 9.0).expand(*x.shape[:-2], count, x.shape[-1])], dim=-2)

    mask = problem.mask if problem.mask is not None else problem.q.new_ones((problem.b, problem.j), dtype=torch.bool)
    return problem.replace(
        k=more(problem.k), v=more(problem.v), mask=torch.cat([mask, mask.new_zeros((*mask.shape[:-1], count))], dim=-1)
    )


def one_item(problem: Problem, n: int) -> Problem:
    """One batch item by itself."""

    def of(x: Tensor | None, batched: bool) -> Tensor | None:
        return x[n : n + 1] if x is not None and batched and x.shape[0] == problem.b else x

    mask, bias, slopes = problem.mask, problem.bias, problem.alibi_slopes
    return problem.replace(
        q=problem.q[n : n + 1],
        k=problem.k[n : n + 1],
        v=problem.v[n : n + 1],
        mask=of(mask, mask is not None and mask.ndim != 3),
        bias=of(bias, bias is not None and bias.ndim == 4),
        alibi_slopes=of(slopes, slopes is not None and slopes.ndim == 2),
        **{name: x[n : n + 1] for name, x in problem.cotangents().items()},
        q_start=problem.q_start[n : n + 1] if isinstance(problem.q_start, tuple) else problem.q_start,
    )


def some_queries(problem: Problem, a: int, b: int) -> Problem:
    """The queries a … b − 1 by themselves, where they stand. The problem must have a start."""
    changes: dict[str, Any] = {"q": problem.q[:, :, a:b], "q_start": moved(problem.q_start, a)}
    for name, x in (("mask", problem.mask), ("bias", problem.bias)):
        if x is not None and not (name == "mask" and x.ndim == 2) and x.ndim > 1 and x.shape[-2] == problem.i:
            changes[name] = x[..., a:b, :]
    return problem.replace(**changes, **{name: x[:, :, a:b] for name, x in problem.cotangents().items()})


def some_keys(problem: Problem, a: int, b: int) -> Problem:
    """The keys a … b − 1 alone, of which the first is at 0 then; a start is moved with them."""
    changes: dict[str, Any] = {name: getattr(problem, name)[..., a:b, :] for name in "kv"}
    for name, x in (("mask", problem.mask), ("bias", problem.bias)):
        if x is not None and x.ndim and x.shape[-1] == problem.j:
            changes[name] = x[..., a:b]
    return problem.replace(**changes, q_start=None if problem.q_start is None else moved(problem.q_start, -a))


def with_keys_in_front(problem: Problem, count: int) -> Problem:
    """The problem with `count` keys of large numbers before the first, hidden by a key padding mask, and a start behind them."""

    def more(x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x[..., :1, :], 9.0).expand(*x.shape[:-2], count, x.shape[-1]), x], dim=-2)

    mask = problem.mask if problem.mask is not None else problem.q.new_ones((problem.b, problem.j), dtype=torch.bool)
    return problem.replace(
        k=more(problem.k),
        v=more(problem.v),
        mask=torch.cat([mask.new_zeros((*mask.shape[:-1], count)), mask], dim=-1),
        q_start=moved(problem.q_start, count),
    )


def moved(start: int | tuple[int, ...] | None, by: int) -> int | tuple[int, ...]:
    """A start that is so much larger."""
    assert start is not None
    return start + by if isinstance(start, int) else tuple(x + by for x in start)


def written_out(problem: Problem, grouping: str) -> Problem:
    """Keys and values repeated for each query head."""
    serving = torch.from_numpy(heads.head_of_query(problem.h, problem.g, grouping)).to(problem.q.device)
    k, v = (x.unsqueeze(1) if problem.shared else x for x in (problem.k, problem.v))
    return problem.replace(k=k[:, serving], v=v[:, serving])


def every_form(problem: Problem, draw: Callable[[tuple[int, ...]], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What `draw` makes for each of the sixteen shapes that broadcast to (b h i j), with the letters over which it varies."""
    sizes = {"b": problem.b, "h": problem.h, "i": problem.i, "j": problem.j}
    for n in range(16):
        letters = "".join(letter for m, letter in enumerate(sizes) if n >> m & 1)
        yield (
            letters or "nothing",
            draw(tuple(size if letter in letters else 1 for letter, size in sizes.items())).to(problem.q.device),
        )
