"""Faults of where the queries start: the number itself, what it moves, whose it is, and what is left of it in the next call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from honest import check, prepare
from positioned import Places, Start, honest, places
from torch import Tensor
from torch.autograd.function import once_differentiable
from windowed import Window, tiled

from attnspec.adapters import Adapter
from mutants.base import Call, mutant

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Started(Call):
    """The arguments of one call with `window_size` and `q_start`, at SDPA's alignment."""

    window_size: Window = (-1, -1)
    q_start: Start = None

    @property
    def starts(self) -> Tensor:
        """Where the queries of each item start, (b)."""
        start = self.q_start if self.q_start is not None else 0
        return start.long() if isinstance(start, Tensor) else torch.full((self.shape[0],), start)

    @property
    def at(self) -> Places:
        """Where the queries stand, and how far each sees."""
        return places(self.shape[0], self.shape[2], self.q_start, self.is_causal, self.window_size)

    @property
    def moves(self) -> bool:
        """Whether there is a start, and something that it moves."""
        return self.q_start is not None and (self.is_causal or self.window_size != (-1, -1))


def with_start(attend: Callable[[Started], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one with torch SDPA's parameters, `window_size` and `q_start`."""

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
        q_start: int | Tensor | None = None,
    ) -> Tensor:
        check(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return attend(Started(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, window_size, q_start))

    return run


def beside_a_mask(attend: Callable[[Started], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one that takes a bool mask beside causal; one key/value head for each query head."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
        q_start: int | Tensor | None = None,
    ) -> Tensor:
        return attend(Started(q, k, v, mask, 0.0, causal, scale, False, (-1, -1), q_start))

    return run


def position(
    clause: str, source: str = "", signed: Callable[..., Any] = with_start, witness: Callable[[Any], bool] | None = None, **how: Any
) -> Callable[[Any], Any]:
    """Enter a mutant."""
    return mutant("position", clause, source, signed=signed, witness=witness, **how)


def run(call: Started) -> Tensor:
    """Honestly, also where a mask stands beside causal."""
    return shown(call, call.at.shown(call.shape[3])) if call.is_causal and call.attn_mask is not None else call.run(honest)


def shown(call: Started, keys: Tensor) -> Tensor:
    """Honestly, with these keys, what broadcasts to (b h i j), in the place of causal and window, beside the mask."""
    plain = Call(*[x for name, x in vars(call).items() if name not in ("window_size", "q_start")]).but(is_causal=False)
    plan = prepare(**vars(plain))
    hidden = plan.hidden | ~keys.expand(plan.hidden.shape)
    return tiled(call.query, call.key, call.value, type(plan)(**{**vars(plan), "hidden": hidden}), (-1, -1), 0)


def moved(call: Started, change: Change, where: bool = True) -> Tensor:
    """Honestly, from other starts, if there are any and something that they move."""
    return run(call.but(q_start=change(call.starts))) if call.moves and where else run(call)


def without(call: Started) -> Tensor:
    """Honestly, as if there were no start."""
    return run(call.but(q_start=None))


def apart(call: Started, causal: Tensor, window: Tensor) -> Tensor:
    """Honestly, with causal and the window each around positions (b i) of its own."""
    i, j = call.shape[2:]
    of_causal = Places(causal.expand(call.shape[0], i), -1, 0 if call.is_causal else -1)
    of_window = Places(window.expand(call.shape[0], i), *call.window_size)
    return shown(call, of_causal.shown(j) & of_window.shown(j)) if call.moves else run(call)


# THE NUMBER


@position("POSITION-1", "gittensor-ai-lab/sparkinfer#3")
def start_not_read(call: Started) -> Tensor:
    """The start is accepted and not read."""
    return without(call)


@position("POSITION-1", "hyprstream/hyprstream#1521")
def start_not_read_by_several_queries(call: Started) -> Tensor:
    """Where there are several queries, the triangle begins at the first key."""
    return without(call) if call.shape[2] > 1 else run(call)


@position("POSITION-1", "kekzl/imp#986")
def start_is_one_late(call: Started) -> Tensor:
    """The queries stand one position behind the start."""
    return moved(call, lambda start: start + 1)


@position("POSITION-1")
def start_is_one_early_from_64(call: Started) -> Tensor:
    """A start of 64 or more is counted from one."""
    return moved(call, lambda start: start - (start >= 64).long())


@position("POSITION-1")
def start_is_subtracted(call: Started) -> Tensor:
    """The start is subtracted from the positions."""
    return moved(call, lambda start: -start)


@position("POSITION-8")
def start_is_added_to_the_end(call: Started) -> Tensor:
    """The start is added to where the last query stands at the last key, as in a kernel that is aligned there."""
    i, j = call.shape[2:]
    return moved(call, lambda start: start + j - i)


@position("POSITION-8")
def start_at_the_end_is_top_left(call: Started) -> Tensor:
    """A start of 0 is taken for none in a kernel that is aligned bottom-right where nothing is said."""
    i, j = call.shape[2:]
    return moved(call, lambda start: torch.where(start == 0, max(j - i, 0), start))


@position("POSITION-9")
def start_is_rounded_to_a_tile(call: Started) -> Tensor:
    """The start is rounded down to a multiple of 16."""
    return moved(call, lambda start: start // 16 * 16)


@position("POSITION-1", "kekzl/imp#114")
def start_hides_what_lies_before(call: Started) -> Tensor:
    """A chunk sees its own keys alone: those before its first query are hidden."""
    j = call.shape[3]
    own = (torch.arange(j) >= call.starts[:, None].clamp(max=j - 1))[:, None, None]
    return shown(call, call.at.shown(j) & own) if call.moves and call.is_causal else run(call)


@position("POSITION-1", "tenstorrent/tt-metal#48700")
def start_tile_of_the_diagonal_is_not_masked(call: Started) -> Tensor:
    """With a start the tile of 16 keys that the diagonal crosses is seen whole."""
    if not (call.moves and call.is_causal):
        return run(call)
    at, j = call.at, call.shape[3]
    more = (torch.arange(j) // 16 == at.own[:, None, :, None] // 16) & (call.window_size == (-1, -1))
    return shown(call, at.shown(j) | more)


# BEFORE THE KEYS AND BEHIND THEM


@position("POSITION-3")
def start_below_zero_is_zero(call: Started) -> Tensor:
    """A negative start is 0."""
    return moved(call, lambda start: start.clamp(min=0))


@position("POSITION-3")
def start_below_zero_is_unsigned(call: Started) -> Tensor:
    """Positions are unsigned: a query before the first key sees all keys."""
    at, j = call.at, call.shape[3]
    before = (at.own < 0)[:, None, :, None]
    return shown(call, at.shown(j) | before) if call.moves and call.is_causal else run(call)


@position("POSITION-3")
def start_before_the_keys_is_nan(call: Started) -> Tensor:
    """Where no query of a call sees a key, all rows are NaN."""
    out = run(call)
    return out * torch.nan if call.moves and not call.at.shown(call.shape[3]).any() else out


@position("POSITION-3")
def start_before_the_keys_is_the_mean(call: Started) -> Tensor:
    """A single query before the first key gets the mean of all values."""
    out, i = run(call), call.shape[2]
    if i > 1 or not call.moves or not call.is_causal or call.attn_mask is not None:
        return out
    mean = call.value.mean(2, keepdim=True).repeat_interleave(call.shape[1] // call.value.shape[1], 1)
    return torch.where((call.starts < 0)[:, None, None, None], mean, out)


@position("POSITION-4")
def start_is_at_most_the_last_key(call: Started) -> Tensor:
    """A start behind the last key is that of the last key: causal hides nothing there, but the window moves."""
    return moved(call, lambda start: start.clamp(max=max(call.shape[3] - 1, 0)))


@position("POSITION-4")
def start_fits_the_keys(call: Started) -> Tensor:
    """The last query stands at the last key at the latest."""
    i, j = call.shape[2:]
    return moved(call, lambda start: start.clamp(max=max(j - i, 0)))


@position("POSITION-4")
def start_behind_the_keys_sees_none(call: Started) -> Tensor:
    """The loop over tiles begins at the start, and there is none: a call that starts behind the last key gives zeros."""
    out = run(call)
    behind = (call.starts >= call.shape[3])[:, None, None, None]
    return torch.where(behind, 0.0, out) if call.moves and call.is_causal else out


# CAUSAL AND WINDOW


@position("POSITION-2", "trymirai/lalamo#200")
def start_not_read_by_the_window(call: Started) -> Tensor:
    """The window lies around the places of the queries in the call."""
    return apart(call, call.at.own, torch.arange(call.shape[2]))


@position("POSITION-2", "vllm-project/vllm#47332")
def start_not_read_by_the_window_without_causal(call: Started) -> Tensor:
    """Without causal the window lies around the places of the queries in the call."""
    return run(call) if call.is_causal else start_not_read_by_the_window(call)


@position("POSITION-2")
def start_not_read_by_causal_beside_a_window(call: Started) -> Tensor:
    """Beside a window causal is aligned as without a start."""
    return apart(call, torch.arange(call.shape[2]), call.at.own) if call.window_size != (-1, -1) else run(call)


@position("POSITION-2", "pytorch/executorch#21857")
def start_one_window_for_the_chunk(call: Started) -> Tensor:
    """The window of the first query is that of the whole chunk, where it does not begin at the first key."""
    own = call.at.own
    return apart(call, own, torch.where(call.starts[:, None] > 0, own[:, :1], own)) if call.shape[2] else run(call)


@position("POSITION-5")
def start_turns_causal_on(call: Started) -> Tensor:
    """With a start every call without a mask is causal."""
    causal = call.q_start is not None and call.attn_mask is None and call.window_size == (-1, -1)
    return run(call.but(is_causal=call.is_causal or causal))


@position("POSITION-5", "vllm-project/vllm#47332")
def start_moves_the_mask(call: Started) -> Tensor:
    """The rows of a mask are read at the positions of the queries, modulo their number, where there is one start."""
    mask, i = call.attn_mask, call.shape[2]
    if mask is None or not isinstance(call.q_start, int) or mask.ndim < 2 or mask.shape[-2] != i or i < 2:
        return run(call)
    return run(call.but(attn_mask=mask.roll(-call.q_start, -2)))


@position("POSITION-1", "huggingface/candle#3743", signed=beside_a_mask)
def start_not_read_beside_a_mask(call: Started) -> Tensor:
    """Beside a mask the triangle begins at the first key."""
    return without(call) if call.attn_mask is not None else run(call)


@position("POSITION-13", signed=beside_a_mask)
def start_counts_visible_keys(call: Started) -> Tensor:
    """Beside a mask that is one for all queries the position counts visible keys: hidden ones before it are counted in."""
    mask = call.attn_mask
    if mask is None or not call.moves or mask.shape[-2] > 1:
        return run(call)
    hidden = (~mask).cumprod(-1).sum(-1).amin((1, 2))
    return run(call.but(q_start=call.starts + hidden))


# WHOSE IT IS


@position("POSITION-6", "rasbt/reasoning-from-scratch#33")
def start_of_the_first_item(call: Started) -> Tensor:
    """All batch items have the start of the first."""
    return moved(call, lambda start: start[:1].expand(start.shape))


@position("POSITION-6")
def start_of_the_first_item_in_decode(call: Started) -> Tensor:
    """A single query of each batch item has the start of the first item."""
    return moved(call, lambda start: start[:1].expand(start.shape), call.shape[2] == 1)


@position("POSITION-7")
def start_loop_ends_with_the_first_item(call: Started) -> Tensor:
    """No item sees a key behind the last that the first item sees."""
    if not (call.moves and call.is_causal and call.shape[0] and call.shape[2]):
        return run(call)
    at, j = call.at, call.shape[3]
    return shown(call, at.shown(j) & (torch.arange(j) <= at.own[0].max()))


@position("POSITION-1")
def start_not_read_in_the_last_head(call: Started) -> Tensor:
    """In the last of several heads the start is not read."""
    h = call.shape[1]
    last = ((torch.arange(h) == h - 1) & (h > 1))[:, None, None]
    return torch.where(last, without(call), run(call))


@position("POSITION-1")
def start_in_bfloat16(call: Started) -> Tensor:
    """In bfloat16 the positions are rounded to it: from 256 on every other one is its neighbour's."""
    if not call.moves or call.query.dtype != torch.bfloat16:
        return run(call)
    own = call.at.own.to(torch.bfloat16).long()
    return apart(call, own, own)


# DECODE


@position("POSITION-10")
def start_single_query_sees_all(call: Started) -> Tensor:
    """With a start a single query is taken for the last one: causal is left out."""
    return run(call.but(is_causal=call.is_causal and (call.shape[2] > 1 or not call.moves)))


@position("POSITION-10")
def start_not_read_by_one_query(call: Started) -> Tensor:
    """A single query stands at the last key, whatever the start is."""
    return moved(call, lambda start: torch.full_like(start, call.shape[3] - 1), call.shape[2] == 1)


@position("POSITION-14")
def start_of_a_late_part_is_clamped(call: Started) -> Tensor:
    """Where the last query stands behind the keys and the first among them, the call is taken for a part before the queries."""
    at, j = call.at, call.shape[3]
    crossed = (at.own[:, -1:] >= j) & (at.own[:, :1] >= 0) if call.shape[2] else at.own[:, :0] > 0
    return apart(call, torch.where(crossed, j, at.own), at.own)


# CALLS


def _depends_on_earlier_starts(kernel: Callable[..., Tensor]) -> bool:
    """Whether a start gives another answer behind another start than behind itself."""
    x = torch.randn(1, 1, 9, 4, generator=torch.Generator().manual_seed(0))
    for start in (2, 5):
        out = kernel(x[:, :, :3], x, x, is_causal=True, q_start=start)
    return not torch.equal(out, honest(x[:, :, :3], x, x, is_causal=True, q_start=5))


@position("POSITION-15", witness=_depends_on_earlier_starts)
class StartOfTheFirstCall:
    """The first start that is asked for lengths is kept for all calls in them that have one."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, call: Started) -> Tensor:
        return moved(call, lambda start: self.kept.setdefault(call.shape, start.clone()))


@position("POSITION-15", "skyzh/tiny-llm#46", witness=_depends_on_earlier_starts)
class StartGrows:
    """It has a position of its own, too: the queries of the call before, if that had the same lengths, are added to the start."""

    def __init__(self) -> None:
        self.before: tuple[int, ...] = ()

    def __call__(self, call: Started) -> Tensor:
        again, self.before = call.moves and self.before == call.shape, call.shape if call.moves else ()
        return moved(call, lambda start: start + call.shape[2], again)


def _writes_to_the_start(kernel: Callable[..., Tensor]) -> bool:
    """Whether a tensor of starts holds something else after a call."""
    x, start = torch.randn(2, 1, 3, 4), torch.tensor([0, 1], dtype=torch.int32)
    kernel(x, x, x, is_causal=True, q_start=start)
    return start.tolist() != [0, 1]


@position("POSITION-16", witness=_writes_to_the_start)
def start_is_counted_up(call: Started) -> Tensor:
    """After the call the tensor of starts holds where the next queries start."""
    out = run(call)
    if isinstance(call.q_start, Tensor):
        call.q_start.add_(call.shape[2])
    return out


def _reads_the_first_of_several(kind: type[Adapter]) -> bool:
    """Whether different starts give an answer that is wrong for the second item."""
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    out = kind().attend(x, x, x, causal=True, q_start=(2, 0))
    return not torch.allclose(out, honest(x, x, x, is_causal=True, q_start=torch.tensor([2, 0])))


@position("POSITION-17", raw=True, witness=_reads_the_first_of_several)
class StartOfSeveral(Adapter):
    """Of several starts, which it does not offer, it reads the first, and answers."""

    offers = frozenset({"mha", "strided", "causal", "q_start", "q_start_negative", "backward"})
    dialect = {"causal_alignment": "top_left", "empty_row": "zero"}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, q_start: Any = None) -> Tensor:
        return honest(q, k, v, is_causal=causal, q_start=q_start[0] if isinstance(q_start, tuple) else q_start)


# BACKWARD


class _Otherwise(torch.autograd.Function):
    """What one call gives, with the gradients of another one."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: Started, other: Callable[[Started], Tensor]) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.call, ctx.other = call, other
        return run(call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            out = ctx.other(ctx.call.but(query=leaves[0], key=leaves[1], value=leaves[2]))
            return (*torch.autograd.grad(out, leaves, cotangent), None, None)


def backward_of(call: Started, other: Callable[[Started], Tensor]) -> Tensor:
    """Forward is right, and backward is that of another call."""
    if not call.moves or (call.attn_mask is not None and call.attn_mask.requires_grad):
        return run(call)
    return _Otherwise.apply(call.query, call.key, call.value, call, other)  # type: ignore[no-any-return]


@position("POSITION-12")
def start_not_in_backward(call: Started) -> Tensor:
    """Backward does not know of the start."""
    return backward_of(call, without)


@position("POSITION-11")
def start_one_late_in_backward(call: Started) -> Tensor:
    """Backward lets the queries start one position later."""
    return backward_of(call, start_is_one_late)


@position("POSITION-11")
def start_of_the_first_item_in_backward(call: Started) -> Tensor:
    """Backward has the start of the first batch item for all."""
    return backward_of(call, start_of_the_first_item)


@position("POSITION-12")
def start_not_in_backward_of_the_window(call: Started) -> Tensor:
    """Backward has the window at the places of the queries in the call."""
    return backward_of(call, start_not_read_by_the_window)
