"""Faults that show only where two options stand in one call: each of them alone is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import complete
import torch
from complete import Attend, Whole, online
from torch import Tensor

from mutants.base import mutant

Both = tuple[Tensor, Tensor]


def with_everything(attend: Attend, checked: bool = True) -> Callable[..., Any]:
    """A function of tensors and a whole call as one with all parameters."""
    return complete.kernel(attend)


def together(clause: str, source: str = "") -> Callable[[Any], Any]:
    """Enter a mutant."""
    return mutant("together", clause, source, signed=with_everything)


def windowed(call: Whole) -> bool:
    """Whether the window limits the past."""
    return call.at.left >= 0


def as_kind(kind: type[Whole], call: Whole) -> Whole:
    """The same call, as another class."""
    return kind(**vars(call))


class SlopesThenCap(Whole):
    def scores(self, q: Tensor, k: Tensor, keys: slice = slice(None)) -> Tensor:
        if self.softcap is None or self.slopes is None:
            return super().scores(q, k, keys)
        far = (torch.arange(self.hidden.shape[3])[keys] - self.at.own[:, None, :, None]).abs().to(q.dtype)
        s = q @ k.mT * self.plan.scale - self.slopes.to(q.dtype)[..., None, None] * far
        s = self.softcap * torch.tanh(s / self.softcap) + self.plan.bias.to(q.dtype).expand_as(self.hidden)[..., keys]
        return s.masked_fill(self.hidden[..., keys], -inf)


class SlopesOfFirstTokens(Whole):
    def scores(self, q: Tensor, k: Tensor, keys: slice = slice(None)) -> Tensor:
        right = super().scores(q, k, keys)
        if self.slopes is None or not self.at.first or not windowed(self):
            return right
        first = torch.arange(self.hidden.shape[3])[keys] < self.at.first
        return torch.where(first, replace(self, slopes=None).scores(q, k, keys), right)


class CapWithoutSlope(Whole):
    def scores(self, q: Tensor, k: Tensor, keys: slice = slice(None)) -> Tensor:
        right = super().scores(q, k, keys)
        if self.softcap is None or self.slopes is None:
            return right
        uncapped = replace(self, softcap=None).scores(q, k, keys)
        off = torch.where(right == -inf, 0.0, (right - uncapped).detach().nan_to_num(0.0, 0.0, 0.0))
        return uncapped + off


@together("ALIBI-8")
def slopes_are_capped(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Beside a cap the slopes are added before it."""
    return online(q, k, v, as_kind(SlopesThenCap, call))


@together("ALIBI-1")
def first_tokens_have_no_slope(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Beside a window the slopes are left out of the first tokens."""
    return online(q, k, v, as_kind(SlopesOfFirstTokens, call))


@together("SOFTCAP-5")
def cap_not_in_backward_beside_slopes(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Beside slopes gradients pass the cap as if it were not there."""
    return online(q, k, v, as_kind(CapWithoutSlope, call))


@together("SINK-3")
def sinks_are_capped(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """A cap caps the sinks, too."""
    if call.sinks is None or call.softcap is None:
        return online(q, k, v, call)
    return online(q, k, v, replace(call, sinks=call.softcap * torch.tanh(call.sinks / call.softcap)))


@together("SINK-1")
def window_hides_the_sinks(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Where the window hides the first key from all queries, the sinks are hidden, too."""
    out_of_sight = windowed(call) and bool(call.hidden.shape[3]) and bool(call.hidden[..., 0].all())
    return online(q, k, v, replace(call, sinks=None) if out_of_sight else call)


@together("SINK-3")
def sinks_have_a_slope(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Beside slopes the sinks stand one key away."""
    if call.sinks is None or call.slopes is None or call.slopes.ndim != 1:
        return online(q, k, v, call)
    return online(q, k, v, replace(call, sinks=call.sinks - call.slopes.to(call.sinks.dtype)))


@together("SINK-12")
def sinks_gradient_of_whole_rows_only(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Under a window the gradient of the sinks is left out."""
    if call.sinks is None or not windowed(call):
        return online(q, k, v, call)
    return online(q, k, v, replace(call, sinks=call.sinks.detach() + 0.0 * call.sinks.nan_to_num(0.0, 0.0, 0.0)))


@together("ALIBI-24")
def slopes_not_from_the_start(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """With a start and a window, distances begin at the first key."""
    if call.slopes is None or not windowed(call):
        return online(q, k, v, call)
    return online(q, k, v, replace(call, at=replace(call.at, own=torch.arange(q.shape[2]).expand_as(call.at.own))))


@together("LSE-1")
def lse_without_slopes(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """The lse leaves the slopes out."""
    return online(q, k, v, call)[0], online(q, k, v, replace(call, slopes=None))[1]


@together("LSE-1")
def lse_without_cap_under_a_window(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Under a window the lse is that of scores without a cap."""
    return online(q, k, v, call)[0], online(q, k, v, replace(call, softcap=None) if windowed(call) else call)[1]


@together("LSE-1")
def lse_of_the_keys_beside_slopes(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """Beside slopes the lse leaves the sinks out."""
    return online(q, k, v, call)[0], online(q, k, v, call if call.slopes is None else replace(call, sinks=None))[1]


@together("LSE-12")
def lse_gradient_not_to_slopes(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """The cotangent of the lse does not reach the slopes."""
    if call.slopes is None:
        return online(q, k, v, call)
    return online(q, k, v, call)[0], online(q, k, v, replace(call, slopes=call.slopes.detach()))[1]


@together("LSE-12")
def lse_gradient_not_to_sinks(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """The cotangent of the lse does not reach the sinks."""
    if call.sinks is None:
        return online(q, k, v, call)
    return online(q, k, v, call)[0], online(q, k, v, replace(call, sinks=call.sinks.detach()))[1]


@together("WINDOW-16")
def first_tokens_from_the_start(q: Tensor, k: Tensor, v: Tensor, call: Whole) -> Both:
    """With a start first tokens are counted from it."""
    if not call.at.first or not windowed(call) or not q.shape[2]:
        return online(q, k, v, call)
    own = call.at.own
    keys = torch.arange(k.shape[2])
    begin = (own[:, :1] - torch.arange(1))[:, None, :, None]
    ahead = keys - own[:, None, :, None]
    shown = (ahead >= -call.at.left) | ((keys >= begin) & (keys < begin + call.at.first))
    shown = shown & (ahead <= call.at.right) if call.at.right >= 0 else shown
    return online(q, k, v, replace(call, hidden=call.plan.hidden | ~shown))
