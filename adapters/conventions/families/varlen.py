"""flash-attention 2's varlen function and vLLM's, which has no other: sequences one behind the other, and where each begins."""

from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.families.flash import FLASH_2
from attnspec.adapters.conventions.layout import AS_IT_IS


def one_behind_the_other(  # type: ignore[no-untyped-def]
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
    """All batch items in one tensor ((b i) h d), each of the same length. The lse comes as (h (b i))."""
    import torch

    starts = [torch.arange(len(x) + 1, dtype=torch.int32, device=x.device) * x.shape[2] for x in (q, k)]
    options = {"cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1], "max_seqlen_q": q.shape[2], "max_seqlen_k": k.shape[2]}
    options |= {"dropout_p": dropout if training else 0.0, "softmax_scale": scale, "causal": causal, "return_attn_probs": lse}
    options["window_size"] = (-1, -1) if window is None else tuple(-1 if side is None else side for side in window)
    options |= {"softcap": 0.0 if softcap is None else softcap, "alibi_slopes": alibi_slopes}
    returned = function(*(x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)), **options)
    o = (returned[0] if lse else returned).unflatten(0, (len(q), q.shape[2])).transpose(1, 2)
    return (o, returned[1].unflatten(1, (len(q), q.shape[2])).transpose(0, 1)) if lse else o


def vllm_sequences(  # type: ignore[no-untyped-def]
    function, q, k, v, *, causal=False, scale=None, window=None, softcap=None, sinks=None, lse=False
):
    """The same in vLLM's words: a window is a list or None, and return_softmax_lse asks for (o, lse)."""
    import torch

    starts = [torch.arange(len(x) + 1, dtype=torch.int32, device=x.device) * x.shape[2] for x in (q, k)]
    options = {"cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1], "max_seqlen_q": q.shape[2], "max_seqlen_k": k.shape[2]}
    options |= {"softmax_scale": scale, "causal": causal, "softcap": 0.0 if softcap is None else softcap, "return_softmax_lse": lse}
    options["window_size"] = None if window is None else [-1 if side is None else side for side in window]
    if sinks is not None:  # of flash-attention 3 alone
        options["s_aux"] = sinks
    returned = function(*(x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)), **options)
    o = (returned[0] if lse else returned).unflatten(0, (len(q), q.shape[2])).transpose(1, 2)
    return (o, returned[1].unflatten(1, (len(q), q.shape[2])).transpose(0, 1)) if lse else o


VARLEN = replace(
    FLASH_2,
    name="flash-attention 2, varlen",
    of="flash-attn 2.8, flash_attn.flash_attn_varlen_func",
    paths=("flash_attn.flash_attn_varlen_func", "flash_attn.flash_attn_interface.flash_attn_varlen_func"),
    reading=AS_IT_IS,
    without=frozenset({"alibi_grad", "lse_grad"}),
    attend=one_behind_the_other,
)
# Made for inference: no gradients, and no dropout in spite of its parameter.
VLLM: Convention = replace(
    VARLEN,
    name="vLLM's flash-attention",
    of="vllm-flash-attn, vllm_flash_attn.flash_attn_varlen_func",
    paths=("*vllm_flash_attn.flash_attn_varlen_func", "*vllm_flash_attn.flash_attn_interface.flash_attn_varlen_func"),
    without=frozenset({"backward", "lse_grad", "sinks_grad"}),
    dialect={
        **{name: x for name, x in FLASH_2.dialect.items() if name not in ("alibi_form", "softcap_order")},
        "lse_includes_sink": "yes",
    },
    attend=vllm_sequences,
)
# What shows flash-attention's own, and who adds to it.
OWN = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "dropout_p", "return_attn_probs")
CONVENTIONS = (
    VARLEN,
    VLLM,
    VLLM.elsewhere(*OWN, "s_aux", "return_softmax_lse"),
    VARLEN.elsewhere(*OWN),
)
