"""A case bent to what an adapter offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import FACTORS, PLAIN, Case
from attnspec.conformance.problems.factors.factor import Offer

RULED = [(name, factor.fitted) for name, factor in FACTORS.items() if factor.ruled]


def decodes(case: Case) -> bool:
    """Few queries against more keys, as a cache of keys asks."""
    return case.i <= 8 and case.keys > case.i


def fit(case: Case, adapter: Adapter) -> Case:
    """The nearest case that uses nothing but what is offered, and nothing that a restriction leaves out."""
    if adapter.restrictions:
        case = _restricted(case, set(adapter.restrictions))
    offer = Offer(frozenset(adapter.offers), adapter.widths)
    fitted = object.__new__(Case)  # a copy that is still in the making: what a rule reads of it is fitted already
    levels = vars(fitted)
    levels.update(vars(case))
    for name, rule in RULED:
        levels[name] = rule(fitted, offer)
    return case if levels == vars(case) else fitted


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
    for n, (a, b) in enumerate((("mask", "bias"), ("mask", "causal"), ("bias", "causal"))):
        if f"{a}_or_{b}" in restrictions and getattr(case, a) != PLAIN[a] and getattr(case, b) != PLAIN[b]:
            dropped = a if case.seed >> n & 1 or (b == "causal" and "always_causal" in restrictions) else b
            case = replace(case, **{dropped: PLAIN[dropped]})
    return case
