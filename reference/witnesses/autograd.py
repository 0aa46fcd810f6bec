"""Attention in float64 PyTorch, gradients by autograd: the second, independent form of the reference.

It shares no helper with :mod:`attnspec.reference.dense`. Hidden scores are left out of the softmax by gathering the
visible keys of one row at a time, so nothing is filled, masked or multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attnspec.spec import Dialect, Problem

# What is done to the scaled products of a row and the keys that it sees, in this order, where the problem has the option.
SCORE_MAPS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "softcap": lambda s, cap: cap * torch.tanh(s / cap),
    "bias": lambda s, bias: s + bias,
    "alibi_slopes": lambda s, added: s + added,
}


def attend(problem: Problem, dialect: Dialect, keep: Tensor | None = None) -> dict[str, Tensor]:
    """o, lse and, with a cotangent, the gradients of all inputs, float64, by visiting each query row by itself."""
    leaves = {name: x.detach().to(torch.float64).clone().requires_grad_() for name, x in problem.inputs().items() if name != "mask"}
    o, lse = _rows(leaves, problem, dialect, keep)
    if problem.lse:
        lse = _returned(lse, dialect)
    answer = {"o": o.detach(), "lse": lse.detach()}
    if problem.do is not None or problem.dlse is not None:
        outputs, cotangents = [o], [torch.zeros_like(o) if problem.do is None else problem.do.to(torch.float64)]
        if problem.dlse is not None:  # of a row without a key nothing is asked
            finite = lse.isfinite()
            outputs, cotangents = [*outputs, lse[finite]], [*cotangents, problem.dlse.to(torch.float64)[finite]]
        pairs = [(x, y) for x, y in zip(outputs, cotangents, strict=True) if x.requires_grad]
        # A sum of products has the same gradients bit by bit; torch imports sympy for who gives it cotangents.
        total = sum((x * y).sum() for x, y in pairs)
        grads = (
            torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
            if isinstance(total, Tensor)
            else [torch.zeros_like(x) for x in leaves.values()]
        )
        answer |= {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return answer


def _returned(lse: Tensor, dialect: Dialect) -> Tensor:
    """The lse in the base and with the empty rows that the dialect says."""
    lse = lse / torch.log(torch.tensor(2.0, dtype=lse.dtype)) if dialect.lse_base == "2" else lse
    return torch.where(lse == float("-inf"), float("inf"), lse) if dialect.lse_empty == "plus_inf" else lse


def _rows(x: dict[str, Tensor], problem: Problem, dialect: Dialect, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    if problem.shared:
        k, v = k.unsqueeze(1), v.unsqueeze(1)
    scale = problem.scale if problem.scale is not None else 1 / max(problem.d, 1) ** 0.5
    full = (problem.b, problem.h, problem.i, problem.j)
    mask = problem.mask
    if mask is not None:
        mask = (mask.view(problem.b, 1, 1, problem.j) if mask.dim() == 2 else mask).expand(full)
    in_order = sorted(SCORE_MAPS, key=lambda name: name == "softcap") if dialect.softcap_order == "after_bias" else SCORE_MAPS
    options = {name: x[name].expand(full) if name == "bias" and name in x else getattr(problem, name) for name in in_order}
    if "alibi_slopes" in x:
        options["alibi_slopes"] = _alibi(x["alibi_slopes"], problem, dialect).expand(full)
    options = {name: option for name, option in options.items() if option is not None}
    bias = options.get("bias")
    per_group = problem.h // max(k.shape[1], 1)
    outputs, sums = [], []
    for n in range(problem.b):
        for head in range(problem.h):
            kv = head // per_group if dialect.head_grouping == "blocked" else head % k.shape[1]
            for row in range(problem.i):
                place = row + _first(n, problem, dialect)
                last = problem.j if not problem.causal else place + 1
                keys = [
                    c
                    for c in range(min(last, problem.j))
                    if (mask is None or bool(mask[n, head, row, c]))
                    and _within(c, place, problem, dialect)
                    and (bias is None or float(bias[n, head, row, c].detach()) != float("-inf"))
                ]
                values, weights, total = _row(
                    q[n, head, row],
                    k[n, kv],
                    v[n, kv],
                    {name: y[n, head, row] if name in x else y for name, y in options.items()},
                    keys,
                    scale,
                    dialect,
                    x["sinks"][head] if "sinks" in x and float(x["sinks"][head].detach()) != float("-inf") else None,
                    problem.lse and dialect.lse_includes_sink == "no",
                )
                if problem.training and problem.dropout and keep is not None:
                    used = keep[n, head, row][keys] if keys else keep[n, head, row]
                    factor = used.to(torch.float64) / (1 - problem.dropout) if problem.dropout < 1 else 0.0
                    weights = weights * (factor if len(weights) else 1.0)
                outputs.append(weights @ values)
                sums.append(total)
    shape = full[:3]
    o = torch.stack(outputs).view(*shape, problem.e) if outputs else q.new_zeros((*shape, problem.e))
    lse = torch.stack(sums).view(shape) if sums else q.new_zeros(shape)
    return o, lse


def _alibi(slopes: Tensor, problem: Problem, dialect: Dialect) -> Tensor:
    """What slopes (h) or (b h) add to the scores, (b h i j)."""
    far = torch.zeros(problem.b, 1, problem.i, problem.j, dtype=torch.float64)
    for item, row, key in product(range(problem.b), range(problem.i), range(problem.j)):
        ahead = key - (_first(item, problem, dialect) + row)
        far[item, 0, row, key] = {"column": key, "signed": ahead, "distance": -abs(ahead)}[dialect.alibi_form]
    return slopes[..., None, None] * far


def _first(item: int, problem: Problem, dialect: Dialect) -> int:
    """Where the first query of a batch item stands on the key axis."""
    if problem.q_start is None:
        return problem.j - problem.i if dialect.causal_alignment == "bottom_right" else 0
    return problem.q_start[item] if isinstance(problem.q_start, tuple) else problem.q_start


def _within(key: int, place: int, problem: Problem, dialect: Dialect) -> bool:
    """Whether the window, if there is one, of a query at this place holds a key."""
    if problem.window is None:
        return True
    left, right = problem.window
    ahead = key - place
    early = (
        left is not None
        and key >= problem.first_tokens
        and (ahead < -left if dialect.window_count == "inclusive" else ahead <= -left)
    )
    late = right is not None and (ahead >= right if dialect.window_count == "total" else ahead > right)
    return not early and not late


def _row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: dict[str, Any],
    keys: list[int],
    scale: float,
    dialect: Dialect,
    sink: Tensor | None,
    apart: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The values that a row sees, their weights, and the log of the sum of exponentials.

    sink: that of the row's head; apart: it is not in that sum.
    """
    if keys:
        s = scale * (k[keys] @ q)
        for name, option in options.items():
            s = SCORE_MAPS[name](s, option[keys] if isinstance(option, Tensor) else option)
        every = s if sink is None else torch.cat([s, sink[None]])
        return v[keys], torch.softmax(every, 0)[: len(keys)], torch.logsumexp(s if apart else every, 0)
    if sink is not None:
        return v[:0], v.new_zeros(0), torch.full_like(sink, float("-inf")) if apart else sink
    lse = torch.full((), float("-inf"), dtype=torch.float64)
    if dialect.empty_row == "zero" or not len(k):
        return v[:0], v.new_zeros(0), lse
    weight = 1 / len(k) if dialect.empty_row == "uniform" else float("nan")
    return v, v.new_full((len(k),), weight), lse
