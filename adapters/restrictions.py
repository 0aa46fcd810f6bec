"""Restrictions: what an implementation offers, but not in every combination; and what `raise Unsupported` may stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from attnspec.spec import OPTIONS, Problem


@dataclass(frozen=True)
class Restriction:
    """What is taken, in words, and which problems that leaves out; None where it is no matter of the problem."""

    means: str
    forbids: Callable[[Problem], bool] | None = None


RESTRICTIONS: dict[str, Restriction] = {
    "always_causal": Restriction("every call is causal", lambda x: not x.causal),
    "equal_lengths": Restriction("as many keys as queries", lambda x: x.i != x.j),
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
    """Those that are no restriction."""
    return sorted(name for name in restrictions if name not in RESTRICTIONS and not name.startswith(NO_BACKWARD))


def forbidden(restrictions: Iterable[str], problem: Problem) -> str:
    """The restriction that leaves a problem out, with what it means; '' where none does."""
    for name, restriction in RESTRICTIONS.items():
        if restriction.forbids is not None and name in restrictions and restriction.forbids(problem):
            return f"{name}: {restriction.means}"
    return ""


def needs(problem: Problem) -> frozenset[str]:
    """The features that a caller has words for and that a problem needs. Gradients and strides are none: no argument says them."""
    heads = "shared_kv" if problem.shared else "mha" if problem.g == problem.h else "mqa" if problem.g == 1 else "gqa"
    names = {heads, *(("value_width",) if problem.e != problem.d else ())}
    return frozenset(names.union(*(OPTIONS[name].needed(value) for name, value in problem.given().items())))


def undeclared(offers: Iterable[str], restrictions: Iterable[str], problem: Problem) -> str:
    """Why an adapter may not say that it has no words for a problem; '' where it may.

    It may where something is not offered, and where two features meet. One offered feature beside a plain call is a promise:
    were it enough to raise, whoever refuses what is hard would conform.
    """
    offered = set(offers)
    plain = next((heads for heads in ("mha", "shared_kv", "mqa") if heads in offered), "mha")
    beyond = needs(problem) - {plain, *(("causal",) if "always_causal" in restrictions else ())}
    if not needs(problem) <= offered or len(beyond) > 1:
        return ""
    what = f"it needs only {next(iter(beyond))}, which is in `offers`: remove it there" if beyond else "it is a plain call"
    return f"{what}, or declare a restriction (`widths`, `restrictions`: {', '.join(RESTRICTIONS)})"
