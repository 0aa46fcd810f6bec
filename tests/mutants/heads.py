"""Faults of shared heads: which head is used, where its gradient goes."""

from __future__ import annotations

import torch
from honest import for_each_query_head
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import Steps, with_gradient


def of_heads(call: Call, key: Tensor, value: Tensor | None = None) -> Tensor:
    """The call with these key/value heads for its query heads, where heads are shared."""
    h, g = call.query.shape[1], call.key.shape[1]
    if g in (0, h):
        return call.run()
    return call.but(key=call.key[:, key], value=call.value[:, key if value is None else value]).run()


@mutant("heads", "SHARED-2")
def heads_interleaved(call: Call) -> Tensor:
    """Query head n uses key/value head n % g."""
    h, g = call.query.shape[1], max(call.key.shape[1], 1)
    return of_heads(call, torch.arange(h) % g)


@mutant("heads", "SHARED-2")
def values_interleaved(call: Call) -> Tensor:
    """Query head n uses key head n // (h/g) and value head n % g."""
    h, g = call.query.shape[1], max(call.key.shape[1], 1)
    return of_heads(call, torch.arange(h) // max(h // g, 1), torch.arange(h) % g)


@mutant("heads", "SHARED-2")
def heads_of_three_interleaved(call: Call) -> Tensor:
    """Where three or more query heads share one of several heads, head n uses n % g."""
    h, g = call.query.shape[1], max(call.key.shape[1], 1)
    return of_heads(call, torch.arange(h) % g) if g > 1 and h // g > 2 else call.run()


@mutant("heads", "SHARED-2")
def first_head_for_all(call: Call) -> Tensor:
    """Grouped query heads all use the first key/value head."""
    return of_heads(call, torch.zeros(call.query.shape[1], dtype=torch.long))


@mutant("heads", "SHARED-2")
def last_head_reads_its_neighbour(call: Call) -> Tensor:
    """The last query head uses the key/value head before its own."""
    h, g = call.query.shape[1], max(call.key.shape[1], 1)
    at = torch.arange(h) // max(h // g, 1)
    at[-1:] -= int(g > 1)
    return of_heads(call, at)


@mutant("heads", "SHARED-2")
def group_taken_for_count(call: Call) -> Tensor:
    """Query head n uses head n // g where it should be n // (h/g)."""
    h, g = call.query.shape[1], max(call.key.shape[1], 1)
    return of_heads(call, (torch.arange(h) // g).clamp(max=g - 1))


@mutant("heads", "SHARED-2", "PrimeIntellect-ai/prime-rl#2681")
def keys_repeated_along_time(call: Call) -> Tensor:
    """Shared heads are written out along the keys, where heads and keys can be exchanged."""
    h, g, j = call.query.shape[1], max(call.key.shape[1], 1), call.key.shape[2]
    if g == h:
        return call.run()

    def wrong(x: Tensor) -> Tensor:
        return x.repeat_interleave(h // g, 2).reshape(x.shape[0], h, j, x.shape[3])

    return call.but(key=wrong(call.key), value=wrong(call.value)).run()


@mutant("heads", "SHARED-1")
def one_head_read_past_its_end(call: Call) -> Tensor:
    """The single key/value head is read with the stride of a head: the next batch item's for the second query head."""
    b, h = call.query.shape[:2]
    if call.key.shape[1] != 1 or h == 1:
        return call.run()
    at = (torch.arange(b)[:, None] + torch.arange(h)) % b
    return call.but(key=call.key[:, 0][at], value=call.value[:, 0][at]).run()


@mutant("heads", "SHARED-1", "lucidrains/x-transformers#228")
def one_head_refused(call: Call) -> Tensor:
    """A single key/value head for several query heads raises."""
    if call.key.shape[1] == 1 < call.query.shape[1]:
        raise ValueError("heads differ")
    return call.run()


# GRADIENTS


@mutant("heads", "SHARED-4", "marin-community/levanter#449")
def group_gradient_not_summed(call: Call) -> Tensor:
    """The gradient of a shared key or value head is that of the first query head of its group."""
    h, g = call.query.shape[1], call.key.shape[1]
    if g in (0, h):
        return call.run()
    first = (torch.arange(h, device=call.query.device) % (h // g) == 0)[:, None, None]
    key, value = (
        with_gradient(for_each_query_head(x, h), lambda grad: grad.masked_fill(~first, 0.0)) for x in (call.key, call.value)
    )
    return call.but(key=key, value=value).run()


def expanded(call: Call, name: str, edit) -> Tensor:
    """The call with one of key and value written out, and the gradient of that edited."""
    h, g = call.query.shape[1], call.key.shape[1]
    if g in (0, h):
        return call.run()
    written = {name: with_gradient(for_each_query_head(getattr(call, name), h), edit)}
    other = "value" if name == "key" else "key"
    return call.but(**written, **{other: for_each_query_head(getattr(call, other), h)}).run()


@mutant("heads", "SHARED-4")
def key_group_gradient_of_last(call: Call) -> Tensor:
    """dk of a shared head is that of the last query head of its group."""
    h, g = call.query.shape[1], max(call.key.shape[1], 1)
    last = (torch.arange(h) % max(h // g, 1) == h // g - 1)[:, None, None]
    return expanded(call, "key", lambda grad: grad.masked_fill(~last, 0.0))


@mutant("heads", "SHARED-4")
class GroupGradientAveraged(Steps):
    """dk and dv of a shared head are means over its group."""

    def shared(self, gradient: Tensor, like: Tensor) -> Tensor:
        return super().shared(gradient, like) / (self.q.shape[1] // max(like.shape[1], 1))


@mutant("heads", "SHARED-4")
def value_group_gradient_averaged_by_six(call: Call) -> Tensor:
    """dv of a head that three or more query heads share is divided by their number."""
    n = call.query.shape[1] // max(call.key.shape[1], 1)
    return expanded(call, "value", lambda grad: grad / (n if n > 2 else 1))


@mutant("heads", "SHARED-4", "XunhaoLai/native-sparse-attention-triton#27 fla-org/flash-linear-attention#384")
class GroupGradientInterleaved(Steps):
    """Backward adds dk and dv to head n % g where forward read n // (h/g)."""

    def shared(self, gradient: Tensor, like: Tensor) -> Tensor:
        b, g, j, d = like.shape
        return gradient.reshape(b, -1, g, j, d).sum(1).to(like.dtype) if g else super().shared(gradient, like)


@mutant("heads", "SHARED-4")
class GroupGradientInHalf(Steps):
    """The gradients of a group are rounded to bfloat16 before they are summed."""

    def shared(self, gradient: Tensor, like: Tensor) -> Tensor:
        alone = gradient.shape[1] == like.shape[1]
        return super().shared(gradient if alone else gradient.bfloat16().to(gradient.dtype), like)


@mutant("heads", "SHARED-5")
def grouped_heads_without_scale(call: Call) -> Tensor:
    """The path for grouped heads in bfloat16 uses the scale of the width plus one."""
    h, g, d = call.query.shape[1], call.key.shape[1], call.query.shape[3]
    if g in (0, h) or call.query.dtype != torch.bfloat16 or call.scale is not None:
        return call.run()
    return call.but(scale=(d + 1) ** -0.5).run()
