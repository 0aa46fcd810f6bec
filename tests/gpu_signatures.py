"""Functions for the CPU with the signatures that kernel libraries for GPUs publish: right ones, and a wrong one of each kind.

The order of parameters, their names and their defaults are those of the packages; what no call of the suite sets is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

INF = float("inf")


def shown(i: int, j: int, causal: bool, window: Any = (-1, -1), first: int = 0) -> Tensor:
    """The keys that each query sees, aligned bottom-right; a side without a limit is negative or None."""
    left, right = (-1 if side is None else side for side in window[:2])
    place, key = torch.arange(i)[:, None] + j - i, torch.arange(j)
    seen = torch.ones(i, j, dtype=torch.bool)
    if left >= 0:
        seen &= (key >= place - left) | (key < first)
    if causal or right >= 0:
        seen &= key <= place + (0 if causal else right)
    return seen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    added: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(b h i d) tensors, in float32 at least; the output, and the lse, -inf where a row is empty."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // max(k.shape[1], 1)
    key, value = (x.to(wide).repeat_interleave(group, 1) for x in (k, v))
    s = q.to(wide) @ key.mT * (max(q.shape[-1], 1) ** -0.5 if scale is None else scale)
    s = softcap * torch.tanh(s / softcap) if softcap else s
    s = s if added is None else s + added.to(wide)
    s = s if seen is None else s.masked_fill(~seen, -INF)
    column = torch.full((*s.shape[:3], 1), -INF, dtype=wide) if sinks is None else sinks.to(wide).view(1, -1, 1, 1)
    whole = torch.cat([s, column.expand(*s.shape[:3], 1)], -1)
    empty = (whole == -INF).all(-1, keepdim=True)
    whole = whole.masked_fill(empty, 0.0)
    lse = torch.logsumexp(whole, -1, keepdim=True)
    p = torch.softmax(whole, -1)[..., :-1].masked_fill(empty, 0.0)
    return (torch.dropout(p, dropout, True) @ value).to(q.dtype), lse.masked_fill(empty, -INF).squeeze(-1)


def slopes_of(alibi_slopes: Tensor | None, i: int, j: int) -> Tensor | None:
    """The bias that slopes (h) or (b h) make."""
    if alibi_slopes is None:
        return None
    distance = (torch.arange(i)[:, None] + j - i - torch.arange(j)).abs()
    return -(alibi_slopes if alibi_slopes.ndim == 2 else alibi_slopes[None])[..., None, None] * distance


def dense(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: Any, alibi_slopes: Tensor | None = None, **options: Any) -> Any:
    """(b i h d) tensors."""
    i, j, first = q.shape[1], k.shape[1], options.pop("first", 0)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, lse = attention(q, k, v, shown(i, j, causal, window, first), added=slopes_of(alibi_slopes, i, j), **options)
    return o.transpose(1, 2), lse


# FLASH-ATTENTION


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    o, lse = dense(q, k, v, causal, window_size, alibi_slopes, scale=softmax_scale, softcap=softcap, dropout=dropout_p)
    return (o, lse.detach(), None) if return_attn_probs else o


def wrong_flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    """Causal masking is aligned top-left."""
    given = dropout_p, softmax_scale, False, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    if not causal:
        return flash_attn_func(q, k, v, *given)
    return flash_attn_func(q, k[:, : q.shape[1]], v[:, : q.shape[1]], given[0], given[1], True, *given[3:])


def flash_attn_qkvpacked_func(
    qkv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert qkv.shape[2] == 3
    given = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_func(*qkv.unbind(2), *given)


def flash_attn_kvpacked_func(
    q, kv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert kv.shape[2] == 2
    given = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_func(q, *kv.unbind(2), *given)


def wrong_flash_attn_kvpacked_func(
    q, kv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    """Heads are grouped the other way."""
    group = q.shape[2] // kv.shape[3]
    given = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    return flash_attn_func(q, *(x.repeat(1, 1, group, 1) for x in kv.unbind(2)), *given)


def flash_attn_3_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    o, lse = dense(q, k, v, causal, window_size, scale=softmax_scale, softcap=softcap)
    return (o, lse.detach()) if return_attn_probs else o


def wrong_flash_attn_3_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    """A window has one key less before the query."""
    window = (window_size[0] - 1 if window_size[0] > 0 else window_size[0], window_size[1])
    o, lse = dense(q, k, v, causal, window, scale=softmax_scale, softcap=softcap)
    return (o, lse.detach()) if return_attn_probs else o


def flash_attn_4_func(
    q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, mask_mod=None, return_lse=False,
):  # fmt: skip
    o, lse = dense(q, k, v, causal, window_size, scale=softmax_scale, softcap=softcap, sinks=learnable_sink)
    return o, lse if return_lse else None


def wrong_flash_attn_4_func(
    q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, mask_mod=None, return_lse=False,
):  # fmt: skip
    """The sink does not reach the output."""
    o, _ = dense(q, k, v, causal, window_size, scale=softmax_scale, softcap=softcap)
    _, lse = dense(q, k, v, causal, window_size, scale=softmax_scale, softcap=softcap, sinks=learnable_sink)
    return o, lse if return_lse else None


def aiter_flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1, 0), bias=None, alibi_slopes=None,
    deterministic=True, return_lse=False, return_attn_probs=False, how_v3_bf16_cvt=1, cu_seqlens_q=None, cu_seqlens_kv=None,
    sink_ptr=None, num_splits=0,
):  # fmt: skip
    if bias is not None:
        raise ValueError("a bias is (i j), and not taken here")
    options = {"scale": softmax_scale, "sinks": sink_ptr, "first": window_size[2], "dropout": dropout_p}
    o, lse = dense(q, k, v, causal, window_size, alibi_slopes, **options)
    return (o, lse.detach()) if return_lse else o


def wrong_aiter_flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1, 0), bias=None, alibi_slopes=None,
    deterministic=True, return_lse=False, return_attn_probs=False, how_v3_bf16_cvt=1, cu_seqlens_q=None, cu_seqlens_kv=None,
    sink_ptr=None, num_splits=0,
):  # fmt: skip
    """The third number of the window is not read."""
    options = {"scale": softmax_scale, "sinks": sink_ptr, "dropout": dropout_p}
    o, lse = dense(q, k, v, causal, window_size, alibi_slopes, **options)
    return (o, lse.detach()) if return_lse else o


# XFORMERS


class Bias:
    """A bias that makes its tensor itself. `xformers.ops.fmha.attn_bias` has classes of these names, which do the same."""

    def materialize(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        seen = self.seen(*shape[-2:])
        return torch.zeros(shape, dtype=dtype).masked_fill(~seen, -INF)

    def seen(self, i: int, j: int) -> Tensor:
        raise NotImplementedError


class LowerTriangularMask(Bias):
    def seen(self, i: int, j: int) -> Tensor:
        return torch.ones(i, j, dtype=torch.bool).tril()


class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    def __init__(self, bias: Tensor) -> None:
        self._bias = bias

    def materialize(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        return super().materialize(shape, dtype, device) + self._bias


class LowerTriangularFromBottomRightMask(Bias):
    def seen(self, i: int, j: int) -> Tensor:
        return shown(i, j, True)

    def make_local_attention(self, window_size: int) -> LowerTriangularFromBottomRightLocalAttentionMask:
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)


class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    def __init__(self, _window_size: int) -> None:
        self._window_size = _window_size

    def seen(self, i: int, j: int) -> Tensor:
        return shown(i, j, True, (self._window_size - 1, -1))


class LocalAttentionFromBottomRightMask(Bias):
    def __init__(self, window_left: int, window_right: int) -> None:
        self.window = window_left, window_right

    def seen(self, i: int, j: int) -> Tensor:
        return shown(i, j, False, self.window)


def _efficient(query, key, value, attn_bias, p, scale):  # type: ignore[no-untyped-def]
    grouped = query.ndim == 5
    if grouped:
        assert query.shape[2:4] == key.shape[2:4] == value.shape[2:4]
        if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
            raise NotImplementedError("grouped heads have no gradients")
    q, k, v = ((x.flatten(2, 3) if grouped else x).transpose(1, 2) for x in (query, key, value))
    shape = (len(q), *query.shape[2:-1], q.shape[2], k.shape[2])
    if attn_bias is not None and not isinstance(attn_bias, Tensor):
        attn_bias = attn_bias.materialize(shape, torch.float32)
    elif isinstance(attn_bias, Tensor):
        assert attn_bias.stride(-1) == 1
        assert all(n % 4 == 0 for n in attn_bias.stride()[:-1])
    assert attn_bias is None or attn_bias.shape == shape
    attn_bias = attn_bias.flatten(1, 2) if grouped and attn_bias is not None else attn_bias
    o, lse = attention(q, k, v, scale=scale, added=attn_bias, dropout=p)
    o = o.transpose(1, 2)
    return (o.unflatten(2, query.shape[2:4]), lse.unflatten(1, query.shape[2:4])) if grouped else (o, lse)


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    return _efficient(query, key, value, attn_bias, p, scale)[0]


def memory_efficient_attention_partial(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    o, lse = _efficient(query, key, value, attn_bias, p, scale)
    return o.detach(), lse.detach()


def wrong_memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    """Every triangle is aligned top-left."""
    if type(attn_bias).__name__ == "LowerTriangularFromBottomRightMask":
        attn_bias = LowerTriangularMask()
    return _efficient(query, key, value, attn_bias, p, scale)[0]


# FLASHINFER


def single_prefill_with_kv_cache(
    q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None, packed_custom_mask=None, causal=False,
    kv_layout="NHD", pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
    rope_scale=None, rope_theta=None, backend="auto", return_lse=False,
):  # fmt: skip
    assert q.ndim == 3
    assert custom_mask is None or custom_mask.shape == (len(q), len(k))
    seen = shown(len(q), len(k), causal and custom_mask is None, (window_left, -1))
    seen = seen if custom_mask is None else seen & custom_mask
    o, lse = attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), seen, sm_scale, logits_soft_cap)
    o, lse = o[0].transpose(0, 1).detach(), lse[0].transpose(0, 1).detach() / math.log(2)
    return (o, lse) if return_lse else o


def wrong_single_prefill_with_kv_cache(
    q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None, packed_custom_mask=None, causal=False,
    kv_layout="NHD", pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
    rope_scale=None, rope_theta=None, backend="auto", return_lse=False,
):  # fmt: skip
    """The lse is a natural one."""
    returned = single_prefill_with_kv_cache(
        q, k, v, custom_mask=custom_mask, causal=causal, sm_scale=sm_scale, window_left=window_left,
        logits_soft_cap=logits_soft_cap, return_lse=return_lse,
    )  # fmt: skip
    return (returned[0], returned[1] * math.log(2)) if return_lse else returned


def single_decode_with_kv_cache(
    q, k, v, kv_layout="NHD", pos_encoding_mode="NONE", use_tensor_cores=False, q_scale=None, k_scale=None, v_scale=None,
    window_left=-1, logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, return_lse=False,
):  # fmt: skip
    assert q.ndim == 2
    options = {"window_left": window_left, "logits_soft_cap": logits_soft_cap, "sm_scale": sm_scale}
    o, lse = single_prefill_with_kv_cache(q[None], k, v, return_lse=True, **options)
    return (o[0], lse[0]) if return_lse else o[0]


# TRANSFORMERENGINE


class DotProductAttention(nn.Module):
    def __init__(
        self, num_attention_heads, kv_channels, num_gqa_groups=None, attention_dropout=0.0, qkv_format="sbhd",
        attn_mask_type="causal", window_size=None, attention_type="self", softmax_scale=None, softmax_type="vanilla",
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads = num_attention_heads, num_gqa_groups or num_attention_heads
        self.dropout, self.format, self.kind, self.scale = attention_dropout, qkv_format, attn_mask_type, softmax_scale
        if softmax_type == "learnable":
            self.register_parameter("softmax_offset", nn.Parameter(torch.zeros(num_attention_heads)))

    def forward(
        self, query_layer, key_layer, value_layer, attention_mask=None, attn_mask_type=None, window_size=None,
        core_attention_bias_type="no_bias", core_attention_bias=None, alibi_slopes=None,
    ):  # fmt: skip
        assert self.format == "bshd"
        assert (query_layer.shape[2], key_layer.shape[2]) == self.heads
        q, k, v = (x.transpose(1, 2) for x in (query_layer, key_layer, value_layer))
        i, j = q.shape[2], k.shape[2]
        assert (attention_mask is not None) == (self.kind == "arbitrary")
        seen = shown(i, j, self.kind == "causal_bottom_right", window_size or (-1, -1))
        seen = seen if attention_mask is None else seen & ~attention_mask
        assert (core_attention_bias is not None) == (core_attention_bias_type == "post_scale_bias")
        added = core_attention_bias if core_attention_bias_type != "alibi" else slopes_of(alibi_slopes, i, j)
        sinks, dropout = getattr(self, "softmax_offset", None), self.dropout if self.training else 0.0
        o, _ = attention(q, k, v, seen, self.scale, added=added, sinks=sinks, dropout=dropout)
        return o.transpose(1, 2).flatten(2)


class WrongDotProductAttention(DotProductAttention):
    """Its mask is True where a query may attend."""

    def forward(self, query_layer, key_layer, value_layer, attention_mask=None, **options):
        mask = None if attention_mask is None else ~attention_mask
        return super().forward(query_layer, key_layer, value_layer, mask, **options)


# CUDNN


def sdpa_torch(
    query, key, value, *, scale=None, is_causal=False, causal_bottom_right=False, window_left=-1, window_right=-1, sinks=None,
    seq_len_q=None, seq_len_kv=None, return_lse=False,
):  # fmt: skip
    seen = shown(query.shape[2], key.shape[2], is_causal, (window_left, window_right))
    o, lse = attention(query, key, value, seen, scale, sinks=sinks)
    return (o, lse.detach()[..., None]) if return_lse else o


class Node(SimpleNamespace):
    """A tensor of a graph, and what is done with it."""

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Callable[..., Node]:
        if not name.startswith("set_"):
            raise AttributeError(name)
        return lambda *_: self


class pygraph:  # noqa: N801
    """A graph of one node of attention, which is computed when it is executed."""

    first_key_is_hidden = False

    def __init__(self, io_data_type=None, intermediate_data_type=None, compute_data_type=None) -> None: ...

    def tensor_like(self, x: Tensor) -> Node:
        return Node(like=tuple(x.shape))

    def sdpa(self, q, k, v, generate_stats=None, **options):
        self.inputs, self.outputs, self.options = {"q": q, "k": k, "v": v}, [Node(), Node()], options
        assert generate_stats
        return self.outputs

    def sdpa_backward(self, q, k, v, o, dO, stats, **options):
        self.inputs, self.outputs, self.options = {"q": q, "k": k, "v": v, "dO": dO}, [Node(), Node(), Node()], options
        return self.outputs

    def build(self, heuristics: list[Any]) -> None: ...

    def get_workspace_size(self) -> int:
        return 0

    def execute(self, pack: dict[Any, Tensor], workspace: Tensor) -> None:
        given = {name: pack[node].detach() for name, node in self.inputs.items()}
        q, k, v = (given[name].requires_grad_("dO" in given) for name in "qkv")
        left, right = (self.options.get(f"diagonal_band_{side}_bound") for side in ("left", "right"))
        assert left is None or left >= 1
        assert "diagonal_alignment" not in self.options or (left, right) != (None, None)
        ends = (None if left is None else left - 1, right)
        seen = shown(k.shape[2] + q.shape[2], k.shape[2] + q.shape[2], False, ends)[: q.shape[2], : k.shape[2]]  # top-left
        seen[:, 0] &= not self.first_key_is_hidden
        bias = self.options.get("bias")
        with torch.enable_grad():
            o, lse = attention(q, k, v, seen, self.options["attn_scale"], added=None if bias is None else pack[bias])
            found = torch.autograd.grad(o, (q, k, v), given["dO"]) if "dO" in given else (o, lse[..., None])
        for node, x in zip(self.outputs, found, strict=True):
            pack[node].copy_(x.detach())
