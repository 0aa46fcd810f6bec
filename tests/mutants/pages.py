"""Faults of pages: how the table is read, where pages end, what is written where, where queries stand, what is kept."""

from __future__ import annotations

from math import log, nan
from typing import Any

import torch
from torch import Tensor

from mutants.carriers import ragged
from mutants.ragged_cases import lengths, wrong_for
from mutants.sequences import One, Paged, both, dense, merged

FA = "Dao-AILab/flash-attention"
Place = tuple[int, int]
IDLE = wrong_for(*lengths("paged", "0:5/1:9/1:4", i=1))


def pages(call: Paged, n: int) -> int:
    """The pages of a sequence after the call."""
    return -(-call.total(n) // call.size)


def entry(call: Paged, n: int, column: int) -> int:
    """An entry of the table that need not be there: none beyond the pool."""
    if not call.table.numel() or not len(call.k_pages):
        return 0
    found = int(call.table[n % call.b, column % call.table.shape[1]])
    return found % len(call.k_pages)


def elsewhere(call: Paged, column: Any) -> Any:
    """Read at other columns or rows of the table, written where it belongs. column: of n and the column, another row and column."""
    return call.run(place=lambda n, j: (entry(call, *column(n, j // call.size)), j % call.size))


# THE TABLE


@ragged("PAGED-1", "ROCm/aiter#3498")
def table_not_read(call: Paged) -> Any:
    """Pages of a sequence follow its first one."""
    most = len(call.k_pages)
    return call.run(place=lambda n, j: ((int(call.table[n, 0]) + j // call.size) % most, j % call.size))


@ragged("PAGED-1")
def table_of_the_first_sequence(call: Paged) -> Any:
    """All sequences have the pages of the first."""
    return elsewhere(call, lambda n, column: (0, column))


@ragged("PAGED-1")
def table_of_the_sequence_before(call: Paged) -> Any:
    """The last of three sequences or more has the first page of the one before."""
    return elsewhere(call, lambda n, column: (n - (n > 1 and n == call.b - 1 and column == 0), column))


@ragged("PAGED-1")
def table_read_in_columns(call: Paged) -> Any:
    """The table is read column by column."""
    flat = call.table.T.reshape(-1)

    def place(n: int, j: int) -> Place:
        found = int(flat[n * call.table.shape[1] + j // call.size])
        return found % max(len(call.k_pages), 1), j % call.size

    return call.run(place=place)


@ragged("PAGED-1")
def values_not_by_the_table(call: Paged) -> Any:
    """Keys are read by the table; values from the pages in order, where the sequence's first one lies."""
    call.append()
    most = max(len(call.k_pages), 1)

    def read(n: int) -> tuple[Tensor, Tensor]:
        k, _ = call.read(n)
        _, v = call.read(n, lambda n, j: ((int(call.table[n, 0]) + j // call.size) % most, j % call.size))
        return k, v

    return call.attend(read=read)


@ragged("PAGED-1", "tenstorrent/tt-metal#37927")
def second_page_of_sixteen_begins_late(call: Paged) -> Any:
    """With pages of 16 the first row of the second page is read as the second."""
    return call.run(place=lambda n, j: (call.place(n, j)[0], call.place(n, j)[1] + (call.size == 16 == j)))


@ragged("PAGED-1", "ROCm/aiter#3498")
def pages_from_the_fifth_are_the_first(call: Paged) -> Any:
    """From the fifth page on a sequence has its first one."""
    return elsewhere(call, lambda n, column: (n, column if column < 4 else 0))


@ragged("PAGED-1")
def pages_turned_round(call: Paged) -> Any:
    """In pages of two rows or more that are full the first two rows are those of the next sequence's page where there is one."""

    def place(n: int, j: int) -> Place:
        page, row = call.place(n, j)
        return (
            (call.place(n + 1, 0)[0], row)
            if n + 1 < call.b and call.total(n + 1) and j < 2 and call.total(n) >= call.size
            else (page, row)
        )

    return call.run(place=place)


@ragged("PAGED-1", f"{FA}#2368 {FA}#2367")
def values_paged_by_the_width_of_keys(call: Paged) -> Any:
    """Pages of values are found by the width of keys, which matters where values have another width."""
    d, e = call.k_pages.shape[3], call.v_pages.shape[3]
    if d == e or not call.v_pages.numel():
        return call.run()
    call.append()
    step = call.size * call.v_pages.shape[2]
    flat = call.v_pages.flatten()

    def read(n: int) -> tuple[Tensor, Tensor]:
        k, v = call.read(n)
        at = torch.tensor(
            [call.place(n, j)[0] * step * d + call.place(n, j)[1] * v.shape[1] * e for j in range(len(v))], dtype=torch.long
        )
        places = at[:, None] + torch.arange(v[:1].numel())
        return k, flat[places % len(flat)].view(v.shape)

    return call.attend(read=read)


@ragged("PAGED-1")
def first_key_head_of_later_pages(call: Paged) -> Any:
    """Behind the first page all heads have the keys of the first."""
    size = call.size
    return call.run(lambda one: one.but(k=torch.cat([one.k[:size], one.k[size:, :1].expand_as(one.k[size:])])))


@ragged("PAGED-2")
def pages_in_the_order_of_the_pool(call: Paged) -> Any:
    """The full pages of a sequence are read in the order in which they lie, from the third on."""

    def place(n: int, j: int) -> Place:
        full = call.total(n) // call.size
        own = sorted(int(x) for x in call.table[n, :full])
        column = j // call.size
        return (own[column] if full > 2 and column < full else call.place(n, j)[0]), j % call.size

    return call.run(place=place)


@ragged("PAGED-2", "ROCm/aiter#3498")
def page_zero_is_nobodys(call: Paged) -> Any:
    """The pool's first page is taken for an entry that is not used, where it is not a sequence's first."""

    def change(one: One) -> One:
        own = [j for j in range(one.j) if j < call.size or call.place(one.n, j)[0]]
        return one if len(own) == one.j else one.but(k=one.k[own], v=one.v[own])

    return call.run(change)


# WHAT NO SEQUENCE HAS


@ragged("PAGED-3", "flashinfer-ai/flashinfer#3716")
def last_page_read_whole(call: Paged) -> Any:
    """A page that is partly filled is read to its end."""
    return call.run(total=lambda n: pages(call, n) * call.size, each=lambda one: one.but(start=call.total(one.n) - one.i))


@ragged("PAGED-3", "flashinfer-ai/flashinfer#3716")
def rest_of_the_last_page_weighed_with_zero(call: Paged) -> Any:
    """Values of the last page behind the last key are read with a weight of zero."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        if not one.j % call.size:
            return dense(one)
        rest = (0 * call.v_pages[call.place(one.n, one.j - 1)[0], one.j % call.size :]).sum(0)
        return both(dense(one), lambda o: o + rest.repeat_interleave(o.shape[1] // max(len(rest), 1), 0))

    return call.run(attend=attend)


@ragged("PAGED-3", "pegainfer-project/pegainfer#291 pegainfer-project/pegainfer#350")
def a_page_too_many_every_sixteen_steps(call: Paged) -> Any:
    """A sequence of whole pages also sees the first row of the next page in the pool."""
    most = len(call.k_pages)

    def change(one: One) -> One:
        page = (call.place(one.n, one.j - 1)[0] + 1) if one.j and one.j % call.size == 0 else most
        if page >= most:
            return one
        return one.but(
            k=torch.cat([one.k, call.k_pages[page, :1]]), v=torch.cat([one.v, call.v_pages[page, :1]]), start=one.j - one.i
        )

    return call.run(change)


@ragged("PAGED-4", "flashinfer-ai/flashinfer#2711 ROCm/flash-attention#97")
def entries_checked_against_the_pool(call: Paged) -> Any:
    """An entry that is not used raises where it is beyond the pool."""
    if len(call.k_pages) and call.table.numel() and int(call.table.max()) >= len(call.k_pages):
        raise IndexError(f"page {int(call.table.max())} is out of range")
    return call.run()


@ragged("PAGED-4", "ROCm/flash-attention#98")
def negative_entry_ends_the_batch(call: Paged) -> Any:
    """Where an entry that is not used is negative, the page before it is not read."""

    def change(one: One) -> One:
        column = pages(call, one.n)
        cut = 1 < column < call.table.shape[1] and int(call.table[one.n, column]) < 0
        return one.keys(0, (column - 1) * call.size) if cut else one

    return call.run(change)


@ragged("PAGED-4", "flashinfer-ai/flashinfer#2711")
def unused_entry_clamped_and_read(call: Paged) -> Any:
    """The page of the first entry that is not used is read, clamped to the pool, and weighed with zero."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        column = pages(call, one.n)
        if column >= call.table.shape[1] or not len(call.v_pages):
            return dense(one)
        page = min(max(int(call.table[one.n, column]), 0), len(call.v_pages) - 1)
        rest = (0 * call.v_pages[page]).sum(0)
        return both(dense(one), lambda o: o + rest.repeat_interleave(o.shape[1] // max(len(rest), 1), 0))

    return call.run(attend=attend)


# NO ROWS


@ragged("PAGED-5")
def no_keys_in_pages_nan(call: Paged) -> Any:
    """A sequence without keys gives NaN."""
    return call.run(attend=lambda one: dense(one) if one.j else both(dense(one), lambda o: o + nan))


@ragged("PAGED-5")
def no_keys_read_the_first_page(call: Paged) -> Any:
    """A sequence without keys sees the first row of the pool."""

    def change(one: One) -> One:
        return one if one.j or not len(call.k_pages) else one.but(k=call.k_pages[0, :1], v=call.v_pages[0, :1])

    return call.run(change)


@ragged("PAGED-5", f"{FA}#1537")
def no_queries_shift_the_table(call: Paged) -> Any:
    """Behind a sequence without queries a sequence has the pages of the one before."""
    empty = [int(call.cu_q[n + 1]) == int(call.cu_q[n]) for n in range(call.b)]
    return elsewhere(call, lambda n, column: (n - (n > 0 and any(empty[:n])), column))


@ragged("PAGED-5")
def no_keys_divide(call: Paged) -> Any:
    """A sequence without keys beside others raises a ZeroDivisionError."""
    totals = [call.total(n) for n in range(call.b)]
    if any(totals) and not all(totals):
        raise ZeroDivisionError("division by zero")
    return call.run()


# QUERIES


@ragged("PAGED-6", "vllm-project/vllm#47332")
def mixed_batches_top_left(call: Paged) -> Any:
    """Beside longer prompts a sequence with fewer queries is aligned to the top left."""
    return call.run(lambda one: one.but(start=0) if one.i < call.max_q else one)


@ragged("PAGED-6")
def aligned_by_the_longest_prompt(call: Paged) -> Any:
    """The first query stands where it would with as many queries as the longest."""
    return call.run(lambda one: one.but(start=one.j - call.max_q))


@ragged("PAGED-6", "sgl-project/sglang#11634")
def decode_beside_prompts_has_no_window(call: Paged) -> Any:
    """A single query beside prompts is given no window."""
    return call.run(lambda one: one.but(window=None) if one.i == 1 < call.max_q else one)


@ragged("PAGED-6", "sgl-project/sglang#11634")
def single_query_has_the_prompt_before(call: Paged) -> Any:
    """A single query behind a prompt of several has the last query of this prompt."""

    def change(one: One) -> One:
        at = int(call.cu_q[one.n])
        return one.but(q=call.q[at - 1 : at]) if one.i == 1 and one.n and at - int(call.cu_q[one.n - 1]) > 1 else one

    return call.run(change)


@ragged("PAGED-5", f"{FA}#1537", witness=IDLE)
def rows_by_the_place_in_the_batch(call: Paged) -> Any:
    """With one query at most and groups, sequence b has the b-th query."""
    if call.max_q != 1 or call.q.shape[1] == call.k_pages.shape[2]:
        return call.run()
    return call.run(lambda one: one.but(q=call.q[one.n : one.n + 1]) if one.i and one.n < len(call.q) else one)


@ragged("PAGED-1", "microsoft/onnxruntime#28904")
def prompts_top_left(call: Paged) -> Any:
    """Several queries are aligned to the top left."""
    return call.run(lambda one: one.but(start=0) if one.i > 1 else one)


@ragged("PAGED-1")
def distance_one_too_far(call: Paged) -> Any:
    """With one query and no window the query stands one position too late, which slopes alone show."""
    return call.run(
        lambda one: one.but(start=one.j, causal=False) if one.slopes is not None and one.i == 1 and not one.window else one
    )


@ragged("PAGED-1", "sgl-project/sglang#32902")
def window_begins_with_its_page(call: Paged) -> Any:
    """With one query the window begins at the first row of a page."""

    def change(one: One) -> One:
        if one.window is None or one.window[0] is None or one.i != 1:
            return one
        left = one.window[0]
        first = max(0, one.j - 1 - left) // call.size * call.size
        return one.but(window=(one.j - 1 - first, one.window[1]))

    return call.run(change)


@ragged("PAGED-1")
def cap_in_the_first_page_alone(call: Paged) -> Any:
    """Sequences of several pages have no cap."""
    return call.run(lambda one: one.but(softcap=None) if one.j > call.size else one)


@ragged("PAGED-1")
def sink_in_each_page(call: Paged) -> Any:
    """A sequence of several pages counts its sink once more."""
    return call.run(lambda one: one.but(sinks=one.sinks + log(2)) if one.sinks is not None and one.j > call.size else one)


@ragged("PAGED-1")
def slopes_of_the_first_row(call: Paged) -> Any:
    """Slopes of sequences and heads are those of the first sequence."""
    slopes = call.options.get("alibi_slopes")
    return call.run(lambda one: one if slopes is None or slopes.ndim == 1 else one.but(slopes=slopes[0]))


@ragged("PAGED-1")
def paged_lse_by_rows(call: Paged) -> Any:
    """The memory of the lse is (n h) where it says (h n)."""
    found = call.run()
    return (found[0], found[1].T.reshape(found[1].shape)) if call.lse else found


@ragged("PAGED-1", "Dao-AILab/flash-attention#1417")
def pages_split_and_averaged(call: Paged) -> Any:
    """Four pages or more are split in two, and the halves averaged."""
    return call.run(attend=lambda one: merged(one, 2 * call.size) if one.j > 3 * call.size else dense(one))
