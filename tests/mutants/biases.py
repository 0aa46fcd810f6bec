"""Faults of the bias: where it is added, how it broadcasts, how its gradient is reduced."""

from __future__ import annotations

from itertools import product
from math import inf

import torch
from honest import Plan
from torch import Tensor

from mutants.base import Call, mutant, named
from mutants.tools import Keys, Steps, dense, form, four, instead, with_bias, with_gradient


@mutant("bias", "BIAS-1")
def bias_scaled(call: Call) -> Tensor:
    """A float mask is added before the scores are scaled, so it is scaled too."""
    return with_bias(call, lambda bias: (bias * call.scale_in_use).masked_fill(bias == -inf, -inf))


@mutant("bias", "BIAS-1", "huggingface/transformers#38094")
def bias_cast_to_bool(call: Call) -> Tensor:
    """A float mask is cast to bool, so what is not zero may attend and what is zero is hidden."""
    return with_bias(call, lambda bias: bias.bool())


@mutant("bias", "BIAS-1", "pytorch/pytorch#107084 mlverse/torch#1208")
def bias_cast_to_hidden(call: Call) -> Tensor:
    """A float mask hides where it is not zero."""
    return with_bias(call, lambda bias: bias == 0)


@mutant("bias", "BIAS-1")
def bias_values_not_read(call: Call) -> Tensor:
    """Of a float mask only −∞ is read."""
    return with_bias(call, lambda bias: torch.where(bias == -inf, bias, bias * 0.0).nan_to_num(0.0, neginf=-inf))


@mutant("bias", "BIAS-1")
def bias_twice(call: Call) -> Tensor:
    """The bias is added twice."""
    return with_bias(call, lambda bias: bias * 2)


@mutant("bias", "BIAS-1", "meta-pytorch/attention-gym#86")
def bias_subtracted(call: Call) -> Tensor:
    """The bias is subtracted; −∞ still hides."""
    return with_bias(call, lambda bias: torch.where(bias == -inf, bias, -bias.masked_fill(bias == -inf, 0.0)))


@mutant("bias", "BIAS-1")
def bias_base_two(call: Call) -> Tensor:
    """The scores are taken to base 2 and the bias is not."""
    return with_bias(call, lambda bias: bias * 0.6931472)


@mutant("bias", "BIAS-1")
def bias_ignored_beyond_64(call: Call) -> Tensor:
    """For keys from 64 on the bias is zero."""
    late = torch.arange(call.shape[3]) >= 64
    return with_bias(call, lambda bias: bias.masked_fill((bias != -inf) & late, 0.0) if bias.shape[-1] == len(late) else bias)


@mutant("bias", "BIAS-2", "cosdt/vllm-ascend#6")
def bias_of_first_item(call: Call) -> Tensor:
    """The bias of the first batch item is used for all."""
    return with_bias(call, lambda bias: four(bias)[:1])


@mutant("bias", "BIAS-2")
def bias_of_first_head(call: Call) -> Tensor:
    """The bias of the first head is used for all."""
    return with_bias(call, lambda bias: four(bias)[:, :1])


@mutant("bias", "BIAS-2")
def bias_of_kv_head(call: Call) -> Tensor:
    """With grouped heads the bias is indexed by the key/value head."""
    h, g = call.shape[1], max(call.key.shape[1], 1)
    at = torch.arange(h) // max(h // g, 1)
    return with_bias(call, lambda bias: four(bias)[:, at] if four(bias).shape[1] == h else bias)


@mutant("bias", "BIAS-2", "onnx/onnx#8108")
def rank_3_bias_per_batch_item(call: Call) -> Tensor:
    """A bias (h i j) is read as (b i j) where there are as many batch items as heads."""
    return with_bias(call, lambda bias: bias[:, None] if bias.ndim == 3 and len(bias) == call.shape[0] else bias)


@mutant("bias", "BIAS-2", "lucidrains/x-transformers#298")
def rank_4_bias_refused(call: Call) -> Tensor:
    """A bias with a batch axis of more than one raises."""
    if call.float_mask is not None and call.float_mask.ndim == 4 and len(call.float_mask) > 1:
        raise ValueError("the bias must be (h i j)")
    return call.run()


@mutant("bias", "GRAD-4", "jax-ml/jax#30593")
def bias_gradient_refused_for_batches(call: Call) -> Tensor:
    """A bias with a batch axis that requires a gradient raises."""
    mask = call.float_mask
    if mask is not None and mask.requires_grad and mask.ndim == 4 and len(mask) > 1:
        raise ValueError("dbias needs a batch of one")
    return call.run()


@mutant("bias", "BIAS-2")
def bias_transposed(call: Call) -> Tensor:
    """Where there are as many queries as keys the bias is read with the two swapped."""
    return with_bias(call, lambda bias: four(bias).mT if four(bias).shape[2] == four(bias).shape[3] else bias)


@mutant("bias", "BIAS-3")
def bias_lowest_for_infinity(call: Call) -> Tensor:
    """−∞ in a bias becomes the lowest number of its dtype, and a row without a key is a mean."""
    return with_bias(call, lambda bias: bias.clamp(min=torch.finfo(bias.dtype).min))


@mutant("bias", "BIAS-3")
def bias_infinity_forgotten(call: Call) -> Tensor:
    """−∞ in a bias is read as zero."""
    return with_bias(call, lambda bias: bias.masked_fill(bias == -inf, 0.0))


@mutant("bias", "BIAS-3", "pytorch/pytorch#127055")
class NanWhereFirstBlockIsHidden(Steps):
    """A first block that is hidden as a whole leaves NaN: −∞ − (−∞)."""

    def pivot(self, peak: Tensor) -> Tensor:
        first = self.plan.hidden[..., : self.block].all(-1, keepdim=True) & ~self.plan.hidden.all(-1, keepdim=True)
        return torch.where(first, peak, super().pivot(peak)) if self.plan.hidden.shape[3] > self.block else super().pivot(peak)


@mutant("bias", "BIAS-4")
def bias_clamped(call: Call) -> Tensor:
    """A finite bias is kept within ±1000."""
    return with_bias(call, lambda bias: torch.where(bias == -inf, bias, bias.clamp(-1000, 1000)))


@mutant("bias", "BIAS-4", "Dao-AILab/flash-attention#442")
def bias_added_in_half(call: Call) -> Tensor:
    """For half inputs scores and bias are added in the input dtype, and exp of the sum is taken there."""
    if call.float_mask is None or call.query.dtype not in (torch.float16, torch.bfloat16):
        return call.run()
    dtype = torch.bfloat16

    def score(scores: Tensor, plan: Plan) -> Tensor:
        plain = (scores - plan.bias).nan_to_num(nan=-inf, posinf=inf, neginf=-inf)
        return (plain.to(dtype) + plan.bias.to(dtype)).to(dtype).float().masked_fill(plan.hidden, -inf)

    return call.run(dense, score=score)


@mutant("bias", "BIAS-1")
def bias_absolute_with_scale(call: Call) -> Tensor:
    """Beside a given scale the bias is divided by it."""
    return call.run() if call.scale in (None, 0.0) else with_bias(call, lambda bias: bias / call.scale)


@mutant("bias", "BIAS-1")
def bias_shifted_by_one_key(call: Call) -> Tensor:
    """The bias of the key before is used."""
    return with_bias(call, lambda bias: bias.roll(1, -1) if bias.ndim and (bias != -inf).all() else bias)


# ITS GRADIENT


@mutant("bias", "GRAD-4")
def bias_gradient_averaged(call: Call) -> Tensor:
    """The gradient of a broadcast float mask is the mean over what it was broadcast to, not the sum."""
    if call.float_mask is None:
        return call.run()
    b, h, i, j = call.shape
    share = call.float_mask.numel() / max(b * h * i * j, 1)
    return with_bias(call, lambda bias: with_gradient(bias, lambda grad: grad * share))


@mutant("bias", "GRAD-4")
def bias_gradient_zero(call: Call) -> Tensor:
    """The bias gets a gradient of zero."""
    return with_bias(call, lambda bias: with_gradient(bias, torch.zeros_like))


@mutant("bias", "GRAD-4")
def bias_detached(call: Call) -> Tensor:
    """The bias gets no gradient at all."""
    return with_bias(call, lambda bias: bias.detach())


@mutant("bias", "GRAD-4")
def bias_gradient_scaled(call: Call) -> Tensor:
    """The gradient of the bias is that of the unscaled product."""
    return with_bias(call, lambda bias: with_gradient(bias, lambda grad: grad * call.scale_in_use))


@mutant("bias", "GRAD-4")
class BiasGradientWithoutDelta(Steps):
    """dbias is P · dP, without D."""

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        self.plain = p * dp
        return super().dscores(p, dp, delta, keys)

    def dbias(self, ds: Tensor, shape: torch.Size) -> Tensor:
        return super().dbias(self.plain, shape)


@mutant("bias", "GRAD-4", "jax-ml/jax#40128")
class BiasGradientSummedInHalf(Steps):
    """For all but float64 dbias is summed in bfloat16, one term after the other."""

    def dbias(self, ds: Tensor, shape: torch.Size) -> Tensor:
        if self.call.query.dtype == torch.float64:
            return super().dbias(ds, shape)
        for axis, size in enumerate(shape):
            if size == 1 and ds.shape[axis] > 1:
                total = torch.zeros_like(ds.narrow(axis, 0, 1), dtype=torch.bfloat16)
                for n in range(ds.shape[axis]):
                    total = total + ds.narrow(axis, n, 1).bfloat16()
                ds = total.to(self.q.dtype)
        return ds


@mutant("bias", "GRAD-4")
class BiasGradientOfLastBlock(Steps):
    """A bias without a key axis gets the gradient of the last block of keys alone."""

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        self.last = keys.stop == self.k.shape[2]
        return super().dscores(p, dp, delta, keys)

    def dbias(self, ds: Tensor, shape: torch.Size) -> Tensor:
        return super().dbias(ds, shape) if self.last or shape[3] > 1 else self.q.new_zeros(shape)


def first_alone(call: Call, letters: str) -> Tensor:
    """A bias over exactly these axes: its gradient is not summed over the first of the others, or is its neighbour's."""

    def reduced(bias: Tensor) -> Tensor:
        whole = four(bias)
        repeated = [n for n, size in enumerate(whole.shape) if size == 1 and call.shape[n] > 1]
        if form(bias) != letters:
            return bias
        if not repeated:
            return with_gradient(bias, lambda grad: grad.roll(1, 0 if grad.shape[0] > 1 or grad.ndim < 2 else 1))
        axis = repeated[-1] if repeated[-1] == 3 else repeated[0]  # the sum over all keys is zero, whatever else is left out
        at = torch.arange(call.shape[axis]).view([-1 if n == axis else 1 for n in range(4)])
        return with_gradient(whole.expand(call.shape), lambda grad: grad.masked_fill(at > 0, 0.0))

    return with_bias(call, reduced)


for flags in product((False, True), repeat=4):
    letters_ = "".join(letter for letter, on in zip("bhij", flags, strict=True) if on)
    said = f"over {letters_ or 'nothing'} gets the gradient of the first place along one repeated axis"

    def first_form(call: Call, letters: str = letters_) -> Tensor:
        return first_alone(call, letters)

    if len(letters_) == 4:
        said = "over all axes gets the gradient of its neighbour"
    mutant("bias", "GRAD-4")(named(f"bias_over_{letters_ or 'nothing'}_gradient", f"A bias {said}.", first_form))


def misread_bias(call: Call, letters: str) -> Tensor:
    """A bias over exactly these axes is read at its neighbour along the first of them."""

    def wrong(bias: Tensor) -> Tensor:
        if form(bias) != letters or ("j" in letters and (bias == -inf).any()):
            return bias
        whole = four(bias)
        return instead(whole, whole.roll(1, "bhij".index(letters[0])))

    return with_bias(call, wrong)


for letters_ in ("hij", "ij", "j", "bj", "hj", "bhi", "bij"):

    def misread_form(call: Call, letters: str = letters_) -> Tensor:
        return misread_bias(call, letters)

    what_ = f"A bias over {letters_} is read at its neighbour along {letters_[0]}."
    mutant("bias", "BIAS-2")(named(f"bias_over_{letters_}_misread", what_, misread_form))
