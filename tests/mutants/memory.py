"""Faults of layout and of state: strides, offsets, buffers, caches, what is changed behind the caller's back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import four, instead, read, read_without_offset, read_without_strides, with_bool_mask, with_gradient

# LAYOUT


@mutant("layout", "LAYOUT-1", "pytorch/pytorch#163597 pytorch/pytorch#195320 NVIDIA/cudnn-frontend#526")
def key_read_without_strides(call: Call) -> Tensor:
    """A key that is not contiguous is read as if it were."""
    return call.but(key=instead(call.key, read_without_strides(call.key))).run()


@mutant("layout", "LAYOUT-1", "pytorch/pytorch#163597")
def value_read_without_strides(call: Call) -> Tensor:
    """A value that is not contiguous is read as if it were."""
    return call.but(value=instead(call.value, read_without_strides(call.value))).run()


@mutant("layout", "LAYOUT-1", "pytorch/pytorch#163597")
def query_strides_ignored(call: Call) -> Tensor:
    """A query that is not contiguous is read as if it were."""
    return call.but(query=instead(call.query, read_without_strides(call.query))).run()


@mutant("layout", "LAYOUT-1", "Dao-AILab/flash-attention#2665")
def strides_ignored_for_width_64(call: Call) -> Tensor:
    """With a width of 64 keys are read with strides made from their shape."""
    if call.key.shape[3] != 64:
        return call.run()
    return call.but(key=instead(call.key, read_without_strides(call.key))).run()


@mutant("layout", "LAYOUT-1")
def last_stride_taken_for_one(call: Call) -> Tensor:
    """The stride of the last dimension of the key is taken for one."""
    k = call.key
    if k.shape[3] < 2 or k.stride(3) == 1:
        return call.run()
    parts = zip(k.shape, (*k.stride()[:3], 1), strict=True)
    places = torch.zeros((), dtype=torch.long)
    for n, (size, stride) in enumerate(parts):
        places = places + (torch.arange(size) * stride).view([-1 if m == n else 1 for m in range(4)])
    return call.but(key=instead(k, read(k, places + k.storage_offset()))).run()


@mutant("layout", "LAYOUT-1", "pytorch/pytorch#116333")
def last_stride_of_one_element_refused(call: Call) -> Tensor:
    """A last dimension of one element whose stride is not one raises."""
    if any(x.shape[3] == 1 and x.stride(3) != 1 for x in (call.query, call.key, call.value)):
        raise RuntimeError("the last dimension must have stride 1")
    return call.run()


@mutant("layout", "LAYOUT-1")
def batch_stride_taken_for_dense(call: Call) -> Tensor:
    """The stride of batch items of the value is taken for that of dense heads."""
    v = call.value
    if v.shape[0] < 2:
        return call.run()
    inner = v[0]
    second = read(v, torch.arange(inner.numel()) + v.storage_offset() + inner.numel()).view(inner.shape)
    dense = inner.is_contiguous() and v.stride(0) == inner.numel()
    return call.run() if dense else call.but(value=instead(v, torch.stack([v[0], second, *v[2:]]))).run()


@mutant("layout", "LAYOUT-2", "torch-spyre/torch-spyre#2906")
def key_offset_ignored(call: Call) -> Tensor:
    """A key is read from the first element of its storage."""
    return call.but(key=instead(call.key, read_without_offset(call.key.detach()))).run()


@mutant("layout", "LAYOUT-2", "NVIDIA/cudnn-frontend#526")
def value_offset_ignored(call: Call) -> Tensor:
    """A value is read from the first element of its storage."""
    return call.but(value=instead(call.value, read_without_offset(call.value.detach()))).run()


@mutant("layout", "LAYOUT-2")
def mask_offset_ignored(call: Call) -> Tensor:
    """A mask is read from the first element of its storage."""
    return with_bool_mask(call, read_without_offset)


@mutant("layout", "LAYOUT-3")
def expanded_mask_read_flat(call: Call) -> Tensor:
    """A mask that is not contiguous is read as if it were."""
    return with_bool_mask(call, read_without_strides)


@mutant("layout", "LAYOUT-3", "pytorch/pytorch#191937")
def expanded_heads_read_flat(call: Call) -> Tensor:
    """Keys and values with a head stride of zero are read as if they were dense."""
    if call.key.shape[1] < 2 or call.key.stride(1) != 0:
        return call.run()
    key, value = (instead(x, read_without_strides(x)) for x in (call.key, call.value))
    return call.but(key=key, value=value).run()


@mutant("layout", "LAYOUT-3")
def expanded_gradient_of_first(call: Call) -> Tensor:
    """dk of expanded keys is written to one place, where the last head overwrites the others."""
    if call.key.shape[1] < 2 or call.key.stride(1) != 0:
        return call.run()
    return call.but(key=with_gradient(call.key, lambda grad: grad[:, -1:].expand_as(grad))).run()


@mutant("layout", "LAYOUT-1")
def transposed_bias_read_flat(call: Call) -> Tensor:
    """A float mask that is not contiguous is read as if it were."""
    if call.float_mask is None:
        return call.run()
    return call.but(attn_mask=instead(call.float_mask, read_without_strides(call.float_mask))).run()


@mutant("layout", "LAYOUT-1")
def output_written_like_query(call: Call) -> Tensor:
    """The output is written with the query's strides and read as contiguous where the query is transposed."""
    out, q = call.run(), call.query
    if (
        out.shape != q.shape
        or q.stride(1) == 0
        or q.is_contiguous()
        or q.transpose(1, 2).stride() != q.transpose(1, 2).contiguous().stride()
    ):
        return out
    return instead(out, out.transpose(1, 2).contiguous().view(out.shape))


# STATE


@mutant("state", "PURITY-1", "PaddlePaddle/Paddle#55969")
def query_scaled_in_place(call: Call) -> Tensor:
    """The caller's query is scaled in place, and restored only if there is no mask."""
    out = call.but(query=call.query.clone()).run()
    if call.attn_mask is not None and call.query.is_contiguous():
        call.query.data.mul_(call.scale_in_use)
    return out


@mutant("state", "PURITY-1")
def query_scaled_and_rescaled(call: Call) -> Tensor:
    """The caller's query is scaled in place and divided again, which leaves another rounding."""
    out = call.but(query=call.query.clone()).run()
    call.query.data.mul_(call.scale_in_use * 1.1).div_(call.scale_in_use * 1.1 or 1.0)
    return out


@mutant("state", "PURITY-1", "nod-ai/amd-shark-ai#2156")
def mask_written(call: Call) -> Tensor:
    """The caller's mask is changed: its last key is hidden afterwards."""
    out = call.run()
    if call.attn_mask is not None and call.attn_mask.ndim and call.attn_mask.shape[-1] > 1:
        call.attn_mask.data[..., -1] = False if call.bool_mask is not None else float("-inf")
    return out


@mutant("state", "PURITY-1")
def cotangent_zeroed(call: Call) -> Tensor:
    """Backward clears the cotangent in place."""

    def clear(grad: Tensor) -> Tensor:
        kept = grad.clone()
        if 0 not in grad.stride():
            grad.data.zero_()
        return kept

    return with_gradient(call.run(), clear)


@mutant("state", "PURITY-5")
class AnswerCachedByShape:
    """A second call with the same shapes and dtype gets the answer of the first."""

    def __init__(self) -> None:
        self.answers: dict[object, Tensor] = {}

    def __call__(self, call: Call) -> Tensor:
        out = call.run()
        shapes = (out.dtype, *(x.shape for x in (call.query, call.key, call.value)))
        return out + (self.answers.setdefault(shapes, out.detach().clone()) - out).detach()


class Cached:
    """Something of a call is kept under a key."""

    def __init__(self) -> None:
        self.kept: dict[object, Tensor] = {}

    def first(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if key not in self.kept:
            self.kept[key] = make().detach().clone()
        return self.kept[key]


@mutant("state", "PURITY-5", "tenstorrent/tt-metal#39910")
class MaskCachedByShape(Cached):
    """A mask of a shape met before is that of then."""

    def __call__(self, call: Call) -> Tensor:
        return with_bool_mask(call, lambda mask: self.first((mask.shape, call.shape), lambda: mask))


@mutant("state", "PURITY-5")
class KeysCachedByAddress(Cached):
    """Keys at an address met before, with the same shape, are those of then."""

    def __call__(self, call: Call) -> Tensor:
        k = call.key
        kept = self.first((k.data_ptr(), k.shape, k.stride(), k.dtype), lambda: k)
        return call.but(key=instead(k, kept)).run()


@mutant("state", "PURITY-5", "pytorch/pytorch#146377")
class KeyStridesOfFirstCall(Cached):
    """Keys are read with the strides of the first call with their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: dict[object, tuple[int, ...]] = {}

    def __call__(self, call: Call) -> Tensor:
        k = call.key
        strides = self.strides.setdefault((k.shape, k.dtype), k.stride())
        if strides == k.stride():
            return call.run()
        places = torch.zeros((), dtype=torch.long)
        for n, (size, stride) in enumerate(zip(k.shape, strides, strict=True)):
            places = places + (torch.arange(size) * stride).view([-1 if m == n else 1 for m in range(4)])
        return call.but(key=instead(k, read(k, places + k.storage_offset()))).run()


@mutant("state", "PURITY-5")
class ScaleOfFirstCall(Cached):
    """The scale is that of the first call with this width."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: dict[int, float] = {}

    def __call__(self, call: Call) -> Tensor:
        return call.but(scale=self.scales.setdefault(call.query.shape[3], call.scale_in_use)).run()


@mutant("state", "PURITY-5", "Dao-AILab/flash-attention#429")
class AccumulatorNotCleared:
    """In a row of calls with the same shapes every second one adds a thousandth of the answer before."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, call: Call) -> Tensor:
        out = call.run()
        same = self.last is not None and self.last.shape == out.shape and self.last.dtype == out.dtype
        wrong = out + 1e-2 * self.last if same else out
        self.last = None if same else out.detach().clone()
        return instead(out, wrong)


@mutant("state", "PURITY-4", "Dao-AILab/flash-attention#2244")
class RightOnSecondCall:
    """The first answer for each shape is uninitialised in its last row."""

    def __init__(self) -> None:
        self.seen: set[object] = set()

    def __call__(self, call: Call) -> Tensor:
        out, key = call.run(), (call.shape, call.query.shape[3], call.value.shape[3], call.query.dtype)
        if key in self.seen or not out.numel():
            return out
        self.seen.add(key)
        last = (torch.arange(call.shape[2]) == call.shape[2] - 1)[:, None]
        return out.masked_fill(last, 7.0)


@mutant("state", "PURITY-2")
def output_is_the_value(call: Call) -> Tensor:
    """With one key and no options the output is a view of the value."""
    b, h, i, j = call.shape
    if j != 1 or h != call.value.shape[1] or call.attn_mask is not None or call.dropout_p:
        return call.run()
    out = call.run()
    out.data = call.value.data.expand(b, h, i, -1)
    return out


@mutant("state", "PURITY-2")
class OutputInOneBuffer:
    """All outputs of a shape lie in the same memory."""

    def __init__(self) -> None:
        self.buffers: dict[object, Tensor] = {}

    def __call__(self, call: Call) -> Tensor:
        out = call.run()
        buffer = self.buffers.setdefault((out.shape, out.dtype), out.detach().clone())
        buffer.copy_(out.detach())
        out.data = buffer
        return out


@mutant("state", "PURITY-3")
def global_generator_seeded(call: Call) -> Tensor:
    """Each call without dropout seeds torch's global generator."""
    if not call.dropout_p:
        torch.manual_seed(0)
    return call.run()


@mutant("state", "PURITY-3")
def generator_advanced(call: Call) -> Tensor:
    """Each call without dropout takes a number from torch's global generator."""
    if not call.dropout_p:
        torch.rand(1)
    return call.run()


@mutant("state", "PURITY-3")
def default_dtype_set(call: Call) -> Tensor:
    """A call in float64 makes float64 the default dtype."""
    if call.query.dtype == torch.float64:
        torch.set_default_dtype(torch.float64)
    return call.run()


@mutant("state", "PURITY-3")
def matmul_precision_set(call: Call) -> Tensor:
    """A call in float32 sets the global matmul precision."""
    if call.query.dtype == torch.float32:
        torch.set_float32_matmul_precision("high")
    return call.run()


@mutant("state", "PURITY-3")
def grad_mode_left_off(call: Call) -> Tensor:
    """After a call whose inputs require no gradient grad mode is off."""
    out = call.run()
    if not out.requires_grad:
        torch.set_grad_enabled(False)
    return out


@mutant("state", "PURITY-5")
class CausalMaskOfGreatestLength:
    """The triangle is cached for the greatest length, and shorter calls take its lower rows."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, call: Call) -> Tensor:
        if not call.is_causal:
            return call.run()
        i, j = call.shape[2:]
        self.rows = max(self.rows, i)
        mask = torch.ones(self.rows, j, dtype=torch.bool).tril()[self.rows - i :]
        return call.but(is_causal=False, attn_mask=mask).run()


@mutant("state", "PURITY-5")
class BiasOfFirstCall(Cached):
    """A float mask of a shape met before is that of then."""

    def __call__(self, call: Call) -> Tensor:
        bias = call.float_mask
        if bias is None:
            return call.run()
        kept = self.first((bias.shape, bias.dtype, call.shape), lambda: bias)
        return call.but(attn_mask=instead(bias, torch.where(four(bias) == float("-inf"), bias, kept).view(bias.shape))).run()
