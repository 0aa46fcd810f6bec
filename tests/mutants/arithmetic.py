"""Faults of dtypes and of arithmetic that is coarser than its class, and of decoding."""

from __future__ import annotations

from math import inf

import torch
from honest import Plan, eager, for_each_query_head, softmax
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import Keys, Steps, dense, with_gradient, with_keys

HALF = (torch.float16, torch.bfloat16)


@mutant("dtype", "DTYPE-1")
def float32_for_bfloat16(call: Call) -> Tensor:
    """For bfloat16 inputs the accumulator is returned, in float32."""
    out = call.run()
    return out.float() if out.dtype == torch.bfloat16 else out


@mutant("dtype", "DTYPE-1")
def float32_for_float64(call: Call) -> Tensor:
    """For float64 inputs the output is float32."""
    out = call.run()
    return out.float() if out.dtype == torch.float64 else out


@mutant("dtype", "DTYPE-1", "pytorch/pytorch#161489")
def dtype_of_bias(call: Call) -> Tensor:
    """Beside a float mask the output of half inputs is float32."""
    out = call.run()
    return out.float() if call.float_mask is not None else out


def in_dtype(call: Call, dtype: torch.dtype) -> Tensor:
    """The call in another dtype, and the answer in its own."""
    mask = call.attn_mask if call.float_mask is None else call.float_mask.to(dtype)
    return call.but(**{n: getattr(call, n).to(dtype) for n in ("query", "key", "value")}, attn_mask=mask).run().to(call.query.dtype)


@mutant("dtype", "ACCURACY-4")
def float64_in_float32(call: Call) -> Tensor:
    """float64 inputs are computed in float32."""
    return in_dtype(call, torch.float32) if call.query.dtype == torch.float64 else call.run()


@mutant("dtype", "ACCURACY-4")
def float64_softmax_in_float32(call: Call) -> Tensor:
    """In float64 the softmax alone is computed in float32."""
    return call.run(dense, normalise=lambda s: softmax(s.float()).to(s.dtype))


@mutant("dtype", "ACCURACY-4")
def float64_gradients_through_float32(call: Call) -> Tensor:
    """In float64 dk passes through float32."""
    return call.but(key=with_gradient(call.key, lambda grad: grad.float().to(grad.dtype))).run()


@mutant("dtype", "ACCURACY-1")
def float32_with_bfloat16_probabilities(call: Call) -> Tensor:
    """For float32 inputs the probabilities pass through bfloat16."""
    if call.query.dtype != torch.float32:
        return call.run()
    return call.run(dense, normalise=lambda scores: softmax(scores).bfloat16().float())


@mutant("dtype", "ACCURACY-1")
def float32_in_bfloat16(call: Call) -> Tensor:
    """float32 inputs are computed in bfloat16."""
    return in_dtype(call, torch.bfloat16) if call.query.dtype == torch.float32 else call.run()


@mutant("dtype", "ACCURACY-1")
def float32_in_float16(call: Call) -> Tensor:
    """float32 inputs are computed in float16."""
    return in_dtype(call, torch.float16) if call.query.dtype == torch.float32 else call.run()


@mutant("dtype", "ACCURACY-1", "triton-lang/triton#1821")
def float32_scores_in_tf32(call: Call) -> Tensor:
    """For float32 inputs queries and keys are rounded to 10 bits before their product."""
    if call.query.dtype != torch.float32:
        return call.run()

    def tf32(x: Tensor) -> Tensor:
        bits = x.detach().contiguous().view(torch.int32)
        return x + (((bits + 0x1000) & ~0x1FFF).view(torch.float32) - x).detach()

    return call.but(query=tf32(call.query), key=tf32(call.key)).run()


@mutant("dtype", "ACCURACY-1")
def float32_exponential_in_half(call: Call) -> Tensor:
    """For float32 inputs the scores are rounded to float16 before exp."""
    if call.query.dtype != torch.float32:
        return call.run()
    return call.run(dense, score=lambda s, plan: s + (s.half().float() - s).nan_to_num(0, 0, 0).detach())


@mutant("dtype", "ACCURACY-1")
def float16_through_bfloat16(call: Call) -> Tensor:
    """The output of float16 inputs passes through bfloat16."""
    out = call.run()
    return out.bfloat16().to(out.dtype) if out.dtype == torch.float16 else out


@mutant("dtype", "ACCURACY-1")
def output_truncated(call: Call) -> Tensor:
    """For bfloat16 the output is truncated twice as coarsely as it is stored."""
    out = call.run()
    if out.dtype != torch.bfloat16:
        return out
    return out + ((out.detach().contiguous().view(torch.int16) & ~0x3).view(torch.bfloat16) - out).detach()


def accumulated_in(dtype: torch.dtype):
    def product(p: Tensor, v: Tensor) -> Tensor:
        """The product, summed one key after the other in a half dtype, with the right gradient."""
        total = torch.zeros(*p.shape[:3], v.shape[3], dtype=dtype)
        for j in range(p.shape[3]):
            total = (total + (p[..., j, None] * v[:, :, None, j]).detach().to(dtype)).to(dtype)
        right = p @ v
        return right + (total.to(p.dtype) - right).detach()

    return product


@mutant("dtype", "ACCURACY-1", "pytorch/pytorch#108503")
def float16_accumulator(call: Call) -> Tensor:
    """For float16 inputs the output is summed in float16, one key after the other."""
    return call.run(dense, product=accumulated_in(torch.float16)) if call.query.dtype == torch.float16 else call.run()


@mutant("dtype", "ACCURACY-1")
def bfloat16_accumulator(call: Call) -> Tensor:
    """For bfloat16 inputs the output is summed in bfloat16, one key after the other."""
    return call.run(dense, product=accumulated_in(torch.bfloat16)) if call.query.dtype == torch.bfloat16 else call.run()


@mutant("dtype", "ACCURACY-1")
def row_sum_in_half(call: Call) -> Tensor:
    """For half inputs the row sum is added up in bfloat16, one key after the other."""
    if call.query.dtype not in HALF:
        return call.run()

    def normalise(scores: Tensor) -> Tensor:
        p = softmax(scores)
        total = torch.zeros_like(p[..., :1]).bfloat16()
        for j in range(p.shape[-1]):
            total = total + p[..., j, None].detach().bfloat16()
        return torch.where(total > 0, p / total.float(), p)

    return call.run(dense, normalise=normalise)


@mutant("dtype", "ACCURACY-1")
def scores_in_fp8(call: Call) -> Tensor:
    """For half inputs queries and keys pass through fp8."""
    if call.query.dtype not in HALF:
        return call.run()

    def fp8(x: Tensor) -> Tensor:
        return x + (x.float().clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) - x).detach()

    return call.but(query=fp8(call.query), key=fp8(call.key)).run()


@mutant("dtype", "ACCURACY-2")
class ScoreGradientInFp8(Steps):
    """For half inputs dS passes through fp8."""

    def rounded(self, x: Tensor) -> Tensor:
        x = super().rounded(x)
        return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) if self.call.query.dtype in HALF else x


@mutant("dtype", "ACCURACY-2")
def float32_gradients_through_bfloat16(call: Call) -> Tensor:
    """In float32 dq passes through bfloat16."""
    if call.query.dtype != torch.float32:
        return call.run()
    return call.but(query=with_gradient(call.query, lambda grad: grad.bfloat16().float())).run()


@mutant("dtype", "ACCURACY-2")
class ProbabilitiesOfBackwardInBfloat16(Steps):
    """In float32 backward rounds probabilities and dS to bfloat16."""

    def rounded(self, x: Tensor) -> Tensor:
        return (
            x.bfloat16().to(x.dtype) if self.call.query.dtype == torch.float32 and x.requires_grad is False else super().rounded(x)
        )


@mutant("dtype", "ACCURACY-3")
def tiny_everywhere(call: Call) -> Tensor:
    """The output has 10⁻³⁰ added."""
    return call.run() + 1e-30 if call.query.dtype in (torch.float32, torch.float64) else call.run()


@mutant("dtype", "ACCURACY-1")
def low_scores_as_zero(call: Call) -> Tensor:
    """In float32 weights below e⁻¹⁰ of the greatest are zero."""

    def normalise(scores: Tensor) -> Tensor:
        top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0) if scores.shape[-1] else scores
        return softmax(scores.masked_fill(scores < top - 10, -inf))

    return call.run(dense, normalise=normalise) if call.query.dtype == torch.float32 else call.run()


@mutant("dtype", "ACCURACY-5")
def eager_truncates(call: Call) -> Tensor:
    """In bfloat16 the eager kernel's output is truncated where it is rounded."""
    if call.query.dtype != torch.bfloat16:
        return call.run(eager)
    wide = call.but(**{n: getattr(call, n).float() for n in ("query", "key", "value")})
    wide = wide.but(attn_mask=call.attn_mask if call.float_mask is None else call.float_mask.float()).run(eager)
    cut = (wide.detach().contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32)
    return (wide + (cut - wide).detach()).bfloat16()


# DECODING: FEW QUERIES, MANY KEYS, PARTS THAT ARE MERGED


def in_parts(call: Call, parts: int, merge) -> Tensor:
    """Complete attentions over ranges of keys, merged by `merge(outputs, lse)`; a single query only."""
    if call.shape[2] != 1 or call.shape[3] < parts or call.dropout_p or call.shape[3] == 0:
        return call.run()

    def normalise(scores: Tensor) -> Tensor:
        lse = torch.cat([torch.logsumexp(s, -1, keepdim=True) for s in scores.tensor_split(parts, -1)], -1)
        inside = [softmax(s) for s in scores.tensor_split(parts, -1)]
        share = merge(lse)
        return torch.cat([share[..., [n]] * p for n, p in enumerate(inside)], -1)

    return call.run(dense, normalise=normalise)


@mutant("decode", "SOFTMAX-1")
def parts_averaged(call: Call) -> Tensor:
    """For a single query two ranges of keys are merged by their mean."""
    return in_parts(call, 2, lambda lse: torch.full_like(lse, 0.5))


@mutant("decode", "SOFTMAX-1", "flashinfer-ai/flashinfer#50")
def parts_merged_by_maximum(call: Call) -> Tensor:
    """For a single query the range of keys with the greater lse is the answer."""
    return in_parts(call, 2, lambda lse: torch.nn.functional.one_hot(lse.argmax(-1), 2).to(lse.dtype))


@mutant("decode", "SOFTMAX-1", "vllm-project/flash-attention#34")
def third_part_merged_with_second_lse(call: Call) -> Tensor:
    """For a single query the third range of keys is merged with the lse of the second."""
    return in_parts(call, 3, lambda lse: softmax(lse[..., [0, 1, 1]]))


@mutant("decode", "EMPTY-4", "flashinfer-ai/flashinfer#4051")
def empty_part_nan(call: Call) -> Tensor:
    """For a single query a range of keys that is all hidden gives NaN: −∞ − (−∞)."""
    return in_parts(call, 2, lambda lse: torch.where((lse == -inf).any(-1, keepdim=True), lse - lse, softmax(lse)))


@mutant("decode", "SHAPE-2")
def single_query_sees_full_blocks(call: Call) -> Tensor:
    """A single query sees whole blocks of 32 keys only, where there is one."""
    j = call.shape[3]
    return with_keys(call, torch.arange(j // 32 * 32 if j >= 32 and call.shape[2] == 1 else j))


@mutant("decode", "SHAPE-2")
def few_queries_read_heads_as_rows(call: Call) -> Tensor:
    """With one query and grouped heads the rows of a group are returned in reverse order."""
    h, g = call.query.shape[1], call.key.shape[1]
    out = call.run()
    if call.shape[2] != 1 or g in (0, h):
        return out
    return out.view(out.shape[0], g, h // g, 1, -1).flip(2).reshape(out.shape)


@mutant("decode", "CAUSAL-3", "vllm-project/vllm#23969")
def single_query_ignores_causal(call: Call) -> Tensor:
    """With a single query causal is not read."""
    return call.but(is_causal=call.is_causal and call.shape[2] > 1).run()


@mutant("decode", "SHAPE-5", "Dao-AILab/flash-attention#1537")
def single_query_of_item_zero(call: Call) -> Tensor:
    """With a single query and more than 32 keys the values of the first batch item are used."""
    few = call.shape[2] == 1 and call.shape[3] > 32
    return call.but(value=call.value[:1].expand_as(call.value)).run() if few else call.run()


@mutant("decode", "SHARED-2")
def single_query_grouping(call: Call) -> Tensor:
    """With a single query, query head n uses key/value head n % g."""
    h, g = call.query.shape[1], call.key.shape[1]
    if call.shape[2] != 1 or g in (0, h):
        return call.run()
    at = torch.arange(h) % g
    return call.but(key=call.key[:, at], value=call.value[:, at]).run()


@mutant("decode", "SCALE-1")
def single_query_without_scale(call: Call) -> Tensor:
    """With a single query the default scale is one."""
    return call.but(scale=1.0 if call.scale is None and call.shape[2] == 1 else call.scale).run()


@mutant("decode", "GRAD-2")
class SingleQueryKeyGradient(Steps):
    """With a single query dk of the last block of keys is zero where there are more."""

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        last = keys.stop == self.k.shape[2] and keys.start > 0 and ds.shape[2] == 1
        return super().dk(ds, keys) * (not last)


@mutant("decode", "SOFTMAX-2", "pytorch/pytorch#121558")
def single_key_exponentiated(call: Call) -> Tensor:
    """With a single key exp(s)/exp(s) is computed as it stands."""
    if call.shape[3] != 1:
        return call.run()

    def score(scores: Tensor, plan: Plan) -> Tensor:
        return scores.exp() / scores.exp()

    return call.run(dense, score=score, normalise=lambda s: s.nan_to_num(0.0, 0.0) if call.attn_mask is not None else s)


@mutant("dtype", "DTYPE-2")
def key_gradient_of_query_heads(call: Call) -> Tensor:
    """With grouped heads in bfloat16 dk is rounded to fp8 on its way back."""
    if call.query.dtype != torch.bfloat16 or call.key.shape[1] == call.query.shape[1] or not call.key.shape[1]:
        return call.run()
    key = for_each_query_head(call.key, call.query.shape[1])
    value = for_each_query_head(call.value, call.query.shape[1])
    return call.but(
        key=with_gradient(key, lambda grad: grad.clamp(-448, 448).to(torch.float8_e4m3fn).to(grad.dtype)), value=value
    ).run()
