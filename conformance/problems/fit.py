"""A case bent to what an adapter offers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import FACTORS, PLAIN, Case
from attnspec.conformance.problems.factors import COST
from attnspec.conformance.problems.factors.factor import Offer
from attnspec.conformance.problems.factors.ragged import DENSE_ALONE, form_of, lengths_of
from attnspec.conformance.problems.factors.sizes import heads_of

SQUARE = 5 * COST  # of as many queries as keys, so that four heads of 1025 fit, and one of 2049: a gigabyte
RULED = [(name, factor.fitted) for name, factor in FACTORS.items() if factor.ruled]


def decodes(case: Case) -> bool:
    """Few queries against more keys, as a cache of keys asks."""
    return case.i <= 8 and case.keys > case.i


def grows(trial: Case, case: Case, most: int = COST) -> bool:
    """Whether a case costs more than the one that it was made of, and more than `most`.

    j = 0 means as many keys as queries, however many these are.
    """
    return trial.cost > max(most, case.cost)


def affordable(case: Case, widths: Iterable[int] | None, most: int = COST) -> Case:
    """The same case with widths, then lengths, halved until it costs no more than `most`. Offered widths stay."""
    while case.cost > most:
        if case.d > 16 and widths is None:
            case = replace(case, d=case.d // 2, e=case.e // 2)
        elif case.e > 16:
            case = replace(case, e=case.e // 2)
        elif not case.j:
            case = replace(case, i=case.i // 2)
        else:  # the shorter one, as long as there is something left of it: long rows matter
            queries = (case.i <= case.j) == (min(case.i, case.j) > 3)
            case = replace(case, i=case.i // 2) if queries else replace(case, j=case.j // 2)
    return case


def thinner(trial: Case, case: Case, adapter: Adapter) -> Case:
    """What was made of a case, with one batch item and smaller where it costs more than the case and than a large square."""
    grown = grows(trial, case, SQUARE)
    return affordable(replace(trial, b=1), adapter.widths, SQUARE) if grown else trial


def fit(case: Case, adapter: Adapter) -> Case:
    """The nearest case that uses nothing but what is offered, and nothing that a restriction leaves out."""
    if adapter.restrictions:
        case = thinner(_restricted(case, set(adapter.restrictions)), case, adapter)
    offer = Offer(frozenset(adapter.offers), adapter.widths)
    fitted = object.__new__(Case)  # a copy that is still in the making: what a rule reads of it is fitted already
    levels = vars(fitted)
    levels.update(vars(case))
    for name, rule in RULED:
        levels[name] = rule(fitted, offer)
    if fitted.carrier != "none":
        levels.update(_ragged(fitted, offer))
    return case if levels == vars(case) else fitted


def _ragged(case: Case, offer: Offer) -> dict[str, Any]:
    """What gives way to a carrier: what only dense calls have, and gradients where keys are in a cache or in pages."""
    gives = dict(DENSE_ALONE) | {"holes": FACTORS["holes"].plain, "biases": FACTORS["biases"].plain}
    if case.g is None:
        gives["heads"] = heads_of(replace(case, heads=f"{case.h}/1"), offer)
    if form_of(case) in ("cached", "paged"):
        gives |= {"wrt": "none", "do": "dense"}
    elif case.wrt not in ("q", "k", "v", "qv", "none"):
        gives["wrt"] = "all"
    if gives.get("wrt") == "none" and case.lse != "none":
        gives["lse"] = "returned"
    return gives


def _restricted(case: Case, restrictions: set[str]) -> Case:
    """The nearest case that the restrictions leave. Of two options that exclude each other the seed says which is dropped."""
    changes: dict[str, Any] = {}
    if "always_causal" in restrictions:
        changes["causal"] = True
    if restrictions & {"equal_lengths", "one_tensor"}:
        changes["j"] = 0
    if "one_tensor" in restrictions:  # large keys are made for small queries: among themselves they score beyond 10⁸
        changes |= {"heads": f"{case.h}/{case.h}", "e": 0, "values": "peaked" if case.values == "large" else case.values}
    if "padding_only" in restrictions and case.mask != "none":
        changes["mask"] = "padding"
    case = replace(case, **changes)
    if "j" in changes and form_of(case) in ("packed", "padded"):
        q_lengths, k_lengths = lengths_of(case)
        if q_lengths != k_lengths:
            case = replace(case, lengths="/".join(f"{n}:{n}" for n in q_lengths))
    if "always_append" in restrictions and form_of(case) == "cached":
        most = max(case.i, case.keys)
        case = replace(case, j=most if most > case.keys else case.j)
        k_lengths = lengths_of(case)[1]
        if min(k_lengths, default=case.i) < case.i:
            case = replace(case, lengths="/".join(f"{case.i}:{max(n, case.i)}" for n in k_lengths))
        if "append" not in case.carrier.split("+"):
            case = replace(case, carrier=case.carrier.replace("cached", "cached+append"))
    for n, (a, b) in enumerate((("mask", "bias"), ("mask", "causal"), ("bias", "causal"))):
        if f"{a}_or_{b}" in restrictions and getattr(case, a) != PLAIN[a] and getattr(case, b) != PLAIN[b]:
            dropped = a if case.seed >> n & 1 or (b == "causal" and "always_causal" in restrictions) else b
            case = replace(case, **{dropped: PLAIN[dropped]})
    return case
