"""A pool of pages of keys and values, and a table that says which are whose."""

from __future__ import annotations

from attnspec.adapters.forms.parts import apart, look_at, nobodys, side_by_side
from attnspec.spec.turns import cos_and_sin, turned


def paged(
    attend,
    q,
    k,
    v,
    *,
    q_lengths,
    k_lengths,
    poison="nan",
    size=16,
    new=(),
    spare=0,
    columns=0,
    unused=0,
    seed=0,
    shared=0,
    rotary=0,
    interleaved=False,
    told=False,
    steady=False,
    latent=False,
    fused=False,
    spoilt=None,
    lse=False,
    **options,
):
    """Call attend(q (n h d), cu_q, max_q, k_pages (p s g d), v_pages (p s g e), table, lengths) and return o (b h i e).

    The queries are packed: cu_q (b + 1) int32 says where those of each sequence begin. Key j of a sequence is row j % s of page
    table[sequence, j // s]; table is (b columns) int32. lengths (b) int32: the keys of each sequence that are there before the
    call. Where it gets new keys and values, packed as k_new (m g d) and v_new (m g e), cu_new (b + 1) int32 says where those of
    each begin; it writes them behind the others, and attends to them, too. o is (n h e), an lse (h n).

    Where new keys are turned, the call gets cos and sin (rows pairs), of which row t is that of position t. A new key stands at
    lengths + a, a query at lengths + i, and `interleaved` names the pairs where a call does. Pages of latents are k_pages alone:
    v_pages is None, k_new comes without v_new, and value_width says how many of its first channels are the values.
    """
    import random

    import torch

    b, new_of = len(q_lengths), new or (0,) * len(q_lengths)
    counts = [-(-n // size) for n in k_lengths]
    own = sum(n - shared for n in counts) + shared
    spare = max(spare, 1 - own)  # a pool has a page, if nobody has a key
    places = list(range(own + spare))
    if seed:
        random.Random(seed).shuffle(places)
    table: list[list[int]] = []
    taken = 0
    for n in range(b):
        first = table[0][:shared] if n else []
        fresh = counts[n] - len(first)
        table.append([*first, *places[taken : taken + fresh]])
        taken += fresh
    filled = [k_lengths[n] - new_of[n] for n in range(b)]
    ints = {"dtype": torch.int32, "device": q.device}
    width = max(counts, default=0) + columns

    def where(n, first, last):
        """The pages of some keys of a sequence, and their rows in these."""
        keys = torch.arange(first, last, device=q.device)
        return torch.tensor(table[n], dtype=torch.int64, device=q.device)[keys // size], keys % size

    def pool(x):
        """The pages with what was there before, and poison elsewhere."""
        found = nobodys(x, (own + spare, size, x.shape[1], x.shape[3]), poison)
        for n in range(b):
            found[where(n, 0, filled[n])] = x.detach()[n, :, : filled[n]].transpose(0, 1)
        return found

    def packed(x, begins, ends):
        """Some rows of each sequence, one behind the other, and where those of each begin."""
        pieces = [x.detach()[n, :, begins[n] : ends[n]].transpose(0, 1) for n in range(b)]
        starts = [0]
        for piece in pieces:
            starts.append(starts[-1] + len(piece))
        whole = torch.cat(pieces) if pieces else x.new_zeros(0, x.shape[1], x.shape[3])
        return whole, torch.tensor(starts, **ints)

    rows, cu_q = packed(q, [0] * b, q_lengths)
    given = {"q": rows, "cu_q": cu_q, "k_pages": pool(k), "v_pages": None if latent else pool(v)}
    if fused and not latent:
        given["k_pages"], given["v_pages"] = side_by_side(given["k_pages"], given["v_pages"])
    given["table"] = torch.tensor([[*x, *[unused] * (width - len(x))] for x in table], **ints).view(b, width)
    given["lengths"] = torch.tensor(filled, **ints)
    if new:
        given["k_new"], given["cu_new"] = packed(k, filled, k_lengths)
        given["v_new"], _ = packed(v, filled, k_lengths)
    if rotary:
        longest = max((n + max(i, a) for n, i, a in zip(filled, q_lengths, new_of, strict=True)), default=0)
        given["cos"], given["sin"] = cos_and_sin(range(max(width * size, longest)), rotary // 2, steady, q)
        for name, each in (("q", q_lengths), ("k_new", new_of)):
            at = [filled[n] + t for n in range(b) for t in range(each[n])]
            given[name] = (
                turned(given[name].transpose(0, 1), at, rotary, interleaved, steady, back=True).transpose(0, 1).contiguous()
            )
        options |= {"interleaved": interleaved} if told else {}
    if latent:
        given.pop("v_new", None)
        options["value_width"] = v.shape[3]
    after = {name: x.clone() for name, x in given.items() if x is not None}
    returned = attend(**given, max_q=max(q_lengths, default=0), **options, **({"lse": True} if lse else {}))
    found = given
    if isinstance(returned, dict):
        found = {**given, **{name: returned[name] for name in ("k_pages", "v_pages") if name in returned}}
        returned = (returned["o"], returned["lse"]) if lse else returned["o"]
    if rotary and found["k_pages"].shape == after["k_pages"].shape:
        found = {**found, "k_pages": found["k_pages"].clone()}
    for n in range(b) if new else ():
        place = where(n, filled[n], k_lengths[n])
        for name, x in (("k_pages", k), ("v_pages", v)):
            if name in after:
                after[name][place] = x.detach()[n, :, filled[n] : k_lengths[n]].transpose(0, 1)
        if rotary and found["k_pages"].shape == after["k_pages"].shape:  # a zero that was turned has any sign
            found["k_pages"][place] += 0.0
            after["k_pages"][place] += 0.0
    look_at(found, after, spoilt)
    o, of_rows = returned if lse else (returned, None)
    begins, most = cu_q.tolist()[:b], q.shape[2]
    if isinstance(o, torch.Tensor) and o.ndim == 3 and o.shape[:2] == rows.shape[:2]:
        o = apart(o, begins, q_lengths, most, 0).transpose(1, 2)
    if isinstance(of_rows, torch.Tensor) and tuple(of_rows.shape) == (q.shape[1], len(rows)):
        of_rows = apart(of_rows, begins, q_lengths, most, 1)
    return (o, of_rows) if lse else o
