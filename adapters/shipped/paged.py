"""Attention over pages that frameworks do without a kernel of their own: torch's PagedAttention, and transformers' paged cache."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.function import adapted
from attnspec.adapters.conventions.layout import AS_IT_IS
from attnspec.adapters.conventions.signature import ResolveError


def in_pages_of_torch(
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
):
    """flex_attention behind a block mask that PagedAttention made for pages. Queries are dense, and rows behind them see nothing.

    PagedAttention deals pages out by itself; here its two tables hold what the call says, as its reserve() writes them.
    """
    import torch
    from torch.nn.attention.experimental._paged_attention import PagedAttention
    from torch.nn.attention.flex_attention import create_block_mask

    (pages, size, g, d), b, h, e = k_pages.shape, len(lengths), q.shape[1], v_pages.shape[3]
    counts = cu_q.diff().long()
    total = lengths.long() if cu_new is None else lengths.long() + cu_new.diff().long()
    if not len(q) or not pages:
        return q.new_zeros(len(q), h, e)
    pool = PagedAttention(pages, size, b, device=str(q.device))
    for n in range(b):
        used = -(-int(total[n]) // size)
        pool.page_table[n, :used] = table[n, :used]
        pool.physical_to_logical[n, table[n, :used].long()] = torch.arange(used, device=q.device)
        pool.capacity[n] = used * size
    k_cache, v_cache = (x.flatten(0, 1).transpose(0, 1)[None] for x in (k_pages, v_pages))
    for n in range(b if cu_new is not None else 0):
        new = slice(int(cu_new[n]), int(cu_new[n + 1]))
        if new.stop > new.start:
            at = torch.arange(int(lengths[n]), int(total[n]), device=q.device)[None]
            k, v = (x[new].transpose(0, 1)[None] for x in (k_new, v_new))
            pool.assign(torch.tensor([n], device=q.device), at, k, v, k_cache, v_cache)

    def seen(b, h, i, j):
        there = i < counts[b]
        return there & (j <= i + total[b] - counts[b]) if causal else there

    most = max(int(total.max()), 1)
    logical = create_block_mask(seen, b, None, max_q, most, device=str(q.device), BLOCK_SIZE=(128, size))
    mask = pool.convert_logical_block_mask(logical, kv_len=total)
    rows = torch.arange(max_q, device=q.device) < counts[:, None]
    dense = q.new_zeros(b, max_q, h, d)
    dense[rows] = q
    o = function(dense.transpose(1, 2), k_cache, v_cache, block_mask=mask, scale=scale, enable_gqa=h != g)
    return o.transpose(1, 2)[rows]


def in_pages_of_transformers(
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
):
    """The cache of continuous batching: rows are written and read by indices, and a mask of blocks keeps sequences apart."""
    from types import SimpleNamespace

    import torch
    from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator as Pages
    from transformers.generation.continuous_batching.utils import build_attention_mask

    from attnspec.adapters import Unsupported

    if not causal:
        raise Unsupported("its mask is causal")
    if cu_new is None or not torch.equal(cu_new, cu_q):
        raise Unsupported("each query is a new token")
    size, past, counts = k_pages.shape[1], lengths.tolist(), cu_q.diff().tolist()
    own = SimpleNamespace(
        block_table=dict(enumerate(table.tolist())),
        tokens_per_page=size,
        block_physical_stride=size,
        _kv_token_views={0: (k_pages.flatten(0, 1), v_pages.flatten(0, 1))},
    )
    read, write = [], []
    for n, (old, new) in enumerate(zip(past, counts, strict=True)):
        if new:  # a request without a token is in no batch
            read += Pages.get_read_indices(own, n, old, new) if any(past) else []
            write += Pages.get_write_indices(own, n, old, new)
    k, v = Pages.update(own, k_new, v_new, 0, *(torch.tensor(x, dtype=torch.long, device=q.device) for x in (read, write)))
    there = [(old + new) if new else 0 for old, new in zip(past, counts, strict=True)]
    ends = [sum(there[:n]) for n in range(len(there) + 1)]
    mask = q.new_full((1, 1, len(q), len(k)), torch.finfo(q.dtype).min)
    build_attention_mask(mask, cu_q.tolist(), ends)
    module = SimpleNamespace(training=False, num_key_value_groups=q.shape[1] // k.shape[1], is_causal=True)
    scaling = q.shape[-1] ** -0.5 if scale is None else scale
    o, _ = function(module, *(x.transpose(0, 1)[None] for x in (q, k, v)), mask, scaling=scaling)
    return o[0]


TORCH = Convention(
    name="torch, pages",
    of="torch 2.13, torch.nn.attention.experimental._paged_attention.PagedAttention with flex_attention",
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"strided", "backward"}),  # its memory is its own
    dialect={"head_grouping": "blocked", "causal_alignment": "bottom_right"},
    forms={"paged": in_pages_of_torch},
)
TRANSFORMERS = Convention(
    name="transformers, pages",
    of="transformers 5.24, generation.continuous_batching and integrations.eager_paged",
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"strided", "backward"}),  # its memory is its own
    restrictions=frozenset({"always_causal", "always_append"}),
    dialect={"head_grouping": "blocked", "causal_alignment": "bottom_right"},
    forms={"paged": in_pages_of_transformers},
)
# Of each name: the package, and the functions with the convention by which they are called.
KINDS = {
    "torch-paged": ("torch", TORCH, {"flex": ("torch.nn.attention.flex_attention", "flex_attention")}),
    "transformers-paged": (
        "transformers",
        TRANSFORMERS,
        {
            "eager": ("transformers.integrations.eager_paged", "eager_paged_attention_forward"),
            "sdpa": ("transformers.integrations.sdpa_attention", "sdpa_attention_forward"),
        },
    ),
}


def paged(name: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """An adapter for each function. Raises ResolveError where the package is missing, or for options, of which it has none."""
    package, convention, functions = KINDS[name]
    if find_spec(package) is None:
        raise ResolveError(f"--impl={name} needs {package}: pip install {package}")
    if kwargs:
        raise ResolveError(f"--impl={name} has no options; found {', '.join(sorted(kwargs))}")
    found: list[Adapter] = []
    for label, (module, function) in functions.items():
        source = (f"from {module} import {function} as attend",)
        (one,) = adapted(getattr(import_module(module), function), name, source, replace(convention))
        one.variant, one.version = label if len(functions) > 1 else one.variant, f"{package} {metadata.version(package)}"
        found.append(one)
    return found
