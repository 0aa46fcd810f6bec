"""transformers' sdpa and eager attention of packed sequences, behind the masks that it makes of places that begin anew."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.function import adapted
from attnspec.adapters.conventions.layout import AS_IT_IS
from attnspec.adapters.conventions.signature import ResolveError


def positions_begin_anew(function, q, k, v, cu_q, cu_k, max_q, max_k, *, causal=False, scale=None):
    """One batch item of all tokens. Of places that do not grow by one transformers makes out where a sequence begins.

    Rows behind the last sequence are one of their own.
    """
    from types import SimpleNamespace

    import torch
    from transformers import masking_utils as words

    from attnspec.adapters import Unsupported

    if len(q) != len(k) or not torch.equal(cu_q, cu_k):
        raise Unsupported("its sequences have as many keys as queries")
    n, rows = len(q), torch.arange(len(q), device=q.device)
    first = cu_q.long()[torch.searchsorted(cu_q.long(), rows, right=True) - 1]
    of = words.find_packed_sequence_indices((rows - first)[None])
    seen = words.causal_mask_function if causal else words.bidirectional_mask_function
    if of is not None:
        seen = words.and_masks(words.packed_sequence_mask_function(of), seen)
    eager = function.__name__.startswith("eager")
    given = {"batch_size": 1, "q_length": n, "kv_length": n, "mask_function": seen, "device": q.device}
    mask = words.eager_mask(**given, dtype=q.dtype) if eager else words.sdpa_mask(**given, allow_is_causal_skip=False)
    module = SimpleNamespace(training=False, num_key_value_groups=q.shape[1] // k.shape[1], is_causal=False, layer_idx=0)
    scaling = q.shape[-1] ** -0.5 if scale is None else scale
    o, _ = function(module, *(x.transpose(0, 1)[None] for x in (q, k, v)), mask, scaling=scaling, dropout=0.0)
    return o[0]


PACKED = Convention(
    name="transformers, packed",
    of="transformers 5.24, masking_utils.find_packed_sequence_indices and packed_sequence_mask_function",
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    restrictions=frozenset({"equal_lengths"}),  # a place is that of a token, which is a query and a key
    dialect={"head_grouping": "blocked"},
    forms={"packed": positions_begin_anew},
)
FUNCTIONS = {
    "sdpa": ("transformers.integrations.sdpa_attention", "sdpa_attention_forward"),
    "eager": ("transformers.models.llama.modeling_llama", "eager_attention_forward"),
}


def packed(name: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """An adapter for each function. Raises ResolveError where the package is missing, or for options, of which it has none."""
    if find_spec("transformers") is None:
        raise ResolveError(f"--impl={name} needs transformers: pip install transformers")
    if kwargs:
        raise ResolveError(f"--impl={name} has no options; found {', '.join(sorted(kwargs))}")
    found: list[Adapter] = []
    for label, (module, function) in FUNCTIONS.items():
        source = (f"from {module} import {function} as attend",)
        (one,) = adapted(getattr(import_module(module), function), name, source, replace(PACKED))
        one.variant, one.version = label, f"transformers {metadata.version('transformers')}"
        found.append(one)
    return found
