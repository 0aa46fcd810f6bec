"""flax's dot_product_attention, of linen and of nnx."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading


def flax_attention(  # type: ignore[no-untyped-def]
    function, q, k, v, *, mask=None, bias=None, causal=False, dropout=0.0, training=False
):
    """In the order (b i h d). What is dropped follows a key, which torch's seed draws here; each head and item has its own."""
    options: dict[str, object] = {"deterministic": not training}
    if mask is not None:
        options["mask"] = mask[:, None, None] if mask.ndim == 2 else mask
    if bias is not None:
        options["bias"] = bias
    if causal:
        options["is_causal"] = True
    if training and dropout:
        import jax
        import torch

        key = jax.random.key(int(torch.randint(2**31 - 1, ())))
        options |= {"dropout_rng": key, "dropout_rate": dropout, "broadcast_dropout": False}
    return function(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


# Neither has a scale. A row without a key is the mean of the values: hidden scores are the lowest finite number.
LINEN = Convention(
    name="flax linen",
    of="flax 0.12.8, flax.linen.dot_product_attention",
    paths=("flax.linen.dot_product_attention", "flax.linen.attention.dot_product_attention"),
    shown_by=frozenset({"broadcast_dropout", "dropout_rng", "force_fp32_for_softmax"}),
    reading=Reading(arrays="jax"),
    offers=frozenset({"value_width"}),
    without=frozenset({"strided", "causal"}),  # causal is a mask there
    dialect={"empty_row": "uniform"},
    attend=flax_attention,
)
NNX = Convention(
    name="flax nnx",
    of="flax 0.12.8, flax.nnx.dot_product_attention",
    paths=("flax.nnx.dot_product_attention", "flax.nnx.nn.attention.dot_product_attention"),
    shown_by=frozenset({"broadcast_dropout", "dropout_rng", "promote_dtype"}),
    reading=Reading(arrays="jax"),
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"strided"}),
    dialect={"causal_alignment": "top_left", "empty_row": "uniform", "head_grouping": "blocked"},
    attend=flax_attention,
)
CONVENTIONS = (LINEN, NNX)
