"""Faulty modules in the convention of ``honest.Attend``: masks and causal. ``modules_2`` and ``modules_3`` have the rest.

``Module`` is ``honest.Attend`` with a bias and with keys and values of three dimensions, and is right. Every mutant is a
subclass that changes one of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Any

import torch
from honest import Attend, Plan, eager, prepare, softmax, tiled, widen
from torch import Tensor

from mutants.base import mutant


class Module(Attend):
    """``Attend(dropout, causal, flash)`` of ``(q, k, v, mask, attn_bias)``, without a fault."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None) -> Tensor:
        shared = k.ndim == v.ndim == 3
        if shared:
            k, v = k[:, None], v[:, None]
        attn_mask = self.bias(self.visible(q, k, mask), attn_bias)
        return self.kernel()(q, k, v, attn_mask=attn_mask, dropout_p=self.rate(), scale=self.scale(q), enable_gqa=shared)

    def kernel(self) -> Callable[..., Tensor]:
        return tiled if self.flash else eager

    def bias(self, visible: Tensor | None, bias: Tensor | None) -> Tensor | None:
        """What is visible and the bias as one mask."""
        if bias is None or visible is None:
            return visible if bias is None else bias
        return torch.where(visible, bias, -inf)

    def rate(self) -> float:
        return self.dropout if self.training else 0.0

    def scale(self, q: Tensor) -> float | None:
        return None


# TOOLS


def stepwise(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor] = softmax,
    dropout: Callable[[Tensor, Plan], Tensor] = lambda probabilities, plan: plan.thin_out(probabilities),
    **options: Any,
) -> Tensor:
    """A kernel in float32 or wider with two steps that can be replaced."""
    plan = prepare(query, key, value, **options)
    q, k, v = widen(query, key, value)
    return (dropout(normalise(plan.scores(q, k)), plan) @ v).to(query.dtype)


def with_gradient(x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The same tensor, whose gradient is edited on its way back."""
    view = x.view_as(x)
    if view.requires_grad:
        view.register_hook(edit)
    return view


def answered_as(value: Tensor, derived: Tensor) -> Tensor:
    """The values of one tensor with the derivative of another."""
    return derived + (value - derived).detach()


def triangle(i: int, j: int, diagonal: int) -> Tensor:
    return torch.ones(i, j, dtype=torch.bool).tril(diagonal)


def ask(
    kind: Any,
    *,
    b: int = 2,
    h: int = 2,
    i: int = 3,
    j: int = 5,
    d: int = 4,
    e: int | None = None,
    mask: str = "",
    bias: str = "",
    shared: bool = False,
    dtype: torch.dtype = torch.float64,
    training: bool = False,
    wrt: str = "",
    size: float = 1.0,
    strided: bool = False,
    grad: bool = True,
    **options: Any,
) -> Iterator[Tensor]:
    """What a module (or a class, made with the options) answers: the output, then gradients of the inputs in `wrt`."""
    module = (kind if isinstance(kind, Attend) else kind(**options)).train(training)
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    heads = () if shared else (h,)
    inputs = {"q": normal(b, h, i, d) * size, "k": normal(b, *heads, j, d), "v": normal(b, *heads, j, e or d)}
    if mask:
        keys = torch.arange(j)
        rows = {"first": keys > 0, "last": keys < j - 1, "none": keys < 0}
        others = torch.ones(j, dtype=torch.bool) if mask != "none" else rows["first"]
        inputs["mask"] = torch.stack([rows[mask], *[others] * (b - 1)])
    if bias:
        inputs["attn_bias"] = normal(*({"b": b, "h": h, "i": i, "j": j, "1": 1}[x] for x in bias))
    if strided:
        inputs["q"] = inputs["q"].transpose(1, 2).contiguous().transpose(1, 2)
    for name in wrt.split():
        inputs[name].requires_grad_()
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
        torch.manual_seed(5)
        out = module(**inputs)
        yield out.detach()
        if wrt:
            cotangent = normal(*out.shape)
            cotangent = cotangent.transpose(1, 2).contiguous().transpose(1, 2) if strided else cotangent
            leaves = [inputs[name] for name in wrt.split()]
            yield from (
                torch.tensor(inf) if x is None else x for x in torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
            )


def answers(kind: Any, asked: list[dict[str, Any]]) -> list[Tensor] | str:
    """What one module answers to questions in turn (the options of the first one make it), or what it raises."""
    made = {name: asked[0][name] for name in ("dropout", "causal", "flash") if name in asked[0]}
    module, seen = kind(**made), []
    for question in asked:
        try:
            seen += ask(module, **{name: x for name, x in question.items() if name not in made})
        except Exception as error:
            return type(error).__name__
    return seen


def shows(*asked: dict[str, Any], **question: Any) -> Callable[[Any], bool]:
    """A witness: to these questions a mutant answers something else than ``Module``."""
    questions = list(asked) or [question]

    def witness(kind: Any) -> bool:
        got, expected = answers(kind, questions), answers(Module, questions)
        if isinstance(got, str) or isinstance(expected, str):
            return got != expected
        return any(
            (x.shape, x.dtype) != (y.shape, y.dtype) or not torch.allclose(x, y, rtol=1e-7, atol=1e-9, equal_nan=True)
            for x, y in zip(got, expected, strict=True)
        )

    return witness


def module(family: str, clause: str, source: str = "", *, witness: Callable[[Any], bool] | None = None, **asked: Any) -> Any:
    """Enter a faulty module; what is asked is its witness."""
    return mutant(family, clause, source, kind="module", witness=witness or shows(**asked))


Mask = Tensor | None


# MASK


@module("mask", "MASK-2", "InseeFrLab/torchTextClassifiers#92 lucidrains/halonet-pytorch#4", mask="first")
class PaddingInverted(Module):
    """The key padding mask hides where it is True."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        return super().visible(q, k, None if mask is None else ~mask)


@module("mask", "MASK-2", "tenstorrent/tt-metal#39910", mask="first")
class PaddingOfFirstItem(Module):
    """All batch items get the key padding mask of the first."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        return super().visible(q, k, None if mask is None else mask[:1].expand_as(mask))


@module("mask", "MASK-2", "NVIDIA/FasterTransformer#714 huggingface/transformers#32848", mask="first", flash=True)
class PaddingIgnoredOnFlash(Module):
    """With flash=True the key padding mask is not read."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        return super().visible(q, k, None if self.flash else mask)


@module("mask", "CAUSAL-6", "AI-Hypercomputer/maxtext#878", mask="first", causal=True)
class PaddingIgnoredWhenCausal(Module):
    """With causal=True the key padding mask is not read."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        return super().visible(q, k, None if self.causal else mask)


@module("mask", "MASK-2", mask="first", i=5)
class PaddingOfQueries(Module):
    """Where there are as many queries as keys, the key padding mask hides queries."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        if mask is None or q.shape[2] != k.shape[2]:
            return super().visible(q, k, mask)
        causal, rows = super().visible(q, k, None), mask[:, None, :, None].expand(-1, 1, -1, k.shape[2])
        return rows if causal is None else rows & causal


@module("mask", "MASK-2", mask="first")
class PaddingAddedAsNumbers(Module):
    """The key padding mask is added to the scores as 0 and 1."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if mask is not None:
            bias = mask[:, None, None, :].to(q.dtype)
            attn_bias = bias if attn_bias is None else attn_bias + bias
        return super().forward(q, k, v, None, attn_bias)


@module("state", "PURITY-5", "tenstorrent/tt-metal#39910", witness=shows({"mask": "first"}, {"mask": "last"}))
class PaddingOfFirstCall(Module):
    """The key padding mask is prepared on the first call with its shape, and kept."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        if mask is not None:
            kept = self.__dict__.setdefault("kept", {})
            mask = kept.setdefault(mask.shape, mask.clone())
        return super().visible(q, k, mask)


@module("mask", "MASK-2", "deepspeedai/DeepSpeed#2285", mask="first")
class PaddingOverHeads(Module):
    """The key padding mask is read as (h j) where there are as many heads as batch items."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        if mask is None or mask.shape[0] != q.shape[1] or mask.ndim != 2:
            return super().visible(q, k, mask)
        causal, heads = super().visible(q, k, None), mask[None, :, None, :]
        return heads if causal is None else heads & causal


@module("mask", "MASK-2", "microsoft/onnxruntime#18945", mask="first")
class PaddingAsLength(Module):
    """Of the key padding mask only the number of visible keys is used, as a length."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        if mask is not None:
            mask = torch.arange(mask.shape[-1], device=mask.device) < mask.sum(-1, keepdim=True)
        return super().visible(q, k, mask)


@module("mode", "MASK-2", mask="last", flash=True)
class FlashIgnoresLastKeysMask(Module):
    """With flash=True the last key is never masked as padding."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        if self.flash and mask is not None:
            mask = mask | (torch.arange(mask.shape[-1], device=mask.device) == mask.shape[-1] - 1)
        return super().visible(q, k, mask)


@module("mask", "MASK-2", "vllm-project/vllm-ascend#15503", mask="last", j=20)
class PaddingEndsAt16(Module):
    """The key padding mask is not read beyond the sixteenth key."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        if mask is not None:
            mask = mask | (torch.arange(mask.shape[-1], device=mask.device) >= 16)
        return super().visible(q, k, mask)


@module("decode", "MASK-2", "vllm-project/vllm#23969", mask="first", i=1)
class PaddingIgnoredForOneQuery(Module):
    """A single query takes a decode path that knows no padding."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        return super().visible(q, k, None if q.shape[2] == 1 else mask)


@module("mask", "MASK-4", mask="first", size=1e5, i=16)
class PaddingIsMinusTenThousand(Module):
    """Padding is a bias of -10000."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if mask is not None:
            bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -1e4)[:, None, None, :]
            attn_bias = bias if attn_bias is None else attn_bias + bias
        return super().forward(q, k, v, None, attn_bias)


@module("mask", "MASK-2", mask="first", size=1e6, i=40)
class ScoresFilledWithMinusTenThousand(Module):
    """Scores of hidden keys become -10000, which others may lie below."""

    def kernel(self) -> Callable[..., Tensor]:
        return partial(stepwise, normalise=lambda scores: torch.softmax(scores.masked_fill(scores == -inf, -1e4), -1))


@module("mask", "MASK-2", mask="first")
class ProbabilitiesZeroedAfterSoftmax(Module):
    """Padding zeroes probabilities after the softmax, which are not normalised again."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, attn_bias: Mask = None) -> Tensor:
        if mask is None:
            return super().forward(q, k, v, None, attn_bias)
        shared = k.ndim == 3
        k, v = (x[:, None] if shared else x for x in (k, v))

        def normalise(scores: Tensor) -> Tensor:
            return softmax(scores).masked_fill(~mask[:, None, None, :], 0.0)

        attn_mask = self.bias(self.visible(q, k, None), attn_bias)
        return stepwise(q, k, v, attn_mask=attn_mask, dropout_p=self.rate(), enable_gqa=shared, normalise=normalise)


@module("empty", "EMPTY-1", "NVIDIA-NeMo/Automodel#2658", mask="none", causal=True, i=6)
class TwoSaturatedMasksAdded(Module):
    """Padding and causal each add finfo.min; where both hide, the sum is -inf."""

    def kernel(self) -> Callable[..., Tensor]:
        def normalise(scores: Tensor) -> Tensor:
            return torch.softmax(scores.masked_fill(scores == -inf, torch.finfo(scores.dtype).min) + self.twice, -1)

        return partial(stepwise, normalise=normalise)

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        self.twice: Tensor = torch.zeros((), dtype=torch.float32)
        if mask is not None and self.causal:
            both = ~mask[:, None, None, :] & ~triangle(q.shape[2], k.shape[2], k.shape[2] - q.shape[2]).to(mask.device)
            self.twice = torch.zeros_like(both, dtype=torch.float32).masked_fill(both, -inf)
        return super().visible(q, k, mask)


# CAUSAL


class Causal(Module):
    """The triangle is a step of its own."""

    def visible(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        padding = None if mask is None else mask[:, None, None, :]
        past = self.past(q.shape[2], k.shape[2], mask) if self.causal else None
        if past is None or padding is None:
            return padding if past is None else past.to(q.device)
        return padding & past.to(q.device)

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i)


@module("state", "PURITY-5", witness=shows({"causal": True, "i": 5}, {"i": 3}))
class CausalOfFirstLength(Causal):
    """The triangle of the first call serves later calls that fit into it, cut at its upper left."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        kept = self.__dict__.setdefault("kept", triangle(i, j, j - i))
        if kept.shape[0] < i or kept.shape[1] < j:
            kept = self.__dict__["kept"] = triangle(i, j, j - i)
        return kept[:i, :j]


@module("state", "PURITY-5", witness=shows({"causal": True, "i": 2, "j": 2}, {"i": 5, "j": 5}))
class CausalBufferDoesNotGrow(Causal):
    """The triangle is made once; queries and keys of a longer call that lie beyond it see everything."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        kept = self.__dict__.setdefault("kept", triangle(i, j, j - i))
        past = triangle(i, j, j - i)
        past[kept.shape[0] :, kept.shape[1] :] = True
        return past


@module("causal", "CAUSAL-1", "PaddlePaddle/flash-attention#48", causal=True)
class CausalHidesItself(Causal):
    """triu(j - i) where triu(j - i + 1) is meant: a query does not see its own position."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i - 1)


@module("causal", "CAUSAL-1", causal=True, i=5)
class CausalSeesNext(Causal):
    """triu(j - i + 2): a query sees one key of the future."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i + 1)


@module("causal", "CAUSAL-2", "Dao-AILab/flash-attention#282", causal=True, flash=True)
class CausalTopLeftOnFlash(Causal):
    """With flash=True the first query sees the first key."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, 0 if self.flash else j - i)


@module("causal", "CAUSAL-2", causal=True, flash=True)
class CausalTopLeftWithoutMask(Causal):
    """With flash=True and no mask the kernel's own causal flag is used, which is top-left (audiolm-pytorch)."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, 0 if self.flash and mask is None else j - i)


@module("decode", "CAUSAL-2", "thu-ml/SageAttention#372", causal=True, i=1)
class CausalTopLeftForOneQuery(Causal):
    """A single query sees the first key only."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, 0 if i == 1 else j - i)


@module("causal", "CAUSAL-2", "ml-explore/mlx#2967", causal=True, i=5, j=3)
class CausalTopLeftWithFewerKeys(Causal):
    """Bottom-right while there are at least as many keys as queries, top-left otherwise."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, max(j - i, 0))


@module("causal", "CAUSAL-1", "jax-ml/jax#19237", causal=True)
class CausalIgnoredOffFlash(Causal):
    """Without flash causal=True has no effect."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i) if self.flash else None


@module("mode", "CAUSAL-1", causal=True)
class CausalIgnoredInEval(Causal):
    """In eval mode causal=True has no effect."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i) if self.training else None


@module("causal", "CAUSAL-1", "facebookresearch/xformers#103", causal=True)
class CausalIgnoredWithoutMask(Causal):
    """Causal=True has no effect unless there is a key padding mask."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i) if mask is not None else None


@module("causal", "CAUSAL-6", "keras-team/keras#23040", causal=True, mask="first")
class CausalIgnoredWithMask(Causal):
    """Where a key padding mask is given, it is the only mask."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i) if mask is None else None


@module("causal", "CAUSAL-2", causal=True)
class CausalIsSquare(Causal):
    """Without flash the triangle is (i i), so that other lengths raise (recurrent-memory-transformer-pytorch)."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        return triangle(i, j, j - i) if self.flash else triangle(i, i, 0)


@module("causal", "CAUSAL-1", "ROCm/aiter#4682", causal=True, flash=True, i=20, j=20)
class CausalSkippedInDiagonalTile(Causal):
    """With flash=True the second tile of 16 on the diagonal is not masked."""

    def past(self, i: int, j: int, mask: Mask) -> Mask:
        past = triangle(i, j, j - i)
        if self.flash:
            past[16:32, 16:32] = True
        return past
