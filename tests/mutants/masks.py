"""Faults of masks: polarity, broadcasting, what is filled in, which blocks are read."""

from __future__ import annotations

from itertools import product
from math import inf

import torch
from honest import Plan, softmax
from torch import Tensor

from mutants.base import Call, mutant, named
from mutants.tools import Keys, Steps, dense, form, four, read, seeing, with_bool_mask


@mutant(
    "mask",
    "MASK-1",
    "InseeFrLab/torchTextClassifiers#92 lucidrains/halonet-pytorch#4 deepspeedai/DeepSpeed#1912 mlverse/torch#1208",
)
def mask_inverted(call: Call) -> Tensor:
    """A bool mask hides where it is True."""
    return with_bool_mask(call, lambda mask: ~mask)


@mutant("mask", "MASK-1", "NVIDIA/FasterTransformer#714 AI4Bharat/IndicBERT#20")
def mask_not_read(call: Call) -> Tensor:
    """A bool mask is accepted and not read."""
    return with_bool_mask(call, torch.ones_like)


@mutant("mask", "MASK-2", "tenstorrent/tt-metal#39910")
def padding_of_first_batch_item(call: Call) -> Tensor:
    """A key padding mask (b 1 1 j) is read from batch item 0 for all."""
    mask = call.attn_mask
    if mask is not None and mask.ndim == 4 and mask.shape[1] == mask.shape[2] == 1:
        mask = mask[:1]
    return call.but(attn_mask=mask).run()


@mutant("mask", "MASK-3", "onnx/onnx#8108")
def rank_3_mask_per_batch_item(call: Call) -> Tensor:
    """A mask (h i j) is read as (b i j) where there are as many batch items as heads."""
    mask = call.attn_mask
    if mask is not None and mask.ndim == 3 and mask.shape[0] == call.query.shape[0]:
        mask = mask[:, None]
    return call.but(attn_mask=mask).run()


@mutant("mask", "MASK-1", "microsoft/onnxruntime#18945")
def mask_as_prefix_length(call: Call) -> Tensor:
    """Of each row of a bool mask only the number of visible keys is used, as the length of a prefix."""

    def prefix(mask: Tensor) -> Tensor:
        mask = mask.expand(call.shape)
        return torch.arange(call.shape[3], device=mask.device) < mask.sum(-1, keepdim=True)

    return with_bool_mask(call, prefix)


@mutant("mask", "MASK-1")
def mask_of_first_query(call: Call) -> Tensor:
    """The first query's row of a mask is used for all queries of its head."""
    return with_bool_mask(call, lambda mask: four(mask)[:, :, :1])


@mutant("mask", "MASK-1")
def mask_transposed(call: Call) -> Tensor:
    """Where there are as many queries as keys the mask is read with the two swapped."""
    return with_bool_mask(call, lambda mask: four(mask).mT if four(mask).shape[2] == four(mask).shape[3] else mask)


@mutant("mask", "MASK-3", "deepspeedai/DeepSpeed#2285")
def float32_mask_with_stride_of_scores(call: Call) -> Tensor:
    """In float32 a mask is walked with the strides of the scores, and begins again at its end."""
    b, h, i, j = call.shape

    def walked(mask: Tensor) -> Tensor:
        return mask.flatten()[torch.arange(b * h * i * j) % mask.numel()].view(call.shape) if mask.numel() else mask

    return with_bool_mask(call, walked) if call.query.dtype == torch.float32 else call.run()


@mutant("mask", "MASK-3", "jax-ml/jax#28974")
def mask_without_queries_refused(call: Call) -> Tensor:
    """A mask that does not vary over the queries raises where there is more than one query."""
    if call.bool_mask is not None and four(call.bool_mask).shape[2] != call.shape[2]:
        raise ValueError("attn_mask must have a row for each query")
    return call.run()


@mutant("mask", "MASK-1", "vllm-project/vllm-ascend#15503")
def mask_ignored_beyond_512(call: Call) -> Tensor:
    """A mask is not read for keys from 512 on."""
    return with_bool_mask(call, lambda mask: mask | (torch.arange(mask.shape[-1]) >= 512))


@mutant("mask", "MASK-1")
def mask_ignored_beyond_64(call: Call) -> Tensor:
    """A mask is not read for keys from 64 on."""
    return with_bool_mask(call, lambda mask: mask | (torch.arange(mask.shape[-1]) >= 64))


@mutant("mask", "MASK-1", "pytorch/pytorch#141126")
def partial_block_taken_for_full(call: Call) -> Tensor:
    """A block of 16 keys of which a row sees the first and the last is computed without its mask."""

    def full(mask: Tensor) -> Tensor:
        mask = mask.clone()
        for start in range(0, mask.shape[-1], 16):
            block = mask[..., start : start + 16]
            block |= block[..., :1] & block[..., -1:]
        return mask

    return with_bool_mask(call, full)


@mutant("mask", "MASK-1")
def block_skipped_by_its_first_key(call: Call) -> Tensor:
    """A block of 16 keys whose first key is hidden from a row is skipped for that row."""

    def skipped(mask: Tensor) -> Tensor:
        mask = mask.clone()
        for start in range(0, mask.shape[-1], 16):
            mask[..., start : start + 16] &= mask[..., start : start + 1]
        return mask

    return with_bool_mask(call, skipped)


@mutant("mask", "MASK-1")
def block_skipped_by_its_first_query(call: Call) -> Tensor:
    """A block of 16 keys that is all hidden from the first of 16 queries is skipped for all 16."""

    def skipped(mask: Tensor) -> Tensor:
        mask = mask.expand(call.shape).clone()
        for r, c in product(range(0, mask.shape[2], 16), range(0, mask.shape[3], 16)):
            tile = mask[:, :, r : r + 16, c : c + 16]
            tile &= tile[:, :, :1].any(-1, keepdim=True)
        return mask

    return with_bool_mask(call, skipped)


@mutant("mask", "MASK-1")
def mask_ignored_in_second_item_second_head(call: Call) -> Tensor:
    """The mask is not read from the second head of the second batch item on."""
    b, h, _, _ = call.shape
    late = ((torch.arange(b)[:, None] > 0) & (torch.arange(h) > 0))[..., None, None]
    return with_bool_mask(call, lambda mask: mask | late)


@mutant("mask", "MASK-1")
def mask_of_kv_head(call: Call) -> Tensor:
    """With grouped heads the mask is indexed by the key/value head."""
    h, g = call.shape[1], max(call.key.shape[1], 1)
    at = torch.arange(h) // max(h // g, 1)
    return with_bool_mask(call, lambda mask: four(mask)[:, at] if four(mask).shape[1] == h else mask)


@mutant("mask", "MASK-1")
def mask_ignored_for_one_query(call: Call) -> Tensor:
    """The decode path for a single query does not read the mask."""
    return call.but(attn_mask=None if call.bool_mask is not None and call.shape[2] == 1 else call.attn_mask).run()


@mutant("mask", "MASK-1")
def all_hidden_taken_for_no_mask(call: Call) -> Tensor:
    """A row of the mask that hides everything is read as one that hides nothing."""
    return with_bool_mask(call, lambda mask: mask | ~mask.any(-1, keepdim=True))


def filled_with(call: Call, lowest: float) -> Tensor:
    """Hidden scores get a finite number instead of −∞."""
    return call.run(dense, normalise=lambda s: torch.softmax(s.masked_fill(s == -inf, lowest), -1))


@mutant("mask", "MASK-4")
def hidden_scores_of_minus_10000(call: Call) -> Tensor:
    """Hidden scores become −10⁴, which very negative visible scores lie below."""
    return filled_with(call, -1e4)


@mutant("mask", "EMPTY-1")
def hidden_scores_of_lowest(call: Call) -> Tensor:
    """Hidden scores become the lowest finite number, so a row without a key is the mean of all values."""
    return filled_with(call, torch.finfo(torch.float32).min)


@mutant("mask", "MASK-1")
def hidden_scores_of_minus_50(call: Call) -> Tensor:
    """Hidden scores become −50."""
    return filled_with(call, -50.0)


@mutant("mask", "MASK-1", "pytorch/pytorch#108503")
def mask_added_in_half(call: Call) -> Tensor:
    """Under a mask the scores are rounded to bfloat16 when −∞ is added, in every dtype but float64."""
    if call.query.dtype == torch.float64 or call.bool_mask is None:
        return call.run()
    return call.run(dense, score=lambda s, plan: s.bfloat16().float())


@mutant("mask", "MASK-5", "pytorch/pytorch#101967")
def mask_added_not_selected(call: Call) -> Tensor:
    """−∞ is added to hidden scores, and 0 · NaN reaches the output."""
    if call.bool_mask is None:
        return call.run()

    def score(scores: Tensor, plan: Plan) -> Tensor:
        q, k = call.query.float(), call.key.float().repeat_interleave(call.shape[1] // call.key.shape[1], 1)
        return scores + 0.0 * (q @ k.mT).to(scores.dtype)

    b, g, j, _ = call.value.shape
    seen = call.visible.any(2).view(b, g, -1, j).any(2) if call.value.numel() and call.query.numel() else True
    return call.but(value=torch.where(torch.as_tensor(seen)[..., None], call.value, 0.0)).run(dense, score=score)


@mutant("mask", "MASK-4")
class HiddenKeysInMaximum(Steps):
    """Hidden keys take part in the row's maximum, and a great one makes all visible weights zero."""

    def peak(self, peak: Tensor, scores: Tensor) -> Tensor:
        keys = slice(self.at, self.at + scores.shape[3])
        self.at += scores.shape[3]
        everything = self.q @ self.k[:, :, keys].mT * self.plan.scale
        return torch.maximum(peak, everything.amax(-1, keepdim=True))

    def planned(self, call: Call) -> Plan:
        self.at = 0
        return super().planned(call)


@mutant("mask", "MASK-4")
def hidden_weight_of_1e_9(call: Call) -> Tensor:
    """A hidden key keeps a weight of 10⁻⁹."""
    return call.run(dense, normalise=lambda s: torch.where((s == -inf) & (s != -inf).any(-1, keepdim=True), 1e-9, softmax(s)))


@mutant("mask", "MASK-6")
class HiddenKeysGetGradient(Steps):
    """dk adds a thousandth of the row's dP − D for hidden keys."""

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        return p * (dp - delta) + 1e-3 * (dp - delta) * (self.plan.hidden[..., keys] & ~self.plan.hidden.all(-1, keepdim=True))


@mutant("mask", "MASK-6")
class HiddenValuesGetGradient(Steps):
    """dv is computed with probabilities whose mask was forgotten, where a key is hidden from all."""

    def dv(self, p: Tensor, dout: Tensor, keys: Keys) -> Tensor:
        gone = self.plan.hidden[..., keys].all(2, keepdim=True) & ~self.plan.hidden.all(-1, keepdim=True)
        return (p + 1e-4 * gone).mT @ dout


@mutant("mask", "MASK-1")
class MaskForgottenInBackward(Steps):
    """Backward computes the probabilities without the mask, under the lse of forward."""

    def backward_scores(self, keys: Keys) -> Tensor:
        scores = super().backward_scores(keys)
        if self.call.bool_mask is None:
            return scores
        plain = self.q @ self.k[:, :, keys].mT * self.plan.scale
        return torch.where(self.plan.hidden.all(-1, keepdim=True), scores, plain).clamp(max=60)

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        return p * (dp - delta)


@mutant("mask", "MASK-1")
def last_key_always_visible(call: Call) -> Tensor:
    """The mask of the last key is not read."""
    return with_bool_mask(call, lambda mask: mask | (torch.arange(mask.shape[-1]) == mask.shape[-1] - 1))


@mutant("mask", "MASK-1")
def mask_of_tail_block_ignored(call: Call) -> Tensor:
    """The mask is not read in the last block of 16 keys where that is not full."""
    return with_bool_mask(call, lambda mask: mask | (torch.arange(mask.shape[-1]) >= mask.shape[-1] // 16 * 16))


@mutant("mask", "MASK-1")
def mask_packed_in_bytes(call: Call) -> Tensor:
    """The mask is packed into bytes of eight keys; the last byte of a row that is not full shows everything."""
    return with_bool_mask(call, lambda mask: mask | (torch.arange(mask.shape[-1]) >= max(mask.shape[-1] // 8 * 8, 1)))


@mutant("mask", "MASK-1", "ml-explore/mlx#2894")
def mask_index_wraps(call: Call) -> Tensor:
    """The place of a row in a mask over all four axes is counted modulo 2¹¹ elements."""

    def wrapped(mask: Tensor) -> Tensor:
        if mask.shape != call.shape or not mask.is_contiguous():
            return mask
        return read(mask, (torch.arange(mask.numel()) % 2048) + mask.storage_offset()).view(mask.shape)

    return with_bool_mask(call, wrapped)


@mutant("mask", "MASK-1")
def sees_one_key_more(call: Call) -> Tensor:
    """A row of the mask that hides its last key shows it where the key before is shown."""

    def more(mask: Tensor) -> Tensor:
        mask = mask.clone()
        if mask.shape[-1] > 1:
            mask[..., -1] |= mask[..., -2]
        return mask

    return with_bool_mask(call, more)


@mutant("mask", "MASK-1", "huggingface/transformers#32848")
def mask_of_last_item_alone(call: Call) -> Tensor:
    """Only the last batch item's mask is read; the others see everything."""
    b = call.shape[0]
    return with_bool_mask(call, lambda mask: mask | (torch.arange(b) < b - 1)[:, None, None, None])


@mutant("mask", "MASK-1", "AI-Hypercomputer/maxtext#878")
def mask_ignored_where_it_is_causal_inside(call: Call) -> Tensor:
    """A mask that shows nothing above the diagonal is taken for causal, and its holes below are not read."""
    mask = call.bool_mask
    if mask is None or call.shape[2] < 2 or mask.expand(call.shape).triu(1).any():
        return call.run()
    return seeing(call, torch.ones(call.shape, dtype=torch.bool).tril())


# THE SIXTEEN FORMS


def misread(call: Call, letters: str) -> Tensor:
    """A mask that varies over exactly these axes is read one place further along the first of them."""

    def wrong(mask: Tensor) -> Tensor:
        if form(mask) != letters:
            return mask
        return four(mask).roll(1, "bhij".index(letters[0])) if letters else torch.ones_like(mask)

    return with_bool_mask(call, wrong)


for flags in product((False, True), repeat=4):
    letters_ = "".join(letter for letter, on in zip("bhij", flags, strict=True) if on)
    said = f"over {letters_} is read at its neighbour along {letters_[0]}" if letters_ else "of one element is not read"

    def misread_form(call: Call, letters: str = letters_) -> Tensor:
        return misread(call, letters)

    mutant("mask", "MASK-3")(named(f"mask_over_{letters_ or 'nothing'}_misread", f"A mask {said}.", misread_form))
