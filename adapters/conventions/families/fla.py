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


def fla_sequences(  # type: ignore[no-untyped-def]
    function, q, k, v, cu_q, cu_k, max_q, max_k, *, causal=False, scale=None, window=None, sinks=None
):
    """One call of tokens that are queries and keys, in a batch of one item. It is always causal."""
    import torch

    from attnspec.adapters import Unsupported

    left, right = window or (None, None)
    if not causal or right is not None or left == 0:
        raise Unsupported("it is causal, and its window counts the last keys")
    if len(q) != len(k) or not torch.equal(cu_q, cu_k):
        raise Unsupported("its sequences have as many keys as queries")
    options = {"scale": scale, "window_size": left, "cu_seqlens": cu_q, "sink_bias": sinks}
    return function(q[None], k[None], v[None], **options)[0]


def fla_last_token(  # type: ignore[no-untyped-def]
    function, q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window=None, sinks=None
):
    """One call with one query at the end of each sequence."""
    import torch

    from attnspec.adapters import Unsupported

    left, right = window or (None, None)
    if right is not None:
        raise Unsupported("its window counts the last keys")
    if len(q) != len(cu_q) - 1 or not torch.equal(cu_q, torch.arange(len(cu_q), dtype=cu_q.dtype)):
        raise Unsupported("it has one query for each sequence")
    options = {"scale": scale, "window_size": left, "cu_seqlens": cu_k, "sink_bias": sinks}
    found = function(q[None], k[None], v[None], **options)
    return (found[0] if isinstance(found, tuple) else found)[0]


PARALLEL = Convention(
    name="flash-linear-attention, parallel",
    of="fla-core 0.6, fla.ops.attn.parallel.parallel_attn",
    paths=("fla.ops.attn.parallel.parallel_attn", "fla.ops.attn.parallel_attn"),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"window_right"}),
    restrictions=frozenset({"equal_lengths", "always_causal"}),
    dialect={"head_grouping": "blocked", "window_count": "total"},
    forms={"packed": fla_sequences},
)
LAST = Convention(
    name="flash-linear-attention, decoding",
    of="fla-core 0.6, fla.ops.attn.decoding.attn_decoding_one_step",
    paths=("fla.ops.attn.decoding.*attn_decoding_one_step", "fla.ops.attn.naive.*attn_decoding*"),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"window_right", "backward"}),
    dialect={"head_grouping": "blocked", "window_count": "total"},
    forms={"packed": fla_last_token},
)
CONVENTIONS = (NAIVE, PARALLEL, LAST)
