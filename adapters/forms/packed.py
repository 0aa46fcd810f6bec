"""Sequences one behind the other."""

from __future__ import annotations

from attnspec.adapters.forms.parts import apart, filling, look_at, side_by_side


def packed(
    attend,
    q,
    k,
    v,
    *,
    q_lengths,
    k_lengths,
    poison="nan",
    q_gap=0,
    k_gap=0,
    tail=0,
    slack=0,
    order=(),
    long=False,
    fused=False,
    spoilt=None,
    lse=False,
    **options,
):
    """Call attend(q (n h d), k (m g d), v (m g e), cu_q, cu_k, max_q, max_k) with q, k, v (b h i d), and return o (b h i e).

    cu_q, cu_k (b + 1) int32 or int64 say where each sequence's rows begin, and max_q, max_k how long the longest are. Where rows
    behind a sequence belong to none, used_q and used_k (b) int32 say how many it has. An lse is (h n).
    """
    import torch

    def rows(x, lengths, gap, most):
        """The rows of all sequences, with poison in gaps and behind the last; where each sequence begins, and all its places.

        A sequence as long as any has all rows that are there, so that what misfits arrives.
        """
        pieces, begins, at = [x[:, :, :0].transpose(1, 2).flatten(0, 1)], [0], 0
        lure = x.detach().transpose(1, 2).flatten(0, 1)
        fill = filling(x, poison)
        for n in order or range(len(lengths)):
            pieces.append((x[n] if lengths[n] == most else x[n, :, : lengths[n]]).transpose(0, 1))
            pieces.append(other_rows(x, lure, gap, fill))
            at += lengths[n] + gap
            begins.append(at)
        pieces.append(other_rows(x, lure, tail, fill))
        return torch.cat(pieces), begins

    def other_rows(x, lure, n, fill):
        """Rows that belong to no sequence."""
        if fill is None and len(lure):
            return lure[torch.arange(n, device=x.device) * 7 % len(lure)] * 2
        return x.new_full((n, x.shape[1], x.shape[3]), 2.0 if fill is None else fill)

    i, j = q.shape[2], k.shape[2]
    packs = {"q": rows(q, q_lengths, q_gap, i), "k": rows(k, k_lengths, k_gap, j), "v": rows(v, k_lengths, k_gap, j)}
    whole = {name: x for name, (x, _) in packs.items()}
    if fused:
        whole["k"], whole["v"] = side_by_side(whole["k"], whole["v"])
    ints = {"dtype": torch.int64 if long else torch.int32, "device": q.device}
    starts = {name: torch.tensor(packs[name][1], **ints) for name in "qk"}
    given = {"cu_q": starts["q"], "cu_k": starts["k"], "max_q": max(q_lengths, default=0) + slack}
    given["max_k"] = max(k_lengths, default=0) + slack
    turn = list(order or range(len(q_lengths)))
    if q_gap or k_gap:
        used = {"used_q": q_lengths, "used_k": k_lengths}
        given |= {name: torch.tensor([x[n] for n in turn], dtype=torch.int32, device=q.device) for name, x in used.items()}
    if options.get("alibi_slopes") is not None and options["alibi_slopes"].ndim == 2:
        options["alibi_slopes"] = options["alibi_slopes"][turn]
    looked_at = {**whole, **{name: x for name, x in given.items() if isinstance(x, torch.Tensor)}}
    before = {name: x.detach().clone() for name, x in looked_at.items()}
    returned = attend(**whole, **given, **options, **({"lse": True} if lse else {}))
    look_at(looked_at, before, spoilt)
    o, of_rows = returned if lse else (returned, None)
    begins = [packs["q"][1][turn.index(sequence)] for sequence in range(len(q_lengths))]
    n, h = whole["q"].shape[:2]
    if isinstance(o, torch.Tensor) and tuple(o.shape[:2]) == (n, h) and o.ndim == 3:
        o = apart(o, begins, q_lengths, i, 0).transpose(1, 2)
    if isinstance(of_rows, torch.Tensor) and tuple(of_rows.shape) == (h, n):
        of_rows = apart(of_rows, begins, q_lengths, i, 1)
    return (o, of_rows) if lse else o
