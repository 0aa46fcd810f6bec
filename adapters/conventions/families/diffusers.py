"""diffusers' dispatch_attention_fn: torch SDPA's parameters, tensors (b i h d), and a backend."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading

# The two backends that need no other package and take all that it offers; flex and the others on a GPU are chosen by the user.
DISPATCH = Convention(
    name="diffusers",
    of="diffusers 0.42, diffusers.models.attention_dispatch.dispatch_attention_fn",
    paths=("diffusers.models.attention_dispatch.dispatch_attention_fn",),
    shown_by=frozenset({"attn_mask", "is_causal", "backend", "parallel_config"}),
    reading=Reading("b i h d"),
    variants={f"backend={name}": {"fixed": {"backend": name}} for name in ("native", "_native_math")},
    offers=frozenset({"bias", "value_width"}),
    dialect={"causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked"},
    merges=True,
)
CONVENTIONS = (DISPATCH,)
