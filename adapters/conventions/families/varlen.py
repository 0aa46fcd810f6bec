"""flash-attention's varlen functions and what followed them: sequences one behind the other, and where each begins."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.families.flash import AITER, FLASH_2, FLASH_3, FLASH_4
from attnspec.adapters.conventions.layout import AS_IT_IS


def flash_2_packed(
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    together="",
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
    softcap=None,
    alibi_slopes=None,
    lse=False,
):
    """together: what one tensor holds, "kv" (m 2 g d) or "qkv" (n 3 h d). The stack is a copy, through which gradients go back."""
    import torch

    options = {"dropout_p": dropout if training else 0.0, "softmax_scale": scale, "causal": causal, "return_attn_probs": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"softcap": 0.0 if softcap is None else softcap, "alibi_slopes": alibi_slopes}
    if together == "qkv":
        if len(q) != len(k) or not torch.equal(cu_q, cu_k):
            from attnspec.adapters import Unsupported

            raise Unsupported("one tensor holds as many queries as keys")
        returned = function(torch.stack([q, k, v], 1), cu_seqlens=cu_q, max_seqlen=max(max_q, max_k), **options)
    else:
        given = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
        tensors = (q, torch.stack([k, v], 1)) if together == "kv" else (q, k, v)
        returned = function(*tensors, **given, **options)
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
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    alibi_slopes=None,
    lse=False,
):
    """cu_seqlens_k says how many keys each sequence has, and block_table where they lie."""
    import torch

    options = {"softmax_scale": scale, "causal": causal, "return_attn_probs": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"softcap": 0.0 if softcap is None else softcap, "alibi_slopes": alibi_slopes}
    options["cu_seqlens_k"] = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    options["max_seqlen_k"] = max(lengths.tolist(), default=0)
    returned = function(q, k_pages, v_pages, cu_seqlens_q=cu_q, max_seqlen_q=max_q, block_table=table, **options)
    return returned[:2] if lse else returned


def flash_3_packed(
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    used_q=None,
    used_k=None,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    lse=False,
):
    """seqused_q and seqused_k say how many rows of each slot there are."""
    options = {"softmax_scale": scale, "causal": causal, "return_attn_probs": lse, "softcap": 0.0 if softcap is None else softcap}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
    returned = function(q, k, v, seqused_q=used_q, seqused_k=used_k, **options)
    return returned[:2] if lse else returned


def flash_4_packed(
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    used_q=None,
    used_k=None,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    sinks=None,
    lse=False,
):
    """By name, for its fourth parameter is another one than theirs. It returns (o, lse), or (o, None)."""
    options = {"softmax_scale": scale, "causal": causal, "return_lse": lse, "softcap": 0.0 if softcap is None else softcap}
    options |= {"window_size": (None, None) if window is None else window, "learnable_sink": sinks}
    options |= {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
    returned = function(q, k, v, seqused_q=used_q, seqused_k=used_k, **options)
    return returned[:2] if lse else returned[0]


def flash_4_paged(
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
    """seqused_k says how many keys each sequence has, in the place of cu_seqlens_k, which page_table excludes."""
    options = {"softmax_scale": scale, "causal": causal, "return_lse": lse, "softcap": 0.0 if softcap is None else softcap}
    options |= {"window_size": (None, None) if window is None else window, "learnable_sink": sinks}
    options |= {"cu_seqlens_q": cu_q, "max_seqlen_q": max_q, "max_seqlen_k": max(lengths.tolist(), default=0)}
    returned = function(q, k_pages, v_pages, seqused_k=lengths, page_table=table, **options)
    return returned[:2] if lse else returned[0]


def aiter_packed(
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    used_q=None,
    used_k=None,
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
    first_tokens=0,
    softcap=None,
    alibi_slopes=None,
    sinks=None,
    lse=False,
):
    """With gaps cu_seqlens counts the rows that there are, and cu_seqlens_padded says where slots begin."""
    import torch

    options = {"dropout_p": dropout if training else 0.0, "softmax_scale": scale, "causal": causal, "return_lse": lse}
    sides = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"window_size": (*sides, first_tokens), "logits_soft_cap": 0.0 if softcap is None else softcap}
    options |= {"alibi_slopes": alibi_slopes, "sink_ptr": sinks, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
    if used_q is not None:
        options |= {"cu_seqlens_q_padded": cu_q, "cu_seqlens_k_padded": cu_k}
        cu_q, cu_k = (torch.nn.functional.pad(x.cumsum(0, dtype=torch.int32), (1, 0)) for x in (used_q, used_k))
    returned = function(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **options)
    return returned[:2] if lse else returned


# Where sequences begin is int32 in all of them. A page of 2 has a multiple of 256 rows.
VARLEN = replace(
    FLASH_2,
    name="flash-attention 2, varlen",
    of="flash-attn 2.8, flash_attn.flash_attn_varlen_func",
    paths=("flash_attn.flash_attn_varlen_func", "flash_attn.flash_attn_interface.flash_attn_varlen_func"),
    reading=AS_IT_IS,
    without=frozenset({"alibi_grad", "lse_grad", "packed_long", "paged_any_size"}),
    restrictions=frozenset({"page_size:256"}),
    forms={"packed": flash_2_packed, "paged": flash_2_paged},
)
KV_PACKED = replace(
    VARLEN,
    of="flash-attn 2.8, flash_attn.flash_attn_varlen_kvpacked_func",
    paths=("flash_attn.flash_attn_varlen_kvpacked_func", "flash_attn.flash_attn_interface.flash_attn_varlen_kvpacked_func"),
    fixed={"together": "kv"},
    restrictions=frozenset(),
    forms={"packed": flash_2_packed},
)
QKV_PACKED = replace(
    KV_PACKED,
    of="flash-attn 2.8, flash_attn.flash_attn_varlen_qkvpacked_func",
    paths=("flash_attn.flash_attn_varlen_qkvpacked_func", "flash_attn.flash_attn_interface.flash_attn_varlen_qkvpacked_func"),
    fixed={"together": "qkv"},
    offers=frozenset(),
    restrictions=frozenset({"equal_lengths"}),
)
VARLEN_3 = replace(
    FLASH_3,
    name="flash-attention 3, varlen",
    of="flash-attention 3, hopper/flash_attn_interface.flash_attn_varlen_func",
    paths=tuple(path.replace("flash_attn_func", "flash_attn_varlen_func") for path in FLASH_3.paths),
    reading=AS_IT_IS,
    without=frozenset({"lse_grad", "packed_long"}),
    forms={"packed": flash_3_packed},
)
VARLEN_4 = replace(
    FLASH_4,
    name="flash-attention 4, varlen",
    of="flash-attn-4 4.0.0b36, flash_attn.cute.flash_attn_varlen_func",
    paths=("flash_attn.cute.flash_attn_varlen_func", "flash_attn.cute.interface.flash_attn_varlen_func"),
    reading=AS_IT_IS,
    without=frozenset({"packed_long"}),
    forms={"packed": flash_4_packed, "paged": flash_4_paged},
)
# It has a block_table, too: of which pages it takes its versions differ.
VARLEN_AITER = replace(
    AITER,
    name="aiter, varlen",
    of="aiter, aiter.flash_attn_varlen_func",
    paths=("aiter.flash_attn_varlen_func", "aiter.ops.mha.flash_attn_varlen_func"),
    reading=AS_IT_IS,
    names={},
    without=frozenset({"alibi_grad", "lse_grad", "sinks_grad", "packed_long"}),
    forms={"packed": aiter_packed},
)
STARTS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
OWN = (*STARTS, "dropout_p", "return_attn_probs")  # what shows flash-attention 2, and who adds to it
CONVENTIONS = (
    VARLEN,
    KV_PACKED,
    QKV_PACKED,
    VARLEN_3,
    VARLEN_4,
    VARLEN_AITER,
    VARLEN_4.elsewhere(*STARTS, "learnable_sink", "pack_gqa", "page_table"),
    VARLEN_3.elsewhere(*STARTS, "attention_chunk", "pack_gqa", "seqused_q"),
    VARLEN_AITER.elsewhere(*OWN, "how_v3_bf16_cvt"),
    KV_PACKED.elsewhere("kv", *OWN),
    QKV_PACKED.elsewhere("qkv", "cu_seqlens", "max_seqlen", "dropout_p", "softmax_scale", "return_attn_probs"),
    VARLEN.elsewhere(*OWN, "block_table"),
    replace(VARLEN.elsewhere(*OWN), restrictions=frozenset(), forms={"packed": flash_2_packed}),
)
