"""More kernels that are right, each in a style of arithmetic that published ones have. ``HONEST`` is all of them by name.

Eager ones are in ``chains``. Signature and semantics are those of ``honest``: torch SDPA's. Each docstring says why its class
holds the arithmetic; beside half inputs, that is: in float32 and float64 all of them are in class A.

Two styles were thought of and are not here. Conversion that truncates errs by 2u where every class allows u. And a split over
keys that stores its partial outputs in the input dtype: no class names that tensor; its rounding, u Σ share |o_n|, would fit
where class B rounds P, but not what float16 loses below 2⁻¹⁴. Published split-K kernels keep partial outputs in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch
from chains import CHAINS, ROWS, Kernel, attend_eagerly, below_peak, kernel, sums, with_sdpa_signature
from honest import Plan, blocks, eager, rounded, softmax, split_k, sum_over_group, tiled, wide, widen
from torch import Tensor
from torch.autograd.function import once_differentiable

Multiply = Callable[[Tensor, Tensor], Tensor]
LOG2_E = 1.4426950408889634


# FLASH: an online softmax, and a backward by hand


@dataclass(frozen=True)
class Flash:
    """What such kernels do differently. The defaults are the plainest."""

    exp: Callable[[Tensor], Tensor] = torch.exp
    log: Callable[[Tensor], Tensor] = torch.log
    unit: float = 1.0  # what scores are multiplied with: log2 e for a base of 2
    short: bool = False  # in half types probabilities come from a short polynomial
    block: int = 16  # keys per step
    reverse: bool = False  # the last block of keys is visited first
    patience: float = 0.0  # how far a score may rise above the pivot before it follows, in units
    narrow: bool = True  # P and dS are rounded to the input dtype for a matmul
    sum_of_rounded: bool = False  # row sum and lse are those of the probabilities as the matmul received them
    second_sweep: str = ""  # no division: P = exp(s − m − log l) ("parts"), or exp(s − lse) with the rounded lse ("lse")
    delta_of_products: bool = False  # D = Σ P dP instead of Σ do o
    heads_stored: bool = False  # dk and dv of each query head are stored before the group is summed
    query_scaled: bool = False  # both passes read q·scale, stored
    key_scaled: bool = False  # the backward reads k·scale, stored
    gradients_stored: bool = False  # dq, dk and dv are added up in the input dtype, one block after the other

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
        return _Flash.apply(query, key, value, plan.bias, plan, self)

    def to_matmul(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What a matmul receives."""
        return rounded(x, dtype) if self.narrow else x

    def weights(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """exp of scores in this kernel's unit, minus something."""
        return short_exp2(x) if self.short and x.dtype != dtype else self.exp(x)

    def scaled(self, plan: Plan, dtype: torch.dtype) -> Plan:
        """The plan with scores in this kernel's unit. The lowest number, times log2 e, would hide what only weighs nothing."""
        bias = (plan.bias.to(dtype) * self.unit).clamp(min=torch.finfo(dtype).min)
        return replace(plan, scale=plan.scale * self.unit, bias=bias)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, plan: Plan, how: Flash) -> Tensor:
        dtype = query.dtype
        q, k, v = widen(query, key, value)
        own = how.scaled(plan, q.dtype)
        if how.query_scaled:
            q, own = rounded(q * own.scale, dtype), replace(own, scale=1.0)
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        total = q.new_zeros(*q.shape[:3], 1)
        peak = torch.full_like(total, -inf)
        steps = list(blocks(k.shape[2], how.block))
        for keys in reversed(steps) if how.reverse else steps:
            scores = own.scores(q, k[:, :, keys], keys)
            top = scores.amax(-1, keepdim=True)
            new_peak = torch.where(top > peak + how.patience, top, peak)
            pivot = new_peak.masked_fill(new_peak == -inf, 0.0)
            weights = how.weights(scores - pivot, dtype)
            if how.sum_of_rounded:
                weights = rounded(weights, dtype)
                operand = plan.thin_out(weights, keys)  # dropout's factor is that of the output
            else:
                operand = how.to_matmul(plan.thin_out(weights, keys), dtype)
            shrink = how.exp(peak - pivot)
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + operand @ v[:, :, keys]
            peak = new_peak
        empty = total == 0.0
        total = total.masked_fill(empty, 1.0)
        pivot, log_total = peak.masked_fill(empty, 0.0), how.log(total)
        lse = pivot + log_total
        if how.second_sweep:
            scores = own.scores(q, k)
            below = scores - lse if how.second_sweep == "lse" else scores - pivot - log_total
            out = how.to_matmul(plan.thin_out(how.weights(below, dtype)), dtype) @ v
        else:
            out = out / total
        out = out.to(dtype)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.plan, ctx.how = plan, how
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, lse = ctx.saved_tensors
        plan, how, dtype = ctx.plan, ctx.how, query.dtype
        q, k, v = widen(query, key, value)
        dout = cotangent.to(q.dtype)
        own, q_scale, k_scale = how.scaled(plan, q.dtype), plan.scale, plan.scale
        if how.query_scaled:
            q, own, q_scale = rounded(q * own.scale, dtype), replace(own, scale=1.0), 1 / how.unit
        if how.key_scaled:
            k, own, k_scale = rounded(k * own.scale, dtype), replace(own, scale=1.0), 1 / how.unit
        p = how.weights(own.scores(q, k) - lse, dtype)
        dp = plan.thin_out(dout @ v.mT)
        delta = ((p * dp) if how.delta_of_products else (dout * out)).sum(-1, keepdim=True)
        ds = (p * (dp - delta)).masked_fill(plan.hidden, 0.0)
        dbias = ds.sum_to_size(bias.shape).to(bias.dtype)
        p, ds = how.to_matmul(plan.thin_out(p), dtype), how.to_matmul(ds, dtype)
        add = partial(_added, step=ROWS if how.gradients_stored else None, dtype=dtype)
        dq = add(ds, k, k_scale)
        dk, dv = add(ds.mT, q, q_scale), add(p.mT, dout, 1.0)
        if how.heads_stored:
            dk, dv = rounded(dk, dtype), rounded(dv, dtype)
        return dq.to(dtype), sum_over_group(dk, key), sum_over_group(dv, value), dbias, None, None


def _added(a: Tensor, b: Tensor, scale: float, step: int | None, dtype: torch.dtype) -> Tensor:
    """scale · a @ b; with a step, block by block, with the sum so far stored in a dtype after each."""
    if step is None:
        return a @ b * scale
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for here in blocks(b.shape[2], step):
        total = rounded(total + a[..., here] @ b[:, :, here] * scale, dtype)
    return total


def short_exp2(x: Tensor) -> Tensor:
    """2^x by a polynomial of degree 3 for the fraction: relative error 8.8e-5, below the 2⁻¹³ of class B. Half types only."""
    x = x.clamp(min=-200.0)  # 2^x is zero from there on
    f = x - x.floor()
    return torch.ldexp(1.0 + f * (0.6951461434 + f * (0.2275643945 + f * 0.0771190897)), x.floor())


BASE_2: dict[str, Any] = {"exp": torch.exp2, "log": torch.log2, "unit": LOG2_E}


@kernel
def row_sum_of_rounded(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Divides by the sum of the probabilities as the matmul received them, uses exp2, and D = Σ P dP.

    B: the one rounding of P reaches sum and product alike. The gradient passes the rounding, as where it is by hand.
    """
    q, k, v = widen(query, key, value)
    weights = _Round.apply(torch.exp2(below_peak(plan.scores(q, k)) * LOG2_E), query.dtype)
    return (plan.thin_out(weights) @ v / sums(weights)).to(query.dtype)


class _Round(torch.autograd.Function):
    """Rounded to a storage dtype and back; its gradient passes unrounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return rounded(x, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


# By name: the class, what is special, and why the class has it.
FLASH: dict[str, tuple[str, Flash, str]] = {
    "lse of rounded": ("B", Flash(sum_of_rounded=True), "Rounding P moves the stored lse, and with it P in the backward, by u."),
    "exp2, folded": ("B", Flash(**BASE_2), "Base 2, log2 e folded into scale and bias: a constant and its products, u each."),
    "short polynomial": ("B", Flash(**BASE_2, short=True), "8.8e-5 of each P, before it is rounded by more."),
    "lazy rescale": ("B", Flash(**BASE_2, patience=8.0), "Weights up to 2⁸ round as those up to 1 do, and rescales are fewer."),
    "divided by exp lse": ("B", Flash(block=1 << 20, second_sweep="parts"), "P = exp(s − m − log l): a difference more, wide."),
    "heads stored": ("B", Flash(heads_stored=True), "dk and dv of a query head are stored as an output is, and so is their sum."),
    "keys reversed": ("A", Flash(reverse=True, narrow=False), "All wide. Any order of blocks: records are counted from both ends."),
    "query scaled, exp2": ("C", Flash(**BASE_2, query_scaled=True), "q · scale · log2 e is stored: a pre-scaled operand."),
    "gradients stored": ("B*", Flash(block=1 << 20, gradients_stored=True), "dq, dk, dv are stored after every 32 rows or keys."),
}


# WIDE


@kernel
def unfused_wide(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """The textbook formula in float32, with its autograd. A: nothing but outputs is rounded to storage."""
    q, k, v = widen(query, key, value)
    return (plan.thin_out(softmax(plan.scores(q, k))) @ v).to(query.dtype)


@kernel
def in_float64(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """The same in float64. A: more exact than it has to be; each result is rounded once."""
    return attend_eagerly(query.double(), key.double(), value.double(), replace(plan, bias=plan.bias.double())).to(query.dtype)


@kernel
def divided_at_the_end(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """Unnormalised weights meet the values, and the sum is divided. A: wide; autograd subtracts P dP and P D."""
    q, k, v = widen(query, key, value)
    weights = torch.exp(below_peak(plan.scores(q, k)))
    return (plan.thin_out(weights) @ v / sums(weights)).to(query.dtype)


@kernel
def exp_of_log_softmax(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """P = exp(log_softmax(s)), differentiated. A: wide; s − m − log l is one more difference of numbers of its size."""
    q, k, v = widen(query, key, value)
    scores = plan.scores(q, k).masked_fill(plan.hidden.all(-1, keepdim=True), 0.0)  # such a row would be −∞ − −∞
    p = torch.exp(torch.log_softmax(scores, -1)).masked_fill(plan.hidden, 0.0)
    return (plan.thin_out(p) @ v).to(query.dtype)


class _Product(torch.autograd.Function):
    """A matrix product in another arithmetic, in both passes."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, multiply: Multiply) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.multiply = multiply
        return multiply(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        return ctx.multiply(gradient, b.mT), ctx.multiply(a.mT, gradient), None


def multiplied_by(multiply: Multiply, its_sums: bool, query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """The wide formula with another matrix product and, where told, row sums that are products with ones."""
    q, k, v = widen(query, key, value)
    scores = _Product.apply(q, k.mT, multiply) * plan.scale + plan.bias.expand_as(plan.hidden)
    weights = torch.exp(below_peak(scores.masked_fill(plan.hidden, -inf)))
    ones = torch.ones_like(k[..., :1])
    total = _Product.apply(weights, ones, multiply) if its_sums else weights.sum(-1, keepdim=True)
    p = weights / total.masked_fill(total == 0.0, 1.0)
    return _Product.apply(plan.thin_out(p), v, multiply).to(query.dtype)


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """A product whose sums are those of neighbours, of neighbours of these, and so on."""
    x = a.mT[..., None] * b[..., None, :]  # (… n i c)
    while x.shape[2] > 1:
        odd = x[:, :, -1:] if x.shape[2] % 2 else x[:, :, :0]
        x = torch.cat([x[:, :, :-1:2] + x[:, :, 1::2], odd], dim=2)
    return x.sum(2)


def one_by_one(a: Tensor, b: Tensor, compensate: bool = False) -> Tensor:
    """A product that adds one term after the other, the first first; with Kahan's compensation."""
    x, y = a.numpy(), b.numpy()
    total = np.zeros((*x.shape[:-1], y.shape[-1]), x.dtype)
    lost = np.zeros_like(total)
    for n in range(x.shape[-1]):
        term = x[..., n, None] * y[:, :, n, None] - lost
        new = total + term
        if compensate:
            lost = (new - total) - term
        total = new
    return torch.from_numpy(total)


def tf32(x: Tensor) -> Tensor:
    """float32 rounded to the eleven significant bits of tf32."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@kernel
def in_numpy(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> Tensor:
    """NumPy's einsum with gradients by hand and D = Σ P dP. A: float32 inside (float64 for float64)."""
    return _InNumPy.apply(query, key, value, plan.bias, plan)


class _InNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, plan: Plan) -> Tensor:
        q, k, v, b = (x.detach().numpy() for x in (*widen(query, key, value), bias.to(wide(query.dtype))))
        s = np.einsum("bhid,bhjd->bhij", q, k) * q.dtype.type(plan.scale) + b
        s = np.where(plan.hidden.numpy(), q.dtype.type(-inf), s)
        top = s.max(-1, keepdims=True, initial=-inf)
        p = np.exp(s - np.where(top == -inf, q.dtype.type(0), top))
        total = p.sum(-1, keepdims=True)
        p = p / np.where(total == 0, q.dtype.type(1), total)
        ctx.save_for_backward(query, key, value, bias)
        ctx.state = q, k, v, p, plan
        out = np.einsum("bhij,bhje->bhie", plan.thin_out(torch.from_numpy(p)).numpy(), v)
        return torch.from_numpy(out).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias = ctx.saved_tensors
        q, k, v, p, plan = ctx.state
        do = cotangent.to(wide(query.dtype)).numpy()
        dp = plan.thin_out(torch.from_numpy(np.einsum("bhie,bhje->bhij", do, v))).numpy()
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        scale = q.dtype.type(plan.scale)
        dq, dk = np.einsum("bhij,bhjd->bhid", ds, k) * scale, np.einsum("bhij,bhid->bhjd", ds, q) * scale
        dv = np.einsum("bhij,bhie->bhje", plan.thin_out(torch.from_numpy(p)).numpy(), do)
        dq, dk, dv, ds = (torch.from_numpy(x) for x in (dq, dk, dv, ds))
        dbias = ds.sum_to_size(bias.shape).to(bias.dtype)
        return dq.to(query.dtype), sum_over_group(dk, key), sum_over_group(dv, value), dbias, None


# FLUSHED


@contextmanager
def flushing() -> Iterator[None]:
    """Subnormal operands and results are zero, as the processor does it, except in float16, whose it keeps."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class _Flushed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Kernel, *given: Tensor | None) -> Tensor:
        ctx.given = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in given]
        with torch.enable_grad(), flushing():
            ctx.out = run(*ctx.given)
        return ctx.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [x for x in ctx.given if x is not None and x.requires_grad]
        with flushing():
            found = iter(torch.autograd.grad(ctx.out, wanted, cotangent, allow_unused=True))
        return None, *(next(found) if x is not None and x.requires_grad else None for x in ctx.given)


def flushed(inner: Kernel) -> Kernel:
    """A kernel on a processor that flushes to zero. Its class stays: every class counts what underflows as lost."""

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *options: Any) -> Tensor:
        return _Flushed.apply(lambda *given: inner(*given, *options), query, key, value, mask)

    return with_sdpa_signature(run)


# Each with its class in half types; in float32 and float64 all of them are in class A.
HONEST: dict[str, tuple[Kernel, str]] = {
    "split_k": (split_k, "A"),
    "unfused, wide": (unfused_wide, "A"),
    "in float64": (in_float64, "A"),
    "in NumPy": (in_numpy, "A"),
    "divided at the end": (divided_at_the_end, "A"),
    "exp of log_softmax": (exp_of_log_softmax, "A"),
    # The bound holds for sums in any order, and better ones.
    "summed in pairs": (kernel(partial(multiplied_by, pairwise, True)), "A"),
    "summed one by one": (kernel(partial(multiplied_by, one_by_one, True)), "A"),
    "summed with compensation": (kernel(partial(multiplied_by, partial(one_by_one, compensate=True), True)), "A"),
    "split_k, flushed": (flushed(split_k), "A"),
    "tiled": (tiled, "B"),
    "row sum of rounded": (row_sum_of_rounded, "B"),
    "tiled, flushed": (flushed(tiled), "B"),
    "eager": (eager, "C"),
    "eager, flushed": (flushed(eager), "C"),
}
HONEST |= CHAINS
HONEST |= {name: (kernel(how), class_) for name, (class_, how, _) in FLASH.items()}
# D = Σ P dP of a recomputed P: right while its scores are the forward's, bit by bit, so both are made in one piece.
HONEST["D of products"] = (kernel(Flash(block=1 << 20, delta_of_products=True)), "B")
# Outside of every class, on purpose: name, class, and why.
OPEN: dict[str, tuple[Kernel, str, str]] = {
    "divided by rounded lse": (
        kernel(Flash(second_sweep="lse")),
        "B",
        "exp(s − lse) holds until u |lse| is a half; where all scores are the dtype's lowest, the row sum is lost.",
    ),
    "key scaled in backward": (
        kernel(Flash(**BASE_2, key_scaled=True)),
        "C",
        "Triton's tutorial: backward rounds k · scale · log2 e again, so P of large scores is not limited to 1.",
    ),
}
# For float32 only, where it is in class T by definition.
TF32: dict[str, tuple[Kernel, str]] = {
    "operands in tf32": (kernel(partial(multiplied_by, lambda a, b: tf32(a) @ tf32(b), False)), "T")
}
