"""Faults of slopes: whose they are, from where they count, what they meet, and what backward has of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from honest import _Tiled, check, prepare, softmax, wide, widen
from sloped import first_of, honest
from torch import Tensor

from attnspec.conformance.problems.factors.alibi import published
from mutants.base import Call, mutant, named


@dataclass(frozen=True)
class Sloped(Call):
    """The arguments of one call with slopes, at SDPA's alignment; offset: the position of the first query, for all or (b 1 1 1)."""

    alibi_slopes: Tensor | None = None
    offset: int | Tensor = 0

    def run(self, kernel: Callable[..., Any] = honest, **options: Any) -> Any:
        given = {name: x for name, x in vars(self).items() if name != "offset" and (name != "alibi_slopes" or kernel is honest)}
        return kernel(**given, **options)

    @property
    def slopes(self) -> Tensor:
        """(1 h) or (b h), in the accumulators' dtype."""
        assert self.alibi_slopes is not None
        return self.alibi_slopes.to(wide(self.query.dtype)).reshape(-1, self.shape[1])

    @property
    def ahead(self) -> Tensor:
        """How far each key lies behind the query, (i j) or (b 1 i j)."""
        i, j = self.shape[2:]
        return torch.arange(j) - torch.arange(i)[:, None] - self.offset


def with_slopes(attend: Callable[[Sloped], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one with torch SDPA's parameters and `alibi_slopes`."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        call = Sloped(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, alibi_slopes)
        call.run(check)
        return call.run() if alibi_slopes is None else attend(call)

    return run


def at_the_end(attend: Callable[[Sloped], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one whose last query stands at the last key, as flash-attention has it."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        softmax_scale: float | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        i, j = q.shape[2], k.shape[2]
        shown = torch.ones(i, j, dtype=torch.bool).tril(j - i) if causal else None
        call = Sloped(q, k, v, shown, 0.0, False, softmax_scale, q.shape[1] != k.shape[1], alibi_slopes, j - i)
        call.run(check)
        return replace(call, alibi_slopes=None).run() if alibi_slopes is None else attend(call)

    return run


def at_a_start(attend: Callable[[Sloped], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one that is told where its queries start, and is as :func:`at_the_end` else."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        softmax_scale: float | None = None,
        alibi_slopes: Tensor | None = None,
        q_start: int | Tensor | None = None,
    ) -> Tensor:
        offset = first_of(q_start, q, k)
        call = Sloped(q, k, v, None, 0.0, False, softmax_scale, q.shape[1] != k.shape[1], alibi_slopes, offset)
        if causal:
            call = replace(call, attn_mask=(call.ahead <= 0).expand(q.shape[0], 1, *call.ahead.shape[-2:]))
        call.run(check)
        return replace(call, alibi_slopes=None).run() if alibi_slopes is None else attend(call)

    return run


def alibi(
    clause: str, source: str = "", signed: Callable[..., Any] = with_slopes, witness: Callable[[Any], bool] | None = None
) -> Callable[[Any], Any]:
    """Enter a mutant."""
    return mutant("alibi", clause, source, signed=signed, witness=witness)


def adding(call: Sloped, added: Tensor) -> Tensor:
    """Honestly, with this, what broadcasts to (b h i j), in the place of what the slopes add; gradients flow into it."""
    plan = call.run(prepare)
    bias = plan.bias.to(added.dtype) + added
    return _Tiled.apply(call.query, call.key, call.value, bias, replace(plan, bias=bias))  # type: ignore[no-any-return]


def by_slopes(call: Sloped, slopes: Tensor) -> Tensor:
    """Honestly, with other slopes (1 h) or (b h)."""
    return adding(call, slopes[..., None, None] * -call.ahead.abs())


def by_distance(call: Sloped, far: Tensor) -> Tensor:
    """Honestly, with something else (i j) in the place of the distance."""
    return adding(call, call.slopes[..., None, None] * far)


def ignored(name: str, clause: str, what: str, holds: Callable[[Sloped], bool], source: str = "") -> None:
    """Enter a mutant that ignores slopes in some calls."""

    def attend(call: Sloped) -> Tensor:
        return by_slopes(call, 0 * call.slopes) if holds(call) else by_slopes(call, call.slopes)

    alibi(clause, source)(named(name, what, attend))


# WHETHER THEY ARE READ

ignored("alibi_not_read", "ALIBI-1", "Slopes are accepted and not read.", lambda call: True)
ignored("alibi_not_read_in_decode", "ALIBI-6", "A single query has no slopes.", lambda call: call.shape[2] == 1)
ignored(
    "alibi_not_read_in_bfloat16", "ALIBI-1", "In bfloat16 there are no slopes.", lambda call: call.query.dtype == torch.bfloat16
)
ignored("alibi_not_read_at_17_keys", "ALIBI-1", "With 17 keys there are no slopes.", lambda call: call.shape[3] == 17)
ignored(
    "alibi_not_read_beside_a_bias", "ALIBI-8", "Beside a float mask there are no slopes.", lambda call: call.float_mask is not None
)
ignored(
    "alibi_not_read_beside_a_mask", "ALIBI-9", "Beside a bool mask there are no slopes.", lambda call: call.bool_mask is not None
)
ignored(
    "alibi_not_read_for_groups",
    "ALIBI-7",
    "Where heads share keys there are no slopes.",
    lambda call: call.key.shape[1] < call.shape[1],
)
ignored(
    "alibi_not_read_without_causal",
    "ALIBI-5",
    "Without causal and without a mask there are no slopes.",
    lambda call: not call.is_causal and call.attn_mask is None,
)


# WHOSE THEY ARE


@alibi("ALIBI-7")
def alibi_of_the_next_head(call: Sloped) -> Tensor:
    """Each head has the slope of the next one."""
    return by_slopes(call, call.slopes.roll(-1, 1))


@alibi("ALIBI-7")
def alibi_of_the_kv_head(call: Sloped) -> Tensor:
    """Slopes are read at the number of the key/value head."""
    h, g = call.shape[1], call.key.shape[1]
    return by_slopes(call, call.slopes[:, torch.arange(h) // (h // g)])


@alibi("ALIBI-7", "cosdt/vllm-ascend#6")
def alibi_of_a_batch_read_as_of_heads(call: Sloped) -> Tensor:
    """Slopes (b h) are read as (h): those of the first batch item are taken for all."""
    return by_slopes(call, call.slopes[:1])


@alibi("ALIBI-7", "Dao-AILab/flash-attention#1585")
def alibi_of_a_batch_refused(call: Sloped) -> Tensor:
    """Slopes (b h) are rejected, though they are taken by its parameter."""
    if call.alibi_slopes.ndim == 2:
        raise RuntimeError("alibi_slopes must have shape (num_heads)")
    return by_slopes(call, call.slopes)


@alibi("ALIBI-7", "flashinfer-ai/flashinfer#1606")
def alibi_made_for_its_own_heads(call: Sloped) -> Tensor:
    """Slopes are made anew from the number of heads in the call, which are some of the model's."""
    return by_slopes(call, torch.from_numpy(published(call.shape[1])).to(call.slopes.dtype)[None] + 0 * call.slopes)


@alibi("ALIBI-7", "ml-explore/mlx#3071")
def alibi_of_a_power_of_two(call: Sloped) -> Tensor:
    """Where the number of heads is no power of two, the slopes of 2^(−8n/h) are taken in the place of those given."""
    h = call.shape[1]
    own = 2.0 ** (-8 * torch.arange(1, h + 1) / h)
    return by_slopes(call, call.slopes if h & (h - 1) == 0 else own.to(call.slopes.dtype)[None] + 0 * call.slopes)


@alibi("ALIBI-13")
def alibi_of_zero_is_a_default(call: Sloped) -> Tensor:
    """A slope of zero is taken for none given, and becomes 1/256."""
    return by_slopes(call, call.slopes + (call.slopes == 0) / 256)


@alibi("ALIBI-7")
def alibi_has_no_sign(call: Sloped) -> Tensor:
    """Slopes below zero lose their sign."""
    return by_slopes(call, call.slopes.abs())


@alibi("ALIBI-7")
def alibi_in_bfloat16(call: Sloped) -> Tensor:
    """Slopes are rounded to bfloat16 in every dtype."""
    return by_slopes(call, call.slopes.bfloat16().to(call.slopes.dtype))


# WHAT THEY MEET


@alibi("ALIBI-1", "meta-pytorch/attention-gym#86")
def alibi_favours_what_is_far(call: Sloped) -> Tensor:
    """Slopes raise the scores that they should lower."""
    return by_slopes(call, -call.slopes)


@alibi("ALIBI-8")
def alibi_is_scaled(call: Sloped) -> Tensor:
    """Slopes are added before the scale."""
    return by_slopes(call, call.slopes * call.scale_in_use)


@alibi("ALIBI-8")
def alibi_is_divided_by_a_scale_of_zero(call: Sloped) -> Tensor:
    """Slopes are divided by the scale and multiplied with it again, also where it is zero."""
    return by_slopes(call, call.slopes if call.scale_in_use else call.slopes / 0.0 * 0.0)


@alibi("ALIBI-14")
def alibi_in_base_two(call: Sloped) -> Tensor:
    """Slopes are added to scores that are multiplied by log2 e already."""
    return by_slopes(call, call.slopes * 0.6931471805599453)


@alibi("ALIBI-1")
def alibi_counts_within_a_block(call: Sloped) -> Tensor:
    """Behind the first 64 keys a key's place is that in its block."""
    keys = torch.arange(call.shape[3])
    return by_distance(call, -(call.ahead - (keys // 64 * 64)).abs())


@alibi("ALIBI-5")
def alibi_behind_is_one_short(call: Sloped) -> Tensor:
    """Keys behind the query are one position nearer than they are."""
    return by_distance(call, -torch.where(call.ahead > 0, call.ahead - 1, call.ahead).abs())


@alibi("ALIBI-2")
def alibi_is_signed_for_long_rows(call: Sloped) -> Tensor:
    """From 33 keys on what is added grows behind the query."""
    return by_distance(call, call.ahead if call.shape[3] > 32 else -call.ahead.abs())


@alibi("ALIBI-5")
def alibi_adds_nothing_behind(call: Sloped) -> Tensor:
    """In float64 nothing is added to keys behind the query."""
    exact = call.query.dtype == torch.float64
    return by_distance(call, -(call.ahead.clamp(max=0) if exact else call.ahead).abs())


@alibi("ALIBI-6", signed=at_the_end)
def alibi_counts_from_the_other_corner(call: Sloped) -> Tensor:
    """Distances begin at i, where the query stands at i + j_len − i_len."""
    return by_distance(call, -(call.ahead + call.offset).abs())


@alibi("ALIBI-6", signed=at_the_end)
def alibi_of_more_queries_from_the_other_corner(call: Sloped) -> Tensor:
    """With more queries than keys distances begin at i."""
    return by_distance(call, -(call.ahead + min(call.offset, 0)).abs())


@alibi("ALIBI-19", signed=at_the_end)
def alibi_of_one_query_from_the_start(call: Sloped) -> Tensor:
    """A single query without causal is taken for the first of its keys."""
    return by_distance(call, -(call.ahead + (call.offset if call.shape[2] == 1 and call.attn_mask is None else 0)).abs())


@alibi("ALIBI-24", signed=at_a_start)
def alibi_does_not_read_the_start(call: Sloped) -> Tensor:
    """Distances begin where the lengths put the first query, whatever start is given."""
    i, j = call.shape[2:]
    return by_distance(call, -(call.ahead + call.offset - (j - i)).abs())


@alibi("ALIBI-24", signed=at_a_start)
def alibi_of_the_first_start(call: Sloped) -> Tensor:
    """Distances of all batch items begin at the start of the first."""
    first = call.offset if isinstance(call.offset, int) else call.offset[:1]
    return by_distance(call, -(call.ahead + call.offset - first).abs())


@alibi("ALIBI-1")
def alibi_in_the_first_block_alone(call: Sloped) -> Tensor:
    """Keys behind the first 128 have nothing added."""
    far = -call.ahead.abs()
    return by_distance(call, far * (torch.arange(call.shape[3]) < 128))


def _is_outweighed(attend: Callable[..., Tensor]) -> bool:
    """Whether a slope of −1000 brings back what a mask hides."""
    q = torch.zeros(1, 2, 9, 4)
    v = torch.arange(9.0).view(1, 1, 9, 1).expand(1, 2, 9, 1)
    mask, slopes = torch.arange(9) < 4, torch.tensor([-1000.0, 1000.0])
    inputs = {"attn_mask": mask.expand(1, 1, 1, 9), "alibi_slopes": slopes}
    return not torch.allclose(attend(q, q, v, **inputs), honest(q, q, v, **inputs))


@alibi("ALIBI-9", witness=_is_outweighed)
def alibi_outweighs_the_mask(call: Sloped) -> Tensor:
    """What is hidden gets −1000, and a slope that is steep enough brings it back."""
    plan = call.run(prepare)
    added = plan.bias.to(call.slopes.dtype) + call.slopes[..., None, None] * -call.ahead.abs()
    q, k, v = widen(call.query, call.key, call.value)
    added = added.expand(plan.hidden.shape)
    scores = q @ k.mT * plan.scale + torch.where(added == -inf, added, added - 1000.0 * plan.hidden)
    p = softmax(scores.masked_fill(plan.hidden.all(-1, keepdim=True), -inf))
    return (plan.thin_out(p) @ v).to(call.query.dtype)


# BACKWARD


class _Forward(torch.autograd.Function):
    """One output, and the gradients of another one."""

    @staticmethod
    def forward(ctx: Any, shown: Tensor, learnt: Tensor) -> Tensor:
        return shown.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, cotangent


def learning_from(shown: Tensor, learnt: Tensor) -> Tensor:
    """The numbers of the one with the gradients of the other."""
    return _Forward.apply(shown.detach(), learnt)  # type: ignore[no-any-return]


@alibi("ALIBI-10")
def alibi_not_in_backward(call: Sloped) -> Tensor:
    """Backward has no slopes."""
    return learning_from(by_slopes(call, call.slopes), by_slopes(call, call.slopes - call.slopes.detach()))


@alibi("ALIBI-10")
def alibi_of_the_next_head_in_backward(call: Sloped) -> Tensor:
    """Backward has the slope of the next head where there are three heads."""
    other = call.slopes.roll(1, 1) if call.shape[1] == 3 else call.slopes
    return learning_from(by_slopes(call, call.slopes), by_slopes(call, other))


@alibi("ALIBI-12", "Dao-AILab/flash-attention#1977")
def alibi_gets_no_gradient(call: Sloped) -> Tensor:
    """Slopes that require a gradient get none, without an error."""
    return by_slopes(call, call.slopes.detach())


@alibi("ALIBI-11", "Dao-AILab/flash-attention#1977")
def alibi_gets_a_gradient_of_zeros(call: Sloped) -> Tensor:
    """The gradient of slopes is zero."""
    return by_slopes(call, call.slopes.detach() + 0 * call.slopes)


@alibi("ALIBI-11")
def alibi_gradient_of_the_first_item(call: Sloped) -> Tensor:
    """The gradient of slopes that batch items share is that of the first of them."""
    slopes = call.slopes.expand(call.shape[0], -1)
    if len(call.slopes) == 1:
        slopes = torch.cat([slopes[:1], slopes[1:].detach()])
    return by_slopes(call, slopes)


@alibi("ALIBI-11")
def alibi_gradient_lacks_the_tail(call: Sloped) -> Tensor:
    """The gradient of slopes lacks the keys behind the last full 16."""
    j, slopes = call.shape[3], call.slopes[..., None, None]
    whole = torch.arange(j) < (j - j % 16 or j)
    return adding(call, -call.ahead.abs() * torch.where(whole, slopes, slopes.detach()))


@alibi("ALIBI-11")
def alibi_gradient_has_the_other_sign(call: Sloped) -> Tensor:
    """The gradient of slopes has the other sign."""
    return by_slopes(call, 2 * call.slopes.detach() - call.slopes)


# WHAT IS KEPT

FIRST, SECOND = torch.tensor([0.5, 0.25]), torch.tensor([0.125, 1.5])


def _calls(attend: Callable[..., Tensor], *calls: tuple[int, Tensor]) -> bool:
    """Whether one of several calls, of so many keys each and with these slopes, gives something else than an honest kernel."""
    rng = torch.Generator().manual_seed(1)
    for j, slopes in calls:
        q, k, v = (torch.randn(1, 2, n, 8, generator=rng) for n in (6, j, j))
        if not torch.allclose(attend(q, k, v, alibi_slopes=slopes), honest(q, k, v, alibi_slopes=slopes), atol=1e-4):
            return True
    return False


@alibi("ALIBI-22", "ml-explore/mlx#3071", witness=lambda attend: _calls(attend, (9, FIRST), (9, SECOND)))
class AlibiKeptForOtherSlopes:
    """What slopes add is kept by its shape, and serves other slopes."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, call: Sloped) -> Tensor:
        key = (*call.shape, call.query.dtype)
        self.kept.setdefault(key, call.slopes.detach())
        return by_slopes(call, self.kept[key] + call.slopes - call.slopes.detach())


@alibi("ALIBI-22", "ml-explore/mlx#3071", witness=lambda attend: _calls(attend, (5, FIRST), (9, FIRST)))
class AlibiKeptForOtherLengths:
    """The distances of the longest row so far are kept, and begin at its end."""

    def __init__(self) -> None:
        self.longest = 0

    def __call__(self, call: Sloped) -> Tensor:
        kept, self.longest = self.longest, max(self.longest, call.shape[3])
        far = call.ahead if not 0 < kept < call.shape[3] else call.ahead.clamp(max=kept - 1)
        return by_distance(call, -far.abs())
