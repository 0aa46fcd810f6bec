"""Faults behind the sizes and calls of models in use: wide heads, many heads, long caches, few queries, no gradients."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
import torch
from honest import tiled
from torch import Tensor
from torch.nn.functional import pad

from mutants.base import Call, mutant, named
from mutants.memory import Cached
from mutants.tools import form, four, instead, read_without_strides, seeing, with_gradient, with_keys

HALF = (torch.float16, torch.bfloat16)
Attend = Callable[..., Tensor]


def differs(attend: Attend, *inputs: Tensor, **options: object) -> bool:
    """Whether an answer, or the gradient of a mask that asks for one, is not that of the kernel that is right."""
    found = []
    for kernel in (attend, tiled):
        mask = options.get("attn_mask")
        given = mask.detach().clone().requires_grad_(mask.requires_grad) if isinstance(mask, Tensor) else None
        out = kernel(*inputs, **{**options, "attn_mask": given})
        asked = given is not None and given.requires_grad
        found.append(torch.autograd.grad(out.sum(-1).square().sum(), given)[0].float() if asked else out.float())
    return not torch.allclose(*found, rtol=0.05, atol=0.02)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def width_zero(attend: Attend) -> bool:
    mask = torch.tensor([True, False, True, True])
    return differs(attend, torch.ones(1, 2, 3, 0), torch.ones(1, 2, 4, 0), drawn(1, 2, 4, 8), attn_mask=mask, scale=0.5)


def other_mask_in_place(attend: Attend) -> bool:
    q, k, v = drawn(1, 2, 3, 8), drawn(1, 2, 2000, 8, seed=1), drawn(1, 2, 2000, 8, seed=2)
    memory = np.empty(2000, bool)
    for seed in (3, 4):  # the second is new, and lies where the first was
        memory[:] = (drawn(2000, seed=seed) > 0).numpy()
        mask = torch.from_numpy(memory)
        found = attend(q, k, v, attn_mask=mask)
        right = tiled(q, k, v, attn_mask=mask)
        del mask
    return not torch.allclose(found, right, atol=1e-3)


def float32_bias(attend: Attend) -> bool:
    q, k, v = (drawn(2, 2, n, 8, seed=seed, dtype=torch.float16) for seed, n in enumerate((3, 5, 5)))
    lowest = drawn(3, 5, seed=4)
    lowest[0, 1] = torch.finfo(torch.float32).min
    return any(differs(attend, q, k, v, attn_mask=bias) for bias in (drawn(3, 5, seed=3).requires_grad_(), drawn(3, 5), lowest))


# WIDE HEADS


def first_channels(call: Call, width: int) -> Call:
    """The call with scores of these channels alone."""
    d = call.query.shape[3]
    return call.but(query=pad(call.query[..., :width], (0, max(d - width, 0))), scale=call.scale_in_use)


for width_ in (128, 160, 192, 256):

    def beyond_width(call: Call, width: int = width_) -> Tensor:
        return first_channels(call, width).run()

    name_ = f"width_above_{width_}_cut"
    mutant("shape", "SHAPE-2")(named(name_, f"Scores use the first {width_} channels.", beyond_width))


@mutant("shape", "SHAPE-3")
def value_width_above_128_cut(call: Call) -> Tensor:
    """Columns of the output beyond the 128th stay zero."""
    out = call.run()
    return out.masked_fill(torch.arange(out.shape[3]) >= 128, 0.0)


@mutant("mask", "MASK-1")
def mask_ignored_above_width_128(call: Call) -> Tensor:
    """With a width above 128 a mask with a row for each query is that of the first query."""
    mask = call.bool_mask
    if mask is None or call.query.shape[3] <= 128 or "i" not in form(mask):
        return call.run()
    return call.but(attn_mask=mask[..., :1, :]).run()


@mutant("bias", "BIAS-2")
def bias_of_first_head_above_width_128(call: Call) -> Tensor:
    """With a width above 128 all heads use the bias of the first."""
    bias = call.float_mask
    if bias is None or call.query.shape[3] <= 128 or "h" not in form(bias):
        return call.run()
    return call.but(attn_mask=four(bias)[:, :1]).run()


@mutant("layout", "LAYOUT-1", "Dao-AILab/flash-attention#2665")
def strides_ignored_for_width_256(call: Call) -> Tensor:
    """With a width of 256 keys are read with strides made from their shape."""
    if call.key.shape[3] != 256:
        return call.run()
    return call.but(key=instead(call.key, read_without_strides(call.key))).run()


@mutant("causal", "CAUSAL-1", "ROCm/aiter#4682")
def diagonal_lost_above_width_128(call: Call) -> Tensor:
    """Under causal and with a width above 128 a query does not see its own key."""
    if not call.is_causal or call.query.shape[3] <= 128:
        return call.run()
    shown = call.visible.tril(-1)
    return seeing(call, shown | (call.visible & ~shown.any(-1, keepdim=True)))


@mutant("scale", "SCALE-1", "tile-ai/tilelang-ascend#1670")
def scale_of_padded_width_above_128(call: Call) -> Tensor:
    """Above a width of 128 the default scale is that of the next power of two."""
    d = call.query.shape[3]
    if call.scale is not None or d <= 128:
        return call.run()
    return call.but(scale=(1 << (d - 1).bit_length()) ** -0.5).run()


@mutant("gradients", "GRAD-2", "Dao-AILab/flash-attention#2562")
def key_gradient_above_width_128_cut(call: Call) -> Tensor:
    """Columns of dk beyond the 128th stay zero."""
    k = call.key
    return call.but(key=with_gradient(k, lambda grad: grad.masked_fill(torch.arange(grad.shape[3]) >= 128, 0.0))).run()


# NO WIDTH


@mutant("shape", "SHAPE-2", witness=width_zero)
def width_zero_gives_nan(call: Call) -> Tensor:
    """With queries and keys of width zero the output is NaN."""
    out = call.run()
    return out if call.query.shape[3] else out * float("nan")


@mutant("shape", "SHAPE-2", witness=width_zero)
def width_zero_gives_zeros(call: Call) -> Tensor:
    """With queries and keys of width zero the output is zero."""
    out = call.run()
    return out if call.query.shape[3] else out * 0


@mutant("shape", "SHAPE-2", witness=width_zero)
def width_zero_sees_all_keys(call: Call) -> Tensor:
    """With queries and keys of width zero the output is the mean of all values, the hidden ones too."""
    return call.run() if call.query.shape[3] else call.but(attn_mask=None, is_causal=False).run()


# MANY HEADS


@mutant("heads", "SHAPE-5")
def heads_from_eighth_read_the_first(call: Call) -> Tensor:
    """Query heads from the ninth on have the queries of the first eight."""
    at = torch.arange(call.shape[1]) % 8
    return call.but(query=call.query[:, at]).run()


@mutant("heads", "SHARED-2")
def many_groups_taken_in_turn(call: Call) -> Tensor:
    """With eight key/value heads or more, groups of query heads take them in turn."""
    h, g = call.shape[1], call.key.shape[1]
    if g < 8 or h == g:
        return call.run()
    at = torch.arange(h) % g
    return call.but(key=call.key[:, at], value=call.value[:, at]).run()


@mutant("mask", "MASK-3")
def mask_of_heads_from_eighth_is_the_first(call: Call) -> Tensor:
    """From the ninth head on the mask is that of the first."""
    mask = call.bool_mask
    if mask is None or "h" not in form(mask):
        return call.run()
    at = torch.arange(call.shape[1])
    return call.but(attn_mask=four(mask)[:, at * (at < 8)]).run()


@mutant("bias", "BIAS-2")
def bias_of_heads_from_sixteenth_left_out(call: Call) -> Tensor:
    """From the 17th head on a bias with a row for each head is left out."""
    bias = call.float_mask
    if bias is None or "h" not in form(bias):
        return call.run()
    late = (torch.arange(call.shape[1]) >= 16)[:, None, None]
    return call.but(attn_mask=four(bias).masked_fill(late & (four(bias) != -inf), 0.0)).run()


@mutant("gradients", "SHARED-4")
def gradient_of_large_groups(call: Call) -> Tensor:
    """dk and dv of a group of more than four query heads leave out the last of the group."""
    h, g = call.shape[1], call.key.shape[1]
    if not g or h // g <= 4:
        return call.run()
    last = (torch.arange(h) % (h // g) == h // g - 1)[:, None, None]
    k, v = (x.repeat_interleave(h // g, 1) for x in (call.key, call.value))
    return call.but(key=torch.where(last, k.detach(), k), value=torch.where(last, v.detach(), v)).run()


# WHAT IS KEPT BY ITS ADDRESS


class KeptByAddress(Cached):
    """A mask or bias is converted once, and what was made of it kept by the address of its memory."""

    def key(self, mask: Tensor) -> tuple[object, ...]:
        return mask.data_ptr(), mask.shape, mask.stride(), mask.dtype

    def __call__(self, call: Call) -> Tensor:
        mask = call.attn_mask
        if mask is None or not mask.numel():
            return call.run()
        kept = self.first(self.key(mask), lambda: mask.detach())
        return call.but(attn_mask=kept if mask.dtype == torch.bool else instead(mask, kept)).run()


@mutant("state", "PURITY-5", witness=other_mask_in_place)
class MaskKeptByAddress(KeptByAddress):
    """A mask at an address met before, with the same shape, is that of then."""


@mutant("state", "PURITY-5", witness=other_mask_in_place)
class MaskKeptByAddressAndVersion(KeptByAddress):
    """A mask at an address met before, of the same shape and as often changed in place, is that of then."""

    def key(self, mask: Tensor) -> tuple[object, ...]:
        version = 0 if mask.is_inference() else mask._version
        return (*super().key(mask), version)


# NO GRADIENT


def inference(call: Call) -> bool:
    """Whether no input requires grad."""
    return not any(x is not None and x.requires_grad for x in (call.query, call.key, call.value, call.attn_mask))


def decodes(call: Call, queries: int = 8) -> bool:
    """Whether no input requires grad and a few queries meet more keys."""
    _, _, i, j = call.shape
    return inference(call) and 0 < i <= queries and j > i


@mutant("decode", "MASK-3")
def decoding_mask_of_first_head(call: Call) -> Tensor:
    """Without gradients a few queries of all heads use the mask of the first."""
    if not decodes(call) or call.bool_mask is None or "h" not in form(call.bool_mask):
        return call.run()
    return call.but(attn_mask=four(call.bool_mask)[:, :1]).run()


@mutant("decode", "MASK-2")
def decoding_padding_of_first_item(call: Call) -> Tensor:
    """Without gradients a single query of every batch item uses the mask of the first."""
    if not decodes(call, 1) or call.bool_mask is None or call.bool_mask.ndim < 4:
        return call.run()
    return call.but(attn_mask=call.bool_mask[:1]).run()


@mutant("decode", "MASK-2")
def decoding_padding_is_a_length(call: Call) -> Tensor:
    """Without gradients a few queries in a half type take a mask over keys for a number of keys to read."""
    mask = call.bool_mask
    if not decodes(call) or mask is None or call.query.dtype not in HALF or "i" in form(mask) or "j" not in form(mask):
        return call.run()
    return call.but(attn_mask=torch.arange(mask.shape[-1]) < mask.sum(-1, keepdim=True)).run()


@mutant("decode", "LAYOUT-1", "pytorch/pytorch#163597")
def decoding_reads_keys_flat(call: Call) -> Tensor:
    """Without gradients a few queries read keys that are not contiguous as if they were."""
    return call.but(key=read_without_strides(call.key)).run() if decodes(call) else call.run()


@mutant("decode", "LAYOUT-3", "pytorch/pytorch#191937")
def decoding_reads_expanded_values_flat(call: Call) -> Tensor:
    """Without gradients a few queries read values with a stride of zero as if they were dense."""
    expanded = call.shape[1] > 1 and 0 in call.value.stride()[:2]
    return call.but(value=read_without_strides(call.value)).run() if decodes(call) and expanded else call.run()


@mutant("decode", "SHAPE-2")
def decoding_wide_heads_cut(call: Call) -> Tensor:
    """Without gradients a few queries use the first 128 channels."""
    return first_channels(call, 128).run() if decodes(call) else call.run()


@mutant("decode", "SHAPE-2")
def decoding_masked_wide_heads_cut(call: Call) -> Tensor:
    """Without gradients and under a mask a few queries use the first 64 channels."""
    return first_channels(call, 64).run() if decodes(call) and call.bool_mask is not None else call.run()


@mutant("decode", "SCALE-3")
def decoding_zero_scale_is_default(call: Call) -> Tensor:
    """Without gradients a few queries take a scale of zero for none."""
    return call.but(scale=call.scale or None).run() if decodes(call) else call.run()


@mutant("decode", "CAUSAL-1")
def decoding_causal_sees_all(call: Call) -> Tensor:
    """Without gradients two to eight causal queries see all keys."""
    return call.but(is_causal=not (decodes(call) and call.shape[2] > 1) and call.is_causal).run()


@mutant("decode", "EMPTY-1")
def decoding_empty_row_is_mean(call: Call) -> Tensor:
    """Without gradients a query without a key, of a few, gets the mean of all values."""
    if not decodes(call) or call.bool_mask is None:
        return call.run()
    shown = call.visible
    return seeing(call, shown | ~shown.any(-1, keepdim=True))


@mutant("decode", "BIAS-1")
def decoding_bias_of_last_key_left_out(call: Call) -> Tensor:
    """Without gradients a few queries leave out the bias of the last key."""
    bias = call.float_mask
    if not decodes(call) or bias is None or "j" not in form(bias):
        return call.run()
    last = (torch.arange(bias.shape[-1]) == bias.shape[-1] - 1) & (bias != -inf)
    return call.but(attn_mask=bias.masked_fill(last, 0.0)).run()


@mutant("decode", "SHARED-2")
def decoding_groups_in_turn(call: Call) -> Tensor:
    """Without gradients a few queries' heads take key/value heads in turn."""
    h, g = call.shape[1], call.key.shape[1]
    if not decodes(call) or h == g:
        return call.run()
    at = torch.arange(h) % g
    return call.but(key=call.key[:, at], value=call.value[:, at]).run()


@mutant("decode", "SHAPE-2")
def decoding_large_scores_capped(call: Call) -> Tensor:
    """Without gradients a single query's numbers are clipped to ±20."""
    return call.but(query=call.query.clamp(-20, 20)).run() if decodes(call, 1) else call.run()


# LONG CACHES IN HALF TYPES


def caches(call: Call, keys: int) -> bool:
    """Whether a few queries in a half type meet so many keys."""
    _, _, i, j = call.shape
    return call.query.dtype in HALF and 0 < i <= 8 and j >= keys


def half_cache(name: str, clause: str, what: str, keys: int, source: str = "") -> Callable[[Callable[[Call], Tensor]], object]:
    """Enter a fault of a few queries in a half type against so many keys."""

    def enter(faulty: Callable[[Call], Tensor]) -> object:
        def of_caches(call: Call) -> Tensor:
            return faulty(call) if caches(call, keys) else call.run()

        return mutant("decode", clause, source)(named(name, what, of_caches))

    return enter


for form_ in ("bhij", "ij", "hij", "bj", "bij", "bhj", "j"):

    @half_cache(
        f"half_cache_mask_{form_}_late_keys_shown",
        "MASK-3",
        f"In half types a few queries see all keys from the 128th on under a mask over {form_}.",
        129,
        "vllm-project/vllm-ascend#15503" if form_ == "bj" else "",
    )
    def late_keys_shown(call: Call, form_: str = form_) -> Tensor:
        mask = call.bool_mask
        if mask is None or form(mask) != form_:
            return call.run()
        return call.but(attn_mask=mask | (torch.arange(mask.shape[-1]) >= 128)).run()


@half_cache(
    "half_cache_last_split_dropped", "SHAPE-2", "In half types a few queries against 1024 keys or more leave out the last.", 1024
)
def last_split_dropped(call: Call) -> Tensor:
    return with_keys(call, torch.arange(call.shape[3] - 1))


@half_cache(
    "half_cache_bias_beyond_512_left_out", "BIAS-1", "In half types a few queries leave out the bias of keys from 512 on.", 513
)
def bias_beyond_512_left_out(call: Call) -> Tensor:
    bias = call.float_mask
    if bias is None or "j" not in form(bias):
        return call.run()
    late = (torch.arange(bias.shape[-1]) >= 512) & (bias != -inf)
    return call.but(attn_mask=bias.masked_fill(late, 0.0)).run()


@half_cache(
    "half_cache_wide_heads_cut", "SHAPE-2", "In half types a few queries against 128 keys or more use the first 128 channels.", 128
)
def wide_heads_cut(call: Call) -> Tensor:
    return first_channels(call, 128).run()


@half_cache("half_cache_key_gradient_cut", "GRAD-2", "In half types dk of keys from the 512th on is zero for a few queries.", 513)
def key_gradient_cut(call: Call) -> Tensor:
    late = (torch.arange(call.shape[3]) >= 512)[:, None]
    return call.but(key=with_gradient(call.key, lambda grad: grad.masked_fill(late, 0.0))).run()


# A BIAS IN FLOAT32 BESIDE HALF TYPES


def wide_bias(call: Call) -> bool:
    """Whether a bias is wider than the queries."""
    return call.float_mask is not None and call.float_mask.dtype == torch.float32 and call.query.dtype in HALF


@mutant("bias", "ERROR-1", witness=float32_bias)
def float32_bias_read_as_half(call: Call) -> Tensor:
    """A float32 bias beside half types is read as if its numbers were half as long."""
    if not wide_bias(call):
        return call.run()
    bias = call.float_mask
    bits = bias.contiguous().view(call.query.dtype).reshape(-1)[: bias.numel()].view(bias.shape)
    return call.but(attn_mask=instead(bias, bits.nan_to_num(0.0).clamp(-9, 9).float())).run()


@mutant("bias", "ERROR-1", witness=float32_bias)
def float32_bias_has_no_gradient(call: Call) -> Tensor:
    """The gradient of a float32 bias beside half types is zero."""
    return call.but(attn_mask=with_gradient(call.attn_mask, torch.zeros_like)).run() if wide_bias(call) else call.run()


@mutant("bias", "ERROR-1", witness=float32_bias)
def float32_bias_gradient_not_summed(call: Call) -> Tensor:
    """The gradient of a float32 bias beside half types that is repeated is that of the first batch item and head."""
    if not wide_bias(call):
        return call.run()
    bias = four(call.float_mask)
    shape = [max(a, b) for a, b in zip(bias.shape, (*call.shape[:2], 1, 1), strict=True)]
    each = bias.expand(shape)
    first = torch.zeros(shape, dtype=torch.bool)
    first[:1, :1] = True
    return call.but(attn_mask=torch.where(first, each, each.detach()) if bias.shape[0] == bias.shape[1] == 1 else bias).run()


@mutant("bias", "ERROR-1", witness=float32_bias)
def float32_lowest_overflows_in_half(call: Call) -> Tensor:
    """The lowest number of float32 in a bias beside half types becomes −∞ times zero."""
    if not wide_bias(call):
        return call.run()
    bias = call.float_mask
    return call.but(attn_mask=instead(bias, torch.where(bias < -1e38, torch.full_like(bias, float("nan")), bias))).run()


# FIRST BLOCKS THAT ARE HIDDEN


def first_keys_hidden(call: Call, keys: int) -> Tensor:
    """Rows, (b h i 1), that see a key but none of so many first ones."""
    shown = call.visible
    return shown.any(-1, keepdim=True) & ~shown[..., :keys].any(-1, keepdim=True)


for keys_ in (256, 512):

    def first_block_hidden(call: Call, keys: int = keys_) -> Tensor:
        out = call.run()
        if call.shape[3] <= keys:
            return out
        return out.masked_fill(first_keys_hidden(call, keys), float("nan"))

    name_ = f"first_{keys_}_keys_hidden_gives_nan"
    mutant("mask", "MASK-1", "pytorch/pytorch#127055")(
        named(name_, f"A query that does not see the first {keys_} keys, but later ones, is NaN.", first_block_hidden)
    )

    def first_block_hidden_by_bias(call: Call, keys: int = keys_) -> Tensor:
        out = call.run()
        if call.shape[3] <= keys or call.float_mask is None:
            return out
        return out.masked_fill(first_keys_hidden(call, keys), float("nan"))

    name_ = f"first_{keys_}_keys_at_minus_infinity_gives_nan"
    mutant("bias", "BIAS-3", "pytorch/pytorch#127055")(
        named(name_, f"A query whose bias is −∞ for the first {keys_} keys, not for all, is NaN.", first_block_hidden_by_bias)
    )


# LONG SEQUENCES

for length_ in (512, 1024, 2048, 4000):

    def last_key(call: Call, length: int = length_) -> Tensor:
        return call.run() if call.shape[3] <= length else with_keys(call, torch.arange(call.shape[3] - 1))

    mutant("shape", "SHAPE-2")(
        named(f"last_key_dropped_beyond_{length_}", f"With more than {length_} keys the last is not read.", last_key)
    )

    def late_queries(call: Call, length: int = length_) -> Tensor:
        return call.run().masked_fill((torch.arange(call.shape[2]) >= length)[:, None], 0.0)

    mutant("shape", "SHAPE-2")(named(f"queries_from_{length_}_zero", f"Rows from the {length_}th on stay zero.", late_queries))


@mutant("causal", "CAUSAL-1")
def causal_rows_beyond_1024_see_one_more(call: Call) -> Tensor:
    """Causal queries from the 1024th on see one key more."""
    if not call.is_causal or call.shape[2] <= 1024:
        return call.run()
    i, j = call.shape[2:]
    r, c = torch.arange(i)[:, None], torch.arange(j)
    return call.but(is_causal=False, attn_mask=c <= r + (r >= 1024)).run()
