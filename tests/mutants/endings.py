"""Implementations that end the process or never return. They are in no table: whoever runs it would not survive them."""

from __future__ import annotations

import ctypes
import time

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def crashes(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Reads at address zero where causal queries are more than three."""
    if is_causal and query.shape[2] > 3:
        ctypes.string_at(0)
    return scaled_dot_product_attention(query, key, value, is_causal=is_causal)


def crashes_at_once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Reads at address zero on the first call."""
    return ctypes.string_at(0)  # type: ignore[return-value]


def hangs(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Never answers where causal queries are more than three."""
    if is_causal and query.shape[2] > 3:
        time.sleep(3600)
    return scaled_dot_product_attention(query, key, value, is_causal=is_causal)
