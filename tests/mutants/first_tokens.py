"""Faults of first tokens: keys that a window hides although its left end may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log
from typing import Any

import torch
from torch import Tensor
from windowed import Window, band, honest

from mutants.base import mutant
from mutants.windows import Windowed, seeing


@dataclass(frozen=True)
class WithFirst(Windowed):
    """The arguments of one call with `window_size` and `sink_token_length`, as flash-attention 3 has them."""

    sink_token_length: int = 0

    @property
    def first(self) -> Tensor:
        """Which keys are first tokens (j)."""
        return torch.arange(self.shape[3]) < self.sink_token_length

    @property
    def shown(self) -> Tensor:
        """What window and causal show (i j)."""
        i, j = self.shape[2:]
        shown = band(i, j, self.window_size, first=self.sink_token_length)
        return shown.tril() if self.is_causal else shown


def signed(attend: Callable[[WithFirst], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one with torch SDPA's parameters, `window_size` and `sink_token_length`."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        window_size: Window = (-1, -1),
        sink_token_length: int = 0,
    ) -> Tensor:
        call = WithFirst(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window_size, sink_token_length)
        call.run(honest)  # refuses what is no call
        return attend(call)

    return run


def first(clause: str, source: str = "") -> Callable[[Any], Any]:
    """Enter a mutant, which is asked only where there are first tokens beside a window."""

    def enter(attend: Callable[[WithFirst], Tensor]) -> Any:
        def sometimes(call: WithFirst) -> Tensor:
            plain = call.sink_token_length == 0 or call.window_size == (-1, -1)
            return call.run(honest) if plain else attend(call)

        sometimes.__name__, sometimes.__doc__ = attend.__name__, attend.__doc__
        return mutant("window", clause, source, signed=signed)(sometimes)

    return enter


@first("WINDOW-16")
def first_tokens_not_read(call: WithFirst) -> Tensor:
    """First tokens are accepted and not read."""
    return call.but(sink_token_length=0).run(honest)


@first("WINDOW-16")
def first_tokens_are_one(call: WithFirst) -> Tensor:
    """However many first tokens there are, one is seen."""
    return call.but(sink_token_length=1).run(honest)


@first("WINDOW-16")
def first_tokens_lack_one(call: WithFirst) -> Tensor:
    """The last of the first tokens is not seen."""
    return call.but(sink_token_length=call.sink_token_length - 1).run(honest)


@first("WINDOW-16")
def first_tokens_of_one_tile(call: WithFirst) -> Tensor:
    """Of the first tokens only those of the first tile of 16 keys are visited."""
    return call.but(sink_token_length=min(call.sink_token_length, 16)).run(honest)


@first("WINDOW-16")
def first_tokens_lost_from_32(call: WithFirst) -> Tensor:
    """From query 32 on the loop over tiles begins at the window."""
    rows = torch.arange(call.shape[2])[:, None]
    return seeing(call, call.shown & ((rows < 32) | call.but(sink_token_length=0).shown))


@first("WINDOW-16")
def first_tokens_in_the_future(call: WithFirst) -> Tensor:
    """First tokens are seen whatever causal and the right end of the window say."""
    return seeing(call, call.shown | call.first)


@first("WINDOW-16")
def first_tokens_through_the_mask(call: WithFirst) -> Tensor:
    """A bool mask does not hide first tokens."""
    if call.bool_mask is None:
        return call.run(honest)
    return call.but(attn_mask=call.bool_mask | call.first).run(honest)


@first("WINDOW-17")
def first_tokens_read_twice(call: WithFirst) -> Tensor:
    """A first token that the window holds, too, is read by both loops, and has twice its weight."""
    i, j = call.shape[2:]
    added = torch.where(band(i, j, call.window_size) & call.first, log(2), 0.0).to(call.query.dtype)
    if call.bool_mask is not None:
        added = torch.where(call.bool_mask, added, -inf)
    elif call.float_mask is not None:
        added = call.float_mask + added
    return call.but(attn_mask=added if added.ndim > 2 else added[None, None]).run(honest)


@first("WINDOW-16")
def first_tokens_not_in_the_last_head(call: WithFirst) -> Tensor:
    """The last of several heads has no first tokens."""
    h = call.shape[1]
    last = ((torch.arange(h) == h - 1) & (h > 1))[:, None, None]
    return torch.where(last, first_tokens_not_read(call), call.run(honest))
