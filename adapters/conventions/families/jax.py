"""JAX's dot_product_attention."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading

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
)
CONVENTIONS = (DOT_PRODUCT,)
