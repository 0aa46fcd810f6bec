"""tinygrad's Tensor.scaled_dot_product_attention, a method: its queries are self."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading


def tinygrad_attention(  # type: ignore[no-untyped-def]
    function, q, k, v, *, mask=None, bias=None, causal=False, dropout=0.0, training=False
):
    """Its attn_mask is bool, or added to the scores, and excludes is_causal. It drops where its TRAINING is on."""
    from tinygrad.helpers import Context

    options = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if mask is not None or bias is not None:
        options["attn_mask"] = mask[:, None, None] if mask is not None and mask.ndim == 2 else mask if bias is None else bias
    if causal:
        options["is_causal"] = True
    with Context(TRAINING=int(training)):
        return function(q, k, v, dropout_p=dropout, **options)


# It links torch's documentation of grouped heads. It hides with −∞, so that a row without a key is NaN. It has no scale.
SDPA = Convention(
    name="tinygrad",
    of="tinygrad 0.14.0, tinygrad.Tensor.scaled_dot_product_attention",
    paths=("tinygrad.*.scaled_dot_product_attention",),
    shown_by=frozenset({"self", "key", "value", "attn_mask", "is_causal"}),
    reading=Reading(arrays="tinygrad"),
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"strided"}),
    restrictions=frozenset({"mask_or_bias", "mask_or_causal", "bias_or_causal"}),
    dialect={"causal_alignment": "top_left", "empty_row": "nan", "head_grouping": "blocked"},
    attend=tinygrad_attention,
)
CONVENTIONS = (SDPA,)
