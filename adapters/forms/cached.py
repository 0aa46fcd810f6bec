"""A cache of keys and values, of which each sequence has a slot."""

from __future__ import annotations

from attnspec.adapters.forms.parts import look_at, nobodys, side_by_side
from attnspec.spec.turns import cos_and_sin, turned


def cached(
    attend,
    q,
    k,
    v,
    *,
    q_lengths,
    k_lengths,
    poison="nan",
    new=(),
    left=(),
    room=0,
    slots=(),
    spare=0,
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
    """Call attend(q (b i h d), k_cache (s c g d), v_cache (s c g e), lengths) with q, k, v (b h i d), and return o (b h i e).

    lengths (b) int32: rows of each slot that are filled before the call. Where the call gets new keys and values, k_new (b a g d)
    and v_new (b a g e), it writes them behind these rows, and attends to them, too. left (b) int32: the first rows of a slot, which
    hold no key; they count in lengths. slots (b) int32: the slot of each sequence; without it they are in order. o is (b i h e), an
    lse (b h i). Where caches are not written but returned, attend returns a dict of o, lse, k_cache and v_cache.

    Where new keys are turned, the call gets cos and sin (rows pairs), of which row t is that of position t. A new key stands at
    lengths + a, a query at lengths + i, and `interleaved` names the pairs where a call does. A cache of latents is k_cache alone:
    v_cache is None, k_new comes without v_new, and value_width says how many of its first channels are the values.
    """
    import torch

    b, left_of, new_of = len(q_lengths), left or (0,) * len(q_lengths), new or (0,) * len(q_lengths)
    capacity = max((a + n for a, n in zip(left_of, k_lengths, strict=True)), default=0) + room
    slot_of = slots or tuple(range(b))

    def cache(x):
        """The slots with what was there before, and poison elsewhere."""
        found = nobodys(x, (b + spare, capacity, x.shape[1], x.shape[3]), poison)
        for n in range(b):
            old = k_lengths[n] - new_of[n]
            found[slot_of[n], left_of[n] : left_of[n] + old] = x.detach()[n, :, :old].transpose(0, 1)
        return found

    ints = {"dtype": torch.int32, "device": q.device}
    filled = [left_of[n] + k_lengths[n] - new_of[n] for n in range(b)]
    given = {"q": q.detach().transpose(1, 2).contiguous(), "k_cache": cache(k), "v_cache": None if latent else cache(v)}
    if fused and not latent:
        given["k_cache"], given["v_cache"] = side_by_side(given["k_cache"], given["v_cache"])
    given["lengths"] = torch.tensor(filled, **ints)
    for name, x in (("k_new", k), ("v_new", v)) if new else ():
        own = [x.detach()[n, :, k_lengths[n] - new_of[n] : k_lengths[n]].transpose(0, 1) for n in range(b)]
        given[name] = torch.stack(own) if own else x.new_zeros(0, 0, x.shape[1], x.shape[3])
    written = {name: given[name] for name in ("k_new", "v_new") if new}
    if rotary:
        given["cos"], given["sin"] = cos_and_sin(range(max(capacity, max(filled, default=0) + q.shape[2])), rotary // 2, steady, q)
        for name in ("q", "k_new"):
            for n in range(b):
                at = range(filled[n], filled[n] + given[name].shape[1])
                rows = turned(given[name][n].transpose(0, 1), at, rotary, interleaved, steady, back=True)
                given[name] = torch.cat([given[name][:n], rows.transpose(0, 1)[None], given[name][n + 1 :]])
        options |= {"interleaved": interleaved} if told else {}
    if latent:
        given.pop("v_new", None)
        options["value_width"] = v.shape[3]
    if left:
        given["left"] = torch.tensor(left, **ints)
    if slots:
        given["slots"] = torch.tensor(slots, **ints)
    after = {name: x.clone() for name, x in given.items() if x is not None}
    returned = attend(**given, **options, **({"lse": True} if lse else {}))
    found = given
    if isinstance(returned, dict):
        found = {**given, **{name: returned[name] for name in ("k_cache", "v_cache") if name in returned}}
        returned = (returned["o"], returned["lse"]) if lse else returned["o"]
    if rotary and found["k_cache"].shape == after["k_cache"].shape:
        found = {**found, "k_cache": found["k_cache"].clone()}
    for n in range(b) if new else ():
        place = slot_of[n], slice(filled[n], filled[n] + new_of[n])
        for name, x in (("k_cache", "k_new"), ("v_cache", "v_new")):
            if name in after:
                after[name][place] = written[x][n]
        if rotary and found["k_cache"].shape == after["k_cache"].shape:  # a zero that was turned has any sign
            found["k_cache"][place] += 0.0
            after["k_cache"][place] += 0.0
    look_at(found, after, spoilt)
    o, of_rows = returned if lse else (returned, None)
    o = o.transpose(1, 2) if isinstance(o, torch.Tensor) and o.ndim == 4 else o
    return (o, of_rows) if lse else o
