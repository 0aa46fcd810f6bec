"""Faults of packed sequences: where each begins and ends, whose keys it reads, where its queries stand."""

from __future__ import annotations

from math import nan
from typing import Any

import torch
from torch import Tensor

from mutants.carriers import ragged
from mutants.ragged_cases import lengths, wrong_for
from mutants.sequences import One, Packed, both, dense
from mutants.tools import with_gradient

SLACK = wrong_for(*((case, {"slack": 150}) for case in lengths("packed", "3:9/2:4/1:8")))


FA = "Dao-AILab/flash-attention"


def last(call: Packed, one: One) -> bool:
    """Whether it is the last sequence of several."""
    return call.b > 1 and one.n == call.b - 1


# WHOSE ROWS


@ragged("VARLEN-1", f"{FA}#2194 {FA}#2192")
def key_of_the_next_sequence_read(call: Packed) -> Any:
    """Each sequence but the last also sees the first key of the next."""
    return call.run(spans=[(a, b, c, d + (n < call.b - 1)) for n, (a, b, c, d) in enumerate(call.spans)])


@ragged("VARLEN-1", f"{FA}#2194")
def next_sequence_read_at_multiples_of_sixteen(call: Packed) -> Any:
    """A sequence with a multiple of 16 keys also sees the row behind its last."""
    return call.run(spans=[(a, b, c, d + (d > c and (d - c) % 16 == 0)) for a, b, c, d in call.spans])


@ragged("VARLEN-1", f"{FA}#2192")
def previous_key_read_by_the_last_sequence(call: Packed) -> Any:
    """The last sequence begins one key too early."""
    return call.run(spans=[(a, b, c - (n and n == call.b - 1 and c > 0), d) for n, (a, b, c, d) in enumerate(call.spans)])


@ragged("VARLEN-1", "flashinfer-ai/flashinfer#3801")
def queries_begin_at_the_number_of_their_sequence(call: Packed) -> Any:
    """The queries of sequence n are read from row n on: the stride of the batch is that of one row."""

    def moved(one: One) -> One:
        first = max(min(one.n, len(call.q) - one.i), 0)
        return one.but(q=call.q[first : first + one.i])

    return call.run(moved)


@ragged("VARLEN-1")
def longest_taken_for_the_length(call: Packed) -> Any:
    """Every sequence has as many keys as the longest."""
    return call.run(spans=[(a, b, c, c + call.max_k) for a, b, c, _ in call.spans])


@ragged("VARLEN-1")
def longest_key_count_for_the_last(call: Packed) -> Any:
    """The last sequence has as many keys as the longest, from the end of the tensor backwards."""
    spans = call.spans
    if len(spans) > 1:
        a, b, _, d = spans[-1]
        spans[-1] = (a, b, max(0, d - call.max_k), d)
    return call.run(spans=spans)


@ragged("VARLEN-1", "ROCm/aiter#2229")
def keys_from_the_65th_dropped_behind_the_first(call: Packed) -> Any:
    """Sequences but the first see 64 keys at most."""
    return call.run(lambda one: one.keys(0, 64) if one.n and one.j > 64 else one)


@ragged("VARLEN-1", "ROCm/aiter#2229")
def single_query_of_longer_packs_without_its_last_key(call: Packed) -> Any:
    """A sequence of one query beside longer ones does not see its last key."""
    return call.run(lambda one: one.keys(0, one.j - 1) if one.i == 1 and call.max_q > 1 and one.j > 1 else one)


@ragged("VARLEN-1")
def heads_behind_the_first_read_the_first_sequence(call: Packed) -> Any:
    """Only the first head of the keys is read where the sequence begins; the others are the first sequence's."""
    first = call.sequences()[0].k if call.b else None

    def change(one: One) -> One:
        assert first is not None
        rows = min(one.j, len(first))
        k = torch.cat([torch.cat([one.k[:rows, :1], first[:rows, 1:]], 1), one.k[rows:]])
        return one.but(k=k)

    return call.run(change)


@ragged("VARLEN-1", "NVIDIA/cudnn-frontend#526")
def values_found_by_the_width_of_keys(call: Packed) -> Any:
    """Where a sequence's values begin is counted in rows of keys, which matters where values have another width."""
    d, e = call.k.shape[2], call.v.shape[2]
    if d == e or not call.v.numel():
        return call.run()

    def change(one: One) -> One:
        begin = call.spans[one.n][2] * call.k.shape[1] * (d - e)
        return one.but(v=one.v.detach().roll(int(begin) % max(one.v.numel(), 1)) + (one.v - one.v.detach()))

    return call.run(change)


@ragged("VARLEN-1", "ROCm/aiter#2229", witness=wrong_for(*lengths("packed", "1:9/3:4/1:8", dtype="float16")))
def single_query_in_half_scaled_twice(call: Packed) -> Any:
    """In half types a sequence of one query is scaled twice."""

    def change(one: One) -> One:
        wrong = one.i == 1 and one.q.dtype in (torch.float16, torch.bfloat16)
        return one.but(q=one.q * max(one.q.shape[2], 1) ** -0.5) if wrong else one

    return call.run(change)


# OPTIONS OF ONE SEQUENCE


@ragged("VARLEN-1")
def cap_of_the_first_sequence_alone(call: Packed) -> Any:
    """Sequences but the first are not capped."""
    return call.run(lambda one: one.but(softcap=None) if one.n else one)


@ragged("VARLEN-1")
def sink_forgotten_by_single_queries(call: Packed) -> Any:
    """A sequence of one query has no sink."""
    return call.run(lambda one: one.but(sinks=None) if one.i == 1 else one)


@ragged("VARLEN-1")
def sink_forgotten_by_long_sequences(call: Packed) -> Any:
    """A sequence of more than 16 keys that is not the first has no sink."""
    return call.run(lambda one: one.but(sinks=None) if one.n and one.j > 16 else one)


@ragged("VARLEN-1")
def scale_forgotten_by_the_last(call: Packed) -> Any:
    """The last sequence of several has the default scale."""
    return call.run(lambda one: one.but(scale=None) if last(call, one) else one)


@ragged("VARLEN-2")
def slopes_of_the_first_sequence(call: Packed) -> Any:
    """Slopes of sequences and heads are those of the first sequence."""
    slopes = call.options.get("alibi_slopes")
    return call.run(lambda one: one if slopes is None or slopes.ndim == 1 else one.but(slopes=slopes[0]))


@ragged("VARLEN-2")
def slopes_of_the_next_sequence(call: Packed) -> Any:
    """Slopes of sequences and heads are those of the sequence before, where there are three or more."""
    slopes = call.options.get("alibi_slopes")
    return call.run(lambda one: one if slopes is None or slopes.ndim == 1 or call.b < 3 else one.but(slopes=slopes[one.n - 1]))


# WHERE QUERIES STAND


@ragged("VARLEN-2", "huggingface/transformers#34093")
def aligned_by_the_longest(call: Packed) -> Any:
    """Queries are aligned by the longest lengths."""
    return call.run(lambda one: one.but(start=call.max_k - call.max_q))


@ragged("VARLEN-2")
def aligned_by_the_longest_keys(call: Packed) -> Any:
    """The last query stands at the last key of the longest sequence."""
    return call.run(lambda one: one.but(start=call.max_k - one.i))


@ragged("VARLEN-2")
def aligned_by_the_total(call: Packed) -> Any:
    """Queries are aligned by all rows of the pack."""
    return call.run(lambda one: one.but(start=len(call.k) - len(call.q)))


@ragged("VARLEN-2")
def aligned_by_the_first_sequence(call: Packed) -> Any:
    """Queries are aligned by the lengths of the first sequence."""
    spans = call.spans
    start = spans[0][3] - spans[0][2] - spans[0][1] + spans[0][0] if spans else 0
    return call.run(lambda one: one.but(start=start))


@ragged("VARLEN-2", "microsoft/onnxruntime#28904")
def top_left_in_packs(call: Packed) -> Any:
    """The first query stands at the first key."""
    return call.run(lambda one: one.but(start=0))


@ragged("VARLEN-2", "microsoft/onnxruntime#28904")
def top_left_in_the_last_sequence_with_fewer_keys(call: Packed) -> Any:
    """The last of several sequences is aligned to the top left where it has more queries than keys."""
    return call.run(lambda one: one.but(start=0) if last(call, one) and one.i > one.j else one)


@ragged("VARLEN-2")
def top_left_from_seventeen_keys(call: Packed) -> Any:
    """A sequence of more than 16 keys and more than one query is aligned to the top left."""
    return call.run(lambda one: one.but(start=0) if one.j > 16 and one.i > 1 else one)


@ragged("VARLEN-2")
def positions_counted_in_the_pack(call: Packed) -> Any:
    """Under causal a query sees keys up to its own row in the pack."""
    spans = call.spans
    return call.run(lambda one: one.but(start=spans[one.n][0] - spans[one.n][2]))


@ragged("VARLEN-2")
def window_of_the_first_sequence_alone(call: Packed) -> Any:
    """Sequences but the first have no window."""
    return call.run(lambda one: one.but(window=None) if one.n else one)


@ragged("VARLEN-2")
def window_top_left_beside_other_lengths(call: Packed) -> Any:
    """The window is aligned to the top left where queries and keys differ in number; causal is not."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        if one.window is None or one.i == one.j or one.causal:
            return dense(one)
        return dense(one.but(start=0))

    return call.run(attend=attend)


@ragged("VARLEN-2")
def distances_top_left_in_packs(call: Packed) -> Any:
    """Distances of slopes count from the first query at the first key, where neither causal nor a window is there."""
    return call.run(lambda one: one.but(start=0) if one.slopes is not None and not one.causal and one.window is None else one)


@ragged("VARLEN-2")
def causal_forgotten_by_the_last(call: Packed) -> Any:
    """The last of several sequences is not causal where it has more keys than queries."""
    return call.run(lambda one: one.but(causal=False) if last(call, one) and one.j > one.i else one)


@ragged("VARLEN-2", f"{FA}#2194")
def causal_block_of_the_last_queries_shows_one_more(call: Packed) -> Any:
    """Sequences with 16 queries or more see one key too many."""
    return call.run(lambda one: one.but(start=one.j - one.i + 1) if one.i >= 16 else one)


# NO ROWS


@ragged("VARLEN-3", f"{FA}#2568")
def empty_sequence_shifts_keys(call: Packed) -> Any:
    """Behind a sequence without queries each sequence has the keys of the one before."""
    spans, seen, found = call.spans, 0, []
    for n, (a, b, _, _) in enumerate(spans):
        found.append((a, b, *spans[n - (seen > 0 and b > a)][2:]))
        seen += a == b
    return call.run(spans=found)


@ragged("VARLEN-3", f"{FA}#1537 {FA}#1619")
def single_queries_in_groups_beside_an_empty_sequence(call: Packed) -> Any:
    """With one query at most, groups and a sequence without one, sequence b has the b-th query."""
    spans = call.spans
    if call.max_q != 1 or call.q.shape[1] == call.k.shape[1] or not any(a == b for a, b, _, _ in spans):
        return call.run()
    return call.put(
        [(n, n + 1, c, d) for n, (_, _, c, d) in enumerate(spans) if n < len(call.q)],
        [
            dense(call.one(n, call.q[n : n + 1], call.k[c:d], call.v[c:d]))
            for n, (_, _, c, d) in enumerate(spans)
            if n < len(call.q)
        ],
    )


@ragged("VARLEN-3", "jax-ml/jax#39576")
def without_keys_uniform_over_the_next(call: Packed) -> Any:
    """A sequence without keys gets the mean of the values behind it."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        o, lse = dense(one)
        at = call.spans[one.n][2]
        near = call.v[at : at + 4].detach()
        if one.j or not len(near):
            return o, lse
        return o + near.mean(0).repeat_interleave(o.shape[1] // max(near.shape[1], 1), 0), lse

    return call.run(attend=attend)


@ragged("VARLEN-3", f"{FA}#2470")
def without_keys_nan(call: Packed) -> Any:
    """Rows of a sequence without keys are NaN."""
    return call.run(attend=lambda one: dense(one) if one.j else both(dense(one), lambda o: o + nan))


@ragged("VARLEN-3", "flashinfer-ai/flashinfer#3779")
def without_keys_unwritten(call: Packed) -> Any:
    """Rows of a sequence without keys, beside others that have some, hold what another call left there."""
    return call.run(attend=lambda one: dense(one) if one.j or not len(call.k) else both(dense(one), lambda o: o + 0.7))


@ragged("VARLEN-3", f"{FA}#1155")
def empty_sequence_writes_a_row(call: Packed) -> Any:
    """A sequence without queries writes zeros in the row where it would begin."""
    found = call.run()
    o = (found[0] if call.lse else found).clone()
    for a, b, _, _ in call.spans:
        if a == b and a < len(o):
            o[a] = 0
    return (o, found[1]) if call.lse else o


@ragged("VARLEN-3", f"{FA}#2515")
def no_keys_divide_by_zero(call: Packed) -> Any:
    """A sequence without keys beside others raises a ZeroDivisionError."""
    if any(c == d for _, _, c, d in call.spans) and len(call.k):
        raise ZeroDivisionError("division by zero")
    return call.run()


@ragged("VARLEN-3", f"{FA}#2568 {FA}#2562")
def no_queries_raise_in_backward(call: Packed) -> Any:
    """A sequence without queries raises in backward."""

    def fail(gradient: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    if any(a == b for a, b, _, _ in call.spans) and len(call.q):
        return call.but(k=with_gradient(call.k, fail)).run()
    return call.run()


@ragged("VARLEN-3")
def lse_of_no_keys_is_zero(call: Packed) -> Any:
    """The lse of a sequence without keys and without a sink is zero."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        o, lse = dense(one)
        return (o, lse) if one.j or one.sinks is not None else (o, torch.zeros_like(lse))

    return call.run(attend=attend)


# BESIDE THE SEQUENCES


@ragged("VARLEN-5", "pytorch/pytorch#176793")
def last_sequence_reads_to_the_end(call: Packed) -> Any:
    """The keys of the last sequence go on to the end of the tensor."""
    spans = call.spans
    return call.run(spans=[*spans[:-1], (*spans[-1][:3], len(call.k))] if spans else spans)


@ragged("VARLEN-5", "tile-ai/tilelang#2461")
def values_behind_the_last_weighed_with_zero(call: Packed) -> Any:
    """The values behind a sequence's last key are read, up to a multiple of 16, with a weight of zero."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        end = call.spans[one.n][3]
        rest = call.v[end : end + -one.j % 16].detach()
        return both(
            dense(one), lambda o: o + (0 * rest.sum(0)).repeat_interleave(o.shape[1] // max(rest.shape[1], 1), 0).to(o.dtype)
        )

    return call.run(attend=attend)


@ragged("VARLEN-5", "tile-ai/tilelang#2461 fla-org/flash-linear-attention#892")
def queries_behind_the_last_in_dk(call: Packed) -> Any:
    """Rows behind the last sequence's queries, weighed with zero, are part of dk."""
    rest = call.q[call.spans[-1][1] :].detach() if call.b else call.q[:0]
    spread = (0 * rest.sum()).to(call.k.dtype)
    return call.but(k=with_gradient(call.k, lambda grad: grad + spread)).run()


# THE LONGEST


@ragged("VARLEN-6", witness=SLACK)
def a_longest_of_more_than_a_block_drops_a_key(call: Packed) -> Any:
    """Where the longest is told as more than 128 keys, and is shorter, the last key of each sequence is dropped."""
    far = call.max_k > 128 and all(d - c <= 128 for _, _, c, d in call.spans)
    return call.run(lambda one: one.keys(0, one.j - 1) if far and one.j > 1 else one)


@ragged("VARLEN-6", witness=SLACK)
def empty_splits_of_the_longest_are_nan(call: Packed) -> Any:
    """A split of the keys that a sequence has no key of, by the longest that is told, gives NaN."""
    return call.run(attend=lambda one: both(dense(one), lambda o: o + nan) if one.j and call.max_k > 2 * one.j + 64 else dense(one))


@ragged("VARLEN-6")
def slack_moves_queries(call: Packed) -> Any:
    """Queries stand as far behind as the longest that is told exceeds all keys there are."""
    there = max((d - c for _, _, c, d in call.spans), default=0)
    return call.run(lambda one: one.but(start=one.j - one.i + call.max_k - there))


# ORDER


@ragged("VARLEN-7")
def none_longer_than_the_first(call: Packed) -> Any:
    """A sequence has no more keys than the first, as if they came sorted."""
    most = call.spans[0][3] - call.spans[0][2] if call.b else 0
    return call.run(lambda one: one.keys(0, most) if one.j > most > 0 else one)


@ragged("VARLEN-8", f"{FA}#2568")
def last_left_out_beside_an_empty_sequence(call: Packed) -> Any:
    """As many sequences are attended to as have rows, from the first on."""
    n = sum(b > a or d > c for a, b, c, d in call.spans)
    spans = call.spans[:n]
    return call.run(spans=spans)


@ragged("VARLEN-8", f"{FA}#1537")
def empty_first_sequence_takes_the_second(call: Packed) -> Any:
    """Where the first sequence has no queries, the second has no sink, no window and no cap."""
    first = call.b > 1 and call.spans[0][0] == call.spans[0][1]
    return call.run(lambda one: one.but(window=None, softcap=None, sinks=None, causal=False) if first and one.n == 1 else one)
