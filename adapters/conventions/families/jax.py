"""JAX's dot_product_attention."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading

# A row without a key is the mean of the values, for JAX hides with the lowest finite number; its lse is that number then.
DOT_PRODUCT = Convention(
    name="JAX",
    of="jax 0.10, jax.nn.dot_product_attention",
    paths=("jax.nn.dot_product_attention", "jax._src.nn.functions.dot_product_attention"),
    reading=Reading("b i h d", arrays="jax"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"strided", "rank3"}),
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
