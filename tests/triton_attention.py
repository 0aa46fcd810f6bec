"""A forward kernel in Triton, flash-style, with strides, causal masking aligned bottom-right, groups of heads; and six wrong ones.

It runs on a GPU, or, where TRITON_INTERPRET=1 is set before anything imports triton (torch does), in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 16
# What is wrong with a kernel, and what that does.
WRONG = {
    "rescale": "the sum so far is not made smaller where the maximum of a row grows",
    "corner": "causal masking is aligned top-left",
    "groups": "query head n uses key head n modulo their number",
    "strides": "the last axis of keys is taken for dense",
    "tail": "keys beyond the last one have the score 0",
    "base": "the exponent is one of base 2",
}


@triton.jit
def kernel(
    q, k, v, out, scale, heads, group, i, j, d, e,
    q_b, q_h, q_i, q_d, k_b, k_g, k_j, k_d, v_b, v_g, v_j, v_e, o_b, o_h, o_i, o_e,
    CAUSAL: tl.constexpr, WRONG: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head: keys come block by block, and the sum so far is kept under a running maximum."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    shared = head % (heads // group) if WRONG == "groups" else head // group
    width, value_width = tl.arange(0, D), tl.arange(0, E)
    rows, widths, value_widths = row[:, None] < i, width[None, :] < d, value_width[None, :] < e
    queries = tl.load(q + batch * q_b + head * q_h + row[:, None] * q_i + width[None, :] * q_d, mask=rows & widths, other=0.0)
    step = 1 if WRONG == "strides" else k_d
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    found = tl.zeros([BLOCK, E], tl.float32)
    for first in range(0, j, BLOCK):
        key = first + tl.arange(0, BLOCK)
        there = key[:, None] < j
        keys = tl.load(k + batch * k_b + shared * k_g + key[:, None] * k_j + width[None, :] * step, mask=there & widths, other=0.0)
        values = tl.load(
            v + batch * v_b + shared * v_g + key[:, None] * v_j + value_width[None, :] * v_e, mask=there & value_widths, other=0.0
        )
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee").to(tl.float32) * scale
        if WRONG != "tail":
            scores = tl.where(key[None, :] < j, scores, float("-inf"))
        if CAUSAL:
            offset = 0 if WRONG == "corner" else j - i
            scores = tl.where(key[None, :] <= row[:, None] + offset, scores, float("-inf"))
        new = tl.maximum(peak, tl.max(scores, 1))
        pivot = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - pivot[:, None]) if WRONG == "base" else tl.exp(scores - pivot[:, None])
        shrink = tl.exp2(peak - pivot) if WRONG == "base" else tl.exp(peak - pivot)
        total = total * shrink + tl.sum(weights, 1)
        if WRONG != "rescale":
            found = found * shrink[:, None]
        found += tl.dot(weights.to(values.dtype), values, input_precision="ieee").to(tl.float32)
        peak = new
    found = found / tl.where(total == 0.0, 1.0, total)[:, None]
    place = out + batch * o_b + head * o_h + row[:, None] * o_i + value_width[None, :] * o_e
    tl.store(place, found.to(out.dtype.element_ty), mask=rows & value_widths)


def launch(q, k, v, causal, scale, wrong=""):
    """The kernel over all blocks of queries and all heads."""
    (b, h, i, d), (g, j), e = q.shape, k.shape[1:3], v.shape[3]
    out = q.new_empty(b, h, i, e)
    if out.numel() == 0:
        return out
    grid = (triton.cdiv(i, BLOCK), b * h)
    padded = (max(16, triton.next_power_of_2(n)) for n in (d, e))
    strides = (n for x in (q, k, v, out) for n in x.stride())
    kernel[grid](
        q, k, v, out, d**-0.5 if scale is None else scale, h, h // g, i, j, d, e, *strides, causal, wrong, BLOCK, *padded
    )  # fmt: skip
    return out


def attend(q, k, v, causal=False, scale=None, enable_gqa=False):
    return launch(q, k, v, causal, scale)


def made(wrong):
    def attend(q, k, v, causal=False, scale=None, enable_gqa=False):
        return launch(q, k, v, causal, scale, wrong)

    return attend


rescale, corner, groups, strides, tail, base = (made(wrong) for wrong in WRONG)
