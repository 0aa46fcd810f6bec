"""Packages of one author: x-transformers, memory-efficient-attention-pytorch and ring-attention-pytorch."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def x_attend(
    function,
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    causal=False,
    scale=None,
    softcap=None,
    sinks=None,
    dropout=0.0,
    training=False,
    flash=None,
):
    """One call of an instance with these options. Its sinks are a parameter, in whose place they are put."""
    import torch

    options = {"causal": causal, "scale": scale, "dropout": dropout}
    options |= {} if flash is None else {"flash": flash}
    options |= {} if softcap is None else {"softclamp_logits": True, "logit_softclamp_value": softcap}
    options |= {} if sinks is None else {"head_learned_sink": True, "heads": q.shape[1]}
    made = function(**options).train(training).to(q.device)
    # Key padding is (b j); all else has four dimensions.
    shown = mask if mask is None or mask.ndim != 3 else mask[None]
    given = {"mask": shown, "attn_bias": None if bias is None else bias[(None,) * (4 - bias.ndim)]}
    own = {} if sinks is None else {"head_attn_sink": sinks}
    o, _ = torch.func.functional_call(made, own, (q, k, v), given)
    return o


X_TRANSFORMERS = Convention(
    name="x-transformers",
    of="x-transformers 2.31, x_transformers.attend.Attend",
    paths=("x_transformers.attend.Attend",),
    reading=AS_IT_IS,
    variants={
        "flash=False": {"fixed": {"flash": False}},
        "flash=True": {"fixed": {"flash": True}, "without": frozenset({"softcap", "sinks", "sinks_grad"})},  # it asserts that
    },
    offers=frozenset({"gqa", "mqa", "value_width"}),
    dialect={"causal_alignment": "bottom_right", "head_grouping": "strided", "softcap_order": "after_bias"},
    attend=x_attend,
)


def flash_function(function, q, k, v, *, mask=None, causal=False, buckets=None):
    """One call of an autograd function, which takes all by position."""
    return function(q, k, v, mask, causal, *(buckets or (512, 1024)))


BUCKETED = frozenset({"q", "k", "v", "q_bucket_size", "k_bucket_size"})
SIZES = {"buckets of 512 and 1024": {}, "buckets of 4 and 8": {"q_bucket_size": 4, "k_bucket_size": 8}}
MEMORY_EFFICIENT = Convention(
    name="memory-efficient-attention-pytorch, in buckets",
    of="memory-efficient-attention-pytorch 0.1.6, …memory_efficient_attention.memory_efficient_attention",
    paths=("memory_efficient_attention_pytorch.memory_efficient_attention.memory_efficient_attention",),
    shown_by=BUCKETED,
    reading=AS_IT_IS,
    variants={label: {"fixed": sizes} for label, sizes in SIZES.items()},
    restrictions=frozenset({"padding_only", "backward_method"}),  # it splits (b j), and its checkpoint is a reentrant one
    dialect={"causal_alignment": "top_left", "empty_row": "uniform"},
)
PLAIN = Convention(
    name="memory-efficient-attention-pytorch, plain",
    of="memory-efficient-attention-pytorch 0.1.6, …memory_efficient_attention.attention",
    paths=("memory_efficient_attention_pytorch.memory_efficient_attention.attention",),
    reading=AS_IT_IS,
    dialect={"causal_alignment": "bottom_right", "empty_row": "uniform"},
)
FLASH_FUNCTION = Convention(
    name="memory-efficient-attention-pytorch, flash",
    of="memory-efficient-attention-pytorch 0.1.6, …flash_attention.FlashAttentionFunction.apply",
    paths=("memory_efficient_attention_pytorch.flash_attention.FlashAttentionFunction.apply",),
    reading=AS_IT_IS,
    variants={label: {"fixed": {"buckets": tuple(sizes.values()) or None}} for label, sizes in SIZES.items()},
    dialect={"causal_alignment": "bottom_right", "empty_row": "zero"},
    attend=flash_function,
)


def ring(function, q, k, v, *, mask=None, causal=False, softcap=None, bucket_size=None):
    """One call, of tensors (b i h d). The cap has a switch."""
    tensors = [x.transpose(1, 2) for x in (q, k, v)]
    given = {} if softcap is None else {"softclamp_qk_sim": True, "softclamp_value": softcap}
    given |= {} if bucket_size is None else {"bucket_size": bucket_size}
    return function(*tensors, mask=mask, causal=causal, **given).transpose(1, 2)


RING = Convention(
    name="ring-attention-pytorch",
    of="ring-attention-pytorch 0.5, ring_attention_pytorch.ring_attention.default_attention",
    paths=("ring_attention_pytorch.ring_attention.default_attention",),
    shown_by=frozenset({"softclamp_qk_sim", "softclamp_value"}),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    restrictions=frozenset({"padding_only"}),
    dialect={"causal_alignment": "bottom_right", "empty_row": "uniform", "head_grouping": "strided"},
    attend=ring,
)
RING_FLASH = Convention(
    name="ring-attention-pytorch, flash",
    of="ring-attention-pytorch 0.5, ring_attention_pytorch.ring_flash_attention.ring_flash_attn",
    paths=("ring_attention_pytorch.ring_flash_attention.ring_flash_attn",),
    shown_by=frozenset({"softclamp_qk_sim", "softclamp_value", "bucket_size", "ring_reduce_col"}),
    reading=AS_IT_IS,
    variants={"buckets of 1024": {}, "buckets of 4": {"fixed": {"bucket_size": 4}}},
    offers=frozenset({"gqa", "mqa"}),
    restrictions=frozenset({"padding_only", "mask_or_causal"}),  # "ignore key padding mask if autoregressive"
    dialect={"causal_alignment": "bottom_right", "empty_row": "zero", "head_grouping": "strided"},
    attend=ring,
)
CONVENTIONS = (X_TRANSFORMERS, MEMORY_EFFICIENT, PLAIN, FLASH_FUNCTION, RING_FLASH, RING)
