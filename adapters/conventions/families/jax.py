"""JAX's dot_product_attention."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading


def jax_lengths(function, q, k, v, k_lengths, q_lengths=None, *, causal=False, scale=None, window=None, lse=False):  # type: ignore[no-untyped-def]
    """One call with the lengths beside it, of tensors (b i h d); an lse is (b i h)."""
    given = {"key_value_seq_lengths": k_lengths, "is_causal": causal, "scale": scale}
    if q_lengths is not None:
        given["query_seq_lengths"] = q_lengths
    if window is not None:  # a side without a limit reaches over all queries and keys
        given["local_window_size"] = tuple(max(q.shape[2], k.shape[2]) if side is None else side for side in window)
    if not lse:
        return function(*(x.transpose(1, 2) for x in (q, k, v)), **given).transpose(1, 2)
    o, of_rows = function(*(x.transpose(1, 2) for x in (q, k, v)), **given, return_residual=True)
    return o.transpose(1, 2), of_rows.transpose(1, 2)


def jax_ragged_pages(  # type: ignore[no-untyped-def]
    function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, causal=False, scale=None, softcap=None, window=None
):
    """One call with pages in which heads of keys and of values take turns. Its scale is 1 where none is said."""
    import torch

    from attnspec.adapters import Unsupported

    left, right = window or (None, None)
    if not causal or right or left == 0:
        raise Unsupported("it is causal, and its window counts the last keys")
    pages = torch.stack([k_pages, v_pages], 3).flatten(2, 3)
    number = torch.tensor([len(lengths)], dtype=torch.int32)
    given = {"sm_scale": q.shape[-1] ** -0.5 if scale is None else scale, "sliding_window": left, "soft_cap": softcap}
    return function(q, pages, lengths, table, cu_q, number, **given)


def jax_pages(function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, scale=None, softcap=None):  # type: ignore[no-untyped-def]
    """One query of each sequence, which is scaled by who calls. Pages are (heads pages rows d)."""
    from attnspec.adapters import Unsupported

    if len(q) != len(lengths) or max_q != 1:
        raise Unsupported("it has one query for each sequence")
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    pages = [x.permute(2, 0, 1, 3) for x in (k_pages, v_pages)]
    return function(scaled, *pages, lengths, table, attn_logits_soft_cap=softcap, pages_per_compute_block=1)


# Values are as wide as keys: it checks that. A row without a key is the mean of the values, for it hides with a very low finite
# number; the lse of such a row is that number, in the dtype of the keys. Its softmax is in float32 for float64, too: that is not
# promised; without JAX_ENABLE_X64 there is none. Masks of three dimensions are read, and not promised.
DOT_PRODUCT = Convention(
    name="JAX",
    of="jax 0.10.2, jax.nn.dot_product_attention",
    paths=("jax.nn.dot_product_attention", "jax._src.nn.functions.dot_product_attention"),
    shown_by=frozenset({"query_seq_lengths", "key_value_seq_lengths"}),
    reading=Reading("b i h d", arrays="jax"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"strided", "rank3"}),
    dtypes=("float32", "bfloat16", "float16"),
    dialect={
        "causal_alignment": "top_left",
        "empty_row": "uniform",
        "head_grouping": "blocked",
        "lse_base": "e",
        "lse_empty": "sentinel",
        "lse_dtype": "operand",
    },
    forms={"padded": jax_lengths},
    plain=True,
)
# The kernel is for TPUs: its interpreter for other processors has no word for how it reads pages. The same in JAX's own operators,
# by which the kernel is tested, runs everywhere. Both hide with a very low finite number; more queries than keys are not promised.
RAGGED_PAGED = Convention(
    name="JAX, ragged paged attention",
    of="jax 0.10.2, jax.experimental.pallas.ops.tpu.ragged_paged_attention",
    paths=(
        "jax.experimental.pallas.ops.tpu.ragged_paged_attention.*ragged_paged_attention",
        "jax.experimental.pallas.ops.tpu.ragged_paged_attention.kernel.*ragged_paged_attention",
    ),
    shown_by=frozenset({"kv_pages", "kv_lens", "page_indices", "cu_q_lens", "num_seqs"}),
    reading=Reading(arrays="jax"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"strided", "backward", "window_right"}),
    restrictions=frozenset({"always_causal"}),
    dtypes=("float32", "bfloat16"),
    dialect={"causal_alignment": "bottom_right", "empty_row": "uniform", "head_grouping": "blocked", "window_count": "total"},
    forms={"paged": jax_ragged_pages},
)
PAGED = Convention(
    name="JAX, paged attention",
    of="jax 0.10.2, jax.experimental.pallas.ops.tpu.paged_attention",
    paths=(
        "jax.experimental.pallas.ops.tpu.paged_attention.paged_attention",
        "jax.experimental.pallas.ops.tpu.paged_attention.paged_attention_kernel.paged_attention",
    ),
    shown_by=frozenset({"k_pages", "v_pages", "lengths", "page_indices", "pages_per_compute_block"}),
    reading=Reading(arrays="jax"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"strided", "backward", "paged_queries"}),
    dtypes=("float32", "bfloat16"),
    dialect={"head_grouping": "blocked"},
    forms={"paged": jax_pages},
    untested="it is for TPUs: in their interpreter three problems were asked by hand",
)
CONVENTIONS = (DOT_PRODUCT, RAGGED_PAGED, PAGED)
