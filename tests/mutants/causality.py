"""Faults of causal masks: alignment, the diagonal, the loop over blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import Keys, Steps, causal_as, run_with_causal, seeing


@mutant("causal", "CAUSAL-1", "PaddlePaddle/flash-attention#48")
def causal_off_by_one(call: Call) -> Tensor:
    """A query does not see the key at its own position."""
    return run_with_causal(call, -1)


@mutant("causal", "CAUSAL-1")
def causal_sees_next(call: Call) -> Tensor:
    """A query sees the key after its own."""
    return run_with_causal(call, 1)


@mutant(
    "causal",
    "CAUSAL-3",
    "pytorch/executorch#22426 NVIDIA/cudnn-frontend#493",
)
def causal_bottom_right(call: Call) -> Tensor:
    """The last query sees the last key, where SDPA aligns the first query with the first key."""
    return run_with_causal(call, call.shape[3] - call.shape[2])


@mutant("causal", "CAUSAL-4", "ml-explore/mlx#2967")
def causal_alignment_changes_with_more_keys(call: Call) -> Tensor:
    """Top-left while there are at least as many queries as keys, bottom-right otherwise."""
    return run_with_causal(call, max(call.shape[3] - call.shape[2], 0))


@mutant("causal", "CAUSAL-4")
def causal_alignment_changes_with_more_queries(call: Call) -> Tensor:
    """Top-left while there are at least as many keys as queries, bottom-right otherwise."""
    return run_with_causal(call, min(call.shape[3] - call.shape[2], 0))


@mutant("causal", "CAUSAL-4")
def causal_alignment_for_one_query(call: Call) -> Tensor:
    """A single query sees all keys, as in decoding; several are aligned top-left."""
    return run_with_causal(call, call.shape[3] - 1 if call.shape[2] == 1 else 0)


@mutant("causal", "CAUSAL-4")
def causal_alignment_in_tail_block(call: Call) -> Tensor:
    """Queries behind the last full 16 are aligned bottom-right."""
    i, j = call.shape[2:]
    return causal_as(call, lambda r, c: c <= r + (r >= i // 16 * 16) * (j - i if i > 16 else 0))


@mutant("causal", "CAUSAL-4")
def causal_alignment_of_half(call: Call) -> Tensor:
    """In bfloat16 causal is aligned bottom-right."""
    return run_with_causal(call, call.shape[3] - call.shape[2] if call.query.dtype == torch.bfloat16 else 0)


@mutant("causal", "CAUSAL-4")
def causal_alignment_with_lengths_apart(call: Call) -> Tensor:
    """Bottom-right where there are more than twice as many keys as queries."""
    i, j = call.shape[2:]
    return run_with_causal(call, j - i if j > 2 * i else 0)


@mutant("causal", "CAUSAL-1", "jax-ml/jax#19237 pytorch/pytorch#99282 facebookresearch/xformers#1185")
def causal_not_read(call: Call) -> Tensor:
    """is_causal is accepted and not read."""
    return call.but(is_causal=False).run()


@mutant("causal", "CAUSAL-1", "facebookresearch/xformers#103")
def causal_ignored_in_second_item(call: Call) -> Tensor:
    """From the second batch item on causal is not read."""
    if not call.is_causal:
        return call.run()
    late = (torch.arange(call.shape[0]) > 0)[:, None, None, None]
    return seeing(call, call.visible | late)


@mutant("causal", "CAUSAL-1")
def causal_ignored_in_last_head(call: Call) -> Tensor:
    """In the last of several heads causal is not read."""
    h = call.shape[1]
    last = ((torch.arange(h) == h - 1) & (h > 1))[:, None, None]
    return seeing(call, call.visible | last) if call.is_causal else call.run()


@mutant("causal", "CAUSAL-5", "ROCm/aiter#4682")
def diagonal_tile_unmasked(call: Call) -> Tensor:
    """The tile of 16 by 16 that the diagonal crosses is computed without the mask."""
    return causal_as(call, lambda r, c: c // 16 <= r // 16)


@mutant("causal", "CAUSAL-5")
def diagonal_tile_of_64_unmasked(call: Call) -> Tensor:
    """Behind the first 64 queries the tile of 64 by 64 that the diagonal crosses is computed without the mask."""
    return causal_as(call, lambda r, c: torch.where(r < 64, c <= r, c // 64 <= r // 64))


@mutant("causal", "CAUSAL-1", "HKUSTDial/flash-sparse-attention#213")
def loop_ends_a_block_early(call: Call) -> Tensor:
    """The loop over blocks of 16 keys ends at the block before the diagonal's, where there is one."""
    return causal_as(call, lambda r, c: (c <= r) & ((c // 16 < r // 16) | (r < 16)))


@mutant("causal", "CAUSAL-1")
def causal_slides_by_block(call: Call) -> Tensor:
    """From the second block of 16 queries on the diagonal is 16 keys too far left."""
    return causal_as(call, lambda r, c: c <= r - 16 * (r >= 32))


@mutant("causal", "CAUSAL-1", "microsoft/onnxruntime#25927 huggingface/transformers#39408")
def causal_with_window_of_32(call: Call) -> Tensor:
    """Under causal only the last 32 keys are seen."""
    return causal_as(call, lambda r, c: (c <= r) & (c > r - 32))


@mutant("causal", "CAUSAL-1")
def causal_last_row_sees_all(call: Call) -> Tensor:
    """The last query sees all keys, where there are more keys than queries."""
    return causal_as(call, lambda r, c: (c <= r) | (r == call.shape[2] - 1))


@mutant("causal", "CAUSAL-1")
def causal_first_row_sees_two(call: Call) -> Tensor:
    """The first query sees the second key, too."""
    return causal_as(call, lambda r, c: (c <= r) | (c == 1))


@mutant("causal", "CAUSAL-1")
def causal_strict_from_64(call: Call) -> Tensor:
    """From query 64 on a query does not see its own key."""
    return causal_as(call, lambda r, c: c <= r - 1 * (r >= 64))


@mutant("causal", "CAUSAL-3")
def causal_strict_with_more_queries(call: Call) -> Tensor:
    """Where there are more queries than keys, a query does not see its own key."""
    return run_with_causal(call, -1 * (call.shape[2] > call.shape[3]))


@mutant("causal", "CAUSAL-1")
class CausalForgottenInDk(Steps):
    """dk is summed over all queries, those before the key included, with probabilities that backward does not mask."""

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        if self.call.is_causal:
            ds = ds + 1e-2 * self.plan.hidden[..., keys]
        return ds.mT @ self.q


@mutant("causal", "CAUSAL-1")
class CausalStrictInBackward(Steps):
    """Backward leaves out the diagonal."""

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        ds = super().dscores(p, dp, delta, keys)
        if not self.call.is_causal:
            return ds
        r, c = torch.arange(ds.shape[2])[:, None], torch.arange(keys.start, keys.start + ds.shape[3])
        return ds.masked_fill(r == c, 0.0)


@mutant("causal", "CAUSAL-1")
def causal_transposed(call: Call) -> Tensor:
    """A query sees the keys from its own position on."""
    return causal_as(call, lambda r, c: c >= r)


@mutant("causal", "CAUSAL-6", "keras-team/keras#23040", raw=True)
def mask_wins_over_causal(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """Beside a mask causal is not read."""
    return separate(q, k, v, mask, bias, causal and mask is None, scale)


@mutant("causal", "CAUSAL-6", "NVIDIA-NeMo/Automodel#2658", raw=True)
def causal_wins_over_mask(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """Beside causal the mask is not read."""
    return separate(q, k, v, None if causal else mask, bias, causal, scale)


@mutant("causal", "CAUSAL-6", raw=True)
def causal_ignored_beside_bias(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """Beside a bias causal is not read."""
    return separate(q, k, v, mask, bias, causal and bias is None, scale)


@mutant("causal", "BIAS-1", raw=True)
def bias_ignored_beside_mask(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """Beside a mask the bias is not read."""
    return separate(q, k, v, mask, bias if mask is None else None, causal, scale)


@mutant("causal", "CAUSAL-6", raw=True)
def mask_or_causal(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """A key is seen where mask or causal allow it."""
    i, j = q.shape[2], k.shape[2]
    if mask is not None and causal:
        mask, causal = mask | torch.ones(i, j, dtype=torch.bool).tril(j - i), False
    return separate(q, k, v, mask, bias, causal, scale)


@mutant("causal", "CAUSAL-2", "Dao-AILab/flash-attention#282 intel/sycl-tla#314 thu-ml/SageAttention#372 onnx/onnx#8054", raw=True)
def causal_top_left_beside_mask(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """Bottom-right alone, top-left beside a mask."""
    if mask is None or not causal:
        return separate(q, k, v, mask, bias, causal, scale)
    return separate(q, k, v, mask & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), bias, False, scale)


def separate(q, k, v, mask=None, bias=None, causal=False, scale=None):
    """Right: mask, bias and causal (bottom-right) all hold."""
    call, (i, j) = Call(q, k, v, bias, scale=scale), (q.shape[2], k.shape[2])
    visible = torch.ones(call.shape, dtype=torch.bool) if mask is None else mask.expand(call.shape)
    return seeing(call, visible.tril(j - i) if causal else visible)
