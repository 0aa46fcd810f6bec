"""flash-linear-attention: its softmax attention in plain torch, the reference of its kernels."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading

NAIVE = Convention(
    name="flash-linear-attention, naive",
    of="fla-core 0.6, fla.ops.attn.naive.naive_parallel_attn",
    paths=("fla.ops.attn.naive.naive_parallel_attn",),
    shown_by=frozenset({"q", "k", "v", "scale", "window_size", "sink_bias"}),
    reading=Reading("b i h d", returns=("o", "largest score")),
    names={"sink_bias": "sinks"},
    offers=frozenset({"gqa", "mqa", "value_width"}),
    restrictions=frozenset({"equal_lengths"}),  # q, k and v are [B, T, …]
    dialect={"head_grouping": "blocked", "window_count": "total"},
)
CONVENTIONS = (NAIVE,)
