"""FlashInfer's calls of many sequences: wrappers that plan for lengths and then run, and its function of TensorRT-LLM's kernels."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.families.flashinfer import PREFILL
from attnspec.adapters.conventions.layout import AS_IT_IS


def ragged_prefill(function, q, k, v, cu_q, cu_k, max_q, max_k, *, causal=False, scale=None, window=None, softcap=None, lse=False):
    """A wrapper for each call. Its lse is (n h), of base 2."""
    import torch

    if window is not None and window[1] is not None and not causal:
        from attnspec.adapters import Unsupported

        raise Unsupported("window_left does not limit what is behind the query")
    wrapper = function(torch.empty(128 << 20, dtype=torch.uint8, device=q.device), "NHD")
    options = {"head_dim_vo": v.shape[2], "causal": causal, "sm_scale": scale, "logits_soft_cap": softcap}
    options["window_left"] = -1 if window is None or window[0] is None else window[0]
    options |= {"q_data_type": q.dtype, "kv_data_type": k.dtype}
    wrapper.plan(cu_q, cu_k, q.shape[1], k.shape[1], q.shape[2], **options)
    returned = wrapper.run(q, k, v, return_lse=lse)
    return (returned[0], returned[1].transpose(0, 1)) if lse else returned


def paged_prefill(
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
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    lse=False,
):
    """The pages of all sequences in one list, where those of each begin, and how many rows the last one has: after the call.

    New keys are appended before the call, by the function that it has for that.
    """
    import torch

    if window is not None and window[1] is not None and not causal:
        from attnspec.adapters import Unsupported

        raise Unsupported("window_left does not limit what is behind the query")
    size = k_pages.shape[1]
    after = lengths if cu_new is None else lengths + cu_new.diff()
    counts = (after + size - 1) // size
    indptr = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    places = torch.arange(table.shape[1], device=table.device)
    indices, last = table[places < counts[:, None]], (after - 1) % size + 1
    if k_new is not None:
        from flashinfer import append_paged_kv_cache

        items = torch.arange(len(lengths), dtype=torch.int32, device=q.device).repeat_interleave(cu_new.diff())
        positions = torch.arange(len(k_new), dtype=torch.int32, device=q.device) + (lengths - cu_new[:-1])[items]
        append_paged_kv_cache(k_new, v_new, items, positions, (k_pages, v_pages), indices, indptr, last, "NHD")
    wrapper = function(torch.empty(128 << 20, dtype=torch.uint8, device=q.device), "NHD")
    options = {"causal": causal, "sm_scale": scale, "logits_soft_cap": softcap}
    options["window_left"] = -1 if window is None or window[0] is None else window[0]
    options |= {"q_data_type": q.dtype, "kv_data_type": k_pages.dtype}
    wrapper.plan(cu_q, indptr, indices, last, q.shape[1], k_pages.shape[2], q.shape[2], size, **options)
    returned = wrapper.run(q, (k_pages, v_pages), return_lse=lse)
    return (returned[0], returned[1].transpose(0, 1)) if lse else returned


def paged_decode(function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, scale=None, softcap=None, lse=False):
    """One plan, and a run for each query of a sequence: each sees all keys, as the newest does when a model writes."""
    import torch

    size, b = k_pages.shape[1], len(lengths)
    counts = (lengths + size - 1) // size
    indptr = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    places = torch.arange(table.shape[1], device=table.device)
    indices, last = table[places < counts[:, None]], (lengths - 1) % size + 1
    wrapper = function(torch.empty(128 << 20, dtype=torch.uint8, device=q.device), "NHD")
    options = {"sm_scale": scale, "logits_soft_cap": softcap, "q_data_type": q.dtype, "kv_data_type": k_pages.dtype}
    wrapper.plan(indptr, indices, last, q.shape[1], k_pages.shape[2], q.shape[2], size, **options)
    runs = [wrapper.run(x.contiguous(), (k_pages, v_pages), return_lse=lse) for x in q.unflatten(0, (b, max_q)).unbind(1)]
    if not runs:  # no query is no call
        return (q, q.new_empty(q.shape[1], 0, dtype=torch.float32)) if lse else q
    o = torch.stack([x[0] if lse else x for x in runs], 1).flatten(0, 1)
    return (o, torch.stack([x[1] for x in runs], 1).flatten(0, 1).transpose(0, 1)) if lse else o


def trtllm_decode(function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, causal=False, scale=None, window=None, sinks=None):
    """seq_lens counts the keys with the new ones. It is causal always, and has no default for the scale."""
    import torch

    workspace = torch.zeros(128 << 20, dtype=torch.uint8, device=q.device)
    options = {"bmm1_scale": q.shape[2] ** -0.5 if scale is None else scale, "bmm2_scale": 1.0, "sinks": sinks}
    options |= {"window_left": -1 if window is None or window[0] is None else window[0], "q_len_per_req": max_q}
    longest = max(lengths.tolist(), default=0)
    return function(q, (k_pages, v_pages), workspace, table, lengths, longest, kv_layout="NHD", **options)


# Where sequences begin and pages are int32.
RAGGED = replace(
    PREFILL,
    name="FlashInfer, ragged",
    of="flashinfer-python 0.7.4, flashinfer.BatchPrefillWithRaggedKVCacheWrapper",
    paths=("flashinfer.BatchPrefillWithRaggedKVCacheWrapper", "flashinfer.prefill.BatchPrefillWithRaggedKVCacheWrapper"),
    without=PREFILL.without | {"packed_long"},
    restrictions=frozenset(),
    attend=None,
    forms={"packed": ragged_prefill},
)
PAGED = replace(
    RAGGED,
    name="FlashInfer, paged",
    of="flashinfer-python 0.7.4, flashinfer.BatchPrefillWithPagedKVCacheWrapper",
    paths=("flashinfer.BatchPrefillWithPagedKVCacheWrapper", "flashinfer.prefill.BatchPrefillWithPagedKVCacheWrapper"),
    offers=frozenset({"gqa", "mqa"}),
    forms={"paged": paged_prefill},
)
DECODE = replace(
    PAGED,
    name="FlashInfer, paged decode",
    of="flashinfer-python 0.7.4, flashinfer.BatchDecodeWithPagedKVCacheWrapper",
    paths=("flashinfer.BatchDecodeWithPagedKVCacheWrapper", "flashinfer.decode.BatchDecodeWithPagedKVCacheWrapper"),
    without=PAGED.without | {"paged_queries"},
    forms={"paged": paged_decode},
)
TRTLLM = Convention(
    name="TensorRT-LLM's decode in FlashInfer",
    of="flashinfer-python 0.7.4, flashinfer.decode.trtllm_batch_decode_with_kv_cache",
    paths=("flashinfer.decode.trtllm_batch_decode_with_kv_cache", "flashinfer.trtllm_batch_decode_with_kv_cache"),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"sinks_grad", "paged_queries", "paged_any_size", "paged_any_entry"}),
    restrictions=frozenset({"always_causal"}),
    dialect={key: PREFILL.dialect[key] for key in ("causal_alignment", "head_grouping", "window_count")},
    dtypes=PREFILL.dtypes,
    devices=PREFILL.devices,
    forms={"paged": trtllm_decode},
    untested=PREFILL.untested,
)
CONVENTIONS = (
    RAGGED,
    PAGED,
    DECODE,
    TRTLLM,
    TRTLLM.elsewhere("query", "kv_cache", "workspace_buffer", "block_tables", "seq_lens", "bmm1_scale"),
)
