"""Kernels of latents: FlashMLA, which gets pages whole, and FlashInfer's wrapper, which gets latents and turned parts apart."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def flash_mla(function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, value_width=None, causal=False, scale=None, lse=False):
    """As many queries for each sequence, (b i h d). A plan comes first. Values are those of the keys, told or not."""
    from flash_mla import get_mla_metadata

    b, e = len(lengths), v_pages.shape[3] if value_width is None else value_width
    plan, splits = get_mla_metadata(lengths, max_q * q.shape[1] // k_pages.shape[2], k_pages.shape[2])
    queries = q.unflatten(0, (b, max_q))
    o, sums = function(queries, k_pages, table, lengths, e, plan, splits, softmax_scale=scale, causal=causal)
    return (o.flatten(0, 1), sums.transpose(0, 1).flatten(1)) if lse else o.flatten(0, 1)


def flashinfer_mla(
    function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, value_width=None, causal=False, scale=None, lse=False
):
    """q_nope and q_pe, ckv and kpe are views of the rows. It has no default for the scale. Its lse is (n h), of base 2."""
    import torch

    size, e = k_pages.shape[1], v_pages.shape[3] if value_width is None else value_width
    counts = (lengths + size - 1) // size
    indptr = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    indices = table[torch.arange(table.shape[1], device=table.device) < counts[:, None]]
    wrapper = function(torch.empty(128 << 20, dtype=torch.uint8, device=q.device))
    scale = q.shape[2] ** -0.5 if scale is None else scale
    widths = (q.shape[1], e, q.shape[2] - e, size)
    wrapper.plan(cu_q, indptr, indices, lengths, *widths, causal, scale, q.dtype, k_pages.dtype)
    rows = k_pages[:, :, 0]
    returned = wrapper.run(q[..., :e], q[..., e:], rows[..., :e], rows[..., e:], return_lse=lse)
    return (returned[0], returned[1].transpose(0, 1)) if lse else returned


# They take no rows that are no latents: values are the first channels of the keys in every problem. Sparse calls, which name keys
# by indices, are none of the suite's.
NO_VALUES = frozenset({"latent_values", "value_width:512"})
FLASH_MLA = Convention(
    name="FlashMLA",
    of="flash_mla, flash_mla.flash_mla_with_kvcache",
    paths=("flash_mla.flash_mla_with_kvcache", "flash_mla.flash_mla_interface.flash_mla_with_kvcache"),
    reading=AS_IT_IS,
    offers=frozenset({"mqa", "value_width"}),
    without=frozenset({"mha", "strided", "backward", "lse_grad", "paged_queries", "paged_any_size"}),
    restrictions=NO_VALUES | {"page_size:64"},
    dialect={"causal_alignment": "bottom_right", "lse_base": "e", "lse_dtype": "wide"},
    dtypes=("float16", "bfloat16"),
    widths=(576,),
    devices=("cuda",),
    forms={"paged": flash_mla},
    untested="its kernels run on GPUs only",
)
FLASHINFER_MLA = Convention(
    name="FlashInfer, MLA",
    of="flashinfer-python 0.7.4, flashinfer.mla.BatchMLAPagedAttentionWrapper",
    paths=("flashinfer.mla.BatchMLAPagedAttentionWrapper", "flashinfer.mla.*.BatchMLAPagedAttentionWrapper"),
    reading=AS_IT_IS,
    offers=frozenset({"mqa", "value_width"}),
    without=frozenset({"mha", "strided", "backward", "lse_grad"}),
    restrictions=NO_VALUES,
    dialect={"causal_alignment": "bottom_right", "lse_base": "2", "lse_dtype": "wide"},
    dtypes=("float16", "bfloat16"),
    widths=(576,),
    devices=("cuda",),
    forms={"paged": flashinfer_mla},
    untested="its kernels run on GPUs only",
)
CONVENTIONS = (FLASH_MLA, FLASHINFER_MLA)
