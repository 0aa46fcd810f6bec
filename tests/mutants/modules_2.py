"""Faulty modules in the convention of ``honest.Attend``: bias, scale, dropout and shared heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

import torch
from honest import Plan, eager, softmax
from torch import Tensor

from mutants.modules import Mask, Module, answered_as, module, shows, stepwise, with_gradient

# BIAS


@module("bias", "BIAS-1", "huggingface/transformers#32848", bias="bhij", flash=True)
class BiasIgnoredOnFlash(Module):
    """With flash=True the bias is not read."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        return super().bias(visible, None if self.flash else bias)


@module("bias", "BIAS-1", bias="ij")
class BiasUnused(Module):
    """The parameter attn_bias is accepted and not used."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        return visible


@module("bias", "BIAS-1", bias="ij", i=5)
class BiasTransposed(Module):
    """Where there are as many queries as keys, the bias is read as (j i)."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        square = bias is not None and bias.ndim > 1 and bias.shape[-1] == bias.shape[-2]
        return super().bias(visible, bias.mT if square and bias is not None else bias)


@module("bias", "BIAS-1", bias="ij")
class BiasScaled(Module):
    """The bias is added before the scores are scaled."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(q, k, v, mask, None if attn_bias is None else attn_bias * q.shape[-1] ** -0.5)


@module("gradients", "GRAD-4", bias="ij", wrt="attn_bias q")
class BiasDetached(Module):
    """The bias gets no gradient."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        return super().bias(visible, None if bias is None else bias.detach())


@module("gradients", "GRAD-4", "jax-ml/jax#30593", bias="1hij", wrt="attn_bias")
class BiasGradientOfFirstItem(Module):
    """The gradient of a bias that all batch items share is that of the first."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if attn_bias is not None and (attn_bias.ndim < 4 or attn_bias.shape[0] == 1):
            whole = attn_bias[(None,) * (4 - attn_bias.ndim)].expand(q.shape[0], -1, -1, -1)
            first = torch.arange(q.shape[0], device=q.device).view(-1, 1, 1, 1) > 0
            attn_bias = with_gradient(whole, lambda grad: grad.masked_fill(first, 0.0))
        return super().forward(q, k, v, mask, attn_bias)


@module("bias", "BIAS-2", "cosdt/vllm-ascend#6", bias="1hij")
class BiasOfFirstHead(Module):
    """All heads get the bias of the first."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        return super().bias(visible, bias if bias is None or bias.ndim < 3 else bias[..., :1, :, :])


@module("mask", "MASK-2", bias="ij", mask="first")
class PaddingIgnoredWithBias(Module):
    """Where a bias is given, the key padding mask is not read."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        return visible if bias is None else bias


@module("bias", "BIAS-1", "huggingface/transformers#38094 pytorch/pytorch#107084", bias="ij")
class BiasCastToBool(Module):
    """The bias is cast to bool and hides where it is zero."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        if bias is None:
            return visible
        return bias.bool() if visible is None else bias.bool() & visible


@module("dtype", "ACCURACY-1", "Dao-AILab/flash-attention#442", bias="ij")
class BiasInBfloat16(Module):
    """The bias passes through bfloat16."""

    def bias(self, visible: Mask, bias: Mask) -> Mask:
        return super().bias(visible, bias if bias is None else answered_as(bias.bfloat16().to(bias.dtype), bias))


@module("bias", "CAUSAL-6", bias="ij", causal=True)
class CausalIgnoredWithBias(Module):
    """Where a bias is given and there is no padding, causal=True has no effect."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        causal, self.causal = self.causal, self.causal and (attn_bias is None or mask is not None)
        try:
            return super().forward(q, k, v, mask, attn_bias)
        finally:
            self.causal = causal


# SCALE


@module("scale", "SCALE-1", "alipay/PainlessInferenceAcceleration#22", flash=True)
class UnscaledOnFlash(Module):
    """With flash=True the scores are not scaled."""

    def scale(self, q: Tensor) -> float | None:
        return 1.0 if self.flash else None


@module("scale", "SCALE-1")
class MultipliedByWidth(Module):
    """Without flash the scale is the width, not its inverse root."""

    def scale(self, q: Tensor) -> float | None:
        return None if self.flash else float(q.shape[-1])


@module("scale", "SCALE-1")
class ScaleFromLength(Module):
    """The scale is taken from the axis of queries."""

    def scale(self, q: Tensor) -> float | None:
        return max(q.shape[-2], 1) ** -0.5


@module("scale", "SCALE-1")
class ScaledTwice(Module):
    """The query is scaled, and then the kernel scales."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(q * q.shape[-1] ** -0.5, k, v, mask, attn_bias)


@module("scale", "SCALE-1", "lucidrains/vit-pytorch#65")
class ScaleFromModelWidth(Module):
    """The scale uses the width of all heads together."""

    def scale(self, q: Tensor) -> float | None:
        return (q.shape[1] * q.shape[3]) ** -0.5


@module("state", "PURITY-5", witness=shows({"d": 4}, {"d": 8}))
class ScaleOfFirstWidth(Module):
    """The scale is computed on the first call and kept."""

    def scale(self, q: Tensor) -> float | None:
        return float(self.__dict__.setdefault("kept", q.shape[-1] ** -0.5))


# SHARED


class Shared(Module):
    """What is done with keys and values of three dimensions is a step of its own."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if k.ndim == v.ndim == 3:
            k, v = self.written_out(k, v, q.shape[1])
        return super().forward(q, k, v, mask, attn_bias)

    def written_out(self, k: Tensor, v: Tensor, h: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@module("gradients", "SHARED-4", "marin-community/levanter#449", shared=True, wrt="k v")
class SharedGradientOfFirstHead(Shared):
    """The gradient of a shared key or value is that of the first query head: expanded, and not summed."""

    def written_out(self, k: Tensor, v: Tensor, h: int) -> tuple[Tensor, Tensor]:
        def one(x: Tensor) -> Tensor:
            whole = x[:, None].expand(-1, h, -1, -1)
            return with_gradient(whole, lambda grad: torch.cat([grad[:, :1], torch.zeros_like(grad[:, 1:])], 1))

        return one(k), one(v)


@module("gradients", "SHARED-4", "XunhaoLai/native-sparse-attention-triton#27", shared=True, wrt="k v")
class SharedGradientAveraged(Shared):
    """The gradient of a shared key or value is the mean over query heads, not the sum."""

    def written_out(self, k: Tensor, v: Tensor, h: int) -> tuple[Tensor, Tensor]:
        k, v = (with_gradient(x, lambda grad: grad / h)[:, None].expand(-1, h, -1, -1) for x in (k, v))
        return k, v


@module("heads", "SHARED-3", shared=True)
class SharedKeyAndValueSwapped(Shared):
    """Keys and values of three dimensions are taken for each other."""

    def written_out(self, k: Tensor, v: Tensor, h: int) -> tuple[Tensor, Tensor]:
        return v[:, None].expand(-1, h, -1, -1), k[:, None].expand(-1, h, -1, -1)


@module("heads", "SHARED-3", shared=True)
class SharedOfFirstItem(Shared):
    """Keys of three dimensions are those of the first batch item."""

    def written_out(self, k: Tensor, v: Tensor, h: int) -> tuple[Tensor, Tensor]:
        return k[:1, None].expand(k.shape[0], h, -1, -1), v[:, None].expand(-1, h, -1, -1)


@module("heads", "SHARED-3", shared=True)
class SharedReadAsHeads(Shared):
    """Keys of three dimensions are read as (h j d) where there are as many batch items as heads."""

    def written_out(self, k: Tensor, v: Tensor, h: int) -> tuple[Tensor, Tensor]:
        if k.shape[0] == h:
            return k[None].expand(h, -1, -1, -1), v[None].expand(h, -1, -1, -1)
        return k[:, None].expand(-1, h, -1, -1), v[:, None].expand(-1, h, -1, -1)


# DROPOUT


@module("dropout", "DROPOUT-3", "pytorch/pytorch#124464", dropout=0.5)
class DropoutInEval(Module):
    """Dropout is applied in eval mode too."""

    def rate(self) -> float:
        return self.dropout


@module("dropout", "DROPOUT-5", dropout=0.5, training=True)
class NoDropoutInTraining(Module):
    """Dropout is never applied."""

    def rate(self) -> float:
        return 0.0


@module("dropout", "DROPOUT-5", dropout=0.5, training=True, flash=True)
class NoDropoutOnFlash(Module):
    """With flash=True dropout is never applied."""

    def rate(self) -> float:
        return 0.0 if self.flash else super().rate()


@module("dropout", "DROPOUT-2", dropout=0.5, training=True)
class DropoutOfOutput(Module):
    """Elements of the output are dropped, and no probabilities."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return torch.dropout(super().forward(q, k, v, mask, attn_bias), super().rate(), True)

    def rate(self) -> float:
        return 0.0


@module("dropout", "DROPOUT-1", dropout=0.5, training=True)
class DropoutNotRescaled(Module):
    """The surviving probabilities are not divided by 1 - p."""

    def kernel(self) -> Callable[..., Tensor]:
        return partial(stepwise, dropout=lambda p, plan: p.masked_fill(plan.dropped, 0.0))


@module("dropout", "DROPOUT-3", dropout=0.5)
class DropoutRescaledInEval(Module):
    """In eval mode the output is multiplied with 1 - p, as if training had not rescaled."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(q, k, v, mask, attn_bias) * (1.0 if self.training else 1.0 - self.dropout)


@module("dropout", "DROPOUT-1", dropout=0.5, training=True)
class DropoutBeforeSoftmax(Module):
    """Scores are dropped before the softmax, which normalises what is left."""

    def kernel(self) -> Callable[..., Tensor]:
        def dropout(probabilities: Tensor, plan: Plan) -> Tensor:
            kept = probabilities.masked_fill(plan.dropped, 0.0)
            total = kept.sum(-1, keepdim=True)
            return kept / total.masked_fill(total == 0, 1.0)

        return partial(stepwise, dropout=dropout)


@module("dropout", "DROPOUT-5", dropout=0.5, training=True)
class DropoutSharedByHeads(Module):
    """All heads lose the same probabilities."""

    def kernel(self) -> Callable[..., Tensor]:
        def dropout(probabilities: Tensor, plan: Plan) -> Tensor:
            shared = plan.dropped[:, :1].expand_as(probabilities)
            return probabilities.masked_fill(shared, 0.0) * plan.survivor_weight

        return partial(stepwise, dropout=dropout)


@module("dropout", "DROPOUT-5", witness=shows({"dropout": 0.5, "training": True, "i": 8}, {"training": True, "i": 8, "b": 3}))
class DropoutSeedNeverAdvances(Module):
    """Each call drops by the same seed."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if not self.rate():
            return super().forward(q, k, v, mask, attn_bias)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return super().forward(q, k, v, mask, attn_bias)


@module("dropout", "DROPOUT-4", dropout=1.0, training=True)
class DropoutOfOneIsNan(Module):
    """At a rate of one, zero is multiplied with 1 / 0."""

    def kernel(self) -> Callable[..., Tensor]:
        def dropout(probabilities: Tensor, plan: Plan) -> Tensor:
            weight = plan.survivor_weight or inf
            return probabilities.masked_fill(plan.dropped, 0.0) * weight

        return partial(stepwise, dropout=dropout)


@module("gradients", "DROPOUT-2", "pytorch/pytorch#196586", dropout=0.5, training=True, wrt="v", i=8)
class CheckpointRedrawsDropout(Module):
    """Backward recomputes with another dropout pattern."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        return out if not self.rate() else answered_as(out, super().forward(q, k, v, mask, attn_bias))


@module("softmax", "SOFTMAX-1")
class SoftmaxOverQueries(Module):
    """Without flash the softmax runs over the queries."""

    def kernel(self) -> Callable[..., Tensor]:
        return super().kernel() if self.flash else partial(stepwise, normalise=lambda scores: softmax(scores.mT).mT)


@module("softmax", "SOFTMAX-2", size=1e4)
class SoftmaxWithoutMaximum(Module):
    """Without flash the scores are exponentiated as they are."""

    def kernel(self) -> Callable[..., Tensor]:
        def normalise(scores: Tensor) -> Tensor:
            weights = torch.exp(scores)
            total = weights.sum(-1, keepdim=True)
            return weights / total.masked_fill(total == 0, 1.0)

        return super().kernel() if self.flash else partial(stepwise, normalise=normalise)


@module("softmax", "MASK-4", dtype=torch.float16, size=3e4)
class ScoresOverflowInHalf(Module):
    """Without flash the product is formed in float16 before it is scaled, as in all five seeds."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if self.flash or q.dtype != torch.float16:
            return super().forward(q, k, v, mask, attn_bias)
        keys = k if k.ndim == 4 else k[:, None]
        overflow = torch.isinf(q.detach() @ keys.detach().mT)
        return super().forward(q, k, v, mask, attn_bias).masked_fill(overflow.any(-1, keepdim=True), torch.nan)

    def kernel(self) -> Callable[..., Tensor]:
        return super().kernel() if self.flash else eager
