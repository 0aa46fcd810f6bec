"""Faults of caches: which rows are filled, which slot is whose, what is written where, where queries stand, what is kept."""

from __future__ import annotations

from math import log, nan
from typing import Any

import torch
from torch import Tensor

from mutants.carriers import ragged
from mutants.ragged_cases import lengths, wrong_for
from mutants.sequences import Cached, Kept, One, both, dense, merged
from mutants.tools import as_if_contiguous

ROOM = wrong_for(*((case, {"room": 256}) for case in lengths("cached", "3:9/3:4/3:8")))
OTHERS = wrong_for(*lengths("cached", "3:9/3:4/3:8", "3:8/3:9/3:4"))
APPENDED = wrong_for(*lengths("cached+append", "3:9/3:4/3:8", "3:8/3:9/3:4"))


FA = "Dao-AILab/flash-attention"


def rows(call: Cached, first: int = 0, end: int = 0, where: Any = lambda n, a, b: True) -> Any:
    """The rows of a sequence, with more or fewer where it holds; none beyond the cache."""
    most = call.k_cache.shape[1]

    def found(n: int) -> tuple[int, int]:
        a, b = call.rows(n)
        return (max(0, a + first), max(0, min(most, b + end))) if where(n, a, b) else (a, b)

    return found


# WHICH ROWS


@ragged("CACHE-1", "pegainfer-project/pegainfer#291")
def stale_row_read(call: Cached) -> Any:
    """The row behind the filled ones is attended to where there is one."""
    return call.run(rows=rows(call, end=1))


@ragged("CACHE-1", "pegainfer-project/pegainfer#291")
def stale_row_read_at_multiples_of_sixteen(call: Cached) -> Any:
    """The row behind the filled ones is attended to where they are a multiple of 16."""
    return call.run(rows=rows(call, end=1, where=lambda n, a, b: b and b % 16 == 0))


@ragged("CACHE-1")
def last_filled_row_left_out(call: Cached) -> Any:
    """The length is taken for the number of the last row."""
    return call.run(rows=rows(call, end=-1, where=lambda n, a, b: b > a + 1))


@ragged("CACHE-1")
def capacity_taken_for_the_length(call: Cached) -> Any:
    """All rows of a slot are attended to."""
    return call.append().attend(lambda one: one, rows=lambda n: (call.rows(n)[0], call.k_cache.shape[1]))


@ragged("CACHE-1", "sgl-project/sglang#32087")
def length_of_the_sequence_before(call: Cached) -> Any:
    """The last of three sequences or more has the length of the one before."""
    return call.run(rows=lambda n: (call.rows(n)[0], call.rows(n - (n > 1 and n == call.b - 1))[1]))


@ragged("CACHE-1")
def longest_length_for_all(call: Cached) -> Any:
    """All sequences have the length of the longest."""
    most = max((call.rows(n)[1] for n in range(call.b)), default=0)
    return call.run(rows=lambda n: (call.rows(n)[0], most))


@ragged("CACHE-1", "sgl-project/sglang#32087")
def stale_value_weighed_with_zero(call: Cached) -> Any:
    """Values behind the filled rows are read, up to a multiple of 16, with a weight of zero."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        b = call.rows(one.n)[1]
        rest = (0 * call.v_cache[call.slot(one.n), b : b + -b % 16]).sum(0)
        return both(dense(one), lambda o: o + rest.repeat_interleave(o.shape[1] // max(len(rest), 1), 0))

    return call.run(attend=attend)


@ragged("CACHE-1", "Dao-AILab/flash-attention#2006")
def long_caches_split_and_averaged(call: Cached) -> Any:
    """More than 64 keys are split in two, and the halves are averaged."""
    return call.run(attend=lambda one: merged(one, 64) if one.j > 64 else dense(one))


@ragged("CACHE-1")
def keys_of_the_first_head_alone(call: Cached) -> Any:
    """In the last of several sequences all heads have the keys of the first."""
    return call.run(lambda one: one.but(k=one.k[:, :1].expand_as(one.k)) if one.n and one.n == call.b - 1 else one)


@ragged("CACHE-1")
def scale_of_values(call: Cached) -> Any:
    """The default scale is that of the width of values."""
    return call.run(lambda one: one.but(scale=max(one.v.shape[2], 1) ** -0.5) if one.scale is None else one)


@ragged("CACHE-1")
def cap_forgotten_in_decode(call: Cached) -> Any:
    """With one query there is no cap."""
    return call.run(lambda one: one.but(softcap=None) if one.i == 1 else one)


@ragged("CACHE-1")
def sink_of_the_first_sequence_alone(call: Cached) -> Any:
    """Sequences but the first have no sink."""
    return call.run(lambda one: one.but(sinks=None) if one.n else one)


@ragged("CACHE-1")
def lse_transposed(call: Cached) -> Any:
    """The memory of the lse is (b i h) where it says (b h i)."""
    found = call.run()
    return (found[0], found[1].transpose(1, 2).reshape(found[1].shape)) if call.lse else found


@ragged("CACHE-1")
def lse_in_base_two_in_decode(call: Cached) -> Any:
    """With one query the lse is in base 2."""
    found = call.run()
    return (found[0], found[1] / log(2)) if call.lse and call.q.shape[1] == 1 else found


# NEW KEYS


@ragged("CACHE-2", f"{FA}#778 {FA}#1354")
def new_keys_not_attended_to(call: Cached) -> Any:
    """Queries see the rows that were filled before the call alone."""
    return call.run(rows=lambda n: (call.rows(n)[0], int(call.lengths[n])))


@ragged("CACHE-2", f"{FA}#1354")
def last_new_key_not_attended_to(call: Cached) -> Any:
    """Where two new keys or more come, the last is written and not seen."""
    return call.run(rows=rows(call, end=-1 if call.new > 1 else 0))


@ragged("CACHE-2", f"{FA}#1325")
def bounds_of_the_old_length_beyond_64(call: Cached) -> Any:
    """Where more than 64 rows were filled, new keys are not seen."""
    return call.run(rows=lambda n: (call.rows(n)[0], call.rows(n)[1] - (call.new if int(call.lengths[n]) > 64 else 0)))


@ragged("CACHE-2", "skyzh/tiny-llm#46")
def filled_rows_counted_twice(call: Cached) -> Any:
    """Queries stand one length of the new keys too far behind."""
    return call.run(lambda one: one.but(start=one.j - one.i + call.new))


@ragged("CACHE-2", "microsoft/onnxruntime#20521")
def new_keys_of_the_first_sequence(call: Cached) -> Any:
    """All sequences attend to the new values of the first; each is written its own."""
    v_new, v_cache = call.v_new, call.v_cache
    if v_new is None:
        return call.run()
    other = call.append().but(v_cache=v_cache.clone())
    found = other.but(v_new=v_new[:1].expand_as(v_new)).append()
    return found.attend()


@ragged("CACHE-2")
def new_heads_and_rows_swapped(call: Cached) -> Any:
    """New keys of several heads and rows are attended to with both swapped."""
    k_new = call.k_new
    if k_new is None or min(k_new.shape[1:3]) < 2:
        return call.run()
    call.append()
    return call.but(k_cache=call.k_cache.clone(), k_new=k_new.transpose(1, 2).reshape(k_new.shape)).append().attend()


@ragged("CACHE-2")
def aligned_by_the_length_before(call: Cached) -> Any:
    """Queries are aligned by the rows that were filled before the call."""
    return call.run(lambda one: one.but(start=one.j - call.new - one.i))


# WHAT IS WRITTEN


@ragged("CACHE-4")
def last_row_overwritten(call: Cached) -> Any:
    """New keys are written from the last filled row on."""
    return call.append(lambda n: (call.slot(n), max(0, int(call.lengths[n]) - 1))).attend()


@ragged("CACHE-4")
def written_one_row_late(call: Cached) -> Any:
    """New keys are attended to, and written one row too far behind."""
    keys = call.but(k_cache=call.k_cache.clone(), v_cache=call.v_cache.clone()).append()
    call.append(lambda n: (call.slot(n), int(call.lengths[n]) + 1))
    return keys.attend()


@ragged("CACHE-4")
def nothing_is_written(call: Cached) -> Any:
    """New keys are attended to and not written."""
    return call.but(k_cache=call.k_cache.clone(), v_cache=call.v_cache.clone()).run()


@ragged("CACHE-4", f"{FA}#772")
def values_written_in_order_of_the_batch(call: Cached) -> Any:
    """New values are written in slots by the place in the batch."""
    copied = call.but(k_cache=call.k_cache, v_cache=call.v_cache.clone()).append()
    call.append(lambda n: (n, int(call.lengths[n])), k=False)
    return copied.attend()


@ragged("CACHE-4")
def written_through_half(call: Cached) -> Any:
    """Behind the first sequence new keys are written through bfloat16."""
    found = call.run()
    for n in range(1, call.b):
        if call.k_new is not None:
            at = slice(int(call.lengths[n]), call.rows(n)[1])
            call.k_cache[call.slot(n), at] = call.k_new[n].bfloat16().to(call.k_cache.dtype)
    return found


@ragged("CACHE-4", "microsoft/onnxruntime#28958")
def row_behind_cleared(call: Cached) -> Any:
    """The row behind the new ones is cleared in the last sequence."""
    found = call.run()
    if call.b and call.k_new is not None:
        call.k_cache[call.slot(call.b - 1), call.rows(call.b - 1)[1] :][:1] = 0
    return found


@ragged("CACHE-4")
def free_slot_cleared(call: Cached) -> Any:
    """A slot that no sequence has is cleared."""
    found = call.run()
    for slot in set(range(len(call.k_cache))) - {call.slot(n) for n in range(call.b)}:
        call.v_cache[slot] = 0
    return found


@ragged("CACHE-4", "microsoft/onnxruntime#28958")
def only_two_rows_written(call: Cached) -> Any:
    """All new keys are attended to, and two of them written."""
    keys = call.but(k_cache=call.k_cache.clone(), v_cache=call.v_cache.clone()).append()
    if call.k_new is not None and call.v_new is not None:
        call.but(k_new=call.k_new[:, :2], v_new=call.v_new[:, :2]).append()
    return keys.attend()


@ragged("CACHE-4")
def lengths_advanced_in_place(call: Cached) -> Any:
    """The lengths are those after the call, in the caller's tensor."""
    found = call.run()
    call.lengths.add_(call.new)
    return found


@ragged("CACHE-4")
def cache_not_written_where_it_was_empty(call: Cached) -> Any:
    """In a slot without a filled row new keys are attended to and not written."""
    keys = call.but(k_cache=call.k_cache.clone(), v_cache=call.v_cache.clone()).append()
    for n in range(call.b if call.k_new is not None else 0):
        if int(call.lengths[n]):
            at = slice(int(call.lengths[n]), call.rows(n)[1])
            call.k_cache[call.slot(n), at], call.v_cache[call.slot(n), at] = call.k_new[n], call.v_new[n]
    return keys.attend()


@ragged("CACHE-4", "flashinfer-ai/flashinfer#527", witness=wrong_for(*lengths("cached+append+fused", "3:9/3:4/3:8")))
def appended_without_strides(call: Cached) -> Any:
    """New keys and values are written as if the caches were contiguous, and attended to where they belong."""
    right = call.but(k_cache=call.k_cache.clone(), v_cache=call.v_cache.clone()).append()
    call.but(k_cache=as_if_contiguous(call.k_cache), v_cache=as_if_contiguous(call.v_cache)).append()
    return right.attend()


# CAPACITY


@ragged("CACHE-5", f"{FA}#1417", witness=ROOM)
def splits_of_the_capacity_drop_the_last_key(call: Cached) -> Any:
    """With room for 200 more rows than are filled the last key is dropped."""
    return call.run(lambda one: one.keys(0, one.j - 1) if one.j > 1 and call.k_cache.shape[1] > one.j + 200 else one)


@ragged("CACHE-5", f"{FA}#1417", witness=ROOM)
def splits_without_keys_are_nan(call: Cached) -> Any:
    """With room for 128 more rows than are filled a row is NaN."""
    far = call.k_cache.shape[1]
    return call.run(attend=lambda one: both(dense(one), lambda o: o + nan) if one.j and far > one.j + 128 else dense(one))


# LEFT AND SLOTS


@ragged("CACHE-6")
def left_rows_read(call: Cached) -> Any:
    """Keys begin at the first row."""
    return call.run(rows=lambda n: (0, call.rows(n)[1]))


@ragged("CACHE-6")
def left_not_in_alignment(call: Cached) -> Any:
    """Queries stand as many positions too far behind as rows are left out."""
    return call.run(lambda one: one.but(start=call.rows(one.n)[1] - one.i))


@ragged("CACHE-6")
def left_added_to_the_length(call: Cached) -> Any:
    """Lengths are taken to count from the first key."""
    return call.run(rows=lambda n: (call.rows(n)[0], min(call.k_cache.shape[1], sum(call.rows(n)))))


@ragged("CACHE-6")
def left_of_the_first_sequence(call: Cached) -> Any:
    """As many rows are left out as in the first sequence."""
    return call.run(rows=lambda n: (min(call.rows(0)[0], call.rows(n)[1]), call.rows(n)[1]))


@ragged("CACHE-6")
def left_not_in_distances(call: Cached) -> Any:
    """Distances of slopes count from the slot's first row, with neither causal nor a window."""
    return call.run(
        lambda one: (
            one.but(start=call.rows(one.n)[1] - one.i) if one.slopes is not None and not one.causal and not one.window else one
        )
    )


@ragged("CACHE-7", f"{FA}#772")
def slots_ignored_on_write(call: Cached) -> Any:
    """New keys are written in slots by the place in the batch, and read from the sequence's own."""
    return call.append(lambda n: (n, int(call.lengths[n]))).attend()


@ragged("CACHE-7", f"{FA}#772")
def slots_ignored(call: Cached) -> Any:
    """Slots are those of the places in the batch."""
    return call.but(slots=None).run()


@ragged("CACHE-7")
def slots_ignored_by_values(call: Cached) -> Any:
    """Values are read from slots by the place in the batch."""
    call.append()
    values = {n: call.v_cache[n, slice(*call.rows(n))] for n in range(call.b)}
    return call.attend(lambda one: one.but(v=values[one.n]))


@ragged("CACHE-7")
def lengths_by_slots(call: Cached) -> Any:
    """Lengths are looked up by the slot."""
    return call.append().attend(rows=lambda n: (call.rows(n)[0], call.rows(call.slot(n) % call.b)[1]))


@ragged("CACHE-7")
def slopes_by_slots(call: Cached) -> Any:
    """Slopes of sequences and heads are looked up by the slot."""
    slopes = call.options.get("alibi_slopes")
    per = slopes is not None and slopes.ndim == 2
    return call.run(lambda one: one.but(slopes=slopes[call.slot(one.n) % len(slopes)]) if per else one)


# WHERE QUERIES STAND


@ragged("CACHE-8", "microsoft/onnxruntime#28904")
def top_left_in_caches(call: Cached) -> Any:
    """The first query stands at the first key."""
    return call.run(lambda one: one.but(start=0))


@ragged("CACHE-8", "microsoft/onnxruntime#28904")
def top_left_in_longer_sequences(call: Cached) -> Any:
    """Several queries before more than 32 keys are aligned to the top left."""
    return call.run(lambda one: one.but(start=0) if one.i > 1 and one.j > 32 else one)


@ragged("CACHE-8")
def aligned_by_the_capacity(call: Cached) -> Any:
    """The last query stands at the cache's last row."""
    return call.run(lambda one: one.but(start=call.k_cache.shape[1] - one.i))


@ragged("CACHE-8")
def aligned_by_the_longest_sequence(call: Cached) -> Any:
    """The last query stands at the last key of the longest sequence."""
    most = max((call.rows(n)[1] - call.rows(n)[0] for n in range(call.b)), default=0)
    return call.run(lambda one: one.but(start=most - one.i))


@ragged("CACHE-8", "huggingface/candle#3743")
def chunk_without_its_prefix(call: Cached) -> Any:
    """Several queries with as many new keys are aligned as if nothing had been filled."""
    return call.run(lambda one: one.but(start=0) if one.i == call.new > 1 else one)


@ragged("CACHE-8")
def window_forgotten_in_decode(call: Cached) -> Any:
    """With one query there is no window."""
    return call.run(lambda one: one.but(window=None) if one.i == 1 else one)


@ragged("CACHE-8")
def distances_one_short_in_decode(call: Cached) -> Any:
    """A single query that is not causal stands one position too early for slopes."""
    return call.run(lambda one: one.but(start=one.j - 2) if one.i == 1 and one.slopes is not None and not one.causal else one)


# ONE TOKEN, NO ROWS, THE NEXT CALL


@ragged("CACHE-9", "Lightning-AI/litgpt#2182")
def single_new_key_is_not_seen(call: Cached) -> Any:
    """A single new key is written and not seen where others are there."""
    return call.run(rows=rows(call, end=-(call.new == 1), where=lambda n, a, b: b - a > 1))


@ragged("CACHE-9", "Lightning-AI/litgpt#2182", witness=wrong_for(*lengths("cached+append", "1:9/1:4/1:8", i=1)))
def single_token_without_the_first_key(call: Cached) -> Any:
    """A single query with a single new key does not see the first key."""
    return call.run(lambda one: one.keys(1, one.j) if one.i == call.new == 1 < one.j else one)


@ragged("CACHE-10", "microsoft/onnxruntime#20521")
def empty_cache_is_nan(call: Cached) -> Any:
    """A sequence without a key is NaN."""
    return call.run(attend=lambda one: dense(one) if one.j else both(dense(one), lambda o: o + nan))


@ragged("CACHE-10", "microsoft/onnxruntime#20521")
def nothing_filled_before_is_nan(call: Cached) -> Any:
    """A sequence without a filled row before the call is NaN."""
    return call.run(attend=lambda one: dense(one) if int(call.lengths[one.n]) else both(dense(one), lambda o: o + nan))


@ragged("CACHE-10")
def last_row_of_a_full_slot_dropped(call: Cached) -> Any:
    """A slot that is filled to its last row loses this row, beside another that is not."""
    some = len({call.rows(n)[1] for n in range(call.b)}) > 1
    return call.run(rows=rows(call, end=-1, where=lambda n, a, b: some and b == call.k_cache.shape[1] and b > a + 1))


@ragged("CACHE-10")
def empty_slot_reads_its_first_row(call: Cached) -> Any:
    """A sequence without a key sees the first row of its slot."""
    return call.run(rows=rows(call, end=1, where=lambda n, a, b: b == a))


@ragged("CACHE-11", witness=OTHERS)
class LengthsKept(Kept):
    """Lengths are those of the first call with caches of these shapes."""

    def __call__(self, call: Cached) -> Any:
        kept = self.first((call.q.shape, call.k_cache.shape, call.new), lambda: [call.rows(n) for n in range(call.b)])
        return call.append().attend(rows=lambda n: kept[n])


@ragged("CACHE-11", witness=OTHERS)
class StartsOfTheFirstCall(Kept):
    """Where queries stand is that of the first call with caches of these shapes."""

    def __call__(self, call: Cached) -> Any:
        key = (call.q.shape, call.k_cache.shape, call.new)
        kept = self.first(key, lambda: [call.rows(n)[1] - call.rows(n)[0] - call.q.shape[1] for n in range(call.b)])
        return call.run(lambda one: one.but(start=kept[one.n]))


@ragged("CACHE-11", "skyzh/tiny-llm#46", witness=APPENDED)
class OffsetGrows(Kept):
    """From the second call with new keys on, an offset of its own moves the queries."""

    def __call__(self, call: Cached) -> Any:
        before = self.kept.get("offset", 0)
        self.kept["offset"] = before + call.new
        return call.run(lambda one: one.but(start=one.j - one.i + before) if call.new else one)


@ragged("CACHE-3")
def free_slots_in_the_sum(call: Cached) -> Any:
    """What a free slot holds is read, and weighed with zero."""
    free = set(range(len(call.k_cache))) - {call.slot(n) for n in range(call.b)}
    rest = sum((0 * call.v_cache[slot].sum() for slot in free), torch.zeros((), dtype=call.v_cache.dtype))
    return call.run(attend=lambda one: both(dense(one), lambda o: o + rest))


@ragged("CACHE-3", "pegainfer-project/pegainfer#291", witness=ROOM)
def rows_beyond_a_block_read(call: Cached) -> Any:
    """Where more than 100 rows are free, the row that lies 100 behind the last key is attended to."""

    def change(one: One) -> One:
        at = call.rows(one.n)[1] + 100
        if at >= call.k_cache.shape[1]:
            return one
        slot = call.slot(one.n)
        k, v = (torch.cat([x, cache[slot, at : at + 1]]) for x, cache in ((one.k, call.k_cache), (one.v, call.v_cache)))
        return one.but(k=k, v=v, start=one.j - one.i)

    return call.run(change)
