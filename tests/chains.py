"""Eager kernels that are right: every tensor of the chain exists, and in half types most of them are rounded to storage.

Signature and semantics are those of ``honest``: torch SDPA's. Each docstring says why its class holds the arithmetic; beside
half inputs, that is: in float32 and float64 all of them are in class A. ``CHAINS`` is all by name. ``FILLED`` is those that give
hidden scores the lowest finite number, so that a row without a key is the mean of all values: ``empty_row = uniform``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import torch
from honest import Plan, blocks, for_each_query_head, prepare, softmax, wide, widen
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Callable[..., Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Plan], Tensor]
ROWS = 32  # query rows and keys between two write-backs of a gradient


def with_sdpa_signature(run: Kernel) -> Kernel:
    """The same function of positional arguments, with torch SDPA's parameters."""

    def scaled_dot_product_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return run(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    scaled_dot_product_attention.__doc__ = run.__doc__
    return scaled_dot_product_attention


def kernel(attend: Attend) -> Kernel:
    """A function of query, key, value and plan as a kernel."""

    def run(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Tensor:
        return attend(query, key, value, prepare(query, key, value, *options))

    run.__doc__ = attend.__doc__
    return with_sdpa_signature(run)


def below_peak(scores: Tensor) -> Tensor:
    """Scores minus the row's largest, which no gradient goes through; -inf stays, also in a row of nothing else."""
    if not scores.shape[-1]:
        return scores  # of no keys
    peak = scores.detach().amax(-1, keepdim=True)
    return scores - peak.masked_fill(peak == -inf, 0.0)


def sums(weights: Tensor) -> Tensor:
    """Row sums to divide by; 1 where nothing is visible."""
    total = weights.sum(-1, keepdim=True)
    return total.masked_fill(total == 0.0, 1.0)


def attend_eagerly(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """As ``honest.eager``: every step in the input dtype."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1]))
    return plan.thin_out(softmax(scores)).to(value.dtype) @ for_each_query_head(value, query.shape[1])


@kernel
def query_scaled_first(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Rounds q·scale to storage before the product. C: one of the two scaled operands that it has."""
    return attend_eagerly(query * plan.scale, key, value, replace(plan, scale=1.0))


@kernel
def key_scaled_first(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Rounds k·scale to storage before the product, as who caches scaled keys does. C: the other of the two."""
    return attend_eagerly(query, key * plan.scale, value, replace(plan, scale=1.0))


@kernel
def both_scaled_by_the_root(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Rounds q·√scale and k·√scale to storage, as torch's math path does. C: both of them."""
    root = abs(plan.scale) ** 0.5
    return attend_eagerly(query * root, key * (root if plan.scale > 0 else -root), value, replace(plan, scale=1.0))


def softmax_wide(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """As in transformers: scores in the input dtype, softmax in float32, its result cast. C: softmax is wide inside."""
    scores = plan.scores(query, for_each_query_head(key, query.shape[1])).to(wide(query.dtype))
    return plan.thin_out(softmax(scores).to(query.dtype)) @ for_each_query_head(value, query.shape[1])


@kernel
def both_scaled_softmax_wide(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """As in whisper: both operands times the root in storage, softmax in float32. C: what it stores the class stores."""
    root = abs(plan.scale) ** 0.5
    return softmax_wide(query * root, key * (root if plan.scale > 0 else -root), value, replace(plan, scale=1.0))


@kernel
def score_in_one_product(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """As in GPT-NeoX: bias + scale · q kᵀ by one baddbmm. C: fewer roundings than it has."""
    heads, shape = query.shape[1], plan.hidden.shape
    q, k = query.flatten(0, 1), for_each_query_head(key, heads).flatten(0, 1)
    bias = plan.bias.to(query.dtype).expand(shape).masked_fill(plan.hidden, 0.0).flatten(0, 1)
    scores = torch.baddbmm(bias, q, k.mT, alpha=plan.scale).view(shape).masked_fill(plan.hidden, -inf)
    return plan.thin_out(softmax(scores)) @ for_each_query_head(value, heads)


def torchs_math_in_half(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Tensor:
    """torch's math path where it may stay in half: q·√scale and k·√scale are stored, and all that follows. C, for that."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    mask, dropout, causal, scale, grouped = options
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, mask, dropout, causal, scale=scale, enable_gqa=grouped
            )
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


@kernel
def queries_in_chunks(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Eager attention in chunks of 32 queries, whose gradients for key and value autograd adds in storage. C*."""
    parts = [query.new_zeros(*query.shape[:2], 0, value.shape[3])]
    for rows in blocks(query.shape[2], ROWS):
        bias, hidden, dropped = (x[:, :, rows] if x.shape[2] > 1 else x for x in (plan.bias, plan.hidden, plan.dropped))
        here = replace(plan, bias=bias, hidden=hidden, dropped=dropped)
        parts.append(attend_eagerly(query[:, :, rows], key, value, here))
    return torch.cat(parts, dim=2)


@kernel
def softmax_of_primitives(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """s − amax, exp, sum and division, each rounded to storage, with their own autograd. D by definition."""
    heads = query.shape[1]
    scores = plan.scores(query, for_each_query_head(key, heads))
    scores = scores.masked_fill(plan.hidden.all(-1, keepdim=True), 0.0)  # a row without a key would be 0 / 0
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)).masked_fill(plan.hidden, 0.0)
    probabilities = (weights / sums(weights)).masked_fill(plan.hidden, 0.0)  # or ∞ · 0 where a hidden dP overflows
    return plan.thin_out(probabilities) @ for_each_query_head(value, heads)


# FILLED: what is hidden has the lowest finite number in place of −∞


def filled(in_wide: bool, query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """As half of the field does it, all wide (A) or each step in the input dtype (C)."""
    dtype = query.dtype
    if in_wide:
        query, key, value = widen(query, key, value)
        plan = replace(plan, bias=plan.bias.to(query.dtype))
    scores = query @ for_each_query_head(key, query.shape[1]).mT * plan.scale + plan.bias.expand_as(plan.hidden)
    scores = scores.masked_fill(plan.hidden, torch.finfo(scores.dtype).min)
    p = plan.thin_out(torch.softmax(scores, -1)).to(value.dtype)
    return (p @ for_each_query_head(value, query.shape[1])).to(dtype)


CHAINS: dict[str, tuple[Kernel, str]] = {
    "softmax in float32": (kernel(softmax_wide), "C"),
    "query scaled first": (query_scaled_first, "C"),
    "key scaled first": (key_scaled_first, "C"),
    "both scaled by the root": (both_scaled_by_the_root, "C"),
    "both scaled, softmax wide": (both_scaled_softmax_wide, "C"),
    "score in one product": (score_in_one_product, "C"),
    "queries in chunks": (queries_in_chunks, "C*"),
    "softmax of primitives": (softmax_of_primitives, "D"),
}
FILLED: dict[str, tuple[Kernel, str]] = {
    "filled with the lowest": (kernel(partial(filled, False)), "C"),
    "filled, wide": (kernel(partial(filled, True)), "A"),
}
