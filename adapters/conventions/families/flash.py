"""flash-attention 2, 3 and 4, and aiter: (b i h d) tensors, windows of two numbers, causal aligned bottom-right."""

from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS, Reading

HALVES, NO_CPU = ("float16", "bfloat16"), "its kernels run on GPUs only"


def qkv_in_one(  # type: ignore[no-untyped-def]
    function,
    q,
    k,
    v,
    *,
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
    softcap=None,
    alibi_slopes=None,
    lse=False,
):
    """One tensor (b i 3 h d). The stack is a copy, through which gradients go back to q, k and v."""
    import torch

    options = {"dropout_p": dropout if training else 0.0, "softmax_scale": scale, "causal": causal, "return_attn_probs": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"softcap": 0.0 if softcap is None else softcap, "alibi_slopes": alibi_slopes}
    returned = function(torch.stack([x.transpose(1, 2) for x in (q, k, v)], 2), **options)
    return (returned[0].transpose(1, 2), returned[1]) if lse else returned.transpose(1, 2)


def kv_in_one(  # type: ignore[no-untyped-def]
    function,
    q,
    k,
    v,
    *,
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
    softcap=None,
    alibi_slopes=None,
    lse=False,
):
    """Queries (b i h d), and keys and values in one tensor (b j 2 g d). The stack is a copy, through which gradients go back."""
    import torch

    options = {"dropout_p": dropout if training else 0.0, "softmax_scale": scale, "causal": causal, "return_attn_probs": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"softcap": 0.0 if softcap is None else softcap, "alibi_slopes": alibi_slopes}
    kv = torch.stack([x.transpose(1, 2) for x in (k, v)], 2)
    given = q.transpose(1, 2)
    returned = function(given.contiguous() if q.is_contiguous() else given, kv, **options)
    return (returned[0].transpose(1, 2), returned[1]) if lse else returned.transpose(1, 2)


# A row without a key has the lse +inf in its dense path and -inf in its split path: that is observed. Slopes have no gradient.
FLASH_2 = Convention(
    name="flash-attention 2",
    of="flash-attn 2.8, flash_attn.flash_attn_func",
    paths=("flash_attn.flash_attn_func", "flash_attn.flash_attn_interface.flash_attn_func"),
    reading=Reading("b i h d"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"alibi_grad"}),
    dialect={
        "causal_alignment": "bottom_right",
        "empty_row": "zero",
        "head_grouping": "blocked",
        "softcap_order": "before_bias",
        "window_count": "inclusive",
        "alibi_form": "distance",
        "lse_base": "e",
        "lse_dtype": "wide",
    },
    dtypes=HALVES,
    devices=("cuda",),
    untested=NO_CPU,
)
KV = replace(
    FLASH_2,
    of="flash-attn 2.8, flash_attn.flash_attn_kvpacked_func",
    paths=("flash_attn.flash_attn_kvpacked_func", "flash_attn.flash_attn_interface.flash_attn_kvpacked_func"),
    reading=AS_IT_IS,
    without=frozenset({"alibi_grad", "lse_grad"}),
    attend=kv_in_one,
)
QKV = replace(
    KV,
    of="flash-attn 2.8, flash_attn.flash_attn_qkvpacked_func",
    paths=("flash_attn.flash_attn_qkvpacked_func", "flash_attn.flash_attn_interface.flash_attn_qkvpacked_func"),
    offers=frozenset(),
    restrictions=frozenset({"equal_lengths"}),
    attend=qkv_in_one,
)
# No dropout and no slopes. Betas of it returned (o, lse) always.
FLASH_3 = replace(
    FLASH_2,
    name="flash-attention 3",
    of="flash-attention 3, hopper/flash_attn_interface.flash_attn_func",
    paths=(
        "flash_attn_interface.flash_attn_func",
        "hopper.flash_attn_interface.flash_attn_func",
        "flash_attn_3.flash_attn_interface.flash_attn_func",
    ),
    without=frozenset(),
    dialect={
        **{name: x for name, x in FLASH_2.dialect.items() if name not in ("alibi_form", "softcap_order")},
        "lse_empty": "minus_inf",
    },
)
# It returns (o, lse), or (o, None). The sink's gradient and that through the lse are its own.
FLASH_4 = replace(
    FLASH_3,
    name="flash-attention 4",
    of="flash-attn-4 4.0.0b36, flash_attn.cute.flash_attn_func",
    paths=("flash_attn.cute.flash_attn_func", "flash_attn.cute.interface.flash_attn_func"),
    reading=Reading("b i h d", returns=("o", "lse")),
    dialect={**FLASH_3.dialect, "lse_includes_sink": "yes"},
)
# Its bias is (i j) alone, which is not what a bias of the suite may be. The third number of its window counts first keys.
AITER = replace(
    FLASH_2,
    name="aiter",
    of="aiter, aiter.flash_attn_func",
    paths=("aiter.flash_attn_func", "aiter.ops.mha.flash_attn_func"),
    names={"sink_ptr": "sinks"},
    without=frozenset({"alibi_grad", "bias", "bias_grad", "rank3", "sinks_grad"}),
)
OWN = ("dropout_p", "softmax_scale", "window_size", "return_attn_probs")  # what shows flash-attention 2, and who adds to it
CONVENTIONS = (
    FLASH_2,
    KV,
    QKV,
    FLASH_3,
    FLASH_4,
    AITER,
    FLASH_4.elsewhere("learnable_sink", "pack_gqa", "softmax_scale"),
    FLASH_3.elsewhere("attention_chunk", "pack_gqa", "softmax_scale"),
    AITER.elsewhere("how_v3_bf16_cvt", *OWN),
    KV.elsewhere("kv", *OWN),
    QKV.elsewhere("qkv", *OWN),
    FLASH_2.elsewhere(*OWN),
)
