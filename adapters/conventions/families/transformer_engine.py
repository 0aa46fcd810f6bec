"""TransformerEngine's DotProductAttention: a module that is made for a number of heads, and says options in both its calls."""

from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def dot_product_attention(  # type: ignore[no-untyped-def]
    function,
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
    alibi_slopes=None,
    sinks=None,
):
    """A module for each call. Its mask is True where a query may not attend; its output is (b i (h d)).

    A window of (-1, 0) means causal there. Sinks are the learnable offset of its softmax, one of its parameters.
    """
    import torch

    (h, i, d), (g, j) = q.shape[1:], k.shape[1:3]
    causal = causal or window == (None, 0)
    kind = "causal_bottom_right" if causal else "no_mask" if mask is None else "arbitrary"
    made = {"num_gqa_groups": g, "attention_dropout": dropout, "qkv_format": "bshd", "attn_mask_type": kind, "softmax_scale": scale}
    made |= {"attention_type": "self" if i == j else "cross", "softmax_type": "vanilla" if sinks is None else "learnable"}
    module = function(h, d if v.shape[3] == d else (d, v.shape[3]), **made).train(training)
    options: dict[str, object] = {}
    if mask is not None:
        shown = mask[:, None, None, :] if mask.ndim == 2 else mask[(None,) * (4 - mask.ndim)]
        options["attention_mask"] = torch.logical_not(shown)
    if window is not None:
        options["window_size"] = (-1 if window[0] is None else window[0], 0 if causal else -1 if window[1] is None else window[1])
    if bias is not None:
        whole = bias[(None,) * (4 - bias.ndim)]
        options |= {"core_attention_bias_type": "post_scale_bias", "core_attention_bias": whole.expand(*whole.shape[:2], i, j)}
    if alibi_slopes is not None and bias is not None:
        from attnspec.adapters import Unsupported

        raise Unsupported("core_attention_bias_type names one of a bias and ALiBi")
    if alibi_slopes is not None:
        options |= {"core_attention_bias_type": "alibi", "alibi_slopes": alibi_slopes}
    tensors = tuple(x.transpose(1, 2).contiguous() if x.is_contiguous() else x.transpose(1, 2) for x in (q, k, v))
    parameters = {} if sinks is None else {"softmax_offset": sinks}
    o = torch.func.functional_call(module, parameters, tensors, options)
    return o.unflatten(2, (h, v.shape[3])).transpose(1, 2)


def thd(  # type: ignore[no-untyped-def]
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    used_q=None,
    used_k=None,
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
):
    """Its format for packed sequences, in which a mask is padding. With gaps cu_seqlens counts the rows that there are.

    Where slots begin is then cu_seqlens_padded. The output is (n (h d)).
    """
    import torch

    (h, d), g, e = q.shape[1:], k.shape[1], v.shape[2]
    causal = causal or window == (None, 0)
    kind = "padding_causal_bottom_right" if causal else "padding"
    made = {"num_gqa_groups": g, "attention_dropout": dropout, "qkv_format": "thd", "attn_mask_type": kind, "softmax_scale": scale}
    made["attention_type"] = "self" if len(q) == len(k) and torch.equal(cu_q, cu_k) else "cross"
    module = function(h, d if e == d else (d, e), **made).train(training)
    options: dict[str, object] = {"max_seqlen_q": max_q, "max_seqlen_kv": max_k}
    if window is not None:
        options["window_size"] = (-1 if window[0] is None else window[0], 0 if causal else -1 if window[1] is None else window[1])
    if used_q is not None:
        options |= {"cu_seqlens_q_padded": cu_q, "cu_seqlens_kv_padded": cu_k, "pad_between_seqs": True}
        cu_q, cu_k = (torch.nn.functional.pad(x.cumsum(0, dtype=torch.int32), (1, 0)) for x in (used_q, used_k))
    o = module(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_kv=cu_k, **options)
    return o.unflatten(1, (h, e))


# What its documentation writes of slopes favours keys behind the query, and its source does not: that is observed.
DPA = Convention(
    name="TransformerEngine",
    of="TransformerEngine 2, transformer_engine.pytorch.DotProductAttention",
    paths=(
        "transformer_engine.pytorch.DotProductAttention",
        "transformer_engine.pytorch.attention.DotProductAttention",
        "transformer_engine.pytorch.attention.dot_product_attention.*DotProductAttention",
    ),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"alibi_grad", "packed_long"}),
    restrictions=frozenset({"mask_or_causal"}),
    dialect={"causal_alignment": "bottom_right", "head_grouping": "blocked", "window_count": "inclusive"},
    devices=("cuda",),
    attend=dot_product_attention,
    forms={"packed": thd},
    untested="it is built for GPUs only",
)
CONVENTIONS = (DPA,)
