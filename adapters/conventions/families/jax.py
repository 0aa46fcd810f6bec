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
CONVENTIONS = (DOT_PRODUCT,)
