"""Kernels on a device that is faked: right, on the wrong stream, and with what stays in a graph."""

from __future__ import annotations

from typing import Any

import torch
from faked_device import FakedStreams
from torch import Tensor

sdpa = torch.nn.functional.scaled_dot_product_attention
FAKED = FakedStreams()
PLAN: dict[str, Tensor] = {}


def right(query, key, value, attn_mask=None, is_causal=False, scale=None):
    return sdpa(query, key, value, attn_mask, is_causal=is_causal, scale=scale)


def on_default_stream(query, key, value, attn_mask=None, is_causal=False, scale=None):
    with FAKED.default():
        return right(query, key, value, attn_mask, is_causal, scale)


class _BackwardOnDefaultStream(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:  # type: ignore[override]
        with FAKED.default():
            return dx.clone()


def backward_on_default_stream(query, key, value, attn_mask=None, is_causal=False, scale=None):
    return _BackwardOnDefaultStream.apply(right(query, key, value, attn_mask, is_causal, scale))


def planned_on_host(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """The scale of keys is divided by one that the host computes, and multiplied with one that the device does."""
    if key.numel() == 0:
        return right(query, key, value, attn_mask, is_causal, scale)
    host = max(1.0, float(abs(key.detach().float().numpy()).max()))
    device_ = key.detach().abs().amax().clamp(min=1.0)
    return right(query, (key / host) * device_, value, attn_mask, is_causal, scale)


def plan_of_warm_up(query, key, value, attn_mask=None, is_causal=False, scale=None):
    """Keys are divided by what they begin with, and multiplied by it; while a graph is captured, by that of the call before."""
    begins = key.detach().flatten()[:1].abs().sum() + 1
    if FAKED.graph is None:
        PLAN["begins"] = begins
    return right(query, key / begins * PLAN["begins"], value, attn_mask, is_causal, scale)


def looks_at_its_mask(query, key, value, attn_mask=None, is_causal=False, scale=None):
    if attn_mask is not None and attn_mask.dtype == torch.bool and bool(attn_mask.all()):
        attn_mask = None
    return right(query, key, value, attn_mask, is_causal, scale)
