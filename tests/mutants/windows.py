"""Faults of windows: their ends, what they lie around, what is beside them, and the tiles that they hide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from honest import prepare
from torch import Tensor
from torch.autograd.function import once_differentiable
from windowed import Window, band, honest, kernel, tiled

from mutants.base import Call, mutant

Seen = Callable[[Tensor, Tensor, Window], Tensor]  # of query and key positions (i 1), (j) and a window: bool (i j)


@dataclass(frozen=True)
class Windowed(Call):
    """The arguments of one call with `window_size`, as flash-attention has it, at SDPA's alignment."""

    window_size: Window = (-1, -1)


def with_window(attend: Callable[[Windowed], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one with torch SDPA's parameters and `window_size`."""

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
    ) -> Tensor:
        call = Windowed(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window_size)
        prepare(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return attend(call)

    return run


def at_the_end(attend: Callable[[Windowed], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one whose last query sees the last key, as flash-attention has it."""

    def run(
        q: Tensor, k: Tensor, v: Tensor, causal: bool = False, softmax_scale: float | None = None, window_size: Window = (-1, -1)
    ) -> Tensor:
        return attend(Windowed(q, k, v, None, 0.0, causal, softmax_scale, q.shape[1] != k.shape[1], window_size))

    return run


def window(
    clause: str, source: str = "", signed: Callable[..., Any] = with_window, witness: Callable[[Any], bool] | None = None
) -> Callable[[Any], Any]:
    """Enter a mutant."""
    return mutant("window", clause, source, signed=signed, witness=witness)


def run(call: Windowed, left: int | None = None, right: int | None = None) -> Tensor:
    """Honestly, with another window where there is one."""
    if call.window_size == (-1, -1):
        return call.run(honest)
    own = call.window_size
    return call.but(window_size=(own[0] if left is None else left, own[1] if right is None else right)).run(honest)


def seeing(call: Windowed, shown: Tensor) -> Tensor:
    """Honestly, with the keys `shown`, what broadcasts to (b h i j), in the place of causal and window, beside the mask."""
    plan = prepare(*list(vars(call).values())[:8])
    if call.is_causal:
        plan = replace(plan, hidden=torch.zeros_like(plan.hidden))
    return tiled(
        call.query, call.key, call.value, replace(plan, hidden=plan.hidden | ~shown.expand(plan.hidden.shape)), (-1, -1), 0
    )


def by_rule(call: Windowed, rule: Seen) -> Tensor:
    """With the keys of a rule in the place of the window's, where there is a window."""
    if call.window_size == (-1, -1):
        return call.run(honest)
    i, j = call.shape[2:]
    rows, keys = torch.arange(i)[:, None], torch.arange(j)
    shown = rule(rows, keys, call.window_size)
    return seeing(call, shown & (keys <= rows) if call.is_causal else shown)


def inside(rows: Tensor, keys: Tensor, window: Window) -> Tensor:
    """The keys of a window, -1 for no limit."""
    left, right = (inf if side < 0 else side for side in window)
    return (keys >= rows - left) & (keys <= rows + right)


# ITS ENDS


@window("WINDOW-1", "microsoft/onnxruntime#21310")
def window_not_read(call: Windowed) -> Tensor:
    """The window is accepted and not read."""
    return call.but(window_size=(-1, -1)).run(honest)


@window("WINDOW-1", "jax-ml/jax#39576")
def window_right_end_not_passed(call: Windowed) -> Tensor:
    """The right end of the window is not passed on, so that every query sees its future."""
    return run(call, right=-1)


@window("WINDOW-1")
def window_left_end_not_passed(call: Windowed) -> Tensor:
    """The left end of the window is not passed on."""
    return run(call, left=-1)


@window("WINDOW-2", "sgl-project/sglang#32087")
def window_holds_one_key_less(call: Windowed) -> Tensor:
    """The oldest key of the window is not seen."""
    return by_rule(call, lambda r, c, w: inside(r, c, w) & ((c > r - w[0]) | (w[0] < 0)))


@window("WINDOW-2", "ml-explore/mlx-lm#390")
def window_holds_one_key_more(call: Windowed) -> Tensor:
    """One key before the window is seen, too."""
    return run(call, left=call.window_size[0] + 1 if call.window_size[0] >= 0 else -1)


@window("WINDOW-2")
def window_right_end_open(call: Windowed) -> Tensor:
    """The last key of the window is not seen."""
    return by_rule(call, lambda r, c, w: inside(r, c, w) & ((c < r + w[1]) | (w[1] < 0)))


@window("WINDOW-1", "ModelTC/LightLLM#1311")
def window_on_both_sides(call: Windowed) -> Tensor:
    """The left number is used on both sides, and causal is not asked beside it."""
    left, _ = call.window_size
    return call.but(window_size=(left, left), is_causal=call.is_causal and left < 0).run(honest)


@window("WINDOW-1")
def window_sides_swapped(call: Windowed) -> Tensor:
    """Left and right are swapped."""
    return run(call, *reversed(call.window_size))


@window("WINDOW-2")
def window_of_zero_is_off(call: Windowed) -> Tensor:
    """A left number of 0 is read as no limit."""
    return run(call, left=call.window_size[0] or -1)


@window("WINDOW-2")
def window_of_at_most_16(call: Windowed) -> Tensor:
    """A window reaches 16 keys back at most."""
    return run(call, left=min(call.window_size[0], 16))


@window("WINDOW-11")
def window_minus_one_is_a_shift(call: Windowed) -> Tensor:
    """No limit on the left beside one on the right is read as a number, and the window begins behind the query."""
    left, right = call.window_size
    return by_rule(call, lambda r, c, w: (c >= r + 1) & (c <= r + right)) if left < 0 <= right else call.run(honest)


@window("WINDOW-12")
def window_that_is_causal_is_none(call: Windowed) -> Tensor:
    """A window without a limit on the left that ends at the query is read as no mask at all."""
    return run(call, right=-1) if call.window_size == (-1, 0) else call.run(honest)


@window("WINDOW-11")
def window_as_long_as_the_keys_is_none(call: Windowed) -> Tensor:
    """A left number that is at least the number of keys is no limit, though there are more queries."""
    left, j = call.window_size[0], call.shape[3]
    return run(call, left=-1 if left >= j else left)


@window("WINDOW-11", signed=at_the_end)
def window_right_as_long_as_the_keys(call: Windowed) -> Tensor:
    """A right number that is at least the number of keys is no limit, as in FA2: with more queries, empty rows see all keys."""
    (left, right), j = call.window_size, call.shape[3]
    right = 0 if call.is_causal else -1 if right >= j else right
    return ANCHORED_AT_END(**vars(call.but(window_size=(left, right), is_causal=False)))


ANCHORED_AT_END = kernel(tiled, anchored=lambda i, j: j - i)


# WHERE IT LIES


@window("WINDOW-6")
def window_at_the_other_corner(call: Windowed) -> Tensor:
    """The window lies around the position that the query has from the end, where SDPA aligns the first query and the first key."""
    off = call.shape[3] - call.shape[2]
    return by_rule(call, lambda r, c, w: inside(r + off, c, w))


@window("WINDOW-6", "vllm-project/vllm#47332")
def window_at_local_positions_with_more_keys(call: Windowed) -> Tensor:
    """Where there are more than twice as many keys as queries, the window lies at the end."""
    i, j = call.shape[2:]
    return by_rule(call, lambda r, c, w: inside(r + (j - i if j > 2 * i else 0), c, w))


@window("WINDOW-6")
def window_does_not_move_in_a_chunk(call: Windowed) -> Tensor:
    """All queries of a block of 32 have the window of the block's first one, from the second block on."""
    return by_rule(call, lambda r, c, w: inside(torch.where(r < 32, r, r // 32 * 32), c, w))


# WHAT IS BESIDE IT


@window("WINDOW-7", "huggingface/transformers#34093 huggingface/transformers#31670")
def window_in_the_place_of_the_mask(call: Windowed) -> Tensor:
    """Beside a window the mask is not read."""
    return call.run(honest) if call.window_size == (-1, -1) else call.but(attn_mask=None).run(honest)


@window("WINDOW-7")
def mask_in_the_place_of_the_window(call: Windowed) -> Tensor:
    """Beside a mask the window is not read."""
    return call.run(honest) if call.attn_mask is None else call.but(window_size=(-1, -1)).run(honest)


@window("WINDOW-7")
def window_in_the_place_of_causal(call: Windowed) -> Tensor:
    """Beside a window causal is not read."""
    return call.but(is_causal=call.is_causal and call.window_size == (-1, -1)).run(honest)


@window("WINDOW-7")
def window_needs_causal(call: Windowed) -> Tensor:
    """Without causal the window is not read."""
    return call.run(honest) if call.is_causal else call.but(window_size=(-1, -1)).run(honest)


@window("WINDOW-7")
def window_right_of_causal(call: Windowed) -> Tensor:
    """Beside causal the right number holds in its place, so that the future is seen."""
    return call.but(is_causal=False).run(honest) if call.is_causal and call.window_size[1] > 0 else call.run(honest)


# TILES


@window("WINDOW-8", "ikawrakow/ik_llama.cpp#2344")
def window_leading_tile_is_nan(call: Windowed) -> Tensor:
    """A row whose first 16 keys are all hidden by the window is NaN: exp(-inf + inf)."""
    out, (i, j) = call.run(honest), call.shape[2:]
    shown = band(i, j, call.window_size)
    late = ~shown[:, :16].any(-1) & shown.any(-1)
    return torch.where(late[:, None], torch.nan, out)


@window("WINDOW-8")
def window_without_a_key_is_the_mean(call: Windowed) -> Tensor:
    """A row behind the last window is the mean of all values."""
    out, (i, j) = call.run(honest), call.shape[2:]
    empty = ~band(i, j, call.window_size).any(-1)
    if not empty.any() or not j:
        return out
    mean = call.value.mean(2, keepdim=True).repeat_interleave(call.shape[1] // call.value.shape[1], 1)
    return torch.where(empty[:, None], mean, out)


@window("WINDOW-2")
def window_tile_is_not_masked(call: Windowed) -> Tensor:
    """Behind the first 32 queries the tile of 16 keys that the left end of the window crosses is seen whole."""
    return by_rule(call, lambda r, c, w: inside(r, c, w) | ((r >= 32) & (w[0] >= 0) & (c // 16 == (r - w[0]) // 16) & (c <= r)))


@window("WINDOW-2")
def window_tile_is_skipped(call: Windowed) -> Tensor:
    """Behind the first 32 queries the loop over tiles of 16 keys begins one too late, where the window begins in its last key."""
    return by_rule(call, lambda r, c, w: inside(r, c, w) & ~((r >= 32) & (w[0] > 0) & (c == r - w[0]) & (c % 16 == 15)))


@window("WINDOW-1")
def window_loop_ends_a_tile_early(call: Windowed) -> Tensor:
    """The loop over tiles of 16 keys ends before the tile that the right end of the window begins, where causal does not end it."""
    return by_rule(call, lambda r, c, w: inside(r, c, w) & ((w[1] < 1) | (c // 16 <= r // 16)))


# NARROW


@window("WINDOW-5", "sgl-project/sglang#32087")
def window_of_one_query_is_short(call: Windowed) -> Tensor:
    """Where there is a single query, its window does not hold its last key."""
    return window_right_end_open(call) if call.shape[2] == 1 else call.run(honest)


@window("WINDOW-1")
def window_ignored_in_the_last_head(call: Windowed) -> Tensor:
    """In the last of several heads the window is not read."""
    out, h = call.run(honest), call.shape[1]
    last = ((torch.arange(h) == h - 1) & (h > 1))[:, None, None]
    return torch.where(last, window_not_read(call), out)


@window("WINDOW-1")
def window_ignored_in_the_second_item(call: Windowed) -> Tensor:
    """From the second batch item on the window is not read."""
    late = (torch.arange(call.shape[0]) > 0)[:, None, None, None]
    return torch.where(late, window_not_read(call), call.run(honest))


@window("WINDOW-5", "flashinfer-ai/flashinfer#3864")
def window_of_one_row_in_bfloat16(call: Windowed) -> Tensor:
    """In bfloat16 the eighth row of the last head sees one key before its window."""
    if call.query.dtype != torch.bfloat16:
        return call.run(honest)
    out, (h, i) = call.run(honest), call.shape[1:3]
    place = ((torch.arange(h) == h - 1)[:, None] & (torch.arange(i) == 7))[..., None]
    return torch.where(place, window_holds_one_key_more(call), out)


@window("WINDOW-5")
def window_is_short_from_64(call: Windowed) -> Tensor:
    """From query 64 on the oldest key of the window is not seen."""
    return by_rule(call, lambda r, c, w: inside(r, c, w) & ~((r >= 64) & (w[0] > 0) & (c == r - w[0])))


def _depends_on_earlier_windows(kernel: Callable[..., Tensor]) -> bool:
    """Whether a window gives another answer behind another window than behind itself."""
    x = torch.randn(1, 1, 9, 4, generator=torch.Generator().manual_seed(0))
    kernel(x, x, x, window_size=(3, 0))
    return not torch.equal(kernel(x, x, x, window_size=(1, 0)), honest(x, x, x, window_size=(1, 0)))


@window("WINDOW-5", witness=_depends_on_earlier_windows)
class WindowOfTheFirstCall:
    """The first window that is asked for is kept for all calls that have one."""

    def __init__(self) -> None:
        self.kept: Window | None = None

    def __call__(self, call: Windowed) -> Tensor:
        if call.window_size == (-1, -1):
            return call.run(honest)
        self.kept = self.kept or call.window_size
        return call.but(window_size=self.kept).run(honest)


@window("WINDOW-10", "Lightning-AI/litgpt#2182")
def window_cache_is_overwritten(call: Windowed) -> Tensor:
    """Under causal the cache has a place for each key of the window, and all queries read what the last ones left there."""
    left, j = call.window_size[0], call.shape[3]
    if left < 0 or not call.is_causal or j <= left + 1:
        return call.run(honest)
    place = torch.arange(j) % (left + 1)
    last = torch.arange(j) + (j - 1 - torch.arange(j)) // (left + 1) * (left + 1)
    assert ((last % (left + 1)) == place).all()
    return call.but(key=call.key[:, :, last], value=call.value[:, :, last]).run(honest)


# BACKWARD


class _Otherwise(torch.autograd.Function):
    """What one call gives, with the gradients of another one."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: Windowed, other: Windowed) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.other = other
        return call.run(honest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            out = ctx.other.but(query=leaves[0], key=leaves[1], value=leaves[2]).run(honest)
            return (*torch.autograd.grad(out, leaves, cotangent), None, None)


def backward_of(call: Windowed, other: Window) -> Tensor:
    """Forward is right, and backward has another window."""
    if call.window_size == (-1, -1) or (call.attn_mask is not None and call.attn_mask.requires_grad):
        return call.run(honest)
    return _Otherwise.apply(call.query, call.key, call.value, call, call.but(window_size=other))  # type: ignore[no-any-return]


@window("WINDOW-9")
def window_not_in_backward(call: Windowed) -> Tensor:
    """Backward does not know of the window."""
    return backward_of(call, (-1, -1))


@window("WINDOW-9")
def window_longer_in_backward(call: Windowed) -> Tensor:
    """Backward has one key more on the left."""
    left, right = call.window_size
    return backward_of(call, (left + 1 if left >= 0 else -1, right))


@window("WINDOW-9")
def window_right_end_not_in_backward(call: Windowed) -> Tensor:
    """Backward does not know of the right end, but without causal it is the one that matters."""
    return backward_of(call, (call.window_size[0], -1))
