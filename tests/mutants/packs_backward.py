"""Faults of the gradients of packed sequences, and of dense tensors beside which lengths are told."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from mutants.carriers import of_padded, ragged
from mutants.packs import FA, last
from mutants.sequences import One, Packed, Padded, backward_of, both, dense
from mutants.tools import with_gradient

# GRADIENTS OF PACKS


@ragged("VARLEN-4", f"{FA}#2315")
def gradient_of_the_last_key_goes_on(call: Packed) -> Any:
    """The first key of a sequence also gets the gradient of the last key of the one before."""

    def edit(grad: Tensor) -> Tensor:
        found = grad.clone()
        for (_, _, c, d), (_, _, e, f) in zip(call.spans, call.spans[1:], strict=False):
            if d > c and f > e:
                found[e] += grad[d - 1]
        return found

    return call.but(k=with_gradient(call.k, edit)).run()


@ragged("VARLEN-4", "NVIDIA/TransformerEngine#1557")
def value_gradient_of_the_last_is_zero(call: Packed) -> Any:
    """dv of the last of several sequences is zero."""
    return call.run(lambda one: one.but(v=one.v.detach()) if last(call, one) else one)


@ragged("VARLEN-4", "NVIDIA/TransformerEngine#1557")
def key_gradient_beyond_64_is_zero(call: Packed) -> Any:
    """dk of keys from the 65th on of sequences but the first is zero."""
    return call.run(lambda one: one.but(k=torch.cat([one.k[:64], one.k[64:].detach()])) if one.n else one)


@ragged("VARLEN-4", f"{FA}#2167")
def backward_top_left(call: Packed) -> Any:
    """Backward aligns causal and windows to the top left."""
    return backward_of(call.run(lambda one: one.but(start=0)), call.run())


@ragged("VARLEN-4")
def backward_aligned_by_the_longest(call: Packed) -> Any:
    """Backward aligns queries by the longest lengths."""
    return backward_of(call.run(lambda one: one.but(start=call.max_k - call.max_q)), call.run())


@ragged("VARLEN-4")
def backward_without_the_window_of_the_last(call: Packed) -> Any:
    """Backward forgets the window in the last of several sequences."""
    return backward_of(call.run(lambda one: one.but(window=None) if last(call, one) else one), call.run())


@ragged("VARLEN-4")
def backward_without_the_sink_of_short_sequences(call: Packed) -> Any:
    """Backward forgets the sink in sequences of fewer than 16 keys behind the first."""
    return backward_of(call.run(lambda one: one.but(sinks=None) if one.n and one.j < 16 else one), call.run())


@ragged("VARLEN-4", f"{FA}#2194")
def query_gradient_of_the_next_sequence(call: Packed) -> Any:
    """The last query of a sequence has the dq of the first of the next."""

    def edit(grad: Tensor) -> Tensor:
        found = grad.clone()
        for (a, b, _, _), (c, d, _, _) in zip(call.spans, call.spans[1:], strict=False):
            if b > a and d > c:
                found[b - 1] = grad[c]
        return found

    return call.but(q=with_gradient(call.q, edit)).run()


@ragged("VARLEN-4")
def lse_gradient_of_the_first_sequence_alone(call: Packed) -> Any:
    """The gradient of the lse is used in the first sequence alone."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        o, lse = dense(one)
        return (o, lse) if not one.n else (o, lse.detach() + 0 * o[..., 0].T.masked_fill(torch.tensor(True), 0.0))

    return call.run(attend=attend)


@ragged("VARLEN-4")
def group_gradient_of_its_first_head(call: Packed) -> Any:
    """With several sequences, dv of a group is that of its first query head, in the last of them."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        if not last(call, one) or not one.groups or not one.v.shape[1]:
            return dense(one)
        first = torch.arange(one.q.shape[1]) % (one.q.shape[1] // one.v.shape[1]) == 0
        (a, lse), (b, _) = dense(one), dense(one.but(v=one.v.detach()))
        return torch.where(first[:, None], a, b), lse

    return call.run(attend=attend)


@ragged("VARLEN-4", f"{FA}#2562")
def gradients_beside_no_keys_are_zero(call: Packed) -> Any:
    """Where some sequence has no keys, all dq are zero."""
    some = any(c == d for _, _, c, d in call.spans)
    return call.but(q=with_gradient(call.q, torch.zeros_like)).run() if some else call.run()


# PADDED


def padded(clause: str, source: str = "") -> Any:
    """Enter a mutant of dense tensors with lengths."""
    return ragged(clause, source, signed=of_padded)


@padded("VARLEN-12")
def key_lengths_ignored(call: Padded) -> Any:
    """Padding is attended to."""
    return call.run(lengths=[(i, call.k.shape[2]) for i, _ in call.lengths])


@padded("VARLEN-12")
def key_lengths_one_too_many(call: Padded) -> Any:
    """A key behind each length is attended to where there is one."""
    return call.run(lengths=[(i, min(j + 1, call.k.shape[2])) for i, j in call.lengths])


@padded("VARLEN-12")
def last_key_lost_at_multiples_of_sixteen(call: Padded) -> Any:
    """A length that is a multiple of 16 loses its last key."""
    return call.run(lambda one: one.keys(0, one.j - 1) if one.j and one.j % 16 == 0 else one)


@padded("VARLEN-12", "jax-ml/jax#39576")
def no_keys_uniform_over_padding(call: Padded) -> Any:
    """A batch item without keys gets the mean of its padding."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        o, lse = dense(one)
        if one.j or not call.k.shape[2]:
            return o, lse
        mean = call.v[one.n].detach().mean(1)
        return o + mean.repeat_interleave(o.shape[1] // max(len(mean), 1), 0), lse

    return call.run(attend=attend)


@padded("VARLEN-12", "microsoft/onnxruntime#28904")
def aligned_by_padded_sizes(call: Padded) -> Any:
    """Queries are aligned by the sizes of the tensors."""
    return call.run(lambda one: one.but(start=call.k.shape[2] - call.q.shape[2]))


@padded("VARLEN-12")
def aligned_by_padded_queries(call: Padded) -> Any:
    """The padded number of queries aligns them."""
    return call.run(lambda one: one.but(start=one.j - call.q.shape[2]))


@padded("VARLEN-12", "microsoft/onnxruntime#28904")
def padded_top_left(call: Padded) -> Any:
    """The first query stands at the first key."""
    return call.run(lambda one: one.but(start=0))


@padded("VARLEN-12")
def lengths_of_the_item_before(call: Padded) -> Any:
    """Batch items but the first have the key length of the one before, where there are three."""
    own = call.lengths
    return call.run(lengths=[(i, own[n - 1][1] if n and len(own) > 2 else j) for n, (i, j) in enumerate(own)])


@padded("VARLEN-12")
def query_lengths_cut_keys(call: Padded) -> Any:
    """A batch item has no more keys than queries where lengths of queries are told."""
    return call.run(lengths=[(i, min(i, j) if call.q_lengths is not None else j) for i, j in call.lengths])


@padded("VARLEN-12")
def padding_weighed_with_zero(call: Padded) -> Any:
    """Values of padding are read with a weight of zero."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        rest = (0 * call.v[one.n, :, one.j :].detach()).sum(1)
        return both(dense(one), lambda o: o + rest.repeat_interleave(o.shape[1] // max(len(rest), 1), 0))

    return call.run(attend=attend)


@padded("VARLEN-12", f"{FA}#2315")
def padded_queries_in_dk(call: Padded) -> Any:
    """Queries of padding, weighed with zero, are part of dk."""
    spread = torch.zeros(len(call.k), dtype=call.k.dtype)
    for n, (i, _) in enumerate(call.lengths):
        spread[n] = (0 * call.q[n, :, i:].detach()).sum()
    return call.but(k=with_gradient(call.k, lambda grad: grad + spread[:, None, None, None])).run()


@padded("VARLEN-12")
def padded_slopes_of_the_first_item(call: Padded) -> Any:
    """Slopes of items and heads are those of the first item."""
    slopes = call.options.get("alibi_slopes")
    return call.run(lambda one: one if slopes is None or slopes.ndim == 1 else one.but(slopes=slopes[0]))


@padded("VARLEN-12")
def no_length_is_one(call: Padded) -> Any:
    """A batch item without keys sees the first row of its padding."""
    return call.run(lengths=[(i, min(max(j, 1), call.k.shape[2])) for i, j in call.lengths])


@padded("VARLEN-12")
def finite_fill_keeps_the_padding_of_long_tensors(call: Padded) -> Any:
    """With 32 keys or more in the tensor the lse counts each key of padding as e⁻³⁰."""

    def attend(one: One) -> tuple[Tensor, Tensor]:
        o, lse = dense(one)
        rest = call.k.shape[2] - one.j
        fill = -30 + torch.log(torch.tensor(float(rest))) if rest and call.k.shape[2] >= 32 else torch.tensor(-inf)
        total = torch.logaddexp(lse, fill.to(lse.dtype))
        share = torch.exp(lse - total.masked_fill(total == -inf, 0.0))
        return both((o, total), lambda o: o * share.T[..., None].to(o.dtype))

    return call.run(attend=attend)


@padded("VARLEN-12", f"{FA}#2167")
def backward_of_the_padded_length(call: Padded) -> Any:
    """Backward aligns queries by the padded number of keys."""
    return backward_of(call.run(lambda one: one.but(start=call.k.shape[2] - one.i)), call.run())
