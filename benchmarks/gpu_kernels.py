"""Kernels for benchmarks/device.sh: flex_attention compiled, and three that are wrong in a way that only a device shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

sdpa = torch.nn.functional.scaled_dot_product_attention
_compiled = torch.compile(flex_attention)
_plan: dict[str, Tensor] = {}


def flex_compiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """flex_attention, compiled as its documentation asks for."""
    return _compiled(query, key, value, score_mod, block_mask, scale, enable_gqa)


def on_default_stream(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Launches on the default stream, whatever stream is the current one (flash-attention#2505)."""
    with torch.cuda.stream(torch.cuda.default_stream()):
        return sdpa(query, key, value, attn_mask, is_causal=is_causal, scale=scale)


def plan_of_warm_up(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Scales keys by what they begin with, and back; while a graph is captured, by that of the call before (vllm#42444)."""
    begins = key.detach().flatten()[:1].abs().sum() + 1
    if not (query.is_cuda and torch.cuda.is_current_stream_capturing()):
        _plan["begins"] = begins.clone()
    return sdpa(query, key / begins * _plan["begins"], value, attn_mask, is_causal=is_causal, scale=scale)


def beyond_its_memory(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Writes far beyond its output where it is causal: after that the device answers nothing any more in this process."""
    if is_causal:
        import triton
        import triton.language as tl

        @triton.jit
        def far(x: Any) -> None:
            tl.store(x + (1 << 40), 0.0)

        far[(1,)](query.detach().clone())
    return sdpa(query, key, value, attn_mask, is_causal=is_causal, scale=scale)
