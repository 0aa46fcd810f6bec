"""transformers' AttentionInterface: f(module, query, key, value, attention_mask, …), which returns (out (b i h e), weights)."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS

SHOWN_BY = frozenset({"module", "attention_mask", "scaling"})


def eager(function, q, k, v, *, mask=None, bias=None, scale=None, softcap=None, sinks=None, dropout=0.0, training=False):
    """One call. A mask is added: 0, and the lowest number of the dtype, as eager_mask makes it. A sink of −∞ is none."""
    import inspect
    from types import SimpleNamespace

    import torch

    (_, h, _, d), g = q.shape, k.shape[1]
    module = SimpleNamespace(training=training, num_key_value_groups=h // g if g else 1, head_dim=d)
    module.sinks = torch.full((h,), float("-inf"), dtype=q.dtype, device=q.device) if sinks is None else sinks
    module.is_causal, module.layer_idx, module.config = False, 0, SimpleNamespace(_attn_implementation="eager")
    apart = bias is not None and "position_bias" in inspect.signature(function).parameters
    given = {"position_bias": bias[(None,) * (4 - bias.ndim)]} if apart else {}
    added = None if apart else bias
    if mask is not None:
        shown = mask[:, None, None] if mask.ndim == 2 else mask
        zero = torch.zeros((), dtype=q.dtype, device=q.device) if added is None else added
        added = torch.where(shown, zero, torch.finfo(q.dtype).min)
    added = None if added is None else added[(None,) * (4 - added.ndim)]
    given |= {} if softcap is None else {"softcap": softcap}
    o, _ = function(module, q, k, v, added, scaling=d**-0.5 if scale is None else scale, dropout=dropout, **given)
    return o.transpose(1, 2)


def forward(
    function, q, k, v, *, mask=None, bias=None, causal=False, scale=None, softcap=None, sinks=None, dropout=0.0, training=False
):
    """One call. A bool mask, as transformers' sdpa_mask makes it; for flex attention a block mask, by flex_attention_mask."""
    import inspect
    from types import SimpleNamespace

    (b, h, i, _), j, g = q.shape, k.shape[2], k.shape[1]
    module = SimpleNamespace(training=training, num_key_value_groups=h // g if g else 1, is_causal=False, layer_idx=0)
    shown = mask[:, None, None] if mask is not None and mask.ndim == 2 else mask
    shown = None if shown is None else shown[(None,) * (4 - shown.ndim)]
    if "is_causal" in inspect.signature(function).parameters:
        given = {"is_causal": causal}
    else:
        from torch.nn.attention.flex_attention import create_block_mask

        if shown is not None or causal:
            whole = None if shown is None else shown.expand(b, h, i, j)

            def mask_mod(item, head, row, column):
                seen = row >= column if causal else row == row
                return seen if whole is None else seen & whole[item, head, row, column]

            shown = create_block_mask(mask_mod, b, h, i, j, device=q.device)
        given = {}
    given |= {} if softcap is None else {"softcap": softcap}
    given |= {} if sinks is None else {"s_aux": sinks}
    given |= {} if bias is None else {"position_bias": bias[(None,) * (4 - bias.ndim)].expand(b, h, i, j)}
    o, _ = function(module, q, k, v, shown, scaling=scale, dropout=dropout if training else 0.0, **given)
    return o.transpose(1, 2)


HEADS = frozenset({"gqa", "mqa"})
SINKS = frozenset({"sinks", "sinks_grad"})
SDPA = Convention(
    name="transformers, sdpa",
    of="transformers 5.24, transformers.integrations.sdpa_attention.sdpa_attention_forward",
    paths=("transformers.integrations.sdpa_attention.sdpa_attention_forward",),
    shown_by=SHOWN_BY | {"is_causal"},
    reading=AS_IT_IS,
    offers=HEADS | {"value_width"},
    without=SINKS | {"softcap"},
    restrictions=frozenset({"mask_or_causal"}),  # its masks hold the triangle
    dialect={"causal_alignment": "top_left", "head_grouping": "blocked"},
    attend=forward,
)
FLEX = Convention(
    name="transformers, flex_attention",
    of="transformers 5.24, transformers.integrations.flex_attention.flex_attention_forward",
    paths=("transformers.integrations.flex_attention.flex_attention_forward",),
    shown_by=SHOWN_BY | {"softcap", "s_aux"},
    reading=AS_IT_IS,
    offers=HEADS | {"value_width"},
    without=SINKS | {"dropout"},  # it refuses both: sinks on a CPU, dropout everywhere
    restrictions=frozenset({"no_backward:cpu"}),
    dialect={"causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked", "softcap_order": "before_bias"},
    attend=forward,
    untested="it compiles each shape, which takes seconds: three problems were asked by hand",
)
# The eager functions of models, 371 of them: whether keys are repeated, and whether the module has sinks, their code shows.
WITH_SINKS = Convention(
    name="transformers, eager with sinks",
    of="transformers 5.24, transformers.models.gpt_oss.modeling_gpt_oss.eager_attention_forward",
    shown_by=SHOWN_BY,
    reads=frozenset({"sinks", "num_key_value_groups"}),
    reading=AS_IT_IS,
    offers=HEADS | {"value_width"},
    without=frozenset({"softcap"}),
    dialect={"head_grouping": "blocked"},
    attend=eager,
)
CAPPED = Convention(
    name="transformers, eager with a soft cap",
    of="transformers 5.24, transformers.models.gemma2.modeling_gemma2.eager_attention_forward",
    shown_by=SHOWN_BY | {"softcap"},
    reads=frozenset({"num_key_value_groups"}),
    reading=AS_IT_IS,
    offers=HEADS | {"value_width"},
    without=SINKS,
    dialect={"head_grouping": "blocked", "softcap_order": "before_bias"},
    attend=eager,
)
GROUPED = Convention(
    name="transformers, eager",
    of="transformers 5.24, transformers.models.llama.modeling_llama.eager_attention_forward",
    shown_by=SHOWN_BY,
    reads=frozenset({"num_key_value_groups"}),
    reading=AS_IT_IS,
    offers=HEADS | {"value_width"},
    without=SINKS | {"softcap"},
    dialect={"head_grouping": "blocked"},
    attend=eager,
)
EAGER = Convention(
    name="transformers, eager, as many keys as queries have heads",
    of="transformers 5.24, transformers.models.bert.modeling_bert.eager_attention_forward",
    shown_by=SHOWN_BY,
    reading=AS_IT_IS,
    offers=frozenset({"value_width"}),
    without=SINKS | {"softcap"},
    attend=eager,
)
CONVENTIONS = (SDPA, FLEX, WITH_SINKS, CAPPED, GROUPED, EAGER)
