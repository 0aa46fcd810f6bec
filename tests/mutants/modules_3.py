"""Faulty modules in the convention of ``honest.Attend``: gradients, layout, state, mode, empty rows and errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from honest import eager
from torch import Tensor

from mutants.modules import Mask, Module, answered_as, module, shows, stepwise, triangle, with_gradient

# GRADIENTS


@module("gradients", "GRAD-1", flash=True, wrt="v")
class NoGradInside(Module):
    """With flash=True the kernel runs under no_grad, so the output has no grad_fn."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.flash):
            return super().forward(q, k, v, mask, attn_bias).requires_grad_(False)


@module("gradients", "CAUSAL-2", causal=True, flash=True, wrt="k")
class KeyDetachedWhenCausal(Module):
    """With flash=True and causal=True the key gets no gradient."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        lost = self.flash and self.causal
        return super().forward(q, k.detach() + 0 * k if lost else k, v, mask, attn_bias)


@module("gradients", "MASK-6", mask="first", wrt="k v")
class CheckpointForgetsMask(Module):
    """Backward recomputes without the key padding mask."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        if mask is None or self.rate():
            return out
        return answered_as(out, super().forward(q, k, v, torch.ones_like(mask), attn_bias))


@module("gradients", "GRAD-5", "pytorch/pytorch#148476", wrt="v")
class ValueGradientAloneLost(Module):
    """The gradient of the value is zero where the query needs none."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if not q.requires_grad:
            v = with_gradient(v, torch.zeros_like)
        return super().forward(q, k, v, mask, attn_bias)


@module("gradients", "GRAD-1", wrt="q")
class QueryGradientUnscaled(Module):
    """The gradient of the query lacks the scale."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        root = q.shape[-1] ** 0.5
        return super().forward(with_gradient(q, lambda grad: grad * root), k, v, mask, attn_bias)


@module("gradients", "GRAD-6", "Dao-AILab/flash-attention#355", strided=True, wrt="q")
class CotangentReadWithoutStrides(Module):
    """A cotangent that is not contiguous is read as if it were."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return with_gradient(super().forward(q, k, v, mask, attn_bias), read_without_strides)


def read_without_strides(x: Tensor) -> Tensor:
    """What a kernel reads that assumes contiguous memory; past the end of the storage it begins again."""
    if x.is_contiguous():
        return x
    storage = x.new_empty(0).set_(x.untyped_storage())
    places = torch.arange(x.numel(), device=x.device) + x.storage_offset()
    return storage[places % len(storage)].view(x.shape)


@module("gradients", "EMPTY-3", "pytorch/pytorch#103749", mask="none", wrt="q v")
class EmptyRowGradientNan(Module):
    """NaN of a row without a key is replaced in the output, and stays in the gradients."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return torch.nan_to_num(super().forward(q, k, v, mask, attn_bias), nan=0.0)

    def kernel(self) -> Callable[..., Tensor]:
        return partial(stepwise, normalise=lambda scores: torch.softmax(scores, -1))


# EMPTY ROWS


@module("empty", "MODE-3", "pytorch/pytorch#190486", mask="none")
class EmptyRowUniformOffFlash(Module):
    """A row without a key is the mean of all values without flash, and zero with it, as in four of the seeds."""

    def kernel(self) -> Callable[..., Tensor]:
        if self.flash:
            return super().kernel()
        return partial(stepwise, normalise=lambda s: torch.softmax(s.masked_fill(s == -torch.inf, torch.finfo(s.dtype).min), -1))


@module("empty", "EMPTY-2", "NVIDIA/apex#1390", causal=True, i=6, j=3)
class EmptyRowUniformWhenCausal(Module):
    """A row without a key is the mean of all values where causal alone hides them, and zero elsewhere."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        early = q.shape[2] - k.shape[-2]
        if not self.causal or early <= 0 or mask is not None or attn_bias is not None or self.rate():
            return out
        mean = (v if v.ndim == 4 else v[:, None]).mean(2, keepdim=True)
        return torch.where(torch.arange(q.shape[2], device=q.device)[:, None] < early, mean, out)


@module("empty", "EMPTY-5", "pytorch/pytorch#174939", j=0)
class NoKeysNan(Module):
    """Without any key the output is NaN."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        return out if k.shape[-2] else out * torch.nan


# SHAPE AND LAYOUT


@module("shape", "SHAPE-1")
class OutputWithHeadsInside(Module):
    """The output is (b i h d)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(q, k, v, mask, attn_bias).transpose(1, 2)


@module("shape", "SHAPE-5", h=3)
class OutputViewedNotTransposed(Module):
    """The kernel's (b i h d) is viewed as (b h i d), not transposed."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        return out.transpose(1, 2).reshape(out.shape)


@module("shape", "SHAPE-2", "HKUSTDial/flash-sparse-attention#213", flash=True, j=80)
class KeysEndAt64OnFlash(Module):
    """With flash=True keys after the sixty-fourth are not read."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        j = k.shape[-2]
        if self.flash and j > 64 and mask is None and attn_bias is None and not self.causal:
            mask = (torch.arange(j, device=q.device) < 64).expand(q.shape[0], j)
        return super().forward(q, k, v, mask, attn_bias)


@module("layout", "LAYOUT-1", "pytorch/pytorch#163597", strided=True)
class QueryReadWithoutStrides(Module):
    """A query that is not contiguous is read as if it were."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(answered_as(read_without_strides(q.detach()), q), k, v, mask, attn_bias)


@module("layout", "LAYOUT-1", "Dao-AILab/flash-attention#2665", strided=True)
class ViewRefusesTransposed(Module):
    """The query is viewed as (b·h i d), which raises where heads lie inside."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(q.view(-1, *q.shape[2:]).view(q.shape), k, v, mask, attn_bias)


# STATE


def writes_into(name: str, **asked: Any) -> Callable[[Any], bool]:
    """A witness: an input is another one after the call."""

    def witness(kind: Any) -> bool:
        inputs = {x: torch.randn(2, 2, 4, 4) for x in "qkv"} | {"mask": torch.ones(2, 4, dtype=torch.bool)}
        before = inputs[name].clone()
        kind(**asked).eval()(**inputs)
        return not torch.equal(before, inputs[name])

    return witness


@module("state", "PURITY-1", "PaddlePaddle/Paddle#55969", witness=writes_into("q"))
class QueryScaledInPlace(Module):
    """The caller's query is scaled in place."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q.clone(), k, v, mask, attn_bias)
        if q.is_contiguous():
            q.data.mul_(q.shape[-1] ** -0.5)
        return out


@module("state", "PURITY-1", "nod-ai/amd-shark-ai#2156", witness=writes_into("mask", causal=True))
class PaddingChangedWhenCausal(Module):
    """With causal=True what the first query does not see is written into the caller's mask."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        if self.causal and mask is not None:
            mask &= triangle(q.shape[2], k.shape[-2], k.shape[-2] - q.shape[2])[0].to(mask.device)
        return out


def overwritten(kind: Any) -> bool:
    module, x = kind().eval(), torch.randn(1, 1, 3, 4)
    first = module(x, x, x)
    before = first.clone()
    module(x, x, -x)
    return not torch.equal(first, before)


@module("state", "PURITY-2", witness=overwritten)
class OutputIsAWorkspace(Module):
    """Calls with outputs of one shape return the same memory."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        kept = self.__dict__.setdefault("kept", {}).setdefault((out.shape, out.dtype), torch.empty_like(out.detach()))
        kept.copy_(out.detach())
        out.data = kept
        return out


@module("state", "PURITY-4", witness=shows({"d": 4}, {"d": 4}, {"d": 4}))
class EvalChangesState(Module):
    """A running statistic is updated in eval mode, and used."""

    def scale(self, q: Tensor) -> float | None:
        calls = self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        return q.shape[-1] ** -0.5 * (1.0 if self.training else 1.0 + calls / 1000)


def advances_generator(kind: Any) -> bool:
    module, x = kind(dropout=0.5).eval(), torch.randn(1, 1, 3, 4)
    before = torch.get_rng_state()
    module(x, x, x)
    return not torch.equal(before, torch.get_rng_state())


@module("state", "PURITY-3", witness=advances_generator)
class PatternDrawnInEval(Module):
    """The dropout pattern is drawn in eval mode too, and not used."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        torch.rand(q.shape[:3])
        return super().forward(q, k, v, mask, attn_bias)


def sets_precision(kind: Any) -> bool:
    before = torch.get_float32_matmul_precision()
    x = torch.randn(1, 1, 3, 4)
    kind(flash=True)(x, x, x)
    after = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    return before != after


@module("state", "PURITY-3", witness=sets_precision)
class FlashSetsMatmulPrecision(Module):
    """With flash=True the global matmul precision is set to high, and left so."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if self.flash:
            torch.set_float32_matmul_precision("high")
        return super().forward(q, k, v, mask, attn_bias)


# MODE AND DTYPE


@module("mode", "MODE-1", grad=False)
class NoGradFastPath(Module):
    """Under no_grad a fast path computes with half the scale."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(q if torch.is_grad_enabled() else q / 2, k, v, mask, attn_bias)


@module("mode", "MODE-2", witness=shows({"dropout": 0.5, "training": True}, {"training": False, "i": 8}))
class RateOfLastTraining(Module):
    """The rate of the last call in training is kept in eval mode."""

    def rate(self) -> float:
        if self.training:
            self.__dict__["kept"] = self.dropout
        return float(self.__dict__.get("kept", 0.0))


@module("dtype", "ACCURACY-1")
class HalfOffFlash(Module):
    """Without flash everything runs in float16, and is cast back."""

    def kernel(self) -> Callable[..., Tensor]:
        if self.flash:
            return super().kernel()

        def halved(q: Tensor, k: Tensor, v: Tensor, attn_mask: Mask = None, **options: Any) -> Tensor:
            if attn_mask is not None and attn_mask.dtype != torch.bool:
                attn_mask = attn_mask.half()
            return eager(q.half(), k.half(), v.half(), attn_mask=attn_mask, **options).to(q.dtype)

        return halved


@module("dtype", "DTYPE-1", dtype=torch.bfloat16)
class OutputInFloat32(Module):
    """With half inputs the accumulator is returned, in float32."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        out = super().forward(q, k, v, mask, attn_bias)
        return out.float() if out.dtype in (torch.float16, torch.bfloat16) else out


@module("mode", "MODE-3", flash=True)
class FlashApproximates(Module):
    """With flash=True probabilities below a tenth are dropped."""

    def kernel(self) -> Callable[..., Tensor]:
        def normalise(scores: Tensor) -> Tensor:
            p = torch.softmax(scores, -1).masked_fill(scores == -torch.inf, 0.0)
            return p.masked_fill(p < 0.1, 0.0)

        return partial(stepwise, normalise=normalise) if self.flash else super().kernel()


# ERRORS


@module("error", "ERROR-1", e=6)
class ScaleFromValueWidth(Module):
    """The scale comes from the width of the values, which may be another."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        self.width = v.shape[-1]
        return super().forward(q, k, v, mask, attn_bias)

    def scale(self, q: Tensor) -> float | None:
        return self.width**-0.5


def four_dimensions(kind: Any) -> bool:
    x, mask = torch.randn(1, 2, 3, 4), torch.ones(1, 2, 3, 3, dtype=torch.bool).tril()
    try:
        return not torch.allclose(kind()(x, x, x, mask), torch.softmax((x @ x.mT / 2).masked_fill(~mask, -torch.inf), -1) @ x)
    except Exception:
        return False


@module("error", "ERROR-1", witness=four_dimensions)
class MaskOfFourDimensionsSqueezed(Module):
    """Of a mask (b h i j) the first head's first row is used, and nothing is raised."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        return super().forward(q, k, v, mask[:, 0, 0] if mask is not None and mask.ndim == 4 else mask, attn_bias)


def misfit_answered(**changes: tuple[int, ...]) -> Callable[[Any], bool]:
    """A witness: shapes that contradict each other are answered."""

    def witness(kind: Any) -> bool:
        shapes = {"q": (2, 2, 3, 4), "k": (2, 2, 5, 4), "v": (2, 2, 5, 4)} | changes
        inputs = {name: torch.ones(*shape) for name, shape in shapes.items()}
        if "mask" in inputs:
            inputs["mask"] = inputs["mask"].bool()
        try:
            kind()(**inputs)
        except Exception:
            return False
        return True

    return witness


@module("error", "ERROR-2", witness=misfit_answered(v=(2, 2, 4, 4)))
class LengthsCut(Module):
    """If key and value differ in length, both are cut to the shorter."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        j = min(k.shape[-2], v.shape[-2])
        return super().forward(q, k[..., :j, :], v[..., :j, :], mask, attn_bias)


@module("error", "ERROR-2", "pytorch/pytorch#139462", witness=misfit_answered(mask=(2, 4)))
class ShortMaskPadded(Module):
    """A key padding mask that is too short is filled up with True."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if mask is not None and mask.ndim == 2:
            mask = torch.nn.functional.pad(mask, (0, max(k.shape[-2] - mask.shape[-1], 0)), value=True)
        return super().forward(q, k, v, mask, attn_bias)


@module("error", "ERROR-2", witness=misfit_answered(k=(1, 2, 5, 4), v=(1, 2, 5, 4)))
class BatchWrapsAround(Module):
    """Fewer batch items of keys than of queries are used again from the first."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        items = torch.arange(q.shape[0], device=q.device)
        k, v = (x if x.shape[0] >= q.shape[0] else x[items % x.shape[0]] for x in (k, v))
        return super().forward(q, k, v, mask, attn_bias)
