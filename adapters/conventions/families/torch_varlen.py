"""torch's varlen_attn: sequences one behind the other, with pages, or, in versions to come, with a cache that it appends to."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def varlen_packed(function, q, k, v, cu_q, cu_k, max_q, max_k, *, causal=False, scale=None, window=None, lse=False):
    """Causal is a window that ends at the query. Of its lse the documentation says (n h), and its code (h n)."""
    import inspect

    from torch.nn.attention.varlen import AuxRequest

    left, right = (-1 if side is None else side for side in window or (None, None))
    options = {"scale": scale, "window_size": (left, 0) if causal else (left, right)}
    if "enable_gqa" in inspect.signature(function).parameters:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    if lse:
        options["return_aux"] = AuxRequest(lse=True)
    return function(q, k, v, cu_q, cu_k, max_q, max_k, **options)


def varlen_paged(function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, causal=False, scale=None, window=None, lse=False):
    """The pages stand in the place of keys and values, and seqused_k says how many keys each sequence has."""
    from torch.nn.attention.varlen import AuxRequest

    left, right = (-1 if side is None else side for side in window or (None, None))
    options = {"scale": scale, "window_size": (left, 0) if causal else (left, right), "seqused_k": lengths, "block_table": table}
    options["enable_gqa"] = q.shape[1] != k_pages.shape[2]
    if lse:
        options["return_aux"] = AuxRequest(lse=True)
    return function(q, k_pages, v_pages, cu_q, None, max_q, max(lengths.tolist(), default=0), **options)


def varlen_cached(
    function,
    q,
    k_cache,
    v_cache,
    lengths,
    *,
    k_new=None,
    v_new=None,
    slots=None,
    causal=False,
    scale=None,
    window=None,
    lse=False,
):
    """cache_seqlens counts the rows before the call, and keys and values are the new ones, packed. The lse is (h n).

    Where there are none, the slots are a pack, and seqused_k says how many rows of each there are.
    """
    import torch
    from torch.nn.attention.varlen import AuxRequest

    (b, i), (s, c) = q.shape[:2], k_cache.shape[:2]
    left, right = (-1 if side is None else side for side in window or (None, None))
    options = {"scale": scale, "window_size": (left, 0) if causal else (left, right)}
    if lse:
        options["return_aux"] = AuxRequest(lse=True)
    ints = {"dtype": torch.int32, "device": q.device}
    if k_new is None:
        if slots is not None:
            from attnspec.adapters import Unsupported

            raise Unsupported("cache_batch_idx stands beside new keys")
        tensors, each = (k_cache.flatten(0, 1), v_cache.flatten(0, 1)), c
        options["seqused_k"] = lengths
    else:
        tensors, each = (k_new.flatten(0, 1), v_new.flatten(0, 1)), k_new.shape[1]
        options |= {"k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": lengths, "cache_batch_idx": slots}
    cu_q, cu_k = (torch.arange(b + 1, **ints) * x for x in (i, each))
    returned = function(q.flatten(0, 1), *tensors, cu_q, cu_k, i, each, **options)
    o = (returned[0] if lse else returned).unflatten(0, (b, i))
    return (o, returned[1].unflatten(1, (b, i)).transpose(0, 1)) if lse else o


def has_pages():
    """Whether torch's own function, as it is installed, takes pages."""
    import inspect

    from torch.nn.attention import varlen

    return "block_table" in inspect.signature(varlen.varlen_attn).parameters


# It calls flash-attention 2, whose pages have a multiple of 256 rows, or 3 where that is installed.
VARLEN = Convention(
    name="torch varlen_attn",
    of="torch 2.13, torch.nn.attention.varlen.varlen_attn",
    paths=("torch.nn.attention.varlen.varlen_attn",),
    when=has_pages,
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"lse_grad", "packed_long", "paged_any_size", "paged_any_entry"}),
    restrictions=frozenset({"page_size:256"}),
    dialect={"causal_alignment": "bottom_right", "head_grouping": "blocked", "window_count": "inclusive", "lse_base": "e"},
    dtypes=("float16", "bfloat16"),
    devices=("cuda",),
    forms={"packed": varlen_packed, "paged": varlen_paged},
    untested="its kernels run on GPUs only",
)
PACKED = replace(VARLEN, when=None, restrictions=frozenset(), forms={"packed": varlen_packed})
CACHED = replace(
    PACKED, of="torch after 2.13, torch.nn.attention.varlen.varlen_attn", forms={"packed": varlen_packed, "cached": varlen_cached}
)
STARTS = ("cu_seq_q", "cu_seq_k", "max_q", "max_k")
CONVENTIONS = (
    VARLEN,
    replace(VARLEN.elsewhere(*STARTS, "seqused_k", "block_table"), when=None),
    CACHED.elsewhere(*STARTS, "k_cache", "cache_batch_idx"),
    PACKED.elsewhere(*STARTS, "window_size"),
)
