"""MLX's scaled_dot_product_attention."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading


def mlx_attention(function, q, k, v, *, mask=None, bias=None, causal=False, scale=None, sinks=None):  # type: ignore[no-untyped-def]
    """Its mask is bool, or added to the scores, or the word "causal"; one of them. The scale can't be left out.

    It refuses sinks whose dtype is wider than that of the queries.
    """
    said = mask[:, None, None] if mask is not None and mask.ndim == 2 else mask if bias is None else bias
    options = {"sinks": sinks.to(q.dtype)} if sinks is not None else {}
    if causal or said is not None:
        options["mask"] = "causal" if causal else said
    return function(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, **options)


# Its softmax is in float32 whatever the arrays are, so that float64 is not promised.
FAST = Convention(
    name="MLX",
    of="mlx 0.32.4, mlx.core.fast.scaled_dot_product_attention",
    paths=("mlx.core.fast.scaled_dot_product_attention",),
    shown_by=frozenset({"scale", "mask", "sinks", "stream"}),
    reading=Reading(arrays="mlx"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"strided"}),
    restrictions=frozenset({"mask_or_bias", "mask_or_causal", "bias_or_causal"}),
    dtypes=("float32", "bfloat16", "float16"),
    dialect={"causal_alignment": "bottom_right"},
    attend=mlx_attention,
)
CONVENTIONS = (FAST,)
