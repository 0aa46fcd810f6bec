"""Faults of the lse: what it sums, its base, its empty rows, its form, what it depends on, and its cotangent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, log
from typing import Any

import torch
from honest import prepare
from lsed import honest
from sunk import honest as honest_with_sinks
from torch import Tensor
from torch.autograd.function import once_differentiable

from mutants.base import Call, mutant

Both = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Asked(Call):
    """The arguments of one call with `return_lse`."""

    return_lse: bool = False

    def both(self, **changes: Any) -> Both:
        """Output and lse of the honest kernel, with some arguments changed."""
        result: Both = self.but(return_lse=True, **changes).run(honest)
        return result


def with_lse(attend: Callable[[Asked], Any], checked: bool = True) -> Callable[..., Any]:
    """A function of a call as one with torch SDPA's parameters and `return_lse`."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
    ) -> Any:
        prepare(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
        call = Asked(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse)
        return attend(call) if return_lse else call.run(honest)

    return run


def lse(clause: str, source: str = "", witness: Callable[[Any], bool] | None = None) -> Callable[[Any], Any]:
    """Enter a mutant, which is called where the lse is asked for."""
    return mutant("lse", clause, source, signed=with_lse, witness=witness)


def with_sum(call: Asked, change: Callable[[Tensor], Tensor]) -> Both:
    """Honestly, with another lse, whose gradient is that of the honest one."""
    out, own = call.both()
    return out, own + (change(own.detach()) - own.detach()).nan_to_num(nan=0.0, posinf=inf, neginf=-inf)


def scores(call: Asked) -> Tensor:
    """The scores of a call, −∞ where a key is hidden; in float32 or wider. (b h i j)."""
    plan = prepare(*list(vars(call).values())[:8])
    wider = torch.float64 if call.query.dtype == torch.float64 else torch.float32
    k = call.key.repeat_interleave(call.shape[1] // max(call.key.shape[1], 1), 1)
    return replace(plan, bias=plan.bias.to(wider)).scores(call.query.to(wider), k.to(wider)).detach()


def placed(call: Asked, where: Tensor, wrong: Tensor) -> Both:
    """Honestly, with another lse at some places, what broadcasts to (b h i)."""
    out, own = call.both()
    return out, torch.where(where & (own > -inf), wrong.to(own.dtype), own)


# WHAT IT SUMS


@lse("LSE-1")
def lse_is_the_largest_score(call: Asked) -> Both:
    """The largest score of the row is returned, and not the log of the sum."""
    return with_sum(call, lambda own: scores(call).amax(-1) if call.shape[3] else own)


@lse("LSE-1")
def lse_is_the_sum(call: Asked) -> Both:
    """The sum of the exponentials is returned, and not its log."""
    return with_sum(call, lambda own: torch.where(own > -inf, own.exp(), own))


@lse("LSE-1")
def lse_without_scale(call: Asked) -> Both:
    """The lse is that of products that were not scaled."""
    return call.both()[0], call.both(scale=1.0)[1]


@lse("LSE-10")
def lse_drops_what_is_constant_in_a_row(call: Asked) -> Both:
    """A bias that is the same for all keys of a row is not added: the output does not notice."""
    mask = call.float_mask
    return call.both(attn_mask=None) if mask is not None and mask.ndim and mask.shape[-1] == 1 < call.shape[3] else call.both()


@lse("LSE-1")
def lse_of_the_first_64_keys(call: Asked) -> Both:
    """Of rows of more than 64 keys the lse lacks what is behind the first 64."""
    if call.shape[3] <= 64:
        return call.both()
    return placed(call, torch.tensor(True), torch.logsumexp(scores(call)[..., :64], -1))


@lse("LSE-15")
def lse_of_the_larger_half_from_129(call: Asked) -> Both:
    """From 129 keys on there are two ranges of keys, and the lse is the larger one of theirs."""
    j = call.shape[3]
    if j < 129:
        return call.both()
    s = scores(call)
    return placed(call, torch.tensor(True), torch.maximum(s[..., : j // 2].logsumexp(-1), s[..., j // 2 :].logsumexp(-1)))


@lse("LSE-1", "flagos-ai/FlagGems#5235")
def lse_of_the_head_before_in_the_last(call: Asked) -> Both:
    """The last of several heads returns the lse of the head before it."""
    out, own = call.both()
    h = own.shape[1]
    return (out, own) if h < 2 else (out, torch.cat([own[:, :-1], own[:, -2:-1]], 1))


@lse("LSE-1", "Dao-AILab/flash-attention#2388")
def lse_written_by_rows_and_read_by_heads(call: Asked) -> Both:
    """The lse is written as (b i h) and read as (b h i)."""
    out, own = call.both()
    return out, own.transpose(1, 2).reshape(own.shape)


@lse("LSE-1", "flashinfer-ai/flashinfer#4267 flashinfer-ai/flashinfer#4401")
def lse_with_a_sentinel_of_minus_50000(call: Asked) -> Both:
    """A running maximum that begins at −50000: a row whose scores are all below has that for its lse."""
    out, own = call.both()
    return out, torch.where(own > -inf, own.clamp(min=-5e4), own)


# BASE


@lse("LSE-2", "pytorch/pytorch#181645")
def lse_times_ln_2(call: Asked) -> Both:
    """The lse is multiplied by ln 2, although it is natural already, where there are more than eight queries."""
    out, own = call.both()
    return out, own * log(2) if call.shape[2] > 8 else own


@lse("LSE-6", "vllm-project/vllm#47079")
def lse_in_base_2_for_one_query(call: Asked) -> Both:
    """The lse of a single query is in base 2."""
    out, own = call.both()
    return out, own / log(2) if call.shape[2] == 1 else own


# EMPTY ROWS


@lse("LSE-4")
def lse_of_an_empty_row_is_zero(call: Asked) -> Both:
    """A row without a key has an lse of zero."""
    out, own = call.both()
    return out, own.masked_fill(own == -inf, 0.0)


@lse("LSE-6", "Dao-AILab/flash-attention#978")
def lse_of_an_empty_row_is_plus_inf_for_one_query(call: Asked) -> Both:
    """A single query without a key has +∞, where longer calls have −∞."""
    out, own = call.both()
    return out, own.masked_fill(own == -inf, inf) if call.shape[2] == 1 else own


@lse("LSE-4", "vllm-project/vllm#28181")
def lse_of_an_empty_row_is_nan_behind_row_31(call: Asked) -> Both:
    """From row 32 on a row without a key has an lse of NaN."""
    out, own = call.both()
    late = torch.arange(call.shape[2]) >= 32
    return out, own.masked_fill((own == -inf) & late, torch.nan)


# FORM


@lse("LSE-5", "feifeibear/long-context-attention#122")
def lse_is_padded_to_32_rows(call: Asked) -> Both:
    """The lse has rows up to a multiple of 32."""
    out, own = call.both()
    return out, torch.nn.functional.pad(own, (0, -own.shape[2] % 32))


@lse("LSE-5")
def lse_in_half_from_65_keys(call: Asked) -> Both:
    """From 65 keys on the lse of half inputs has their dtype."""
    out, own = call.both()
    return out, own.to(call.query.dtype) if call.shape[3] > 64 and call.query.element_size() == 2 else own


# WHAT IT DEPENDS ON


def _another_output(kernel: Callable[..., Any]) -> bool:
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    return not torch.allclose(kernel(x, x, x), kernel(x, x, x, return_lse=True)[0])


@lse("LSE-7", witness=_another_output)
def lse_asked_for_spoils_a_channel(call: Asked) -> Both:
    """Where the lse is asked for the epilogue writes it over a part of the output: the last channel is a sixteenth too large."""
    out, own = call.both()
    return torch.cat([out[..., :-1], out[..., -1:] * 1.0625], -1), own


def _values_matter(kernel: Callable[..., Any]) -> bool:
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    return not torch.equal(kernel(x, x, x, return_lse=True)[1], kernel(x, x, 1e5 * x, return_lse=True)[1])


@lse("LSE-8", witness=_values_matter)
def lse_rescaled_with_large_values(call: Asked) -> Both:
    """Where a value is beyond 10⁴ the loop rescales its sum with the accumulators, and the lse loses ln 2."""
    out, own = call.both()
    return out, own - log(2) * float(call.value.numel() > 0 and bool((call.value.detach().abs() > 1e4).any()))


def _dropout_matters(kernel: Callable[..., Any]) -> bool:
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    return not torch.allclose(kernel(x, x, x, return_lse=True)[1], kernel(x, x, x, dropout_p=0.5, return_lse=True)[1])


@lse("LSE-9", witness=_dropout_matters)
def lse_of_what_dropout_left(call: Asked) -> Both:
    """The row is summed after dropout."""
    out, own = call.both()
    if not call.dropout_p:
        return out, own
    s = scores(call.but(dropout_p=0.0))
    kept = torch.rand(s.shape) >= call.dropout_p
    return out, torch.where(own > -inf, s.masked_fill(~kept, -inf).logsumexp(-1).to(own.dtype), own)


def _remembers(kernel: Callable[..., Any]) -> bool:
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    first = kernel(x, x, x, return_lse=True)[1].clone()
    return torch.allclose(kernel(3 * x, x, x, return_lse=True)[1], first)


@lse("LSE-1", witness=_remembers)
class LseOfTheFirstCall:
    """The buffer of the lse is kept by its shape, and every second call of a shape finds what the first one left there."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, call: Asked) -> Both:
        out, own = call.both()
        kept = self.kept.pop(tuple(own.shape), None)
        if kept is None or kept.dtype != own.dtype:
            self.kept[tuple(own.shape)] = own.detach().clone()
            return out, own
        return out, own + (kept - own.detach()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


# ITS COTANGENT


class _Through(torch.autograd.Function):
    """One call whose cotangent of the lse is changed on its way back, with the gradients to which that belongs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: Asked, change: Callable[..., Any]) -> Both:
        ctx.save_for_backward(query, key, value)
        ctx.call, ctx.change = call, change
        return call.but(query=query, key=key, value=value, attn_mask=_plain(call.attn_mask)).both()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Any, ...]:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            call = ctx.call.but(query=inputs[0], key=inputs[1], value=inputs[2], attn_mask=_plain(ctx.call.attn_mask))
            out, own = call.both()
            dlse, of_each = ctx.change(do, dlse, own.detach())
            found = torch.autograd.grad([out, own], inputs, [do, dlse], retain_graph=of_each is not None)
            if of_each is not None:  # these without the cotangent of the lse
                plain = torch.autograd.grad([out, own], inputs, [do, torch.zeros_like(dlse)])
                found = tuple(y if name in of_each else x for name, x, y in zip("qkv", found, plain, strict=True))
        return *found, None, None


def _plain(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.detach()


def through(call: Asked, change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, str | None]]) -> Both:
    """Honestly, with another cotangent of the lse in backward; a bias gets no gradient then."""
    if call.float_mask is not None and call.float_mask.requires_grad:
        return call.both()
    result: Both = _Through.apply(call.query, call.key, call.value, call, change)
    return result


@lse("LSE-12", "Dao-AILab/flash-attention#404 Dao-AILab/flash-attention#889")
def lse_cotangent_is_dropped(call: Asked) -> Both:
    """The cotangent of the lse is not read."""
    return through(call, lambda do, dlse, own: (torch.zeros_like(dlse), None))


@lse("LSE-12")
def lse_cotangent_is_added_to_delta(call: Asked) -> Both:
    """The cotangent of the lse is added to D, where it is to be subtracted."""
    return through(call, lambda do, dlse, own: (-dlse, None))


@lse("LSE-12")
def lse_cotangent_is_not_in_dk(call: Asked) -> Both:
    """The kernel of dk does not read the cotangent of the lse."""
    return through(call, lambda do, dlse, own: (dlse, "k"))


@lse("LSE-12")
def lse_cotangent_of_the_last_head_is_dropped(call: Asked) -> Both:
    """In the last of several heads the cotangent of the lse is not read."""
    h = call.shape[1]
    kept = ((torch.arange(h) < h - 1) | (h < 2))[:, None]
    return through(call, lambda do, dlse, own: (dlse * kept, None))


@lse("LSE-12")
def lse_cotangent_is_dropped_from_row_64_on(call: Asked) -> Both:
    """From query 64 on the cotangent of the lse is not read."""
    return through(call, lambda do, dlse, own: (dlse * (torch.arange(call.shape[2]) < 64), None))


@lse("LSE-12")
def lse_cotangent_alone_is_nothing(call: Asked) -> Both:
    """Where the cotangent of the output is zero backward ends at once."""
    return through(call, lambda do, dlse, own: (dlse * float(bool((do != 0).any())), None))


@lse("LSE-12")
def lse_cotangent_in_base_2(call: Asked) -> Both:
    """The cotangent of the natural lse is divided by ln 2."""
    return through(call, lambda do, dlse, own: (dlse / log(2), None))


@lse("LSE-14")
def lse_cotangent_of_an_empty_row_is_nan(call: Asked) -> Both:
    """0 · (λ − ∞): the gradient of a query without a key is NaN where its lse has a cotangent."""
    if call.float_mask is not None:
        return call.both()
    out, own = call.both()
    if not (own == -inf).any():
        return out, own
    query = _Poisoned.apply(call.query, own.detach() == -inf)
    return call.both(query=query)


class _Poisoned(torch.autograd.Function):
    """The same numbers, whose gradient is NaN in some rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.rows = rows
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent.masked_fill(ctx.rows[..., None], torch.nan), None


# PARTS WITH A START


def with_start(attend: Callable[[Asked], Any], checked: bool = True) -> Callable[..., Any]:
    """As `with_lse`, with `q_start`, where causal begins. The function is called where the first query is before the first key."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        q_start: int | None = None,
    ) -> Any:
        prepare(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
        if q_start is not None and is_causal:
            i, j = query.shape[2], key.shape[2]
            shown = torch.arange(j) <= q_start + torch.arange(i)[:, None]
            own = shown if attn_mask is None or attn_mask.dtype == torch.bool else torch.where(shown, attn_mask, -inf)
            attn_mask, is_causal = shown & attn_mask if own is shown and attn_mask is not None else own, False
        call = Asked(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse)
        return attend(call) if return_lse and q_start is not None and q_start < 0 else call.run(honest)

    return run


def _differs_before_the_first_key(kernel: Callable[..., Any]) -> bool:
    x = torch.randn(2, 1, 2, 5, 4, generator=torch.Generator().manual_seed(2))
    found = []
    for start in (None, -1):
        q = x[0].clone().requires_grad_()
        kernel(q, x[1], x[1], return_lse=True, q_start=start)[1].sum().backward()
        found.append(q.grad)
    return not torch.allclose(*found)


@mutant("lse", "LSE-12", signed=with_start, witness=_differs_before_the_first_key)
def lse_cotangent_is_dropped_before_the_first_key(call: Asked) -> Both:
    """Where the first query stands before the first key the cotangent of the lse is not read."""
    return through(call, lambda do, dlse, own: (torch.zeros_like(dlse), None))


# BESIDE SINKS


def with_sinks(attend: Callable[[Asked, Tensor], Tensor], checked: bool = True) -> Callable[..., Any]:
    """As `with_lse`, with `sinks` (h). The function gives the lse of a call with sinks, from the call and them."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        sinks: Tensor | None = None,
        return_lse: bool = False,
    ) -> Any:
        call = Asked(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse)
        if sinks is None:
            return call.run(honest)
        out = honest_with_sinks(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, sinks)
        return (out, attend(call, sinks)) if return_lse else out

    return run


def summed_with_sink(call: Asked, sinks: Tensor, times: float = 1.0) -> Tensor:
    """The honest lse with so many terms of the sink. (b h i)."""
    own = call.both()[1].detach()
    return torch.logaddexp(own, (sinks.to(own.dtype) + log(times))[:, None])


def _another_sum(kernel: Callable[..., Any]) -> bool:
    found = []
    for i in (1, 3):
        q, k = (torch.randn(1, 2, n, 4, generator=torch.Generator().manual_seed(3)) for n in (i, 5))
        z = torch.tensor([0.3, 1.0])
        plain = kernel(q, k, k, return_lse=True)[1]
        sunk = kernel(q, k, k, sinks=z, return_lse=True)[1]
        found.append(torch.allclose(sunk, torch.logaddexp(plain, z[:, None]), atol=1e-5))
    return not all(found)


@mutant("lse", "LSE-18", signed=with_sinks, witness=_another_sum)
def lse_counts_the_sink_twice(call: Asked, sinks: Tensor) -> Tensor:
    """Each of two halves of the keys adds the term of the sink, and the lse has it twice."""
    return summed_with_sink(call, sinks, 2.0)


@mutant("lse", "LSE-6", signed=with_sinks, witness=_another_sum)
def lse_leaves_out_the_sink_for_one_query(call: Asked, sinks: Tensor) -> Tensor:
    """With one query the lse is that of the keys, and with more it has the term of the sink."""
    return call.both()[1].detach() if call.shape[2] == 1 else summed_with_sink(call, sinks)
