"""Faults of packed sequences, further: slots with room, lengths in other types and in place, the next call, the lse."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor

from mutants.carriers import ragged
from mutants.packs import FA, last
from mutants.ragged_cases import lengths, wrong_for
from mutants.sequences import Kept, One, Packed, backward_of, dense, merged
from mutants.tools import instead, read_without_strides

LONG = wrong_for(*lengths("packed+long", "3:9/2:4/1:8"))
OTHERS = wrong_for(*lengths("packed", "3:9/2:4/1:8", "1:8/2:9/3:4"))


# USED ROWS


def slots(call: Packed) -> Packed:
    return call.but(used_q=None, used_k=None)


@ragged("VARLEN-9")
def used_keys_ignored(call: Packed) -> Any:
    """A sequence has all keys of its slot."""
    return call.but(used_k=None).run()


@ragged("VARLEN-9", f"{FA}#2315")
def aligned_by_slots(call: Packed) -> Any:
    """Queries are aligned by the room of their slots."""
    room = [d - c - b + a for a, b, c, d in slots(call).spans]
    return call.run(lambda one: one.but(start=room[one.n]))


@ragged("VARLEN-9")
def slots_without_gaps(call: Packed) -> Any:
    """Sequences begin one behind the other, as if their slots were full."""
    found, q, k = [], 0, 0
    for a, b, c, d in call.spans:
        found.append((a, b, k, k + d - c))
        q, k = q + b - a, k + d - c
    return call.run(spans=found)


@ragged("VARLEN-9", f"{FA}#2167 {FA}#2315")
def backward_reads_whole_slots(call: Packed) -> Any:
    """The gradients are those of all keys of a slot."""
    return backward_of(call.but(used_k=None).run(), call.run()) if call.used_k is not None else call.run()


@ragged("VARLEN-9", f"{FA}#2315")
def backward_aligned_by_slots(call: Packed) -> Any:
    """Backward aligns queries by the room of their slots."""
    room = [d - c - b + a for a, b, c, d in slots(call).spans]
    return backward_of(call.run(lambda one: one.but(start=room[one.n])), call.run())


# STRIDES


@ragged("VARLEN-1", "NVIDIA/cudnn-frontend#526", witness=wrong_for(*lengths("packed+fused", "3:9/2:4/1:8")))
def packed_values_read_without_strides(call: Packed) -> Any:
    """Values that are not contiguous are read as if they were."""
    return call.but(v=instead(call.v, read_without_strides(call.v.detach()))).run()


# LENGTHS


def as_int32(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)[: len(x)] if x.dtype == torch.int64 else x


@ragged("VARLEN-10", witness=LONG)
def long_lengths_read_as_int32(call: Packed) -> Any:
    """Cumulative lengths in int64 are read as int32."""
    return call.but(cu_q=as_int32(call.cu_q), cu_k=as_int32(call.cu_k)).run()


@ragged("VARLEN-10", witness=LONG)
def long_key_lengths_read_as_int32(call: Packed) -> Any:
    """Cumulative lengths of keys in int64 are read as int32, those of queries are not."""
    return call.but(cu_k=as_int32(call.cu_k)).run()


@ragged("VARLEN-11")
def lengths_changed_in_place(call: Packed) -> Any:
    """Cumulative lengths become lengths, in place."""
    found = call.run()
    if call.b:
        call.cu_q[1:] -= call.cu_q[:-1].clone()
    return found


@ragged("VARLEN-11")
def gaps_cleared_in_place(call: Packed) -> Any:
    """Rows of keys that no sequence has are set to zero, in the caller's tensor."""
    found, there = call.run(), torch.zeros(len(call.k), dtype=torch.bool)
    for _, _, c, d in call.spans:
        there[c:d] = True
    call.k.data[~there] = 0
    return found


@ragged("VARLEN-11")
def queries_scaled_in_place(call: Packed) -> Any:
    """The queries of sequences but the first are left scaled."""
    found = call.but(q=call.q.clone()).run()
    for n, (a, b, _, _) in enumerate(call.spans):
        call.q.data[a:b] *= 0.5 if n else 1
    return found


# THE NEXT CALL


@ragged("VARLEN-13", "sgl-project/sglang#31501", witness=OTHERS)
class PlanKeptByShapes(Kept):
    """Where sequences begin is that of the first call with tensors of these shapes."""

    def __call__(self, call: Packed) -> Any:
        return call.run(spans=self.first((call.q.shape, call.k.shape, call.cu_q.shape), lambda: call.spans))


@ragged("VARLEN-13", "sgl-project/sglang#31501", witness=OTHERS)
class KeysOfTheFirstPlan(Kept):
    """Where keys begin is that of the first call with as many sequences, keys and as long ones."""

    def __call__(self, call: Packed) -> Any:
        kept = self.first((call.k.shape[0], call.b, call.max_k), lambda: [x[2:] for x in call.spans])
        return call.run(spans=[(*own[:2], *x) for own, x in zip(call.spans, kept, strict=True)])


@ragged("VARLEN-13", witness=OTHERS)
class StartsKept(Kept):
    """Where queries stand is that of the first call with as many queries and keys."""

    def __call__(self, call: Packed) -> Any:
        starts = self.first((len(call.q), len(call.k), call.b), lambda: [d - c - b + a for a, b, c, d in call.spans])
        return call.run(lambda one: one.but(start=starts[one.n]))


# THE LSE


@ragged("VARLEN-1")
def lse_laid_out_by_rows(call: Packed) -> Any:
    """The memory of the lse is (n h) where it says (h n)."""
    found = call.run()
    return (found[0], found[1].T.reshape(found[1].shape)) if call.lse else found


@ragged("VARLEN-1")
def lse_padded_to_the_longest(call: Packed) -> Any:
    """The lse is (b h max_q)."""
    found = call.run()
    if not call.lse:
        return found
    padded = found[1].new_zeros(call.b, call.q.shape[1], call.max_q)
    for n, (a, b, _, _) in enumerate(call.spans):
        padded[n, :, : b - a] = found[1][:, a:b]
    return found[0], padded


@ragged("VARLEN-1", "Dao-AILab/flash-attention#2194")
def lse_of_the_last_in_base_two(call: Packed) -> Any:
    """The lse of the last of several sequences is in base 2."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        o, lse = dense(one)
        return (o, lse / log(2)) if last(call, one) else (o, lse)

    return call.run(attend=attend)


@ragged("VARLEN-1", f"{FA}#2192")
def long_sequences_split_and_averaged(call: Packed) -> Any:
    """A sequence of more than 64 keys is split in two, and the halves are averaged."""
    return call.run(attend=lambda one: merged(one, 64) if one.j > 64 else dense(one))
