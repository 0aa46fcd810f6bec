"""flash_attn_with_kvcache of flash-attention 2 and 3: a cache with a slot for each sequence or in pages, and new keys beside it."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.families.flash import FLASH_2, FLASH_3
from attnspec.adapters.conventions.layout import AS_IT_IS
from attnspec.spec import OPTIONS


def flash_cached(
    function,
    q,
    k_cache,
    v_cache,
    lengths,
    *,
    k_new=None,
    v_new=None,
    cos=None,
    sin=None,
    interleaved=None,
    left=None,
    slots=None,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    alibi_slopes=None,
    lse=False,
):
    """cache_seqlens counts the rows before the call, those before the first key too. It writes into the caches."""
    options = {"softmax_scale": scale, "causal": causal, "softcap": 0.0 if softcap is None else softcap, "return_softmax_lse": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"cache_seqlens": lengths, "cache_batch_idx": slots, "cache_leftpad": left}
    options |= {} if alibi_slopes is None else {"alibi_slopes": alibi_slopes}  # which flash-attention 3 does not know
    options |= {"rotary_cos": cos, "rotary_sin": sin} | ({} if interleaved is None else {"rotary_interleaved": interleaved})
    returned = function(q, k_cache, v_cache, k=k_new, v=v_new, **options)
    return returned[:2] if lse else returned


def flash_2_paged(
    function,
    q,
    cu_q,
    max_q,
    k_pages,
    v_pages,
    table,
    lengths,
    *,
    k_new=None,
    v_new=None,
    cu_new=None,
    cos=None,
    sin=None,
    interleaved=None,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    alibi_slopes=None,
    lse=False,
):
    """Queries (b i h d) and new keys (b a g d): as many for each sequence."""
    b = len(lengths)
    options = {"softmax_scale": scale, "causal": causal, "softcap": 0.0 if softcap is None else softcap, "return_softmax_lse": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"cache_seqlens": lengths, "block_table": table, "alibi_slopes": alibi_slopes}
    if k_new is not None:
        if len(set(cu_new.diff().tolist())) > 1:
            from attnspec.adapters import Unsupported

            raise Unsupported("each sequence gets as many new keys")
        options |= {"k": k_new.unflatten(0, (b, len(k_new) // max(b, 1))), "v": v_new.unflatten(0, (b, len(v_new) // max(b, 1)))}
    options |= {"rotary_cos": cos, "rotary_sin": sin} | ({} if interleaved is None else {"rotary_interleaved": interleaved})
    returned = function(q.unflatten(0, (b, max_q)), k_pages, v_pages, **options)
    o = (returned[0] if lse else returned).flatten(0, 1)
    return (o, returned[1].transpose(0, 1).flatten(1)) if lse else o


def flash_3_paged(
    function,
    q,
    cu_q,
    max_q,
    k_pages,
    v_pages,
    table,
    lengths,
    *,
    k_new=None,
    v_new=None,
    cu_new=None,
    cos=None,
    sin=None,
    interleaved=None,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    lse=False,
):
    """Queries and new keys are packed, each with where sequences begin."""
    options = {"softmax_scale": scale, "causal": causal, "softcap": 0.0 if softcap is None else softcap, "return_softmax_lse": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"cache_seqlens": lengths, "page_table": table, "cu_seqlens_q": cu_q, "max_seqlen_q": max_q}
    options |= {"rotary_cos": cos, "rotary_sin": sin} | ({} if interleaved is None else {"rotary_interleaved": interleaved})
    returned = function(q, k_pages, v_pages, k=k_new, v=v_new, cu_seqlens_k_new=cu_new, **options)
    return returned[:2] if lse else returned


# Its split path gives −∞ for a row without a key, and its other path +∞, as in the dense function: that is observed.
KVCACHE: Convention = replace(
    FLASH_2,
    name="flash-attention 2 with a cache",
    of="flash-attn 2.8, flash_attn.flash_attn_with_kvcache",
    paths=("flash_attn.flash_attn_with_kvcache", "flash_attn.flash_attn_interface.flash_attn_with_kvcache"),
    reading=AS_IT_IS,
    without=frozenset({"alibi_grad", "lse_grad", "paged_any_size", "paged_queries", "rotary_any_width"}),
    dialect={**FLASH_2.dialect, "rotary_pairs": "interleaved", "rotary_query": "first"},
    restrictions=frozenset({"page_size:256"}),
    forms={"cached": flash_cached, "paged": flash_2_paged},
)
KVCACHE_3 = replace(
    FLASH_3,
    name="flash-attention 3 with a cache",
    of="flash-attention 3, hopper/flash_attn_interface.flash_attn_with_kvcache",
    paths=tuple(path.replace("flash_attn_func", "flash_attn_with_kvcache") for path in FLASH_3.paths),
    reading=AS_IT_IS,
    without=frozenset({"lse_grad", "rotary_any_width", *OPTIONS["alibi_slopes"].features}),
    dialect={**FLASH_3.dialect, "rotary_pairs": "interleaved", "rotary_query": "first"},
    forms={"cached": flash_cached, "paged": flash_3_paged},
)
OWN = ("k_cache", "v_cache", "cache_seqlens", "cache_batch_idx", "cache_leftpad")
CONVENTIONS = (
    KVCACHE,
    KVCACHE_3,
    KVCACHE_3.elsewhere(*OWN, "page_table", "cu_seqlens_k_new"),
    KVCACHE.elsewhere(*OWN, "block_table"),
)
