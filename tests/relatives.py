"""Functions with the published signatures of model libraries, as plain as they can be, and right: families are asked of them.

Each does what the package documents, in a dialect of its own; packages themselves have faults that are none of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INF = float("inf")


def grouped(x: Tensor, heads: int, axis: int = 1, *, strided: bool = False) -> Tensor:
    """Keys or values for each query head."""
    times = heads // x.shape[axis]
    return x.repeat(*(times if n == axis else 1 for n in range(4))) if strided else x.repeat_interleave(times, axis)


def triangle(i: int, j: int, offset: int = 0) -> Tensor:
    """True where a query may attend."""
    return torch.ones(i, j, dtype=torch.bool).tril(offset)


# TORCH


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: Any = None,
) -> Any:
    """All indices at once, where torch maps over them."""
    (b, h, i, d), j = query.shape, key.shape[2]
    key, value = (grouped(x, h) for x in (key, value))
    at = torch.meshgrid(*(torch.arange(n) for n in (b, h, i, j)), indexing="ij")
    scores = query @ key.mT * (d**-0.5 if scale is None else scale)
    scores = scores if score_mod is None else score_mod(scores, *at)
    scores = scores if block_mask is None else scores.masked_fill(~block_mask.mask_mod(*at), -INF)
    o = torch.softmax(scores, -1).nan_to_num(0.0) @ value
    lse = torch.logsumexp(scores, -1)
    return o if return_aux is None else (o, type("AuxOutput", (), {"lse": lse}))


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(i b (h d)), as by default; True hides, and a float is added."""
    q, k, v = (
        F.linear(x, weight).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
        for x, weight in zip((query, key, value), in_proj_weight.chunk(3), strict=True)
    )
    (b, h, i, d), j = q.shape, k.shape[2]
    scores = q @ k.mT * d**-0.5
    for mask in (
        attn_mask if attn_mask is None or attn_mask.ndim == 2 else attn_mask.view(b, h, i, j),
        key_padding_mask if key_padding_mask is None else key_padding_mask[:, None, None],
    ):
        scores = scores if mask is None else scores.masked_fill(mask, -INF) if mask.dtype == torch.bool else scores + mask
    weights = torch.dropout(torch.softmax(scores, -1), dropout_p, training)
    o = (weights @ v).permute(2, 0, 1, 3).flatten(2)
    return F.linear(o, out_proj_weight), weights.mean(1) if need_weights else None


# TRANSFORMERS


def bert(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: Any = None, dropout: float = 0.0, **kw
):
    weights = query @ key.mT * scaling
    weights = weights if attention_mask is None else weights + attention_mask
    weights = torch.dropout(torch.softmax(weights, -1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def llama(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, dropout: float = 0.0, **kw):
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    return bert(module, query, key, value, attention_mask, scaling, dropout)


def gemma(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, dropout=0.0, scaling=None, softcap=None, **kw
) -> Any:
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = query @ key.mT * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores if attention_mask is None else scores + attention_mask, -1)
    return (torch.dropout(weights, dropout, module.training) @ value).transpose(1, 2), weights


def gpt_oss(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, dropout: float = 0.0, **kw
):
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = query @ key.mT * scaling
    scores = scores if attention_mask is None else scores + attention_mask
    sinks = module.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    weights = torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
    return (torch.dropout(weights, dropout, module.training) @ value).transpose(1, 2), weights


def sdpa_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kw: Any,
) -> tuple[Tensor, None]:
    """A bool mask; top-left where it is causal."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    shown = triangle(query.shape[2], key.shape[2]) if is_causal else attention_mask
    bias = shown
    if position_bias is not None:
        bias = position_bias if shown is None else torch.where(shown, position_bias, -INF)
    o = F.scaled_dot_product_attention(query, key, value, bias, dropout, scale=scaling)
    return o.transpose(1, 2).contiguous(), None


def flex_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kw: Any,
) -> tuple[Tensor, None]:
    """A block mask, and all else in the score."""

    def score_mod(score, item, head, row, column):
        score = score if softcap is None else softcap * torch.tanh(score / softcap)
        return score if position_bias is None else score + position_bias[item, head, row, column]

    return flex_attention(query, key, value, score_mod, attention_mask, scaling).transpose(1, 2), None


# OTHERS


def dispatch_attention_fn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: str | None = None,
    parallel_config: Any = None,
) -> Tensor:
    """torch's, of (b i h d)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa).transpose(
        1, 2
    )


def naive_parallel_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window_size: int | None = None,
    causal: bool = True,
    *,
    g: Tensor | None = None,
    sink_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(b i h d) of one length; the window counts the query's own key."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (grouped(x, q.shape[1]) for x in (k, v))
    scores, i = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale), q.shape[2]
    seen = triangle(i, i) if causal else torch.ones(i, i, dtype=torch.bool)
    seen = seen if window_size is None else seen & ~triangle(i, i, -window_size)
    scores = scores.masked_fill(~seen, -INF)
    column = (
        scores.new_full((*scores.shape[:3], 1), -INF)
        if sink_bias is None
        else sink_bias[:, None, None].expand(*scores.shape[:3], 1)
    )
    o = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1] @ v
    return o.transpose(1, 2), scores.amax(-1).transpose(1, 2)


def default_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    softclamp_qk_sim: bool = False,
    softclamp_value: float = 50.0,
) -> Tensor:
    """(b i h d), strided groups, bottom right; it hides with the lowest number."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (grouped(x, q.shape[1], strided=True) for x in (k, v))
    scores, (i, j) = q @ k.mT * q.shape[-1] ** -0.5, (q.shape[2], k.shape[2])
    scores = softclamp_value * torch.tanh(scores / softclamp_value) if softclamp_qk_sim else scores
    hidden = ~triangle(i, j, j - i) if causal else torch.zeros(i, j, dtype=torch.bool)
    hidden = hidden if mask is None else hidden | ~mask[:, None, None]
    return (torch.softmax(scores.masked_fill(hidden, torch.finfo(q.dtype).min), -1) @ v).transpose(1, 2)


def ring_flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    bucket_size: int = 1024,
    ring_reduce_col: bool = False,
    striped_ring_attn: bool = False,
    max_lookback_seq_len: int | None = None,
    ring_size: int | None = None,
    softclamp_qk_sim: bool = False,
    softclamp_value: float = 50.0,
) -> Tensor:
    """The same, whose rows without a key are zero."""
    o = default_attention(q, k, v, mask, causal, softclamp_qk_sim, softclamp_value)
    i, j = q.shape[1], k.shape[1]
    seen = triangle(i, j, j - i) if causal else torch.ones(i, j, dtype=torch.bool)
    seen = seen if mask is None else seen & mask[:, None]
    return torch.where(seen.any(-1)[..., None, None], o, 0.0)


def memory_efficient_attention(
    q, k, v, mask=None, causal=False, attn_bias=None, q_bucket_size=512, k_bucket_size=1024, eps=1e-8, dropout=0.0, training=False
) -> Tensor:
    """Top left, and with the lowest number, too."""
    hidden = ~triangle(q.shape[2], k.shape[2]) if causal else torch.zeros(1, 1, dtype=torch.bool)
    hidden = hidden if mask is None else hidden | ~mask[:, None, None]
    scores = q @ k.mT * q.shape[-1] ** -0.5 + (0.0 if attn_bias is None else attn_bias)
    weights = torch.softmax(scores.masked_fill(hidden, torch.finfo(q.dtype).min), -1)
    return torch.dropout(weights, dropout, training) @ v


def flash_function(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, q_bucket_size: int, k_bucket_size: int
) -> Tensor:
    """By position; bottom right, and rows without a key are zero."""
    hidden = ~triangle(q.shape[2], k.shape[2], k.shape[2] - q.shape[2]) if causal else torch.zeros(1, 1, dtype=torch.bool)
    hidden = hidden if mask is None else hidden | ~(mask[:, None, None] if mask.ndim == 2 else mask)
    return torch.softmax((q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -INF), -1).nan_to_num(0.0) @ v


class Attend(nn.Module):
    """x-transformers': strided groups, bottom right, the cap behind the bias, sinks that it owns, and a pair is returned."""

    def __init__(
        self,
        *,
        dropout: float = 0.0,
        causal: bool = False,
        heads: int | None = None,
        scale: float | None = None,
        flash: bool = False,
        softclamp_logits: bool = False,
        logit_softclamp_value: float = 50.0,
        head_learned_sink: bool = False,
    ) -> None:
        super().__init__()
        assert not (flash and (softclamp_logits or head_learned_sink))
        self.dropout, self.causal, self.scale = dropout, causal, scale
        self.cap = logit_softclamp_value if softclamp_logits else None
        self.head_attn_sink = nn.Parameter(torch.zeros(heads or 1)) if head_learned_sink else None

    def forward(self, q, k, v, mask=None, attn_bias=None, causal=None) -> tuple[Tensor, None]:
        k, v = (grouped(x, q.shape[1], strided=True) for x in (k, v))
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        scores = scores if attn_bias is None else scores + attn_bias
        scores = scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)
        hidden = ~triangle(*scores.shape[2:], scores.shape[3] - scores.shape[2]) if self.causal else torch.zeros(1, 1).bool()
        hidden = hidden if mask is None else hidden | ~(mask[:, None, None] if mask.ndim == 2 else mask)
        scores = scores.masked_fill(hidden, -INF)
        if self.head_attn_sink is not None:
            scores = torch.cat([self.head_attn_sink[:, None, None].expand(*scores.shape[:3], 1), scores], -1)
        weights = torch.softmax(scores, -1).nan_to_num(0.0)[..., -k.shape[2] :]
        return torch.dropout(weights, self.dropout, self.training) @ v, None


# A WRONG ONE


def wrong_llama(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, dropout=0.0, **kw):
    """The mask of the first item holds for all."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    return bert(module, query, key, value, None if attention_mask is None else attention_mask[:1], scaling, dropout)
