"""vLLM's flash-attention, whose varlen function takes pages, and its unified attention in Triton. Both get the length after the call."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.families.flash import FLASH_2
from attnspec.adapters.conventions.families.varlen import OWN, VARLEN
from attnspec.adapters.conventions.layout import AS_IT_IS


def fork_packed(
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    sinks=None,
    lse=False,
):
    """By name, for the longest lengths come first. A window is a list or None, and return_softmax_lse asks for (o, lse)."""
    options = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
    options |= {"softmax_scale": scale, "causal": causal, "softcap": 0.0 if softcap is None else softcap, "return_softmax_lse": lse}
    options["window_size"] = None if window is None else [-1 if side is None else side for side in window]
    if sinks is not None:  # of flash-attention 3 alone
        options["s_aux"] = sinks
    returned = function(q, k, v, **options)
    return returned[:2] if lse else returned


def fork_paged(
    function,
    q,
    cu_q,
    max_q,
    k_pages,
    v_pages,
    table,
    lengths,
    *,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    sinks=None,
    lse=False,
):
    """seqused_k says how many keys each sequence has, in the place of cu_seqlens_k."""
    options = {"cu_seqlens_q": cu_q, "max_seqlen_q": max_q, "seqused_k": lengths, "max_seqlen_k": max(lengths.tolist(), default=0)}
    options |= {"softmax_scale": scale, "causal": causal, "softcap": 0.0 if softcap is None else softcap, "return_softmax_lse": lse}
    options["window_size"] = None if window is None else [-1 if side is None else side for side in window]
    if sinks is not None:
        options["s_aux"] = sinks
    returned = function(q, k_pages, v_pages, block_table=table, **options)
    return returned[:2] if lse else returned


def unified_paged(
    function,
    q,
    cu_q,
    max_q,
    k_pages,
    v_pages,
    table,
    lengths,
    *,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
):
    """It writes into `out`, and is causal always. Its scale is a number, and a window's left side the only one that it reads."""
    if alibi_slopes is not None and sinks is not None:
        from attnspec.adapters import Unsupported

        raise Unsupported("its distance is that from the first query, which moves a whole row, and not its sink")
    out = q.new_empty(*q.shape[:2], v_pages.shape[3])
    options = {"cu_seqlens_q": cu_q, "max_seqlen_q": max_q, "seqused_k": lengths, "max_seqlen_k": max(lengths.tolist(), default=0)}
    options |= {"softmax_scale": q.shape[2] ** -0.5 if scale is None else scale, "causal": causal, "block_table": table}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"softcap": 0.0 if softcap is None else softcap, "alibi_slopes": alibi_slopes, "sinks": sinks}
    function(q, k_pages, v_pages, out, **options, q_descale=None, k_descale=None, v_descale=None)
    return out


# Made for inference: no gradients, and no dropout in spite of its parameter. A page has a multiple of 16 rows.
VLLM: Convention = replace(
    VARLEN,
    name="vLLM's flash-attention",
    of="vllm-flash-attn, vllm_flash_attn.flash_attn_varlen_func",
    paths=("*vllm_flash_attn.flash_attn_varlen_func", "*vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func"),
    without=frozenset({"backward", "lse_grad", "sinks_grad", "packed_long", "paged_any_size"}),
    restrictions=frozenset(),
    dialect={
        **{name: x for name, x in FLASH_2.dialect.items() if name not in ("alibi_form", "softcap_order")},
        "lse_includes_sink": "yes",
    },
    forms={"packed": fork_packed, "paged": fork_paged},
)
# Its slopes are one for each head. Which distance they have shows only beside sinks.
UNIFIED = Convention(
    name="vLLM's unified attention",
    of="vllm, vllm.v1.attention.ops.triton_unified_attention.unified_attention",
    paths=(
        "vllm.v1.attention.ops.triton_unified_attention.unified_attention",
        "vllm.attention.ops.triton_unified_attention.unified_attention",
    ),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"alibi_batch", "alibi_grad", "sinks_grad", "paged_any_size"}),
    restrictions=frozenset({"always_causal"}),
    dialect={"causal_alignment": "bottom_right", "head_grouping": "blocked", "window_count": "inclusive"},
    dtypes=("float16", "bfloat16", "float32"),
    devices=("cuda",),
    forms={"paged": unified_paged},
    untested="its kernels run on GPUs only",
)
CONVENTIONS = (
    VLLM,
    UNIFIED,
    VLLM.elsewhere(*OWN, "s_aux", "return_softmax_lse"),
    UNIFIED.elsewhere("out", "cu_seqlens_q", "max_seqlen_q", "seqused_k", "block_table", "softmax_scale"),
)
