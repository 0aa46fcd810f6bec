"""Restrictions: features that an implementation offers, but not in every combination; and when it may raise Unsupported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from attnspec.spec import OPTIONS, Problem
from attnspec.spec.ragged import Kept, Packed, Paged


@dataclass(frozen=True)
class Restriction:
    """means: what the implementation takes, in words. forbids: whether it leaves a problem out; None if no problem tells."""

    means: str
    forbids: Callable[[Problem], bool] | None = None


def _appends_less(problem: Problem) -> bool:
    """Whether a call with a cache or pages has not a new key for each query."""
    carrier = problem.carrier
    return isinstance(carrier, Kept) and (not carrier.new or carrier.new != carrier.q_lengths)


RESTRICTIONS: dict[str, Restriction] = {
    "always_causal": Restriction("every call is causal", lambda x: not x.causal),
    "some_heads": Restriction("at least one head", lambda x: not x.h),
    "equal_lengths": Restriction("as many keys as queries", lambda x: _other_lengths(x)),
    "always_append": Restriction("a call with a cache or pages appends a key for each query", _appends_less),
    "one_tensor": Restriction("queries, keys and values are one tensor", lambda x: not (x.q is x.k is x.v)),
    "padding_only": Restriction("a mask is key padding (b j)", lambda x: x.mask is not None and x.mask.ndim != 2),
    "mask_or_bias": Restriction("a mask or a bias, not both", lambda x: x.mask is not None and x.bias is not None),
    "mask_or_causal": Restriction("a mask or causal, not both", lambda x: x.mask is not None and x.causal),
    "bias_or_causal": Restriction("a bias or causal, not both", lambda x: x.bias is not None and x.causal),
    "window_with_causal": Restriction("a window beside causal alone", lambda x: x.window is not None and not x.causal),
    "backward_method": Restriction("gradients by Tensor.backward() alone: torch.autograd.grad is refused"),
    "no_tail": Restriction(
        "no rows behind the last of packed sequences", lambda x: isinstance(x.carrier, Packed) and x.carrier.tail > 0
    ),
    "latent_values": Restriction("values are the first channels of the keys", lambda x: not _latent(x)),
    "heads:H/G": Restriction("this number of query heads and of key heads alone, heads:32/8"),
    "queries:N": Restriction("this number of queries in each sequence alone, queries:1"),
    "value_width:E": Restriction("values of this width alone, value_width:128"),
    "page_size:S": Restriction("pages of this number of rows alone, page_size:64"),
    "no_backward:DEVICE": Restriction("no gradients on this type of device, no_backward:cpu"),
}
NO_BACKWARD = "no_backward:"
# Of a restriction to one size: the name that it begins with, and what may stand behind.
SIZES = {"heads": "[1-9][0-9]*/[1-9][0-9]*", "queries": "[1-9][0-9]*", "value_width": "[1-9][0-9]*", "page_size": "[1-9][0-9]*"}


def sizes(restrictions: Iterable[str]) -> dict[str, Any]:
    """The sizes that alone are taken, by the names of SIZES: heads as a text, the others as numbers."""
    found = (name.partition(":") for name in restrictions)
    return {name: size if name == "heads" else int(size) for name, _, size in found if name in SIZES and size}


def means(name: str) -> str:
    """What a restriction means, which may name a device or a size."""
    which = name.partition(":")[0]
    key = next((key for key in RESTRICTIONS if ":" in key and key.partition(":")[0] == which), name)
    return RESTRICTIONS[key].means.rpartition(", ")[0] if which in SIZES else RESTRICTIONS[key].means


def _other_lengths(problem: Problem) -> bool:
    """Whether there are more or fewer keys than queries, of what is neither in a cache nor in pages."""
    carrier = problem.carrier
    if carrier is None:
        return problem.i != problem.j
    return carrier.feature in ("packed", "padded") and carrier.q_lengths != carrier.k_lengths


def _latent(problem: Problem) -> bool:
    k, v = problem.k, problem.v
    same = v.shape[:-1] == k.shape[:-1] and v.shape[-1] <= k.shape[-1]
    return same and bool((v == k[..., : v.shape[-1]]).all())


def _of_another_size(name: str, size: Any, problem: Problem) -> bool:
    """Whether a problem has another size than the only one that is taken."""
    carrier = problem.carrier
    if name == "heads":
        return size != f"{problem.h}/{'shared' if problem.shared else problem.g}"
    if name == "value_width":
        return bool(size != problem.e)
    if name == "page_size":
        return isinstance(carrier, Paged) and carrier.size != size
    return bool(set((problem.i,) if carrier is None else carrier.q_lengths) - {size})


def unknown(restrictions: Iterable[str]) -> list[str]:
    """The names that are not restrictions."""
    return sorted(name for name in restrictions if not (_with_a_size(name) or name in RESTRICTIONS or name.startswith(NO_BACKWARD)))


def _with_a_size(name: str) -> bool:
    which, _, size = name.partition(":")
    return which in SIZES and re.fullmatch(SIZES[which], size) is not None


def forbidden(restrictions: Iterable[str], problem: Problem) -> str:
    """The restriction that leaves a problem out, with its meaning; '' if none does."""
    for name, restriction in RESTRICTIONS.items():
        if restriction.forbids is not None and name in restrictions and restriction.forbids(problem):
            return f"{name}: {restriction.means}"
    for which, size in sizes(restrictions).items():
        if _of_another_size(which, size, problem):
            return f"{which}:{size}: {means(which)}"
    return ""


def needs(problem: Problem) -> frozenset[str]:
    """The features of a problem for which a caller needs arguments. Gradients and strides are not among them."""
    heads = "shared_kv" if problem.shared else "mha" if problem.g == problem.h else "mqa" if problem.g == 1 else "gqa"
    names = {heads, *(("value_width",) if problem.e != problem.d else ())}
    return frozenset(names.union(*(OPTIONS[name].needed(value) for name, value in problem.given().items())))


def undeclared(offers: Iterable[str], restrictions: Iterable[str], problem: Problem) -> str:
    """Why an adapter may not raise Unsupported for a problem; '' if it may.

    It may if it does not offer what the problem needs, or if two features meet. It may not for a single feature that it offers
    beside a plain call: otherwise an adapter could conform by refusing what is hard.
    """
    offered = set(offers)
    if "always_append" in restrictions and problem.i > problem.j:  # a dense problem of who has a form alone
        return ""
    plain = next((heads for heads in ("mha", "shared_kv", "mqa") if heads in offered), "mha")
    beyond = needs(problem) - {plain, *(("causal",) if "always_causal" in restrictions else ())}
    if not needs(problem) <= offered or len(beyond) > 1:
        return ""
    what = f"it needs only {next(iter(beyond))}, which is in `offers`: remove it there" if beyond else "it is a plain call"
    return f"{what}, or declare a restriction (`widths`, `restrictions`: {', '.join(RESTRICTIONS)})"
