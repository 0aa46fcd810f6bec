"""Restrictions: features that an implementation offers, but not in every combination; and when it may raise Unsupported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from attnspec.spec import OPTIONS, Problem
from attnspec.spec.ragged import Cached


@dataclass(frozen=True)
class Restriction:
    """means: what the implementation takes, in words. forbids: whether it leaves a problem out; None if no problem tells."""

    means: str
    forbids: Callable[[Problem], bool] | None = None


def _unequal(problem: Problem) -> bool:
    """Whether a sequence has another number of keys than of queries, where these are neither in a cache nor in pages."""
    carrier = problem.carrier
    return carrier is not None and carrier.feature in ("packed", "padded") and carrier.q_lengths != carrier.k_lengths


def _appends_less(problem: Problem) -> bool:
    """Whether a call with a cache has not a new key for each query."""
    carrier = problem.carrier
    return isinstance(carrier, Cached) and (not carrier.new or set(carrier.new) != {problem.i})


RESTRICTIONS: dict[str, Restriction] = {
    "always_causal": Restriction("every call is causal", lambda x: not x.causal),
    "some_heads": Restriction("at least one head", lambda x: not x.h),
    "equal_lengths": Restriction("as many keys as queries", lambda x: x.i != x.j or _unequal(x)),
    "always_append": Restriction("a call with a cache appends a key for each query", _appends_less),
    "one_tensor": Restriction("queries, keys and values are one tensor", lambda x: not (x.q is x.k is x.v)),
    "padding_only": Restriction("a mask is key padding (b j)", lambda x: x.mask is not None and x.mask.ndim != 2),
    "mask_or_bias": Restriction("a mask or a bias, not both", lambda x: x.mask is not None and x.bias is not None),
    "mask_or_causal": Restriction("a mask or causal, not both", lambda x: x.mask is not None and x.causal),
    "bias_or_causal": Restriction("a bias or causal, not both", lambda x: x.bias is not None and x.causal),
    "backward_method": Restriction("gradients by Tensor.backward() alone: torch.autograd.grad is refused"),
    "no_backward:DEVICE": Restriction("no gradients on this type of device, no_backward:cpu"),
}
NO_BACKWARD = "no_backward:"


def unknown(restrictions: Iterable[str]) -> list[str]:
    """The names that are not restrictions."""
    return sorted(name for name in restrictions if name not in RESTRICTIONS and not name.startswith(NO_BACKWARD))


def forbidden(restrictions: Iterable[str], problem: Problem) -> str:
    """The restriction that leaves a problem out, with its meaning; '' if none does."""
    for name, restriction in RESTRICTIONS.items():
        if restriction.forbids is not None and name in restrictions and restriction.forbids(problem):
            return f"{name}: {restriction.means}"
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
    plain = next((heads for heads in ("mha", "shared_kv", "mqa") if heads in offered), "mha")
    beyond = needs(problem) - {plain, *(("causal",) if "always_causal" in restrictions else ())}
    if not needs(problem) <= offered or len(beyond) > 1:
        return ""
    what = f"it needs only {next(iter(beyond))}, which is in `offers`: remove it there" if beyond else "it is a plain call"
    return f"{what}, or declare a restriction (`widths`, `restrictions`: {', '.join(RESTRICTIONS)})"
