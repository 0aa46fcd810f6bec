"""Functions for the CPU with the signatures of calls of many sequences that kernel libraries for GPUs publish, and their faults.

The order of parameters, their names and their defaults are those of the packages; what no call of the suite sets is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from gpu_signatures import attention, shown, slopes_of
from torch import Tensor, nn

# What each fault does wrong; those of one kernel at a time.
FAULTS = {
    "longest": "causal, windows and distances come from the longest lengths",
    "one_more": "the row behind the last key is read",
    "in_order": "the table is not read: pages come one after the other",
    "own_slot": "the slot is the number of the sequence",
    "not_left": "rows before the first key are keys",
    "not_new": "new keys are written, and not attended to",
    "spills": "behind the new rows another one is written",
    "natural": "the lse is a natural one",
    "writes_back": "where sequences begin is written",
}
_FAULT = [""]


@contextmanager
def faulty(name: str):
    """Kernels with one fault."""
    assert name in FAULTS
    _FAULT[0] = name
    try:
        yield
    finally:
        _FAULT[0] = ""


def has(name: str) -> int:
    return int(_FAULT[0] == name)


# THE HONEST CORE


class Keys(list[tuple[Tensor, Tensor]]):
    """Of each sequence its keys (j g d) and values (j g e); and what all of them are of."""

    def __init__(self, k: Tensor, v: Tensor, each_has: Iterable[Any]) -> None:
        super().__init__(each_has)
        self.whole = k, v


def each(
    q: Tensor,
    begins: Iterable[int],
    counts: Iterable[int],
    keys: Keys,
    causal: bool,
    window: Any = (-1, -1),
    alibi_slopes: Tensor | None = None,
    first: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Each sequence alone: o (n h e) and lse (h n). Rows that no sequence has are NaN, as memory may be that nobody writes."""
    h, e = q.shape[1], keys.whole[1].shape[-1]
    begins, counts = [int(x) for x in begins], [int(x) for x in counts]
    longest = max(counts, default=0), max((len(k) for k, _ in keys), default=0)
    nothing = q[:0, :, :1].expand(-1, -1, e) + sum(x[:0].sum() for x in keys.whole)
    outputs, lses, at = [nothing], [q.new_empty(h, 0, dtype=torch.float32)], 0
    for n, (a, i, (k, v)) in enumerate(zip(begins, counts, keys, strict=True)):
        sizes = longest if has("longest") else (i, len(k))
        own = alibi_slopes[n] if alibi_slopes is not None and alibi_slopes.ndim == 2 else alibi_slopes
        seen = shown(*sizes, causal, window, first)[:i, : len(k)]
        added = None if own is None else slopes_of(own, *sizes)[..., :i, : len(k)]
        o, lse = attention(*(x.transpose(0, 1)[None] for x in (q[a : a + i], k, v)), seen, added=added, **options)
        outputs += [q.new_full((a - at, h, e), math.nan), o[0].transpose(0, 1)]
        lses += [torch.full((h, a - at), math.nan), lse[0]]
        at = a + i
    outputs.append(q.new_full((len(q) - at, h, e), math.nan))
    lses.append(torch.full((h, len(q) - at), math.nan))
    return torch.cat(outputs), torch.cat([x.to(lses[1].dtype) for x in lses], 1).detach()


def packed_keys(k: Tensor, v: Tensor, begins: Iterable[int], counts: Iterable[int]) -> Keys:
    assert len(k) == len(v)
    both = [(int(a), int(a) + int(j) + has("one_more")) for a, j in zip(begins, counts, strict=True)]
    return Keys(k, v, [(k[a:b], v[a:b]) for a, b in both])


def cached_keys(k_cache: Tensor, v_cache: Tensor, lengths: Tensor, left: Tensor | None, slots: Tensor | None) -> Keys:
    found = []
    for n, length in enumerate(lengths.tolist()):
        slot = n if slots is None or has("own_slot") else int(slots[n])
        a, b = 0 if left is None or has("not_left") else int(left[n]), length + has("one_more")
        found.append((k_cache[slot, a:b], v_cache[slot, a:b]))
    return Keys(k_cache, v_cache, found)


def paged_keys(k_pages: Tensor, v_pages: Tensor, table: Any, lengths: Iterable[int]) -> Keys:
    size, found = k_pages.shape[1], []
    for n, j in enumerate(int(x) for x in lengths):
        pages = torch.as_tensor(table[n])[: -(-j // size)].long()
        pages = torch.arange(len(pages)) if has("in_order") else pages
        found.append(tuple(x[pages].flatten(0, 1)[: j + has("one_more")] for x in (k_pages, v_pages)))
    return Keys(k_pages, v_pages, found)


def int32(*given: Tensor | None) -> None:
    for x in given:
        if x is not None and x.dtype != torch.int32:
            raise RuntimeError(f"where sequences begin must have dtype int32, not {x.dtype}")


def ends(cu: Tensor) -> tuple[Tensor, Tensor]:
    """Where each sequence begins, and how many rows it has."""
    int32(cu)
    found = cu[:-1].clone(), cu.diff()
    if has("writes_back"):
        cu += 1
    return found


def append(cache: Tensor, new: Tensor, places: Iterable[tuple[int, int]]) -> None:
    """Write each row of `new` at its place (slot or page, row)."""
    for row, (n, at) in zip(new, places, strict=True):
        cache[n, at] = row
        if has("spills") and at + 1 < cache.shape[1]:
            cache[n, at + 1] = 0


# FLASH-ATTENTION 2


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    (q_begins, q_counts), (k_begins, k_counts) = ends(cu_seqlens_q), ends(cu_seqlens_k)
    assert max([*q_counts, 0]) <= max_seqlen_q
    assert max([*k_counts, 0]) <= max_seqlen_k
    if block_table is None:
        keys = packed_keys(k, v, k_begins, k_counts)
    else:
        assert k.shape[1] % 256 == 0
        keys = paged_keys(k, v, block_table, k_counts)
    options = {"scale": softmax_scale, "softcap": softcap, "dropout": dropout_p}
    o, lse = each(q, q_begins, q_counts, keys, causal, window_size, alibi_slopes, **options)
    return (o, lse, None) if return_attn_probs else o


def wrong_flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    """All is one sequence."""
    one = [torch.stack([x[0], x[-1]]) for x in (cu_seqlens_q, cu_seqlens_k)]
    own = alibi_slopes if alibi_slopes is None or alibi_slopes.ndim == 1 else alibi_slopes[0]
    given = len(q), len(k), dropout_p, softmax_scale, causal, window_size, softcap, own, deterministic, return_attn_probs
    return flash_attn_varlen_func(q, k, v, *one, *given, block_table)


def flash_attn_varlen_kvpacked_func(
    q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert kv.shape[1] == 2
    given = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap
    return flash_attn_varlen_func(q, *kv.unbind(1), *given, alibi_slopes, deterministic, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(
    qkv, cu_seqlens, max_seqlen, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    alibi_slopes=None, deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert qkv.shape[1] == 3
    given = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal, window_size, softcap
    return flash_attn_varlen_func(*qkv.unbind(1), *given, alibi_slopes, deterministic, return_attn_probs)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):  # fmt: skip
    b, i = q.shape[:2]
    assert len(cache_seqlens) == b
    assert block_table is None or (cache_batch_idx is None and cache_leftpad is None and k_cache.shape[1] % 256 == 0)
    at = cache_seqlens.tolist()
    after = cache_seqlens if k is None else cache_seqlens + k.shape[1]
    if k is not None:
        rows = [(n, at[n] + a) for n in range(b) for a in range(k.shape[1])]
        write(k_cache, v_cache, k.flatten(0, 1), v.flatten(0, 1), rows, cache_batch_idx, block_table)
    read = cache_seqlens if has("not_new") else after
    if block_table is not None:
        keys = paged_keys(k_cache, v_cache, block_table, read)
    else:
        keys = cached_keys(k_cache, v_cache, read, cache_leftpad, cache_batch_idx)
    options = {"scale": softmax_scale, "softcap": softcap}
    begins = [i * n for n in range(b)]
    o, lse = each(q.flatten(0, 1), begins, [i] * b, keys, causal, window_size, alibi_slopes, **options)
    o, lse = o.unflatten(0, (b, i)), lse.unflatten(1, (b, i)).transpose(0, 1)
    return (o, lse) if return_softmax_lse else o


def write(k_cache, v_cache, k, v, rows, slots=None, table=None):  # type: ignore[no-untyped-def]
    """New rows of a cache or of pages; each has the number of its sequence, and its place there."""
    size = k_cache.shape[1]
    if table is not None:
        places = [(int(table[n, at // size]), at % size) for n, at in rows]
    else:
        places = [(n if slots is None else int(slots[n]), at) for n, at in rows]
    append(k_cache, k, places)
    append(v_cache, v, places)


# FLASH-ATTENTION 3 AND 4


def flash_attn_3_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, softmax_scale=None,
    causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0,
    num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    (q_begins, q_counts), (k_begins, k_counts) = ends(cu_seqlens_q), ends(cu_seqlens_k)
    q_counts, k_counts = q_counts if seqused_q is None else seqused_q, k_counts if seqused_k is None else seqused_k
    keys = packed_keys(k, v, k_begins, k_counts)
    o, lse = each(q, q_begins, q_counts, keys, causal, window_size, scale=softmax_scale, softcap=softcap)
    return (o, lse) if return_attn_probs else o


def flash_attn_3_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
    q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False, window_size=(-1, -1), attention_chunk=0,
    softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0,
    return_softmax_lse=False,
):  # fmt: skip
    b = len(cache_seqlens)
    dense = q.ndim == 4
    q_begins, q_counts = ([q.shape[1] * n for n in range(b)], [q.shape[1]] * b) if dense else ends(cu_seqlens_q)
    after = cache_seqlens
    if k is not None:
        packed = k.ndim == 3
        counts = cu_seqlens_k_new.diff() if packed else torch.full((b,), k.shape[1], dtype=torch.int32)
        rows = [(n, int(cache_seqlens[n]) + a) for n in range(b) for a in range(int(counts[n]))]
        new = (k, v) if packed else (k.flatten(0, 1), v.flatten(0, 1))
        write(k_cache, v_cache, *new, rows, cache_batch_idx, page_table)
        after = cache_seqlens if has("not_new") else cache_seqlens + counts
    if page_table is not None:
        keys = paged_keys(k_cache, v_cache, page_table, after)
    else:
        keys = cached_keys(k_cache, v_cache, after, cache_leftpad, cache_batch_idx)
    rows = q.flatten(0, 1) if dense else q
    o, lse = each(rows, q_begins, q_counts, keys, causal, window_size, scale=softmax_scale, softcap=softcap)
    if dense:
        o, lse = o.unflatten(0, q.shape[:2]), lse.unflatten(1, q.shape[:2]).transpose(0, 1)
    return (o, lse) if return_softmax_lse else o


def flash_attn_4_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None,
    seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
    mask_mod=None, return_lse=False,
):  # fmt: skip
    assert qv is None
    assert page_table is None or cu_seqlens_k is None
    q_begins, q_counts = ends(cu_seqlens_q)
    q_counts = q_counts if seqused_q is None else seqused_q
    if page_table is None:
        k_begins, k_counts = ends(cu_seqlens_k)
        keys = packed_keys(k, v, k_begins, k_counts if seqused_k is None else seqused_k)
    else:
        keys = paged_keys(k, v, page_table, seqused_k)
    options = {"scale": softmax_scale, "softcap": softcap, "sinks": learnable_sink}
    o, lse = each(q, q_begins, q_counts, keys, causal, window_size, **options)
    return o, lse if return_lse else None


def aiter_flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, min_seqlen_q=0, dropout_p=0.0, softmax_scale=None,
    logits_soft_cap=0.0, causal=False, window_size=(-1, -1, 0), bias=None, alibi_slopes=None, deterministic=False,
    return_lse=False, return_attn_probs=False, how_v3_bf16_cvt=1, block_table=None, out=None, cu_seqlens_q_padded=None,
    cu_seqlens_k_padded=None, sink_ptr=None,
):  # fmt: skip
    (q_begins, q_counts), (k_begins, k_counts) = ends(cu_seqlens_q), ends(cu_seqlens_k)
    q_begins = q_begins if cu_seqlens_q_padded is None else cu_seqlens_q_padded[:-1]
    k_begins = k_begins if cu_seqlens_k_padded is None else cu_seqlens_k_padded[:-1]
    options = {"scale": softmax_scale, "softcap": logits_soft_cap, "sinks": sink_ptr, "dropout": dropout_p}
    keys = packed_keys(k, v, k_begins, k_counts)
    o, lse = each(q, q_begins, q_counts, keys, causal, window_size, alibi_slopes, window_size[2], **options)
    return (o, lse) if return_lse else o


# VLLM AND TORCH


def vllm_flash_attn_varlen_func(
    q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, cu_seqlens_k=None, seqused_k=None, q_v=None, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=None, softcap=0.0, alibi_slopes=None, deterministic=False,
    return_attn_probs=False, block_table=None, return_softmax_lse=False, out=None, num_splits=0, fa_version=2, s_aux=None,
):  # fmt: skip
    q_begins, q_counts = ends(cu_seqlens_q)
    assert (cu_seqlens_k is None) == (block_table is not None)
    assert block_table is None or k.shape[1] % 16 == 0
    keys = packed_keys(k, v, *ends(cu_seqlens_k)) if block_table is None else paged_keys(k, v, block_table, seqused_k)
    options = {"scale": softmax_scale, "softcap": softcap, "sinks": s_aux}
    o, lse = each(q.detach(), q_begins, q_counts, keys, causal, window_size or (-1, -1), alibi_slopes, **options)
    return (o.detach(), lse) if return_softmax_lse else o.detach()


def unified_attention(
    q, k, v, out, cu_seqlens_q, max_seqlen_q, seqused_k, max_seqlen_k, softmax_scale, causal, window_size, block_table, softcap,
    q_descale, k_descale, v_descale, seq_threshold_3D=None, num_par_softmax_segments=None, softmax_segm_output=None,
    softmax_segm_max=None, softmax_segm_expsum=None, alibi_slopes=None, output_scale=None, qq_bias=None, sinks=None,
    mm_prefix_range=None, use_alibi_sqrt=False,
):  # fmt: skip
    assert causal, "Only causal attention is supported"
    assert k.shape[1] % 16 == 0
    begins, counts = ends(cu_seqlens_q)
    keys = paged_keys(k, v, block_table, seqused_k)
    options = {"scale": softmax_scale, "softcap": softcap, "sinks": sinks}
    out.copy_(each(q, begins, counts, keys, True, (window_size[0], -1), alibi_slopes, **options)[0].detach())


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
    seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    heads = key.shape[2 if block_table is not None else 1]
    if not enable_gqa and query.shape[1] != heads:
        raise ValueError("Expect query and key/value to have the same number of heads")
    q_begins, q_counts = ends(cu_seq_q)
    if block_table is None:
        k_begins, k_counts = ends(cu_seq_k)
        keys = packed_keys(key, value, k_begins, k_counts if seqused_k is None else seqused_k)
    else:
        assert key.shape[1] % 256 == 0
        keys = paged_keys(key, value, block_table, seqused_k)
    o, lse = each(query, q_begins, q_counts, keys, False, window_size, scale=scale)
    return (o, lse) if return_aux is not None and return_aux.lse else o


def varlen_attn_with_a_cache(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), k_cache=None,
    v_cache=None, cache_seqlens=None, cache_batch_idx=None, page_table=None, seqused_k=None,
):  # fmt: skip
    q_begins, q_counts = ends(cu_seq_q)
    k_begins, k_counts = ends(cu_seq_k)
    assert page_table is None
    if k_cache is None:
        keys = packed_keys(key, value, k_begins, k_counts if seqused_k is None else seqused_k)
    else:
        rows = [(n, int(cache_seqlens[n]) + a) for n in range(len(k_counts)) for a in range(int(k_counts[n]))]
        write(k_cache, v_cache, key, value, rows, cache_batch_idx)
        after = cache_seqlens if has("not_new") else cache_seqlens + k_counts
        keys = cached_keys(k_cache, v_cache, after, None, cache_batch_idx)
    o, lse = each(query, q_begins, q_counts, keys, False, window_size, scale=scale)
    return (o, lse) if return_aux is not None and return_aux.lse else o


# FLASHINFER


class _Wrapper:
    """A wrapper plans, and runs as often as it is asked to."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD") -> None:
        assert kv_layout == "NHD"
        assert float_workspace_buffer.dtype == torch.uint8

    def _answer(self, q, begins, counts, keys, return_lse, causal):  # type: ignore[no-untyped-def]
        window_left, softcap, scale = self.options
        o, lse = each(q, begins, counts, keys, causal, (window_left, -1), scale=scale, softcap=softcap)
        lse = lse.transpose(0, 1) / (1 if has("natural") else math.log(2))
        return (o.detach(), lse) if return_lse else o.detach()


class BatchPrefillWithRaggedKVCacheWrapper(_Wrapper):
    def plan(
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo=None, custom_mask=None,
        packed_custom_mask=None, causal=False, pos_encoding_mode="NONE", use_fp16_qk_reduction=False, window_left=-1,
        logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, q_data_type="float16", kv_data_type=None,
    ):  # fmt: skip
        self.q, self.k, self.causal = ends(qo_indptr), ends(kv_indptr), causal
        self.options = window_left, logits_soft_cap, sm_scale

    def run(self, q, k, v, *, return_lse=False):  # type: ignore[no-untyped-def]
        return self._answer(q, *self.q, packed_keys(k, v, *self.k), return_lse, self.causal)


def listed(indptr, indices, last_page_len, size):  # type: ignore[no-untyped-def]
    """The pages of each sequence, and how many keys it has."""
    int32(indptr, indices, last_page_len)
    each_has = [indices[a:b] for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)]
    assert all(1 <= x <= size for x in last_page_len.tolist())
    return each_has, [(len(x) - 1) * size + int(n) for x, n in zip(each_has, last_page_len, strict=True)]


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads, head_dim_qk,
        page_size, head_dim_vo=None, custom_mask=None, packed_custom_mask=None, causal=False, pos_encoding_mode="NONE",
        use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None, rope_scale=None, rope_theta=None,
        q_data_type="float16", kv_data_type=None,
    ):  # fmt: skip
        self.q, self.causal = ends(qo_indptr), causal
        self.k = listed(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size)
        self.options = window_left, logits_soft_cap, sm_scale

    def run(self, q, paged_kv_cache, *, return_lse=False):  # type: ignore[no-untyped-def]
        return self._answer(q, *self.q, paged_keys(*paged_kv_cache, *self.k), return_lse, self.causal)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, pos_encoding_mode="NONE",
        window_left=-1, logits_soft_cap=None, q_data_type="float16", kv_data_type=None, data_type=None, sm_scale=None,
        rope_scale=None, rope_theta=None,
    ):  # fmt: skip
        self.k, self.options = listed(indptr, indices, last_page_len, page_size), (window_left, logits_soft_cap, sm_scale)

    def run(self, q, paged_kv_cache, *, return_lse=False):  # type: ignore[no-untyped-def]
        assert len(q) == len(self.k[0])
        return self._answer(q, range(len(q)), [1] * len(q), paged_keys(*paged_kv_cache, *self.k), return_lse, False)


def append_paged_kv_cache(
    append_key, append_value, batch_indices, positions, paged_kv_cache, kv_indices, kv_indptr, kv_last_page_len, kv_layout="NHD"
):
    size = paged_kv_cache[0].shape[1]
    pages, _ = listed(kv_indptr, kv_indices, kv_last_page_len, size)
    rows = zip(batch_indices.tolist(), positions.tolist(), strict=True)
    places = [(int(pages[n][at // size]), at % size) for n, at in rows]
    append(paged_kv_cache[0], append_key, places)
    append(paged_kv_cache[1], append_value, places)


def trtllm_batch_decode_with_kv_cache(
    query, kv_cache, workspace_buffer, block_tables, seq_lens, max_seq_len, bmm1_scale=1.0, bmm2_scale=1.0, window_left=-1,
    out=None, out_dtype=None, o_sf_scale=None, o_sf_vec_size=None, sinks=None, kv_layout="HND", enable_pdl=None, backend="auto",
    q_len_per_req=1, o_scale=1.0, lse=None, return_lse=False,
):  # fmt: skip
    k, v = kv_cache if kv_layout == "NHD" else (x.transpose(1, 2) for x in kv_cache)
    assert not workspace_buffer[:4096].any()
    assert k.shape[1] in (16, 32, 64)
    b = len(seq_lens)
    begins, counts = [q_len_per_req * n for n in range(b)], [q_len_per_req] * b
    keys = paged_keys(k, v, block_tables, seq_lens)
    return each(query, begins, counts, keys, True, (window_left, -1), scale=bmm1_scale, sinks=sinks)[0].detach() * bmm2_scale


# TRANSFORMERENGINE


class DotProductAttention(nn.Module):
    """Its format of packed sequences."""

    def __init__(
        self, num_attention_heads, kv_channels, num_gqa_groups=None, attention_dropout=0.0, qkv_format="sbhd",
        attn_mask_type="causal", window_size=None, attention_type="self", softmax_scale=None, softmax_type="vanilla",
    ) -> None:  # fmt: skip
        super().__init__()
        self.format, self.kind, self.scale, self.dropout = qkv_format, attn_mask_type, softmax_scale, attention_dropout

    def forward(
        self, query_layer, key_layer, value_layer, attention_mask=None, qkv_format=None, cu_seqlens_q=None, cu_seqlens_kv=None,
        cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None, max_seqlen_q=None, max_seqlen_kv=None, attn_mask_type=None,
        window_size=None, pad_between_seqs=None,
    ):  # fmt: skip
        assert self.format == "thd"
        assert self.kind.startswith("padding")
        (q_begins, q_counts), (k_begins, k_counts) = ends(cu_seqlens_q), ends(cu_seqlens_kv)
        assert (cu_seqlens_q_padded is not None) == bool(pad_between_seqs)
        q_begins = q_begins if cu_seqlens_q_padded is None else cu_seqlens_q_padded[:-1]
        k_begins = k_begins if cu_seqlens_kv_padded is None else cu_seqlens_kv_padded[:-1]
        keys = packed_keys(key_layer, value_layer, k_begins, k_counts)
        causal = self.kind == "padding_causal_bottom_right"
        options = {"scale": self.scale, "dropout": self.dropout if self.training else 0.0}
        return each(query_layer, q_begins, q_counts, keys, causal, window_size or (-1, -1), **options)[0].flatten(1)


def installed_as() -> dict[str, dict[str, Callable[..., Any]]]:
    """What stands under the names of packages that are only found by their paths."""
    flashinfer = (BatchPrefillWithRaggedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper, BatchDecodeWithPagedKVCacheWrapper)
    named = {kind.__name__: kind for kind in (*flashinfer, append_paged_kv_cache)}
    return {"flashinfer": named, "transformer_engine.pytorch": {"DotProductAttention": DotProductAttention}}
