"""Quarter turns of pairs of channels: rotary tables by which a rotation is exact. Importing this needs no torch.

A table of cos and sin that holds 0, 1 and −1 alone turns a pair (x, y) into (x, y), (−y, x), (−x, −y) or (y, −x). Nothing is
rounded in any dtype, and the inverse turn gives the same numbers back. So a problem holds what is turned already, and the call is
given what turns into it. Scripts of failures hold the text of these functions, which have no annotations therefore.
"""

from __future__ import annotations


def cos_and_sin(positions, pairs, steady, like):  # type: ignore[no-untyped-def]
    """The rows (n pairs) of n positions in a table of cos, and in one of sin, in the dtype of a tensor.

    Neighbours differ in position and in pair, and nothing repeats soon. steady: each pair turns by its own number of quarters for
    each position, so that scores depend on distances alone.
    """
    import torch

    t = torch.as_tensor(list(positions), dtype=torch.long, device=like.device).view(-1, 1)
    r = torch.arange(pairs, device=like.device)
    quarters = (1 + r % 3) * t if steady else ((t + 1) * (2 * r + 3) * 40503 + (t + 1) ** 2 * 30323 + r * r * 977) // 128
    return tuple(torch.tensor(x, dtype=like.dtype, device=like.device)[quarters % 4] for x in ([1, 0, -1, 0], [0, 1, 0, -1]))


def turned(x, positions, width, interleaved, steady, back=False):  # type: ignore[no-untyped-def]
    """x (… n d) with its first `width` channels turned by the quarters of n positions, or turned back.

    Pairs are (2r, 2r + 1) where they are interleaved, else (r, r + width/2). A zero comes without its sign.
    """
    cos, sin = cos_and_sin(positions, width // 2, steady, x)
    sin = -sin if back else sin
    first = slice(0, width, 2) if interleaved else slice(0, width // 2)
    second = slice(1, width, 2) if interleaved else slice(width // 2, width)
    found, a, b = x.clone(), x[..., first], x[..., second]
    found[..., first], found[..., second] = a * cos - b * sin + 0.0, a * sin + b * cos + 0.0
    return found
