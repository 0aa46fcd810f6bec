"""torch's scaled_dot_product_attention, and functions with its parameters."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS

SDPA = Convention(
    name="torch SDPA",
    of="torch 2.13, torch.nn.functional.scaled_dot_product_attention",
    shown_by=frozenset({"attn_mask", "is_causal"}),
    reading=AS_IT_IS,
    offers=frozenset({"bias", "value_width"}),
    dialect={"causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked"},
    merges=True,
)
CONVENTIONS = (SDPA,)
