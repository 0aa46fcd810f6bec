"""Faults of pages, further: what is written where, where pages end, pages that are shared, wider tables, the next call."""

from __future__ import annotations

from typing import Any

import torch

from mutants.carriers import ragged
from mutants.pages import FA, Place, pages
from mutants.ragged_cases import lengths, wrong_for
from mutants.sequences import Kept, One, Paged
from mutants.tools import as_if_contiguous

WIDE = wrong_for(*((case, {"columns": 7}) for case in lengths("paged+3", "3:9/2:4/1:8")))
SHARED = wrong_for(*((case, {"shared": 2}) for case in lengths("paged+3", "1:9/1:6/1:7", i=1)))
OTHERS = wrong_for(*lengths("paged+3+dealt", "1:9/1:4/1:6", "1:4/1:6/1:9", i=1))


# NEW KEYS


@ragged("PAGED-7")
def border_crossed_into_the_next_of_the_pool(call: Paged) -> Any:
    """New keys behind a page's end are written in the pool's next page."""

    def place(n: int, j: int) -> Place:
        page = call.place(n, int(call.lengths[n]))[0] if call.new(n) else 0
        over = j // call.size - int(call.lengths[n]) // call.size
        return (page + over) % len(call.k_pages), j % call.size

    return call.append(place).attend()


@ragged("PAGED-7")
def last_row_of_pages_overwritten(call: Paged) -> Any:
    """New keys are written from the last row on that was filled."""
    return call.append(lambda n, j: call.place(n, max(0, j - 1))).attend()


@ragged("PAGED-7")
def new_page_not_begun(call: Paged) -> Any:
    """Where all pages of a sequence were full, its first new key is written at the beginning of the last of them."""

    def place(n: int, j: int) -> Place:
        first = j == int(call.lengths[n]) and j and j % call.size == 0
        return call.place(n, j - call.size) if first else call.place(n, j)

    return call.append(place).attend()


@ragged("PAGED-7")
def pages_not_written(call: Paged) -> Any:
    """New keys are attended to and not written."""
    return call.but(k_pages=call.k_pages.clone(), v_pages=call.v_pages.clone()).run()


@ragged("PAGED-7")
def new_values_written_elsewhere(call: Paged) -> Any:
    """New values are attended to, and written at the row that they have in the call."""
    right = call.but(k_pages=call.k_pages.clone(), v_pages=call.v_pages.clone()).append()
    call.append(v=False)
    call.append(lambda n, j: (call.place(n, j)[0], (int(call.cu_new[n]) + j - int(call.lengths[n])) % call.size), k=False)
    return right.attend()


@ragged("PAGED-7", f"{FA}#1354")
def new_keys_of_pages_not_seen(call: Paged) -> Any:
    """New keys are written and not seen."""
    return call.run(total=lambda n: int(call.lengths[n]))


@ragged("PAGED-7")
def as_many_new_as_the_first(call: Paged) -> Any:
    """Each sequence has as many new keys as the first, or fewer."""
    if call.cu_new is None or not call.b:
        return call.run()
    most = call.new(0)
    call.append()
    return call.attend(total=lambda n: int(call.lengths[n]) + min(most, call.new(n)))


@ragged("PAGED-7")
def new_rows_cut_short_in_the_last_page(call: Paged) -> Any:
    """A new key that fills its page is not written."""
    right = call.but(k_pages=call.k_pages.clone(), v_pages=call.v_pages.clone()).append()
    call.append(lambda n, j: call.place(n, j) if (j + 1) % call.size else (-1, 0))
    return right.attend()


@ragged("PAGED-7")
def rest_of_the_new_page_cleared(call: Paged) -> Any:
    """The rest of a page is cleared where a new key is its first."""
    found = call.run()
    for n in range(call.b if call.cu_new is not None else 0):
        j = call.total(n) - 1
        if call.new(n) and j % call.size == 0:
            call.k_pages[call.place(n, j)[0], 1:] = 0
    return found


@ragged("PAGED-7")
def table_filled_in_place(call: Paged) -> Any:
    """Entries of the table that are not used become zero."""
    found = call.run()
    for n in range(call.b):
        call.table[n, pages(call, n) :] = 0
    if call.b:
        call.lengths[-1] += call.new(call.b - 1)
    return found


# STRIDES


@ragged("PAGED-1", "ROCm/aiter#3498", witness=wrong_for(*lengths("paged+3+dealt+fused", "1:9/1:4/1:6", i=1)))
def page_stride_of_contiguous_pools(call: Paged) -> Any:
    """Pages of keys are read as if their pool were contiguous."""
    call.append()
    keys = call.but(k_pages=as_if_contiguous(call.k_pages))
    return call.attend(read=lambda n: (keys.read(n)[0], call.read(n)[1]))


# WHERE PAGES END


@ragged("PAGED-8")
def partial_page_ignored(call: Paged) -> Any:
    """A last page that is partly filled is not read, where there is another."""
    return call.run(lambda one: one.keys(0, one.j // call.size * call.size) if one.j > call.size else one)


@ragged("PAGED-8")
def single_row_of_a_page_ignored(call: Paged) -> Any:
    """A last page of one row is not read, where there is another."""
    return call.run(lambda one: one.keys(0, one.j - 1) if one.j > call.size > 1 and one.j % call.size == 1 else one)


@ragged("PAGED-8")
def last_row_of_full_pages_ignored(call: Paged) -> Any:
    """Where a sequence ends with its page, the last row is not read."""
    return call.run(lambda one: one.keys(0, one.j - 1) if one.j > 1 and one.j % call.size == 0 else one)


@ragged("PAGED-8", witness=wrong_for(*lengths("paged+3", "1:7", i=1, causal=False)))
def single_key_seen_twice(call: Paged) -> Any:
    """Behind two whole pages the single key of the third is seen twice."""
    size = call.size

    def change(one: One) -> One:
        if one.j != 2 * size + 1 or one.i != 1:
            return one
        return one.but(k=torch.cat([one.k, one.k[-1:]]), v=torch.cat([one.v, one.v[-1:]]), start=one.j - 1)

    return call.run(change)


# SHARED, WIDER, OTHER ORDER, NEXT CALL


@ragged("PAGED-9", witness=SHARED)
def page_read_once(call: Paged) -> Any:
    """A page that an earlier sequence has is skipped."""

    def change(one: One) -> One:
        earlier = {call.place(n, j)[0] for n in range(one.n) for j in range(call.total(n))}
        own = [j for j in range(one.j) if call.place(one.n, j)[0] not in earlier]
        return one if len(own) == one.j else one.but(k=one.k[own], v=one.v[own], start=one.j - one.i)

    return call.run(change)


@ragged("PAGED-10")
def table_read_with_the_width_in_use(call: Paged) -> Any:
    """Rows of the table are found by the columns that are used."""
    used = max((pages(call, n) for n in range(call.b)), default=0)
    flat = call.table.reshape(-1)

    def place(n: int, j: int) -> Place:
        return int(flat[n * used + j // call.size]) % max(len(call.k_pages), 1), j % call.size

    return call.run(place=place)


@ragged("PAGED-10")
def length_by_the_width_of_the_table(call: Paged) -> Any:
    """Queries are aligned by the keys that the table has room for, with two columns or more that are not used."""
    room = call.table.shape[1] * call.size
    wide = call.b > 0 and call.table.shape[1] > max(pages(call, n) for n in range(call.b)) + 1
    return call.run(lambda one: one.but(start=room - one.i) if wide else one)


@ragged("PAGED-10", "ROCm/flash-attention#97", witness=WIDE)
def splits_by_the_width_of_the_table(call: Paged) -> Any:
    """With five columns or more that a sequence has no page in, its last page is dropped."""
    return call.run(
        lambda one: (
            one.keys(0, (pages(call, one.n) - 1) * call.size)
            if pages(call, one.n) > 1 and call.table.shape[1] > pages(call, one.n) + 4
            else one
        )
    )


@ragged("PAGED-11")
def pages_of_the_first_are_enough(call: Paged) -> Any:
    """A sequence has no more pages than the first."""
    most = call.total(0) if call.b else 0
    return call.run(lambda one: one.keys(0, -(-most // call.size) * call.size) if most and one.j > most else one)


@ragged("PAGED-11")
def sink_of_the_last_sequence_alone(call: Paged) -> Any:
    """Sequences but the last have no sink."""
    return call.run(lambda one: one if one.n == call.b - 1 else one.but(sinks=None))


@ragged("PAGED-12", witness=OTHERS)
class TableKept(Kept):
    """The table is that of the first call with pools of these shapes."""

    def __call__(self, call: Paged) -> Any:
        key = (call.k_pages.shape, call.table.shape, len(call.q), call.k_new is None)
        return call.append().attend(place=call.but(table=self.first(key, lambda: call.table.clone())).place)


@ragged("PAGED-12", "sgl-project/sglang#31501", witness=OTHERS)
class LengthsOfTheFirstPlan(Kept):
    """Lengths are those of the first call with pools and tables of these shapes."""

    def __call__(self, call: Paged) -> Any:
        key = (call.k_pages.shape, call.table.shape, len(call.q), call.k_new is None)
        kept = self.first(key, lambda: [call.total(n) for n in range(call.b)])
        return call.append().attend(lambda one: one.keys(0, kept[one.n]).but(start=None))
