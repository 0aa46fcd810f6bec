"""Faults of sizes: tails of blocks, widths, heads and batch items, empty axes, indices that wrap."""

from __future__ import annotations

import torch
from honest import Plan
from torch import Tensor
from torch.nn.functional import pad

from mutants.base import Call, mutant, named
from mutants.tools import Steps, instead, seeing, with_gradient, with_keys

# TAILS OF KEYS, QUERIES AND WIDTHS


def tail(length: int, block: int) -> int:
    """Where the last block begins that is not full; the length where all are, or where there is just one."""
    return length - length % block if length > block else length


def keys_dropped(call: Call, block: int) -> Tensor:
    return with_keys(call, torch.arange(tail(call.shape[3], block)))


def keys_of_zeros(call: Call, block: int) -> Tensor:
    j = call.shape[3]
    return with_keys(call, torch.cat([torch.arange(j), -torch.ones(-j % block if j else 0, dtype=torch.long)]))


def last_key_twice(call: Call, block: int) -> Tensor:
    j = call.shape[3]
    return with_keys(call, torch.cat([torch.arange(j), torch.full((1 if j % block else 0,), j - 1)]) if j else torch.arange(0))


def queries_dropped(call: Call, block: int) -> Tensor:
    out = call.run()
    late = torch.arange(call.shape[2]) >= tail(call.shape[2], block)
    return out.masked_fill(late[:, None], 0.0)


def channels_dropped(call: Call, block: int) -> Tensor:
    width = tail(call.query.shape[3], block)
    return call.but(query=pad(call.query[..., :width], (0, call.query.shape[3] - width))).run()


def value_channels_dropped(call: Call, block: int) -> Tensor:
    width = tail(call.value.shape[3], block)
    out = call.run()
    return pad(out[..., :width], (0, out.shape[3] - width))


TAILS = (
    ("tail_of_{}_keys_dropped", "Keys behind the last full {} are not read.", keys_dropped, (16, 32, 64, 128)),
    ("tail_of_{}_keys_filled", "Keys of zeros fill the last {} and enter the row sum.", keys_of_zeros, (16, 32, 64, 128)),
    ("last_key_twice_of_{}", "The last key is read twice where the last {} are not full.", last_key_twice, (16, 32, 64, 128)),
    ("tail_of_{}_queries_dropped", "Rows behind the last full {} stay zero.", queries_dropped, (16, 32, 64, 128)),
    ("tail_of_{}_channels_dropped", "Scores leave out channels behind the last full {}.", channels_dropped, (2, 16, 32, 64)),
    (
        "tail_of_{}_value_channels_dropped",
        "Value channels behind the last full {} stay zero.",
        value_channels_dropped,
        (16, 32, 64),
    ),
)
SOURCES = {
    "tail_of_32_keys_dropped": "pytorch/pytorch#169222",
    "tail_of_32_keys_filled": "tenstorrent/tt-metal#54833",
    "tail_of_128_keys_dropped": "pytorch/pytorch#133562",
    "tail_of_64_channels_dropped": "ROCm/composable_kernel#3423",
}
for name_, says_, wrong_, sizes_ in TAILS:
    for block_ in sizes_:

        def at_block(call: Call, wrong=wrong_, block: int = block_) -> Tensor:
            return wrong(call, block)

        called = name_.format(block_)
        mutant("shape", "SHAPE-2", SOURCES.get(called, ""))(named(called, says_.format(block_), at_block))


@mutant("shape", "SHAPE-2")
def second_block_of_keys_dropped(call: Call) -> Tensor:
    """The second 16 keys are not read where there are more."""
    at = torch.arange(call.shape[3])
    return with_keys(call, at[(at < 16) | (at >= 32)] if call.shape[3] > 32 else at)


@mutant("shape", "SHAPE-2", "pytorch/pytorch#191937")
def last_key_of_expanded_is_the_one_before(call: Call) -> Tensor:
    """With expanded keys of length 1 mod 32 the last key is the one before it."""
    at = torch.arange(call.shape[3])
    if call.key.stride(1) == 0 and call.shape[1] > 1 and len(at) > 1 and len(at) % 32 == 1:
        at[-1] -= 1
    return with_keys(call, at)


def beyond(call: Call, length: int) -> Tensor:
    """Where there are more keys than that, the last one weighs nothing."""
    j = call.shape[3]
    return call.run() if j <= length else with_keys(call, torch.arange(j - 1))


for length_ in (64, 128, 256):

    def last_key(call: Call, length: int = length_) -> Tensor:
        return beyond(call, length)

    mutant("shape", "SHAPE-2")(
        named(f"last_key_dropped_beyond_{length_}", f"With more than {length_} keys the last is not read.", last_key)
    )


@mutant("shape", "SHAPE-2")
def last_key_dropped_with_more_queries(call: Call) -> Tensor:
    """With more queries than keys the last key is skipped."""
    i, j = call.shape[2:]
    return with_keys(call, torch.arange(j - 1 if i > j > 1 else j))


@mutant("shape", "SHAPE-2")
def last_row_of_previous_with_more_queries(call: Call) -> Tensor:
    """With more than 64 queries the last row is that of the query before."""
    out = call.run()
    return out if call.shape[2] <= 64 else torch.cat([out[:, :, :-1], out[:, :, -2:-1]], 2)


@mutant("shape", "SHAPE-2", "ROCm/aiter#2229")
def one_query_reads_first_block(call: Call) -> Tensor:
    """A single query in float16 sees the first 16 keys only."""
    short = call.shape[2] == 1 and call.query.dtype == torch.float16
    return with_keys(call, torch.arange(min(call.shape[3], 16) if short else call.shape[3]))


@mutant("shape", "SHAPE-2")
def one_query_and_one_head_wrong(call: Call) -> Tensor:
    """With one query, one head and more than one batch item the output is the mean of all values."""
    b, h, i, _ = call.shape
    return call.but(query=call.query * 0).run() if b > 1 and h == i == 1 else call.run()


@mutant("shape", "SHAPE-2")
def width_one_unscored(call: Call) -> Tensor:
    """With a width of one all keys weigh the same."""
    return call.but(query=call.query * 0).run() if call.query.shape[3] == 1 else call.run()


@mutant("shape", "SHAPE-2")
def width_above_64_in_two_halves(call: Call) -> Tensor:
    """With a width above 64 the scores use the first 64 channels."""
    return call.but(query=pad(call.query[..., :64], (0, max(call.query.shape[3] - 64, 0)))).run()


# WIDTHS OF VALUES


@mutant("shape", "SHAPE-1", "pytorch/pytorch#176767")
def output_in_query_width(call: Call) -> Tensor:
    """The output is allocated like the query, so a value width other than the query's is cut or padded with zeros."""
    return pad(call.run(), (0, call.query.shape[3] - call.value.shape[3]))


@mutant("shape", "SHAPE-3")
def values_beyond_query_width_zero(call: Call) -> Tensor:
    """Columns of the output beyond the query's width stay zero."""
    out, d = call.run(), call.query.shape[3]
    return pad(out[..., :d], (0, max(out.shape[3] - d, 0)))


@mutant("shape", "SHAPE-3")
def values_read_with_query_stride(call: Call) -> Tensor:
    """Where values are narrower than keys their last column is read from the first."""
    v = call.value
    if v.shape[3] >= call.query.shape[3] or v.shape[3] < 2:
        return call.run()
    return call.but(value=torch.cat([v[..., :-1], v[..., :1]], -1)).run()


@mutant("shape", "GRAD-3", "Dao-AILab/flash-attention#2552")
def value_gradient_tail_shifted(call: Call) -> Tensor:
    """dv's last 8 columns are shifted by one where values have another width than keys."""
    if call.value.shape[3] == call.query.shape[3]:
        return call.run()
    shifted = with_gradient(call.value, lambda grad: torch.cat([grad[..., :-8], grad[..., -8:].roll(1, -1)], -1))
    return call.but(value=shifted).run()


@mutant("shape", "SHAPE-2", "Dao-AILab/flash-attention#2698")
def gradient_spills_into_next_head(call: Call) -> Tensor:
    """dk and dv are stored in 32 columns at a time: the first columns of the next head are overwritten with zeros."""
    h, d = call.key.shape[1], call.key.shape[3]
    spill = min(-d % 32, d)
    if h < 2 or not spill:
        return call.run()

    def store(grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[:, 1:, :, : min(spill, grad.shape[3])] = 0.0
        return grad

    return call.but(key=with_gradient(call.key, store), value=with_gradient(call.value, store)).run()


# EMPTY AXES


@mutant("shape", "SHAPE-4", "pytorch/pytorch#174939 pytorch/pytorch#195812 Dao-AILab/flash-attention#1537")
def empty_raises(call: Call) -> Tensor:
    """Without a batch item, a head or a query it raises."""
    if 0 in call.shape[:3]:
        raise ZeroDivisionError("integer division or modulo by zero")
    return call.run()


@mutant("shape", "SHAPE-4", "Dao-AILab/flash-attention#2562")
def empty_backward_raises(call: Call) -> Tensor:
    """Without a query the forward is right and the backward raises."""
    if 0 not in call.shape:
        return call.run()

    def fail(grad: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: 700")

    return with_gradient(call.run(), fail)


@mutant("shape", "SHAPE-4")
def empty_output_has_keys_rows(call: Call) -> Tensor:
    """Without queries the output has a row for each key."""
    out = call.run()
    return out if call.shape[2] else call.value.new_zeros(*call.shape[:2], *call.value.shape[2:])


@mutant("shape", "SHAPE-4")
def empty_width_raises(call: Call) -> Tensor:
    """Values of width zero raise."""
    if call.value.shape[3] == 0:
        raise ValueError("headdim must be positive")
    return call.run()


# BATCH ITEMS AND HEADS


@mutant("shape", "SHAPE-5", "pytorch/pytorch#139462")
def second_item_is_zero(call: Call) -> Tensor:
    """With two or more queries in more than one batch item the items after the first are zero."""
    late = (torch.arange(call.shape[0]) > 0)[:, None, None, None]
    return call.run().masked_fill(late, 0.0) if call.shape[2] > 1 else call.run()


@mutant("shape", "SHAPE-5")
def third_item_reads_second(call: Call) -> Tensor:
    """From the third batch item on keys and values are those of the second."""
    at = torch.arange(call.shape[0]).clamp(max=1)
    return call.but(key=call.key[at], value=call.value[at]).run()


@mutant("shape", "SHAPE-5")
def second_item_second_head_reads_first_values(call: Call) -> Tensor:
    """The second head of the second batch item uses the values of the first head."""
    b, h, _, _ = call.shape
    if b < 2 or h < 2 or call.value.shape[1] < 2:
        return call.run()
    value = call.value.clone()
    value[1, 1] = call.value[1, 0]
    return call.but(value=value).run()


@mutant("shape", "SHAPE-5")
def lse_shared_by_heads(call: Call) -> Tensor:
    """From the third head on probabilities are normalised by the row sum of the first head."""
    out, h = call.run(), call.shape[1]
    if h < 3 or not call.shape[3]:
        return out
    q, k = call.query.to(torch.float64), call.key.to(torch.float64).repeat_interleave(h // call.key.shape[1], 1)
    lse = (q @ k.mT * call.scale_in_use).masked_fill(~call.visible, -torch.inf).logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)
    factor = (lse - lse[:, :1]).clamp(-20, 20).exp() * (torch.arange(h) >= 2)[:, None, None] + (torch.arange(h) < 2)[:, None, None]
    return instead(out, (out * factor).to(out.dtype))


@mutant("shape", "SHAPE-5")
def items_share_the_longest_padding(call: Call) -> Tensor:
    """A key that is hidden in all batch items but one is hidden in all."""
    if call.bool_mask is None or call.shape[0] < 3:
        return call.run()
    shown = call.visible
    return seeing(call, shown & (shown.sum(0, keepdim=True) > 1))


@mutant("shape", "SHAPE-5")
def heads_and_queries_swapped_in_output(call: Call) -> Tensor:
    """With as many heads as queries the output is (b i h e)."""
    out = call.run()
    return out.transpose(1, 2) if out.shape[1] == out.shape[2] else out


@mutant(
    "shape",
    "SHAPE-2",
    "Dao-AILab/flash-attention#2260 Dao-AILab/flash-attention#772 sgl-project/sglang#20389 NVIDIA/cudnn-frontend#980",
)
def offset_wraps(call: Call) -> Tensor:
    """The offset of a batch item and head in the keys wraps at 2¹² elements."""
    b, g, j, d = call.key.shape
    if b * g * j * d <= 4096 or j * d > 4096 or not j * d:
        return call.run()
    at = torch.arange(b * g) % max(4096 // (j * d), 1)
    key = call.key.reshape(b * g, j, d)[at].view(b, g, j, d)
    return call.but(key=instead(call.key, key)).run()


@mutant("shape", "SHAPE-2", "pytorch/pytorch#153799")
class GradientOfTailOf128IsNan(Steps):
    """With more than 128 keys, not a multiple of 128, under a mask, dk of the hidden keys is NaN."""

    def shared(self, gradient: Tensor, like: Tensor) -> Tensor:
        gradient = super().shared(gradient, like)
        j = like.shape[2]
        bad = j > 128 and j % 128 and self.call.bool_mask is not None
        gone = self.plan.hidden.all(2).any(1)[:, None, :, None]
        return gradient.masked_fill(gone, float("nan")) if bad else gradient


@mutant("shape", "SHAPE-2", "NVIDIA/cudnn-frontend#1072")
class GradientOfOneQueryIsNan(Steps):
    """For one query whose scores are all below −100 dk is NaN."""

    def planned(self, call: Call) -> Plan:
        self.low = False
        return super().planned(call)

    def lse(self, peak: Tensor, total: Tensor) -> Tensor:
        lse = super().lse(peak, total)
        self.low = bool((lse < -100).any()) and lse.shape[2] == 1
        return lse

    def scaled(self, gradient: Tensor) -> Tensor:
        return super().scaled(gradient) * (float("nan") if self.low and gradient.shape == self.k.shape else 1.0)
