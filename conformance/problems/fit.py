"""A case bent to what an adapter offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import NOT_DENSE, level_of


def decodes(case: Case) -> bool:
    """Few queries against more keys, as a cache of keys asks."""
    return case.i <= 8 and case.keys > case.i


def fit(case: Case, adapter: Adapter) -> Case:
    """The nearest case that uses nothing but what is offered, and nothing that a restriction leaves out."""
    offers = set(adapter.offers)
    if adapter.restrictions:
        case = _restricted(case, set(adapter.restrictions))
    if case.sharing not in offers:
        h = int(level_of("heads", case.heads).split("/")[0])  # as many as its level, so that no level is lost
        forms = {"mha": f"{h}/{h}", "shared_kv": f"{h}/shared", "mqa": f"{h}/1", "gqa": f"{2 * max(h, 2)}/{max(h, 2)}"}
        case = replace(case, heads=next((heads for form, heads in forms.items() if form in offers), f"{h}/{h}"))
    mask, bias = case.mask, case.bias
    if mask == "rank3" and "rank3" not in offers:
        mask = "hij"
    if mask not in ("none", "padding") and "mask" not in offers:
        mask = "padding"
    if mask == "padding" and "key_padding" not in offers:
        mask = "bj" if "mask" in offers else "none"
    if bias == "rank3" and "rank3" not in offers:
        bias = "hij"
    if "bias" not in offers:
        bias = "none"
    wrt = case.wrt
    if wrt == "bias" and (bias == "none" or "bias_grad" not in offers):
        wrt = "all"
    if "backward" not in offers:
        wrt = "none"
    layout = case.layout if case.layout not in NOT_DENSE or "strided" in offers else "bihd"
    d = case.d
    if adapter.widths is not None and d not in adapter.widths:
        d = min(adapter.widths, key=lambda width: (abs(width - d), width))
    fitted = {
        "mask": mask,
        "bias": bias,
        "wrt": wrt,
        "d": d,
        "layout": layout,
        "holes": case.holes if mask != "none" else "random",
        "biases": case.biases if bias != "none" else "normal",
        "e": case.e if "value_width" in offers and case.e != d else 0,
        "causal": case.causal and "causal" in offers,
        "scale": case.scale if "scale" in offers else None,
        "do": case.do if wrt != "none" else "dense",
    }
    changes: dict[str, Any] = {name: level for name, level in fitted.items() if getattr(case, name) != level}
    return replace(case, **changes) if changes else case


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
    plain = {"mask": "none", "bias": "none", "causal": False}
    for n, (a, b) in enumerate((("mask", "bias"), ("mask", "causal"), ("bias", "causal"))):
        if f"{a}_or_{b}" in restrictions and getattr(case, a) != plain[a] and getattr(case, b) != plain[b]:
            dropped = a if case.seed >> n & 1 or (b == "causal" and "always_causal" in restrictions) else b
            case = replace(case, **{dropped: plain[dropped]})  # type: ignore[arg-type]
    return case
