"""flash-linear-attention: its softmax attention in plain torch, the reference of its kernels."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def naive(function, q, k, v, *, causal=False, scale=None, window=None, sinks=None):  # type: ignore[no-untyped-def]
    """One call, of tensors (b i h d). Its sinks have the dtype of its queries; it returns the largest scores, too."""
    left, right = window or (None, None)
    if window is not None and (right is not None or left in (None, 0) or not causal):
        from attnspec.adapters import Unsupported

        raise Unsupported("its window counts the last keys, beside causal alone")
    options = {"scale": scale, "window_size": left, "causal": causal}
    options |= {} if sinks is None else {"sink_bias": sinks.to(q.dtype)}
    o, _ = function(*(x.transpose(1, 2) for x in (q, k, v)), **options)
    return o.transpose(1, 2)


NAIVE = Convention(
    name="flash-linear-attention, naive",
    of="fla-core 0.6, fla.ops.attn.naive.naive_parallel_attn",
    paths=("fla.ops.attn.naive.naive_parallel_attn",),
    shown_by=frozenset({"q", "k", "v", "scale", "window_size", "sink_bias"}),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"window_right"}),
    restrictions=frozenset({"equal_lengths"}),  # q, k and v are [B, T, …]
    dialect={"head_grouping": "blocked", "window_count": "total"},
    attend=naive,
)
CONVENTIONS = (NAIVE,)
